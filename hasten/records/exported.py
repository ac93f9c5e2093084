"""What ``hasten export`` wrote, and how it compares with the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hasten.records.machine import Candidate, Hardware
from hasten.records.measured import Parity
from hasten.records.model import ModelInfo
from hasten.records.results import Row


@dataclass(frozen=True, slots=True)
class Exported:
    """One artifact in a folder, checked against the original.

    Attributes:
        candidate: engine, precision and recipe.
        model: the original.
        parity: the comparison with the original's answers; where texts were answered both in
            batches and one at a time, the worse of the two.
        refusal: why the check failed; None where it passed. Such an artifact is only written
            with ``force``.
        tried: the recipes before it in the engine's order, with the reason each was not taken.
        files: size in bytes by name, for everything that was written.
        own_texts: whether the texts were the user's; otherwise they are built in.
        judged_texts: how many texts the answers were compared on, copies included.
        calibration_texts: how many others set int8 ranges; 0 where the recipe needs none.
        hardware: the machine.
        versions: of the libraries that made and ran it.
        elapsed_s: seconds for everything.
        usage: Python that loads the artifact.
    """

    candidate: Candidate
    model: ModelInfo
    parity: Parity
    refusal: str | None
    tried: tuple[Row, ...]
    files: Mapping[str, int]
    own_texts: bool
    judged_texts: int
    calibration_texts: int
    hardware: Hardware
    versions: Mapping[str, str]
    elapsed_s: float
    usage: str

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())
