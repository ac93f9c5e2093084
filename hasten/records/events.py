"""What a callback is told while something runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hasten.records.machine import Hardware
from hasten.records.model import LengthProfile, ModelInfo
from hasten.records.results import Tuning


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done now, how far the whole has come, and how long is left."""

    stage: str
    message: str
    done: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a tune is about; reported once, before anything is measured.

    ``different_texts`` of the judged ones are not copies of each other. ``student`` is the smaller
    model that is compared with ``model``, if there is one, and ``taught_texts`` had made it.
    """

    model: ModelInfo
    profile: LengthProfile
    hardware: Hardware
    judged_texts: int
    resumed: bool
    calibration_texts: int = 0
    different_texts: int | None = None
    student: ModelInfo | None = None
    taught_texts: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """What a user would not expect of the model; reported before the long part of a compress."""

    text: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the rest of a bench will take, by experiment; reported before the long part."""

    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Standing:
    """A proved and timed choice stands; the rest of the budget tries to beat it.

    ``tuning`` is what the tune ends with if it is ended now.
    """

    tuning: Tuning


@dataclass(frozen=True, slots=True)
class Decided:
    """The search is over: ``tuning`` is its result, which only has to be saved."""

    tuning: Tuning


Event = Progress | Briefing | Notice | Forecast | Standing | Decided
"""What a callback receives while something runs."""
