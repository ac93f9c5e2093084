"""What all stages of a tune share: the question, the texts, the journal and the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.engines.base import Engine
from hasten.models.folder import TRAINED_RANGES
from hasten.records import (
    MODELS,
    Candidate,
    Event,
    Hardware,
    LengthProfile,
    ModelInfo,
    Progress,
    Settings,
    Text,
)
from hasten.storage.journal import Journal
from hasten.tasks import Task
from hasten.tuning import shares
from hasten.tuning.process import Connection

Report = Callable[[Event], None]
Spawn = Callable[[str], Connection]


@dataclass
class Budget:
    """How much of the time has been used, a resumed run's earlier part included.

    ``total_s`` may be infinite: then no stage has a deadline.
    """

    total_s: float
    journal: Journal
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

    def deadline(self, stage: str, whose: str = "") -> float:
        """The moment, in spent seconds, at which ``stage`` will have used its part.

        :data:`hasten.tuning.shares.PARTS` says which part of what is left; ``whose`` tells several
        stages of that name apart. Kept in the journal: a resumed run must leave out what the
        interrupted one left out, or its decisions would rest on other measurements.
        """
        if math.isinf(self.total_s):
            return math.inf
        part = shares.PARTS[self._phase + stage]
        key = ":".join(filter(None, ("deadline", self._phase + stage, whose)))
        return float(self.journal.once(key, lambda: self.spent_s + part * self.left_s))

    def expect(self, more_s: float) -> None:
        """Say that the whole will be done in ``more_s`` from now, sooner than the budget."""
        if not self._phase:
            self._end_s = min(self.total_s, self.spent_s + more_s)

    @property
    def expected_left_s(self) -> float:
        return max(self._end_s - self.spent_s, 0.0)


@dataclass(frozen=True)
class Subject:
    """A model that candidates run: the folder that :func:`hasten.models.prepare` made of it."""

    reference: Path
    info: ModelInfo

    @property
    def tokenizer(self) -> Path:
        return self.reference / "tokenizer.json"


@dataclass(frozen=True)
class Context:
    """The question that a tune answers, and where it keeps what it finds.

    ``info`` and ``reference`` are the original's, which gives the answers that all others are
    compared with; ``student`` is a smaller model that is tried beside it, if there is one.
    ``taught_texts`` of the user's were left out because they had made the student.
    ``first_look`` are calibration texts on which candidates are looked at first, so that the texts
    that judge do not choose who is judged; where it is empty, judged ones are looked at.
    ``long_look`` are further ones, longer than most, for candidates that cut texts, and
    ``look_lengths`` the tokens of both, int64 [first look + long look].
    ``lengths`` holds the tokens of every judged text, int64 [texts], after truncation, and
    ``calibration_lengths`` those of the texts that set the ranges of int8 candidates, if any.
    """

    settings: Settings
    hardware: Hardware
    engines: Mapping[str, Engine]
    versions: Mapping[str, str]
    info: ModelInfo
    task: Task
    reference: Path
    texts: tuple[Text, ...]
    gold: tuple[str, ...] | None
    lengths: NDArray[np.int64]
    profile: LengthProfile
    folder: Path
    journal: Journal
    budget: Budget
    report: Report
    spawn: Spawn
    calibration_lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    student: Subject | None = None
    taught_texts: int = 0
    first_look: tuple[Text, ...] = ()
    long_look: tuple[Text, ...] = ()
    look_lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def all_texts(self) -> tuple[Text, ...]:
        """What workers hold, and what messages count.

        The judged texts, then the first look's, then the long ones.
        """
        return self.texts + self.first_look + self.long_look

    @property
    def all_lengths(self) -> NDArray[np.int64]:
        """The tokens of each of them: int64 [all texts]."""
        return np.concatenate([self.lengths, self.look_lengths])

    @property
    def answered_texts(self) -> int:
        """How many of them, from the first, the original answers before all else."""
        return len(self.texts) + len(self.first_look)

    @property
    def models(self) -> tuple[str, ...]:
        """Whose candidates there are; see :data:`hasten.records.MODELS`."""
        return MODELS if self.student else MODELS[:1]

    @property
    def trained(self) -> tuple[str, ...]:
        """Which of these bring int8 ranges from training."""
        folders = {"original": self.reference}
        if self.student:
            folders["student"] = self.student.reference
        return tuple(name for name in self.models if (folders[name] / TRAINED_RANGES).exists())

    def subject(self, candidate: Candidate) -> Subject:
        """The model that a candidate runs."""
        if candidate.model == "original":
            return Subject(self.reference, self.info)
        assert self.student, f"{candidate.label} is a student's, and there is none"
        return self.student

    def lengths_for(self, candidate: Candidate) -> NDArray[np.int64]:
        """The tokens that a candidate reads of every judged text, int64 [texts]."""
        return np.minimum(self.lengths, candidate.token_limit(self.info.max_length))

    def artifact(self, candidate: Candidate) -> Path:
        """The folder of the exported artifact; several candidates may share it."""
        name = self.engines[candidate.engine].artifact_name(candidate.untruncated)
        whose = "" if candidate.model == "original" else candidate.model
        return self.folder / "artifacts" / whose / name

    def artifact_name(self, candidate: Candidate, separator: str = "/") -> str:
        """Its name in the journal or, with another separator, in file names of its own."""
        parts = self.artifact(candidate).relative_to(self.folder / "artifacts").parts
        return separator.join(parts)

    @property
    def patience_s(self) -> float:
        """How long a worker may be silent beyond what its task is expected to take.

        Compilers think for a minute; a hang must not cost the whole budget.
        """
        return max(90.0, 0.2 * self.settings.budget_s)

    def tell(self, stage: str, message: str) -> None:
        """Report progress."""
        left_s = self.budget.expected_left_s
        if math.isinf(left_s):
            self.report(Progress(stage, message, 0.0, None))
            return
        done = self.budget.spent_s / max(self.budget.spent_s + left_s, 1e-9)
        self.report(Progress(stage, message, min(done, 1.0), left_s))
