"""What the budget holds, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasten.compress import distil
from hasten.compress.batches import BATCH_SIZE
from hasten.compress.lesson import Lesson, Look, Taught, Tell
from hasten.errors import BudgetError
from hasten.percent import percent
from hasten.records import Event, Notice, Progress

FEWEST_TEXTS = 200
"""Fewer leave too little to train with and to judge by."""

_MOST_EPOCHS = 20
"""More are not used, however large the budget: further steps bring little."""

_RESERVE = 0.05
"""Of the time: for what takes longer than it was measured to."""

INT8_OF_TRAINING = 0.3
"""Of the training time, where fp32 is trained too: rounding moves the answers far less than leaving
blocks or units out does, and ranges settle within a few hundred steps."""

INT8_OF_SEARCH = 0.2
"""Of the budget of a search for the fastest student, for the integers of the one that stays."""

_TIMED_STEPS = 8


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Seconds that training takes beside its steps.

    Attributes:
        look_s: for one look at the agreement.
        checkpoint_s: for writing one checkpoint.
        end_s: for all comparisons.
    """

    look_s: float
    checkpoint_s: float
    end_s: float

    @property
    def total_s(self) -> float:
        # At the end the best checkpoint is read again, the result is kept, and the student is
        # written.
        writing_s = (distil.CHECKS + 3) * self.checkpoint_s
        return distil.CHECKS * self.look_s + writing_s + self.end_s


@dataclass(frozen=True, slots=True)
class Phase:
    """One training phase of several.

    Attributes:
        texts: how many it is trained on.
        step_s: for one batch of them.
        upkeep: what the budget must hold as well.
        share: of the time for training.
        how: is said of its steps, after a space, where not all phases are alike.
    """

    texts: int
    step_s: float
    upkeep: Upkeep
    share: float = 1.0
    how: str = ""

    @property
    def epoch(self) -> int:
        """Steps in which every text trains once."""
        return -(-self.texts // BATCH_SIZE)

    @property
    def epoch_s(self) -> float:
        return self.epoch * self.step_s

    def takes_s(self, steps: int) -> float:
        """How long so many steps take, with all that belongs to them."""
        return steps * self.step_s + self.upkeep.total_s


def phase(lesson: Lesson, upkeep: Upkeep, share: float = 1.0, how: str = "") -> Phase:
    """The phase in which a lesson is trained; a few of its steps are timed."""
    return Phase(len(lesson.tokens), distil.time_steps(lesson, _TIMED_STEPS), upkeep, share, how)


def steps(
    phases: Sequence[Phase],
    *,
    budget_s: float,
    spent_s: float,
    given: Callable[[int], int],
    strict: bool = True,
) -> list[int]:
    """How many steps of training the rest of the budget holds, of each phase.

    Args:
        phases: what is trained; their shares add up to 1.
        budget_s: for all.
        spent_s: of it, until now.
        given: how many texts in all yield that many training texts.
        strict: whether enough texts must be trained on for a student, or else one step.

    Raises:
        BudgetError: fewer texts than a student needs, and that is a must.
    """
    upkeep_s = sum(phase.upkeep.total_s for phase in phases)
    left_s = budget_s * (1.0 - _RESERVE) - spent_s - upkeep_s
    fitting = [max(int(phase.share * left_s / phase.step_s), 0) for phase in phases]
    lacking = [
        phase
        for phase, count in zip(phases, fitting, strict=True)
        if count < phase.epoch and given(count * BATCH_SIZE) < FEWEST_TEXTS
    ]
    if lacking and strict:
        needed_s = spent_s + upkeep_s + max(phase.epoch_s / phase.share for phase in lacking)
        phase = lacking[0]
        raise BudgetError(
            f"one pass over the {phase.texts:,} training texts{phase.how} takes "
            f"{phase.epoch_s:,.0f} s, and the {max(phase.share * left_s, 0):,.0f} s that are left "
            f"for it are too few for any student: {spent_s:,.0f} s are gone, and {upkeep_s:,.0f} s "
            "go into watching, checkpoints and the comparison",
            fix=f"--budget {needed_s / (1.0 - _RESERVE) / 60 + 1:.0f}m.",
        )
    return [_useful(phase, max(count, 1)) for phase, count in zip(phases, fitting, strict=True)]


def _useful(phase: Phase, fitting: int) -> int:
    found = min(fitting, _MOST_EPOCHS * phase.epoch)
    # The last step is one after which the agreement is looked at: none is wasted.
    return found - found % distil.CHECKS if found > distil.CHECKS else found


def trained_on(texts: Sequence[str], taught: Taught | None, int8_steps: int) -> int:
    """How many of the texts trained the student; fewer than all where it was less than a pass."""
    return min(len(texts), BATCH_SIZE * max(taught.steps if taught else 0, int8_steps))


class Teller:
    """Reports what is being done and how long is left.

    Args:
        report: is told.
        begin_s: when the budget began, by ``time.monotonic``.
        budget_s: for all.
    """

    def __init__(self, report: Callable[[Event], None], begin_s: float, budget_s: float) -> None:
        self._report, self._begin_s, self._budget_s = report, begin_s, budget_s

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._begin_s

    def __call__(self, stage: str, message: str, left_s: float | None = None) -> None:
        """Tell of a stage; without ``left_s``, all that the budget still has is left."""
        spent_s = self.spent_s
        left_s = max(self._budget_s - spent_s, 0.0) if left_s is None else left_s
        done = spent_s / max(spent_s + left_s, 1e-9)
        self._report(Progress(stage, message, min(done, 1.0), left_s))

    def notice(self, text: str) -> None:
        """Tell of what a user would not expect."""
        self._report(Notice(text))

    def choosing(self, what: str) -> Callable[[float], None]:
        """Tells of the share of a choice that is done.

        What it returns raises BudgetError where the choice alone will take longer than all may.
        """
        begin_s = time.monotonic()

        def tell(done: float) -> None:
            needed_s = self.spent_s + (time.monotonic() - begin_s) * (1.0 / done - 1.0)
            if needed_s > self._budget_s:
                raise BudgetError(
                    f"choosing which {what} stay takes {needed_s:,.0f} s, and the budget is "
                    f"{self._budget_s:,.0f} s",
                    fix=f"--budget {2 * needed_s / 60 + 1:.0f}m leaves as long for training.",
                )
            self("choose", f"{what}, {percent(done)}")

        return tell

    def teaching(self, stage: str, steps: int, end_s: float, seen: Callable[[Look], str]) -> Tell:
        """Tells of the step that is done, and of the last look as ``seen`` puts it.

        ``end_s`` is what comes after the last step. How long is left follows from the pace since
        the first step that is told, looks and checkpoints included.
        """
        first: list[tuple[int, float]] = []

        def tell(step: int, look: Look | None) -> None:
            now_s = time.monotonic()
            first.append((step, now_s))
            before, begin_s = first[0]
            del first[1:]
            pace_s = (now_s - begin_s) / (step - before) if step > before else None
            left_s = None if pace_s is None else pace_s * (steps - step) + end_s
            last = "" if look is None else f", {seen(look)}"
            self(stage, f"step {step:,} of {steps:,}{last}", left_s)

        return tell
