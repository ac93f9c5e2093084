"""What this machine is: cores that can really be used, instruction sets, memory, GPUs.

Functions that read take a path or a text, so that recorded samples of other machines test them;
only :func:`detect` knows where this machine keeps its files. Nothing here imports a framework.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hasten import gpus
from hasten.records import Gpu, Hardware

INSTRUCTION_SETS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""The instruction sets that matrix products use, by their names in ``/proc/cpuinfo``.

The first 13 are x86's, the rest Arm's. Integer products: ``avx512_vnni``, ``avx_vnni``,
``amx_int8``, ``asimddp``, ``i8mm``. bfloat16 products: ``avx512_bf16``, ``amx_bf16``, ``bf16``.
"""

# Implementer and part as in "CPU implementer : 0x41", "CPU part : 0xd0c"; from Linux,
# arch/arm64/include/asm/cputype.h. The cores of cloud machines and common boards.
_ARM_CORES = {
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse N1",
    ("0x41", "0xd40"): "Arm Neoverse V1",
    ("0x41", "0xd49"): "Arm Neoverse N2",
    ("0x41", "0xd4f"): "Arm Neoverse V2",
    ("0xc0", "0xac3"): "Ampere-1",
}

# macOS's names, from `sysctl hw.optional`.
_MACOS_FEATURES = {
    "hw.optional.sse4_2": "sse4_2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.f16c": "f16c",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}

# Windows's numbers for IsProcessorFeaturePresent, from winnt.h. There are none for VNNI, AMX or
# x86's bf16, so that these are not seen there.
_WINDOWS_FEATURES = {
    19: "asimd",
    38: "sse4_2",
    39: "avx",
    40: "avx2",
    41: "avx512f",
    43: "asimddp",
    46: "sve",
    66: "i8mm",
}


def detect() -> Hardware:
    """Look at the machine as this process may use it.

    ``usable_cores`` is the smallest of the cores present, the affinity mask and, rounded down,
    the container's CPU quota; ``memory_bytes`` the smaller of physical memory and the container's
    limit. Two hyper-threads of one core count once: they share its multipliers, so that in
    matrix products a second thread per core adds contention and no speed. (Windows does not tell
    siblings apart in a simple way; there they count twice.)
    """
    if sys.platform == "win32":
        hardware = _detect_windows()
    elif sys.platform == "darwin":
        hardware = from_sysctl(_output("sysctl", "hw", "machdep.cpu"))
    else:
        hardware = _detect_linux()
    return replace(hardware, gpus=_gpus())


def fingerprint(hardware: Hardware) -> str:
    """A short hash that is the same where the same kernels run: 12 hexadecimal digits.

    It covers the CPU's model, its instruction sets and the kinds of GPU. It leaves out how much
    of the machine this process may use, cores and memory and the number of GPUs: that changes with
    every container, and :func:`differences` tells it. Of two machines with one fingerprint, what
    is fastest on one may still lose on the other, but it runs there, with the same arithmetic.
    """
    kinds = sorted({gpu.name for gpu in hardware.gpus})
    facts = [hardware.cpu_model, sorted(hardware.instruction_sets), kinds]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def differences(then: Hardware, now: Hardware) -> tuple[str, ...]:
    """What is no longer as it was when something was tuned, in sentences for its user.

    >>> zen = Hardware("AMD EPYC 9R14", 8, ("avx2", "avx512f"), 64 << 30)
    >>> differences(zen, replace(zen, usable_cores=2))
    ('Tuned with 8 usable cores, and this machine has 2.',)
    """
    sentences = []
    if then.cpu_model != now.cpu_model:
        sentences.append(f"Tuned on {then.cpu_model}, and this machine has {now.cpu_model}.")
    if then.usable_cores != now.usable_cores:
        sentences.append(
            f"Tuned with {_counted(then.usable_cores, 'usable core')}, and this machine has "
            f"{now.usable_cores}."
        )
    lost = [name for name in then.instruction_sets if name not in now.instruction_sets]
    if lost:
        sentences.append(f"Tuned with {', '.join(lost)}, and this CPU lacks that.")
    gained = [name for name in now.instruction_sets if name not in then.instruction_sets]
    if gained:
        sentences.append(f"Tuned without {', '.join(gained)}, and this CPU has that.")
    # A kernel update moves the total by a few per cent, which nobody needs to hear.
    if now.memory_bytes < 0.9 * then.memory_bytes:
        sentences.append(
            f"Tuned with {_gib(then.memory_bytes)} of memory, and this machine has "
            f"{_gib(now.memory_bytes)}."
        )
    if _names(then.gpus) != _names(now.gpus):
        sentences.append(
            f"Tuned with {_names(then.gpus)}, and this machine has {_names(now.gpus)}."
        )
    return tuple(sentences)


def missing_instructions(precision: str, hardware: Hardware) -> str | None:
    """Why the CPU gains nothing from ``precision``, in one sentence; None where it may.

    Only bf16 can be ruled out by the instruction sets alone: without its instructions it is
    emulated in fp32, slower than fp32 and less exact.

    >>> missing_instructions("bf16", Hardware("AMD EPYC 7763", 2, ("avx2", "fma"), 8 << 30))
    'AMD EPYC 7763 has no bf16 instructions (avx512_bf16, amx_bf16, or bf16 on Arm)'
    """
    if precision != "bf16" or hardware.has_bf16:
        return None
    return f"{hardware.cpu_model} has no bf16 instructions (avx512_bf16, amx_bf16, or bf16 on Arm)"


def cpu_model(cpuinfo: str) -> str:
    """The CPU's name from the text of ``/proc/cpuinfo``."""
    first = next(_processors(cpuinfo), {})
    if "model name" in first:
        return first["model name"]
    implementer, part = first.get("CPU implementer"), first.get("CPU part")
    if implementer is None or part is None:
        return "unknown CPU"
    known = _ARM_CORES.get((implementer, part))
    return known or f"Arm CPU (implementer {implementer}, part {part})"


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Those of :data:`INSTRUCTION_SETS` that the text of ``/proc/cpuinfo`` names, in that order."""
    first = next(_processors(cpuinfo), {})
    present = set((first.get("flags") or first.get("Features") or "").split())
    return _ordered(present)


def physical_cores(cpuinfo: str, cpus: Collection[int]) -> int:
    """How many cores the logical ``cpus`` lie on, hyper-threads of one core counted once.

    Where the text of ``/proc/cpuinfo`` does not tell (Arm, some virtual machines), or says that
    there are no hyper-threads, each logical CPU is a core.
    """
    cores: dict[int, tuple[str, str]] = {}
    for processor in _processors(cpuinfo):
        # Hypervisors exist that number all cores 0: believe the numbers only where the kernel
        # counts more threads than cores.
        threads, own = processor.get("siblings"), processor.get("cpu cores")
        core = processor.get("core id")
        if core is not None and threads != own:
            cores[int(processor["processor"])] = (processor.get("physical id", "0"), core)
    return len({cores.get(cpu, ("alone", str(cpu))) for cpu in cpus})


def cpu_quota(cgroup: str, root: Path) -> float | None:
    """How many CPUs' worth of time the container may use; None where it is not limited.

    Args:
        cgroup: the text of ``/proc/self/cgroup``.
        root: where control groups are mounted, ``/sys/fs/cgroup``.

    Returns:
        The smallest quota on the way from the process's group to the root, version 2
        (``cpu.max``) and version 1 (``cpu.cfs_quota_us``) alike.
    """
    quotas = []
    for folder in _groups(cgroup, root, "cpu"):
        limit, _, period = _text(folder / "cpu.max").partition(" ")
        limit = limit or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if limit.isdecimal() and period.isdecimal():  # else "max", or -1: no limit
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def memory_limit(cgroup: str, root: Path) -> int | None:
    """How many bytes the container may use; None where it is not limited.

    The arguments are those of :func:`cpu_quota`; the files ``memory.max`` (version 2) and
    ``memory.limit_in_bytes`` (version 1, which writes "no limit" as a number near 2**63).
    """
    limits = []
    for folder in _groups(cgroup, root, "memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if limit.isdecimal():
            limits.append(int(limit))
    return min(limits, default=None)


def usable_cores(cores: int, quota: float | None) -> int:
    """Threads that can run at once: the cores, or fewer where a quota stops them.

    A quota is rounded down: with 1.5 CPUs, a second thread stands still half of the time, and
    the first waits for it at every barrier.

    >>> usable_cores(8, 1.5), usable_cores(8, 0.5), usable_cores(8, None)
    (1, 1, 8)
    """
    return max(1, cores if quota is None else min(cores, int(quota)))


def from_sysctl(output: str) -> Hardware:
    """macOS: the machine from the output of ``sysctl hw machdep.cpu``.

    Where some cores are fast and some frugal, both kinds count.
    """
    facts = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    present = {name for key, name in _MACOS_FEATURES.items() if facts.get(key) == "1"}
    return Hardware(
        cpu_model=facts.get("machdep.cpu.brand_string", "unknown CPU"),
        usable_cores=int(facts.get("hw.physicalcpu", os.cpu_count() or 1)),
        instruction_sets=_ordered(present),
        memory_bytes=int(facts.get("hw.memsize", 0)),
    )


def _gpus() -> tuple[Gpu, ...]:
    found = gpus.parse(_output("nvidia-smi", *gpus.QUERY))
    return gpus.visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _detect_linux() -> Hardware:
    cpuinfo, cgroup = _text(Path("/proc/cpuinfo")), _text(Path("/proc/self/cgroup"))
    root = Path("/sys/fs/cgroup")
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit(cgroup, root)
    return Hardware(
        cpu_model=cpu_model(cpuinfo),
        usable_cores=usable_cores(
            physical_cores(cpuinfo, os.sched_getaffinity(0)), cpu_quota(cgroup, root)
        ),
        instruction_sets=instruction_sets(cpuinfo),
        memory_bytes=physical if limit is None else min(physical, limit),
    )


if sys.platform == "win32":

    def _detect_windows() -> Hardware:
        import ctypes
        import winreg

        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as processor:
            model = str(winreg.QueryValueEx(processor, "ProcessorNameString")[0]).strip()
        kernel = ctypes.windll.kernel32
        features = _WINDOWS_FEATURES.items()
        present = {name for code, name in features if kernel.IsProcessorFeaturePresent(code)}
        # MEMORYSTATUSEX is 64 bytes: its own length in the first four, total memory from byte 8.
        status = (ctypes.c_uint64 * 8)(64)
        kernel.GlobalMemoryStatusEx(ctypes.byref(status))
        return Hardware(model, os.cpu_count() or 1, _ordered(present), status[1])


def _processors(cpuinfo: str) -> Iterator[Mapping[str, str]]:
    for block in cpuinfo.split("\n\n"):
        lines = (line.partition(":") for line in block.splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
        if "processor" in facts:
            yield facts


def _groups(cgroup: str, root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that bind a process, from its own up to the root.

    A line of ``/proc/self/cgroup`` is ``number:controllers:path``; version 2 has the number 0
    and no controllers. Inside a container the path can be the host's, which is not mounted here:
    of what does not exist, nothing is read, and the root's files are then the container's own.
    """
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        # A path with ".." lies outside of what this container may see.
        inside = Path() if ".." in path else Path(path.lstrip("/"))
        for mount in mounts:
            yield from (mount / part for part in (inside, *inside.parents))


def _ordered(present: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in INSTRUCTION_SETS if name in present)


def _text(path: Path) -> str:
    """The file's text, stripped; empty where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no limit is set, or another version of control groups: absence is data
        return ""


def _output(*command: str) -> str:
    """What a command prints; empty where it is absent, fails or does not answer in 10 s."""
    try:
        # Ten seconds: on a server with several GPUs, the driver takes some to wake up.
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # no driver, no GPU: absence is data
        return ""
    return done.stdout


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.0f} GiB"


def _names(found: tuple[Gpu, ...]) -> str:
    return ", ".join(gpu.name for gpu in found) or "no GPU"
