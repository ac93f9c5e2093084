"""How much of a tune's time has been used, and until when a stage may go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hasten.records import Event, Progress
from hasten.storage.journal import Journal
from hasten.tuning import shares

Report = Callable[[Event], None]


@dataclass
class Budget:
    """How much of the time has been used, a resumed run's earlier part included.

    ``total_s`` may be infinite: then no stage has a deadline. ``report`` receives the progress.
    """

    total_s: float
    journal: Journal
    report: Report
    _end_s: float = field(init=False)
    _phase: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._end_s = self.total_s

    @property
    def spent_s(self) -> float:
        return self.journal.spent_s

    @property
    def left_s(self) -> float:
        """What is left of the present phase: of :meth:`early`, or of the whole."""
        end_s = self.total_s * (shares.EARLY if self._phase else 1.0)
        return max(end_s - self.spent_s, 0.0)

    @contextmanager
    def early(self) -> Iterator[None]:
        """Within the block, the time left ends where the first answer should stand."""
        self._phase = "early "
        try:
            yield
        finally:
            self._phase = ""

    def deadline(self, stage: str, whose: str = "") -> Deadline:
        """The moment at which ``stage`` will have used its part.

        :data:`hasten.tuning.shares.PARTS` says which part of what is left; ``whose`` tells several
        stages of that name apart. Kept in the journal: a resumed run must leave out what the
        interrupted one left out, or its decisions would rest on other measurements.
        """
        if math.isinf(self.total_s):
            return Deadline(self, math.inf)
        part = shares.PARTS[self._phase + stage]
        key = ":".join(filter(None, ("deadline", self._phase + stage, whose)))
        at_s = self.journal.once(key, lambda: self.spent_s + part * self.left_s)
        return Deadline(self, float(at_s))

    def expect(self, more_s: float) -> None:
        """Say that the whole will be done in ``more_s`` from now, sooner than the budget."""
        if not self._phase:
            self._end_s = min(self.total_s, self.spent_s + more_s)

    def tell(self, stage: str, message: str) -> None:
        """Report what is being done, and how much time is left."""
        spent_s = self.spent_s
        left_s = max(self._end_s - spent_s, 0.0)
        if math.isinf(left_s):
            self.report(Progress(stage, message, 0.0, None))
            return
        done = spent_s / max(spent_s + left_s, 1e-9)
        self.report(Progress(stage, message, min(done, 1.0), left_s))


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment, ``at_s`` in the seconds that a budget counts."""

    budget: Budget
    at_s: float

    def allows(self, more_s: float = 0.0) -> bool:
        """Whether what takes ``more_s`` from now on would be done by then."""
        return self.budget.spent_s + more_s <= self.at_s
