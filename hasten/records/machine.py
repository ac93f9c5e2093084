"""The machine, and the ways to run a model on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hasten.options.choices import DEVICES, PRECISIONS

WORTH_TRYING = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "bf16", "fp16")}
"""Precisions that are tried on a device unless others are asked for."""

MODELS = ("original", "student")
"""Whose weights a candidate runs: those that all answers are compared with, or a smaller model's
that was made to answer like them."""


_INTEGER_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator, as the driver names it.

    ``compute_capability`` is NVIDIA's number for what it can do, such as ``9.0``; empty where the
    driver does not say.
    """

    name: str
    memory_bytes: int
    compute_capability: str = ""

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bfloat16 natively, as GPUs do since Ampere (capability 8.0).

        True where the capability is not known: a run then finds out.
        """
        return not self.compute_capability or float(self.compute_capability) >= 8


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

    @property
    def has_vnni(self) -> bool:
        """Whether the CPU sums products of 8-bit integers in 32 bits at once, without saturating.

        Without (AVX2, AVX-512 before VNNI) pairs of products are summed in 16 bits, which full
        8-bit weights overflow.
        """
        return bool(_INTEGER_PRODUCTS & set(self.instruction_sets))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model: engine, number format, device, and how the cores are shared out.

    ``streams`` batches run at the same time, each on ``intra_op_num_threads`` threads. Where an
    engine has several ways to reach a precision, ``recipe`` names the way (see
    :meth:`hasten.engines.base.Engine.recipes`); ``spared`` are the layers that it leaves in
    floating point, by their names in the module that it was made from, and ``model`` is which of
    :data:`MODELS` that is. Where ``spinning``, threads that wait for work keep their cores busy:
    that is faster on idle cores, and slower where anything else runs.

    ``max_tokens`` is how many tokens of each text it reads at most, special tokens included; None
    for all that the model takes. Longer texts are cut as the model's tokenizer cuts them.

    A cascade is its first stage with the others in ``then``, of which each answers the texts that
    the one before is not sure of.
    """

    engine: str
    precision: str
    device: str
    intra_op_num_threads: int
    streams: int = 1
    recipe: str = ""
    spared: tuple[str, ...] = ()
    model: str = "original"
    spinning: bool = False
    max_tokens: int | None = None
    then: tuple[Candidate, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {MODELS}, not {self.model!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {DEVICES}, not {self.device!r}")
        if self.intra_op_num_threads < 1 or self.streams < 1:
            raise ValueError("intra_op_num_threads and streams must be at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")

    @property
    def threads(self) -> int:
        """Threads of all streams together."""
        return self.streams * self.intra_op_num_threads

    @property
    def exact(self) -> bool:
        """Whether it must give the original's very answers to all texts.

        A student is lossy in fp32 too, and so is what reads only a part of long texts.
        """
        return (
            self.precision == "fp32"
            and self.model == "original"
            and self.max_tokens is None
            and not self.then
        )

    @property
    def untruncated(self) -> Candidate:
        """The candidate that reads whole texts; both run the same artifact."""
        return replace(self, max_tokens=None)

    def token_limit(self, max_length: int) -> int:
        """How many tokens of a text it reads, of a model that takes ``max_length``.

        >>> Candidate("openvino", "fp32", "cpu", 1, max_tokens=128).token_limit(512)
        128
        """
        return max_length if self.max_tokens is None else min(self.max_tokens, max_length)

    @property
    def stages(self) -> tuple[Candidate, ...]:
        """Each stage of a cascade by itself; of another candidate, itself."""
        return (replace(self, then=()), *self.then)

    @property
    def variant(self) -> str:
        """Precision, whose, and whether texts are cut: the fastest of each are compared.

        >>> Candidate("openvino", "int8", "cpu", 1, model="student").variant
        'student int8'
        >>> Candidate("openvino", "fp32", "cpu", 1, max_tokens=128).variant
        'truncated fp32'
        """
        if self.then:
            return "cascade"
        whose = "" if self.model == "original" else self.model
        cut = "truncated" if self.max_tokens else ""
        return " ".join(filter(None, (whose, cut, self.precision)))

    @property
    def layout(self) -> str:
        """Streams times threads, as in ``2x1``: two streams of one thread each.

        >>> Candidate("onnx_runtime", "fp32", "cpu", 2, spinning=True).layout
        '1x2-spin'
        """
        spin = "-spin" if self.spinning else ""
        return f"{self.streams}x{self.intra_op_num_threads}{spin}"

    @property
    def format(self) -> str:
        """Everything but the layout: what its answers depend on. Unique, safe in file names.

        >>> Candidate("openvino", "int8", "cpu", 1, recipe="static", spared=("a", "b")).format
        'openvino-int8-static-spare2-cpu'
        >>> Candidate("openvino", "fp32", "cpu", 1, model="student").format
        'student-openvino-fp32-cpu'
        >>> Candidate("openvino", "fp32", "cpu", 1, max_tokens=128).format
        'openvino-fp32-128tokens-cpu'
        """
        spared = f"spare{len(self.spared)}" if self.spared else ""
        whose = "" if self.model == "original" else self.model
        tokens = f"{self.max_tokens}tokens" if self.max_tokens else ""
        parts = (whose, self.engine, self.precision, self.recipe, spared, tokens, self.device)
        return "-".join(filter(None, parts))

    @property
    def label(self) -> str:
        """A short name that is unique among candidates and safe in file names.

        >>> Candidate("openvino", "bf16", "cpu", 1, streams=2).label
        'openvino-bf16-cpu-2x1'
        """
        return "-then-".join([f"{self.format}-{self.layout}", *(s.label for s in self.then)])


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The fastest matrix product measured on this machine in one precision, in FLOP/s.

    ``flops_per_s`` is the geometric mean of ``samples_flops_per_s``, which were taken between the
    rounds of the candidates.
    """

    precision: str
    device: str
    flops_per_s: float
    samples_flops_per_s: tuple[float, ...] = ()
