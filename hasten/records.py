"""Frozen records that cross module borders.

A record is validated once, when it is made, and does no I/O. Units stand in the names:
``latency_s`` is in seconds, ``memory_bytes`` in bytes. Raw samples are kept; what can be
derived from them is a property. :mod:`hasten.plain` turns records into JSON values and back.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""Known precisions, the most exact first."""

DEVICES = ("cpu", "cuda")

WORTH_TRYING = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
"""Precisions that are tried on a device unless others are asked for."""

OBJECTIVES = ("throughput", "latency")

Status = Literal["chosen", "finalist", "dropped", "refused", "failed", "unavailable"]
"""What became of a candidate:

``chosen``       the winner
``finalist``     measured end to end on the user's texts, answers accepted
``dropped``      clearly slower than another on the first shapes; its numbers are kept
``refused``      its answers are not the original's
``failed``       its process crashed, hung or raised
``unavailable``  it cannot run here; the reason says why
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator, as the driver names it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine as a process sees it.

    ``usable_cores`` is the smallest of the cores present, the affinity mask and the container's
    CPU quota: the number of threads that can really run at once. ``instruction_sets`` uses the
    names of ``/proc/cpuinfo`` (``avx2``, ``avx512f``, ``avx512_vnni``, ``avx512_bf16``, ...).
    """

    cpu_model: str
    usable_cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()

    def __post_init__(self) -> None:
        if self.usable_cores < 1:
            raise ValueError(f"usable_cores must be at least 1, not {self.usable_cores}")

    @property
    def has_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 natively (AVX512-BF16, AMX-BF16, or Arm BF16)."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.instruction_sets))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model: engine, number format, device, and how the cores are shared out.

    ``streams`` batches run at the same time, each on ``intra_op_num_threads`` threads.
    """

    engine: str
    precision: str
    device: str
    intra_op_num_threads: int
    streams: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {DEVICES}, not {self.device!r}")
        if self.intra_op_num_threads < 1 or self.streams < 1:
            raise ValueError("intra_op_num_threads and streams must be at least 1")

    @property
    def layout(self) -> str:
        """Streams times threads, as in ``2x1``: two streams of one thread each."""
        return f"{self.streams}x{self.intra_op_num_threads}"

    @property
    def label(self) -> str:
        """A short name that is unique among candidates and safe in file names.

        >>> Candidate("openvino", "bf16", "cpu", 1, streams=2).label
        'openvino-bf16-cpu-2x1'
        """
        return f"{self.engine}-{self.precision}-{self.device}-{self.layout}"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is, without its weights; everything that running it needs to know.

    ``task`` names an entry of :mod:`hasten.tasks`. ``max_length`` counts tokens, special tokens
    included. ``flops_per_token`` and ``flops_per_token_squared`` give the floating-point work of
    one text of ``n`` tokens as ``a*n + b*n*n`` (a multiply-add is two operations).
    """

    name: str
    architecture: str
    task: str
    labels: tuple[str, ...]
    max_length: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    pad_token_id: int
    parameter_count: int
    flops_per_token: float
    flops_per_token_squared: float
    random_weights: bool = False

    def flops(self, length: int) -> float:
        """Floating-point operations for one text of ``length`` tokens, unpadded."""
        return self.flops_per_token * length + self.flops_per_token_squared * length * length


@dataclass(frozen=True, slots=True)
class LengthProfile:
    """How long the texts are, in tokens after truncation, special tokens included.

    ``texts`` of the ``given`` ones were looked at, a random sample where there are very many.
    """

    texts: int
    tokens: int
    mean: float
    p5: int
    p25: int
    p50: int
    p75: int
    p95: int
    longest: int
    truncated: int
    max_length: int
    given: int

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.texts


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
    :class:`hasten.batching.CostModel`.
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
class Parity:
    """How a candidate's answers differ from the fp32 original's on the same texts.

    ``flips`` counts changed decisions, ``ties`` those among them where the original itself was
    within numerical noise of both answers. ``flip_upper_bound`` is the exact (Clopper-Pearson)
    one-sided 95 % bound on the flip rate. ``decisions`` is False where the outputs were compared
    as tensors only (no labels, or random weights); the differences are then in units of the
    original's standard deviation.
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
    accuracy: float | None = None
    reference_accuracy: float | None = None

    @property
    def flip_rate(self) -> float:
        """Observed share of texts whose decision changed."""
        return self.flips / self.compared


@dataclass(frozen=True, slots=True)
class StartUp:
    """What happens once, before the first useful answer; kept apart from every other figure."""

    load_s: float
    first_call_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """The user's texts through the whole pipeline, tokenizing included.

    One sample per interleaved round, each the wall-clock time for ``texts`` texts.
    ``batch_latency_s`` are the times of single batches, all rounds together.
    """

    strategy: Strategy
    texts: int
    tokens: int
    padding_share: float
    predicted_s: float | None
    total: Measurement
    tokenize: Measurement
    batch_latency_s: tuple[float, ...]

    @property
    def texts_per_s(self) -> float:
        return self.texts / self.total.median_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total.median_s


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
class Ceiling:
    """The fastest matrix product measured on this machine in one precision, in FLOP/s."""

    precision: str
    device: str
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked ``tune`` for; the same names as on the command line."""

    budget_s: float = 600.0
    objective: str = "throughput"
    max_latency_ms: float | None = None
    max_flips: float = 0.01
    strict: bool = False
    engines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    threads: int | None = None
    device: str = "auto"
    texts: int = 1000
    rounds: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tuning:
    """The whole result of ``tune``: the plan and all the evidence for it."""

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

    @property
    def chosen(self) -> Row:
        return next(row for row in self.rows if row.status == "chosen")


EXPERIMENTS = ("batch-size", "length", "order", "latency")
"""What ``hasten bench`` can measure.

``batch-size``  every format over the user's texts, in arrival order, at several batch sizes
``length``      every format at several batch sizes and lengths
``order``       arrival order, sorted by length, and optimal batches, for the leading formats
``latency``     one text at a time, every format
"""


@dataclass(frozen=True, slots=True)
class ShapeTime:
    """What one batch of ``batch_size`` texts of ``length`` tokens costs; see ``CostTable``."""

    batch_size: int
    length: int
    cost: Measurement


@dataclass(frozen=True, slots=True)
class Format:
    """One format in the experiments: an engine, a precision and a device.

    ``row`` is its fastest layout, with the end-to-end runs of ``batch-size`` and ``order`` by
    strategy; ``shapes`` are the cells of ``length``; ``single`` is the layout with one stream,
    and its run the single texts of ``latency``.
    """

    row: Row
    shapes: tuple[ShapeTime, ...] = ()
    single: Row | None = None


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


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done now, how far the whole has come, and how long is left."""

    stage: str
    message: str
    done: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a tune is about; reported once, before anything is measured."""

    model: ModelInfo
    profile: LengthProfile
    hardware: Hardware
    judged_texts: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the rest of a bench will take, by experiment; reported before the long part."""

    seconds: Mapping[str, float]


Event = Progress | Briefing | Forecast
"""What a callback is told while a tune runs."""
