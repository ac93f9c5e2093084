"""Whether a bundle keeps its promise on texts that it was not proved with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.records.measured import Parity
from hasten.records.stages import Stats

Verdict = Literal["holds", "broken", "undecided"]


@dataclass(frozen=True, slots=True)
class Audit:
    """A sample of texts through a bundle and through the original.

    Attributes:
        bundle: its folder.
        original: the model that the answers were compared with.
        verdict: ``holds`` where the sample proves the promise, ``broken`` where it proves the
            contrary, both with 95 % confidence; else ``undecided``.
        reason: why, in a sentence.
        max_flips: the promised share of flipped labels; 0 of a bundle that must be exact.
        flip_lower_bound: exact (Clopper-Pearson) one-sided 95 % bound; the upper one is the
            parity's.
        parity: the comparison; a text counts once, however many copies of it there are.
        given: how many different texts the sample was drawn from.
        more_texts: how many different texts would decide if the share of flips stayed as it is;
            0 where they are enough, or none would.
        stages: how many texts each stage of a cascade answered.
    """

    bundle: str
    original: str
    verdict: Verdict
    reason: str
    max_flips: float
    flip_lower_bound: float
    parity: Parity
    given: int
    more_texts: int
    stages: Stats
