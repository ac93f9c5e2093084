"""The machine, and the ways to run a model on it."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""Known precisions, the most exact first."""

DEVICES = ("cpu", "cuda")

WORTH_TRYING = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
"""Precisions that are tried on a device unless others are asked for."""

OBJECTIVES = ("throughput", "latency")


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
class Ceiling:
    """The fastest matrix product measured on this machine in one precision, in FLOP/s."""

    precision: str
    device: str
    flops_per_s: float
