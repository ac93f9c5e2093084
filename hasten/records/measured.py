"""What was measured, with its raw samples, and what was compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from hasten.records.model import Text


@dataclass(frozen=True, slots=True)
class Strategy:
    """How texts become batches.

    ``arrival`` and ``sorted`` cut every ``batch_size`` texts; ``token_budget`` fills sorted
    batches up to ``token_budget`` padded tokens; ``optimal`` partitions the sorted texts over a
    measured cost table, with at most ``batch_size`` texts in a batch.
    """

    name: Literal["arrival", "sorted", "token_budget", "optimal"]
    batch_size: int
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if (self.token_budget is None) == (self.name == "token_budget"):
            raise ValueError("token_budget goes with the strategy 'token_budget', and only there")

    @property
    def label(self) -> str:
        """As shown in tables.

        >>> Strategy("sorted", 32).label, Strategy("token_budget", 64, 512).label
        ('sorted 32', 'budget 512')
        """
        if self.name == "token_budget":
            return f"budget {self.token_budget}"
        return self.name if self.name == "optimal" else f"{self.name} {self.batch_size}"


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds per batch over batch size and length, with all of a candidate's streams busy.

    ``latency_s[i][j]`` is the time that one batch of ``batch_sizes[i]`` texts, each of
    ``lengths[j]`` tokens, costs the machine: wall-clock time divided by the batches that ran
    side by side. Cells that were not measured are ``None`` and are filled in by
    :class:`hasten.runtime.batching.CostModel`.
    """

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    latency_s: tuple[tuple[float | None, ...], ...]

    def __post_init__(self) -> None:
        for axis in (self.batch_sizes, self.lengths):
            if not axis or any(a >= b for a, b in pairwise(axis)):
                raise ValueError(f"axes must be non-empty and rise strictly, not {axis}")
        rows, columns = len(self.batch_sizes), len(self.lengths)
        if len(self.latency_s) != rows or any(len(row) != columns for row in self.latency_s):
            raise ValueError(f"latency_s must be {rows} rows of {columns} cells")
        measured = [cell for row in self.latency_s for cell in row if cell is not None]
        if not measured or min(measured) <= 0:
            raise ValueError("a cost table needs at least one cell, and every cell positive")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Raw timings of one thing, in the order in which they were taken."""

    samples_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_s or min(self.samples_s) <= 0:
            raise ValueError("a measurement needs at least one sample, and every sample positive")

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)

    @property
    def mean_s(self) -> float:
        """The geometric mean, as in ratios: speeds from it have the ratio as their quotient."""
        return statistics.geometric_mean(self.samples_s)

    @property
    def spread(self) -> float:
        """Interquartile range over the median: 0.05 is quiet, 0.2 is a noisy machine."""
        if len(self.samples_s) < 2:
            return 0.0
        q1, _, q3 = statistics.quantiles(self.samples_s, n=4, method="inclusive")
        return (q3 - q1) / self.median_s


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its bounds, at 95 % confidence unless said otherwise."""

    low: float
    estimate: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval's bounds must be ordered, not {self.low}, {self.high}")

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Flip:
    """One text whose answer changed. Margins say how sure each side was (see hasten.tasks)."""

    index: int
    text: str
    reference_answer: str
    candidate_answer: str
    reference_margin: float
    candidate_margin: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How well the original and a candidate match the right labels.

    ``only_reference_right`` and ``only_candidate_right`` count the texts on which one of the two
    is right and the other is not; ``mcnemar_p`` is the probability of so uneven counts, or more
    uneven ones, if the two were equally good (McNemar's exact test). Micro-F1 is over
    all labels of all texts, where several may apply to one.
    """

    accuracy: float
    reference_accuracy: float
    macro_f1: float
    reference_macro_f1: float
    only_candidate_right: int
    only_reference_right: int
    mcnemar_p: float
    micro_f1: float | None = None
    reference_micro_f1: float | None = None


@dataclass(frozen=True, slots=True)
class Errors:
    """How far the original's and a candidate's numbers are from the right ones, in their unit.

    Relative errors are over the numbers that should not be 0. Spearman's correlation is that with
    the right numbers, the mean over the columns.
    """

    mean_absolute: float
    reference_mean_absolute: float
    mean_relative: float | None = None
    reference_mean_relative: float | None = None
    spearman: float | None = None
    reference_spearman: float | None = None


@dataclass(frozen=True, slots=True)
class BatchingParity:
    """How a candidate's answers differ under one way of batching the texts.

    ``name`` is ``plan`` (the batch plan that would be shipped), ``single`` (one text at a time) or
    ``random`` (random texts in batches of random sizes).
    """

    name: str
    flips: int
    non_finite: int
    max_abs_difference: float


@dataclass(frozen=True, slots=True)
class Parity:
    """How a candidate's answers differ from the fp32 original's on the same texts.

    ``flips`` counts changed decisions, ``ties`` those among them where the original itself was
    within numerical noise of both answers. ``flip_upper_bound`` is the exact (Clopper-Pearson)
    one-sided bound on the flip rate. ``tries`` is how many candidates the same texts may judge:
    each bound has a confidence of 1 - 0.05 / ``tries``, so that all of them hold together with
    95 %. ``decisions`` is False where the outputs were compared as tensors only (no labels, or
    random weights); the differences are then in units of the original's standard deviation.

    Where answers depend on what shares a batch, each text counts as it fared in the worst of
    ``batchings``, of which there are several then. Otherwise the shipped plan alone was compared,
    and ``batchings`` is empty.

    ``flip_margins`` holds the original's margin of every flip, the smallest first, and
    ``margin_quantiles`` how surely the original decides at all: its margin over the next answer
    at 5, 25, 50, 75 and 95 % of the texts. ``constant`` is True where the candidate's outputs do
    not depend on the text and the original's do. ``misaligned`` counts texts for which the
    candidate gave another number of rows than the original; they show no flips. ``quality`` and
    ``errors`` compare both with the right labels or numbers, where these were given.
    ``agreement`` holds figures of the task's own, by name, and ``demanded`` what some of them must
    reach where the candidate is lossy.

    Of a candidate that cuts long texts, ``uncut`` is the comparison over the texts alone that it
    read whole; None where it cut all of them, and for other candidates.
    """

    compared: int
    max_abs_difference: float
    mean_abs_difference: float
    flips: int
    ties: int
    flip_upper_bound: float
    non_finite: int
    decisions: bool
    examples: tuple[Flip, ...] = ()
    flip_margins: tuple[float, ...] = ()
    margin_quantiles: tuple[float, ...] = ()
    constant: bool = False
    quality: Quality | None = None
    tries: int = 1
    batchings: tuple[BatchingParity, ...] = ()
    errors: Errors | None = None
    misaligned: int = 0
    uncut: Parity | None = None
    agreement: Mapping[str, float] = field(default_factory=dict, hash=False)
    demanded: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def cut(self) -> int:
        """How many of the texts were cut, by a candidate that reads less."""
        return self.compared - (self.uncut.compared if self.uncut else 0)

    @property
    def flip_rate(self) -> float:
        """Observed share of texts whose decision changed."""
        return self.flips / self.compared


@dataclass(frozen=True, slots=True)
class Probes:
    """A few texts with the outputs that a candidate gave for them where it was tuned.

    ``outputs`` are rows of numbers, of which ``counts`` gives each text its share; empty where each
    has one. A machine on which the same artifact gives others runs something
    else than what was proved.
    """

    texts: tuple[Text, ...]
    outputs: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StartUp:
    """What happens once, before the first useful answer; kept apart from every other figure."""

    load_s: float
    first_call_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """The user's texts through the whole pipeline, tokenizing included.

    One sample per interleaved round, each the wall-clock time for ``texts`` texts. ``tokens`` are
    those of the whole texts, as far as the model takes them: a candidate that reads less of them
    answers the same texts. ``rounds`` are
    the numbers of these rounds, and ``processes`` says which start of the worker process took each
    sample. Both are empty where they were not recorded. ``batch_latency_s`` are the times of single
    batches, all rounds together.
    """

    strategy: Strategy
    texts: int
    tokens: int
    padding_share: float
    predicted_s: float | None
    total: Measurement
    tokenize: Measurement
    batch_latency_s: tuple[float, ...]
    rounds: tuple[int, ...] = ()
    processes: tuple[int, ...] = ()

    @property
    def process_count(self) -> int:
        """How many worker processes the samples come from."""
        return len(set(self.processes)) or 1

    @property
    def texts_per_s(self) -> float:
        return self.texts / self.total.mean_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total.mean_s


@dataclass(frozen=True, slots=True)
class ShapeTime:
    """What one batch of ``batch_size`` texts of ``length`` tokens costs; see ``CostTable``."""

    batch_size: int
    length: int
    cost: Measurement
