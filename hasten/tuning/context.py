"""What all stages of a tune share: the question, the texts, the journal and the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    Settings,
    Text,
)
from hasten.storage.journal import Journal
from hasten.tasks import Task
from hasten.tuning import shares
from hasten.tuning.budget import Budget
from hasten.tuning.process import Connection

Spawn = Callable[[str], Connection]


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
    ``long_look`` are further ones, longer than most, for candidates that cut texts; ``last_look``
    are the other calibration texts, for cascades; and ``look_lengths`` are the tokens of all three,
    int64 [first look + long look + last look].
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
    spawn: Spawn
    calibration_lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    student: Subject | None = None
    taught_texts: int = 0
    first_look: tuple[Text, ...] = ()
    long_look: tuple[Text, ...] = ()
    last_look: tuple[Text, ...] = ()
    look_lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def all_texts(self) -> tuple[Text, ...]:
        """What workers hold, and what messages count.

        The judged texts, then the first look's, then the long ones, then the rest.
        """
        return self.texts + self.first_look + self.long_look + self.last_look

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

    def report(self, event: Event) -> None:
        """Hand an event to the user's callback."""
        self.budget.report(event)

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
        return max(90.0, shares.PATIENCE * self.settings.budget_s)
