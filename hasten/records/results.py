"""What a user asks for, and the whole answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hasten.options import TuneOptions, default
from hasten.records.cascade import Cascade
from hasten.records.machine import Candidate, Ceiling, Hardware
from hasten.records.measured import (
    CostTable,
    EndToEnd,
    Interval,
    Parity,
    Probes,
    ShapeTime,
    StartUp,
    Strategy,
)
from hasten.records.model import LengthProfile, ModelInfo
from hasten.records.stages import HandsOn

Status = Literal["chosen", "finalist", "dropped", "refused", "failed", "unavailable"]
"""The outcome of a candidate:

``chosen``       the winner
``finalist``     measured end to end on the user's texts, answers accepted
``dropped``      clearly slower than another on the first shapes; its numbers are kept
``refused``      its answers are not the original's
``failed``       its process crashed, hung or raised
``unavailable``  it cannot run here; the reason says why
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Everything known about one candidate: one row of the report's table."""

    candidate: Candidate
    status: Status
    reason: str | None = None
    export_s: float | None = None
    start_up: StartUp | None = None
    screen_tokens_per_s: float | None = None
    cost_table: CostTable | None = None
    parity: Parity | None = None
    runs: tuple[EndToEnd, ...] = ()
    ratio_to_baseline: Interval | None = None
    ceiling_share: float | None = None
    cascade: Cascade | None = None

    @property
    def main(self) -> EndToEnd | None:
        """The run with the strategy that was proved; the others show what batching makes of it."""
        return self.runs[0] if self.runs else None


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision: run this candidate with this strategy.

    ``max_batch_latency_s`` bounds a batch's cost in the terms of the table (``--max-latency-ms``).
    """

    candidate: Candidate
    strategy: Strategy
    cost_table: CostTable | None
    max_batch_latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class FurtherStage:
    """A stage of the chosen cascade after the first; ``takes`` says which texts reach it."""

    plan: Plan
    takes: HandsOn
    probes: Probes | None = None

    @property
    def share(self) -> float:
        """The share of the evaluation texts that reached it."""
        return self.takes.handed / self.takes.texts


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``tune`` or ``bench`` was asked for, from their :mod:`hasten.options`.

    Without ``integers``, int8 is tried only where ``precisions`` names it. With ``cascade_only``,
    lossy candidates are used as stages of a cascade and not by themselves.
    """

    budget_s: float = default(TuneOptions, "budget")
    objective: str = default(TuneOptions, "objective")
    max_latency_ms: float | None = default(TuneOptions, "max_latency_ms")
    max_flips: float = default(TuneOptions, "max_flips")
    strict: bool = default(TuneOptions, "strict")
    engines: tuple[str, ...] = default(TuneOptions, "engines")
    precisions: tuple[str, ...] = default(TuneOptions, "precisions")
    batch_sizes: tuple[int, ...] = default(TuneOptions, "batch_sizes")
    threads: int | None = default(TuneOptions, "threads")
    device: str = default(TuneOptions, "device")
    texts: int = default(TuneOptions, "max_texts")
    calibration: int = default(TuneOptions, "calibration")
    integers: bool = True
    cascade: bool = default(TuneOptions, "cascade")
    cascade_only: bool = default(TuneOptions, "cascade_only")
    stages: int = default(TuneOptions, "stages")
    rounds: int = default(TuneOptions, "rounds")
    seed: int = default(TuneOptions, "seed")
    whole_texts: bool = default(TuneOptions, "whole_texts")


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """The choice that stood first, before the rest of the budget tried to beat it.

    ``at_s`` is when, from the begin of the tune; ``behind`` is its time over that of the final
    choice, in the final rounds.
    """

    candidate: Candidate
    at_s: float
    ratio_to_baseline: Interval | None = None
    behind: Interval | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """The whole result of ``tune``: the plan and all the evidence for it.

    ``judged_texts`` is how many there were, copies included; 0 where it was not kept.
    ``calibration_texts`` were held apart from those that judged, to set the ranges of integer
    candidates; ``probes`` are what the winner answered to a few texts. ``command`` repeats the
    whole, where it is known.

    ``model`` is the original, whose answers all others are compared with. Where ``--reference``
    named it, ``student`` is the smaller model that was tuned beside it; ``taught_texts``, copies
    included, had made the student and judged nothing.

    ``first_answer`` is what stood first. ``ended_early`` is True where the user accepted it before
    the budget was used; the same command then goes on with the search.

    Where a cascade was chosen, ``plan`` is that of its first stage, and ``further`` are the others.
    ``no_cascade`` says why none was tried, where none was. ``original`` is what the original was
    named, a folder's whole path; None where it was an object, or was not kept.
    """

    plan: Plan
    baseline: Row
    rows: tuple[Row, ...]
    ratio_to_runner_up: Interval | None
    runner_up: str | None
    tie: bool
    model: ModelInfo
    profile: LengthProfile
    hardware: Hardware
    ceilings: tuple[Ceiling, ...]
    settings: Settings
    versions: Mapping[str, str]
    elapsed_s: float
    warnings: tuple[str, ...] = ()
    calibration_texts: int = 0
    judged_texts: int = 0
    probes: Probes | None = None
    command: str | None = None
    student: ModelInfo | None = None
    taught_texts: int = 0
    first_answer: FirstAnswer | None = None
    ended_early: bool = False
    further: tuple[FurtherStage, ...] = ()
    no_cascade: str | None = None
    original: str | None = None

    @property
    def chosen(self) -> Row:
        return next(row for row in self.rows if row.status == "chosen")

    @property
    def chosen_model(self) -> ModelInfo:
        """The model that the winner runs: the original, or the student."""
        if self.student is None or self.plan.candidate.model == "original":
            return self.model
        return self.student


@dataclass(frozen=True, slots=True)
class Format:
    """One format in the experiments: an engine, a precision and a device.

    ``row`` is its fastest layout, with the end-to-end runs of ``batch-size`` and ``order`` by
    strategy; ``shapes`` are the cells of ``length``; ``single`` is the layout with one stream,
    and its run the single texts of ``latency``. ``refusal`` says why its answers are not the
    original's; it is measured all the same.
    """

    row: Row
    shapes: tuple[ShapeTime, ...] = ()
    single: Row | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """The whole result of ``bench``, or as much of it as there is yet.

    ``baseline`` is PyTorch eager fp32 at batch 1 in arrival order; ``others`` are layouts that
    were slower than their format's best, and candidates that failed or cannot run here.
    ``settings.rounds`` is the number of runs. ``command`` repeats the whole, where it is known.
    """

    model: ModelInfo
    profile: LengthProfile
    hardware: Hardware
    settings: Settings
    experiments: tuple[str, ...]
    lengths: tuple[int, ...]
    versions: Mapping[str, str]
    baseline: Row
    formats: tuple[Format, ...]
    others: tuple[Row, ...]
    ceilings: tuple[Ceiling, ...]
    elapsed_s: float
    complete: bool
    command: str | None = None
