"""The stages of a bundle: which model answers first, and which texts it hands on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class HandsOn:
    """Which texts a stage hands on to the next: those whose score is below ``below``, or NaN.

    ``below_cut``, if given, takes the place of ``below`` for texts of which the stage did not read
    the end, as they were longer than it reads. ``margin`` is the task's own sureness (see
    :mod:`hasten.tasks`), in units of the logits. Of ``texts`` texts that proved the threshold,
    ``handed`` were handed on; 0 of 0 where that was not counted. A run that hands on a very
    different share warns.
    """

    below: float
    score: Literal["margin"] = "margin"
    handed: int = 0
    texts: int = 0
    below_cut: float | None = None

    def __post_init__(self) -> None:
        for threshold in (self.below, self.below_cut or 0.0):
            if not math.isfinite(threshold):
                raise ValueError(f"a threshold must be a finite number, not {threshold}")
        if not 0 <= self.handed <= self.texts:
            raise ValueError(f"of {self.texts} texts, {self.handed} cannot be handed on")


@dataclass(frozen=True, slots=True)
class Stats:
    """How many texts each stage answered, in the order of the stages."""

    answered: tuple[int, ...]

    @property
    def texts(self) -> int:
        """All of them."""
        return sum(self.answered)

    def reached(self, stage: int) -> int:
        """How many texts came to this stage (from 0).

        >>> Stats((94, 4, 2)).reached(1)
        6
        """
        return sum(self.answered[stage:])
