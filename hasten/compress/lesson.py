"""What is trained and what comes of it, as plain records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.inputs.tokenization import Tokens
from hasten.tasks import Objective

if TYPE_CHECKING:
    from torch import nn

LEARNING_RATE = 1e-4
"""At its highest, of a model as wide as BERT-base."""

RELATIONS = 1.0
"""Weight of the relations beside the answers and the hidden states, which have 1; 0 leaves them
out. Those of queries, keys and values weigh alike, as in Wang et al. (2021)."""


@dataclass(frozen=True, slots=True)
class Look:
    """How far a student has come, on texts that are not trained on.

    Attributes:
        agreement: share of the answers that are the original's, 0 to 1.
        closeness: 1 less the mean difference of the outputs, in units of their spread. It tells
            two students apart long before a few hundred answers do, so it decides which is best.
    """

    agreement: float
    closeness: float


@dataclass(frozen=True, slots=True)
class Taught:
    """The outcome of a training phase: its steps, and the evaluations, in order."""

    steps: int
    looks: tuple[Look, ...]

    @property
    def best(self) -> Look:
        """The look at what was kept."""
        return max(self.looks, key=lambda look: look.closeness)


def learning_rate(hidden_size: int) -> float:
    """At its highest: as Adam's best rate, in inverse proportion to the model's width.

    The proportion is that of Yang et al., "Tensor Programs V" (2022).

    >>> learning_rate(768), learning_rate(384)
    (0.0001, 0.0002)
    """
    return LEARNING_RATE * 768 / hidden_size


Tell = Callable[[int, Look | None], None]
"""Is given the steps that are done, and the last look."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is trained, by which teacher, on which texts.

    Attributes:
        original: the teacher; never changed.
        student: changed in place.
        layers: which of the original's blocks the student's are.
        tokens: of the training texts.
        pad_token_id: of the tokenizer.
        gold: the right class of each training text, int64, where labels are known.
        objective: what the student's answers are trained on; its task's.
        look: at a model, the student's state of that moment.
        steps: batches in all.
        seed: for the order of the texts.
        learning_rate: at its highest.
        relations: weight of the attention's relations in the loss.
        bf16: whether products are computed in bfloat16; weights stay float32.
        overdue: whether the time is over. Asked after each step; ends the lesson.
    """

    original: nn.Module
    student: nn.Module
    layers: Sequence[int]
    tokens: Tokens
    pad_token_id: int
    gold: Sequence[int] | None
    objective: Objective
    look: Callable[[nn.Module], Look]
    steps: int
    seed: int
    learning_rate: float = LEARNING_RATE
    relations: float = RELATIONS
    bf16: bool = False
    overdue: Callable[[], bool] = bool
