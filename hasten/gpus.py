"""The GPUs that this process may use, as NVIDIA's driver names them.

The driver is asked through ``nvidia-smi``, and not through a framework: a question to CUDA opens a
context, which takes hundreds of MiB of the card and must not be inherited by other processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.records import Gpu

FIELDS = ("uuid", "memory.total", "compute_cap", "name")
QUERY = (f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
"""What ``nvidia-smi`` is called with; it numbers GPUs by their place on the PCI bus."""


def parse(output: str) -> tuple[tuple[str, Gpu], ...]:
    """Each GPU with its UUID, from what ``nvidia-smi`` answers to :data:`QUERY`.

    >>> parse("GPU-5f3c, 143771, 9.0, NVIDIA H200")
    (('GPU-5f3c', Gpu(name='NVIDIA H200', memory_bytes=150754820096, compute_capability='9.0')),)

    A GPU that shares the machine's memory prints ``[N/A]``, and gets 0 bytes.
    """
    gpus = []
    for line in output.splitlines():
        values = [part.strip() for part in line.split(",", len(FIELDS) - 1)]
        if len(values) == len(FIELDS):
            uuid, mebibytes, capability, name = values
            memory_bytes = int(mebibytes) << 20 if mebibytes.isdecimal() else 0
            known = capability.replace(".", "").isdecimal()
            gpus.append((uuid, Gpu(name, memory_bytes, capability if known else "")))
    return tuple(gpus)


def visible(gpus: Sequence[tuple[str, Gpu]], chosen: str | None) -> tuple[Gpu, ...]:
    """Those that a process with this ``CUDA_VISIBLE_DEVICES`` sees, in its order.

    As the CUDA C++ Programming Guide says ("CUDA Environment Variables"): numbers, or the first
    characters of UUIDs; whatever follows the first that names no GPU is ignored. None where the
    variable is not set.

    >>> a, b = Gpu("A100", 80 << 30), Gpu("T4", 16 << 30)
    >>> [gpu.name for gpu in visible([("GPU-12", a), ("GPU-34", b)], "1,0,7,0")]
    ['T4', 'A100']
    >>> visible([("GPU-12", a)], "")
    ()
    """
    if chosen is None:
        return tuple(gpu for _, gpu in gpus)
    found: list[Gpu] = []
    for name in chosen.split(","):
        gpu = _named(gpus, name.strip())
        if gpu is None:
            break
        found.append(gpu)
    return tuple(found)


def _named(gpus: Sequence[tuple[str, Gpu]], name: str) -> Gpu | None:
    if name.isdecimal():
        return gpus[int(name)][1] if int(name) < len(gpus) else None
    matching = [gpu for uuid, gpu in gpus if name and uuid.startswith(name)]
    return matching[0] if len(matching) == 1 else None
