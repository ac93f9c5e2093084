from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from hasten import gpus, hardware
from hasten.hardware import (
    INSTRUCTION_SETS,
    cpu_model,
    cpu_quota,
    detect,
    differences,
    fingerprint,
    from_sysctl,
    instruction_sets,
    memory_limit,
    missing_instructions,
    physical_cores,
    usable_cores,
)
from hasten.plain import from_json, to_json
from hasten.records import Gpu, Hardware

# Recorded /proc/cpuinfo, shortened to the lines that matter and some of their neighbours.
ZEN_4 = """\
processor	: {cpu}
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC 9654 96-Core Processor
physical id	: {socket}
siblings	: {siblings}
core id		: {core}
cpu cores	: {cores}
flags		: fpu vme de pse sse sse2 ht nx pni pclmulqdq monitor ssse3 fma cx16 sse4_1 sse4_2 \
x2apic movbe popcnt aes xsave avx f16c rdrand bmi1 avx2 smep bmi2 erms avx512f avx512dq rdseed adx \
avx512ifma avx512cd sha_ni avx512bw avx512vl xsaveopt avx512_bf16 clzero avx512vbmi avx512_vbmi2 \
gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid fsrm
bugs		: sysret_ss_attrs spectre_v1

"""
SAPPHIRE_RAPIDS = """\
processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8488C
flags		: fpu vme sse sse2 ss ht ssse3 fma cx16 sse4_1 sse4_2 x2apic avx f16c rdrand \
hypervisor avx2 smep bmi2 avx512f avx512dq avx512bw avx512vl avx_vnni avx512_bf16 wbnoinvd \
avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg serialize amx_bf16 avx512_fp16 amx_tile amx_int8

"""
NEOVERSE_N1 = """\
processor	: {cpu}
BogoMIPS	: 50.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp ssbs
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

"""
CORTEX_X4 = """\
processor       : 0
BogoMIPS        : 38.40
Features        : fp asimd fphp asimdhp asimdrdm jscvt fcma sm4 asimddp sha512 i8mm bf16 dgh bti
CPU implementer : 0x41
CPU part        : 0xd80
"""


def zen_4(threads_of_core: int, cores: int, sockets: int = 1) -> str:
    """Numbered as Linux does: first one thread of every core, then their siblings."""
    numbered = [
        (socket, core)
        for _ in range(threads_of_core)
        for socket in range(sockets)
        for core in range(cores)
    ]
    return "".join(
        ZEN_4.format(cpu=i, socket=s, core=c, cores=cores, siblings=cores * threads_of_core)
        for i, (s, c) in enumerate(numbered)
    )


def test_models() -> None:
    assert cpu_model(zen_4(2, 2)) == "AMD EPYC 9654 96-Core Processor"
    assert cpu_model(SAPPHIRE_RAPIDS) == "Intel(R) Xeon(R) Platinum 8488C"
    assert cpu_model(NEOVERSE_N1.format(cpu=0)) == "Arm Neoverse N1"
    assert cpu_model(CORTEX_X4) == "Arm CPU (implementer 0x41, part 0xd80)"
    assert cpu_model("") == "unknown CPU"


def test_instruction_sets() -> None:
    common = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni")
    assert instruction_sets(zen_4(1, 1)) == (*common, "avx512_bf16")
    amx = ("amx_tile", "amx_bf16", "amx_int8")
    intel = (*common, "avx_vnni", "avx512_bf16", "avx512_fp16", *amx)
    assert instruction_sets(SAPPHIRE_RAPIDS) == intel
    assert instruction_sets(NEOVERSE_N1.format(cpu=0)) == ("asimd", "asimddp")
    assert instruction_sets(CORTEX_X4) == ("asimd", "asimddp", "i8mm", "bf16")
    assert instruction_sets("") == ()


def test_siblings_count_once() -> None:
    cpuinfo = zen_4(threads_of_core=2, cores=4)
    assert physical_cores(cpuinfo, range(8)) == 4
    assert physical_cores(cpuinfo, {0, 4}) == 1
    assert physical_cores(cpuinfo, {0, 1, 4}) == 2
    assert physical_cores(cpuinfo, {6}) == 1


def test_the_cores_of_two_sockets_differ_although_their_numbers_repeat() -> None:
    assert physical_cores(zen_4(threads_of_core=2, cores=4, sockets=2), range(16)) == 8


def test_where_there_are_no_siblings_core_numbers_are_not_believed() -> None:
    one_number_for_all = "".join(
        ZEN_4.format(cpu=cpu, socket=0, core=0, cores=4, siblings=4) for cpu in range(4)
    )
    assert physical_cores(one_number_for_all, range(4)) == 4


def test_a_sibling_that_is_switched_off() -> None:
    # Seen on an EPYC 9654P: 96 cores, 191 siblings.
    blocks = zen_4(threads_of_core=2, cores=4).split("\n\n")
    online = "\n\n".join(blocks[:7] + blocks[8:]).replace("siblings\t: 8", "siblings\t: 7")
    assert physical_cores(online, range(7)) == 4


@pytest.mark.parametrize("cpuinfo", ["", "".join(NEOVERSE_N1.format(cpu=i) for i in range(4))])
def test_where_nothing_is_told_every_cpu_is_a_core(cpuinfo: str) -> None:
    assert physical_cores(cpuinfo, {0, 2, 3}) == 3


@pytest.mark.parametrize(
    ("cores", "quota", "usable"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.99, 1), (8, 0.25, 1), (2, 16.0, 2), (0, None, 1)],
)
def test_usable_cores(cores: int, quota: float | None, usable: int) -> None:
    assert usable_cores(cores, quota) == usable


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def test_version_2_without_a_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cpu.max": "max 100000", "memory.max": "max"})
    assert cpu_quota("0::/", root) is None
    assert memory_limit("0::/", root) is None


def test_version_2_with_limits(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cpu.max": "150000 100000", "memory.max": "2147483648"})
    assert cpu_quota("0::/\n", root) == 1.5
    assert memory_limit("0::/\n", root) == 2 << 30


def test_of_nested_groups_the_narrowest_binds(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "a/cpu.max": "200000 100000",
            "a/b/cpu.max": "max 100000",
            "a/b/c/cpu.max": "800000 100000",
            "a/memory.max": "1000",
            "a/b/memory.max": "500",
            "elsewhere/cpu.max": "1 100000",
        },
    )
    assert cpu_quota("0::/a/b/c", root) == 2.0
    assert memory_limit("0::/a/b/c", root) == 500


V1 = """\
12:memory:/docker/abc
4:cpu,cpuacct:/docker/abc
3:cpuset:/docker/abc
1:name=systemd:/docker/abc
0::/
"""


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["docker/abc/", ""], ids=["on the host", "in the container"])
def test_version_1(tmp_path: Path, mount: str, group: str) -> None:
    files = {
        f"{mount}/{group}cpu.cfs_quota_us": "250000",
        f"{mount}/{group}cpu.cfs_period_us": "50000",
        f"memory/{group}memory.limit_in_bytes": "1073741824",
    }
    root = tree(tmp_path, files)
    assert cpu_quota(V1, root) == 5.0
    assert memory_limit(V1, root) == 1 << 30


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert cpu_quota(V1, root) is None
    assert memory_limit(V1, root) == 9223372036854771712  # more than any machine has


def test_version_2_mounted_beside_version_1(tmp_path: Path) -> None:
    root = tree(tmp_path, {"unified/a/cpu.max": "300000 100000"})
    assert cpu_quota("1:cpu:/x\n0::/a", root) == 3.0


def test_a_group_outside_the_namespace_is_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path, {"cpu.max": "100000 100000", "inside/cpu.max": "max 100000"})
    assert cpu_quota("0::/../../elsewhere", root / "inside") is None
    assert cpu_quota("0::/../../elsewhere", root) == 1.0


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota("", tmp_path) is None
    assert cpu_quota(V1, tmp_path / "absent") is None
    assert memory_limit(V1, tmp_path / "absent") is None


H200 = ("GPU-5f3c", Gpu("NVIDIA H200", 143771 << 20, "9.0"))
GB10 = ("GPU-77ab", Gpu("NVIDIA GB10", 0))


def test_gpus() -> None:
    output = "GPU-5f3c, 143771, 9.0, NVIDIA H200\nGPU-77ab, [N/A], [N/A], NVIDIA GB10\n"
    assert gpus.parse(output) == (H200, GB10)
    assert gpus.parse("") == ()
    assert gpus.parse("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["NVIDIA H200", "NVIDIA GB10"]),
        ("1", ["NVIDIA GB10"]),
        ("1, 0", ["NVIDIA GB10", "NVIDIA H200"]),
        ("GPU-77", ["NVIDIA GB10"]),
        ("GPU-", []),  # of several it names none
        ("0,-1,1", ["NVIDIA H200"]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_hides_gpus(chosen: str | None, names: list[str]) -> None:
    assert [gpu.name for gpu in gpus.visible((H200, GB10), chosen)] == names


def test_what_a_gpu_can_do_comes_from_its_capability() -> None:
    assert Gpu("NVIDIA A100", 80 << 30, "8.0").has_bf16
    assert not Gpu("NVIDIA T4", 16 << 30, "7.5").has_bf16
    assert Gpu("a driver that does not say", 0).has_bf16


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("script", "count"),
    [
        (
            '[ "$1" = --query-gpu=uuid,memory.total,compute_cap,name ] && echo "G, 23034, 8.9, L4"',
            1,
        ),
        ('echo "G, 1, 8.9, L4"; exit 9', 0),
    ],
    ids=["a driver with a GPU", "a driver that fails"],
)
def test_asking_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, count: int
) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(detect().gpus) == count
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect().gpus == ()


def test_a_driver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], *, timeout: float, **_: object) -> NoReturn:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert detect().gpus == ()


def test_without_a_driver_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect().gpus == ()


M2 = """\
hw.ncpu: 8
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M2
"""
INTEL_MAC = """\
hw.memsize: 34359738368
hw.physicalcpu: 6
hw.logicalcpu: 12
hw.optional.sse4_2: 1
hw.optional.avx1_0: 1
hw.optional.f16c: 1
hw.optional.fma: 1
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz
"""


def test_macos() -> None:
    sets = ("asimd", "asimddp", "i8mm", "bf16")
    assert from_sysctl(M2) == Hardware("Apple M2", 8, sets, 16 << 30)
    intel = from_sysctl(INTEL_MAC)
    assert intel.usable_cores == 6
    assert intel.instruction_sets == ("sse4_2", "avx", "avx2", "fma", "f16c")
    assert from_sysctl("").cpu_model == "unknown CPU"


def test_this_machine() -> None:
    here = detect()
    assert here.cpu_model
    assert 1 <= here.usable_cores <= (os.cpu_count() or 1)
    assert here.memory_bytes > 1 << 28
    assert set(here.instruction_sets) <= set(INSTRUCTION_SETS)
    assert from_json(Hardware, json.loads(json.dumps(to_json(here)))) == here


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity masks are Linux's")
def test_the_affinity_mask_counts() -> None:
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert detect().usable_cores == 1
    finally:
        os.sched_setaffinity(0, mask)


def test_a_machine_that_shows_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_text", lambda _: "")
    monkeypatch.setattr(hardware, "_output", lambda *_: "")
    here = detect()
    assert (here.instruction_sets, here.gpus) == ((), ())
    assert here.usable_cores >= 1


GENOA = Hardware(
    "AMD EPYC 9654", 8, ("avx2", "avx512f", "avx512_bf16"), 64 << 30, (Gpu("NVIDIA L4", 23 << 30),)
)


def test_the_fingerprint_is_the_kernels() -> None:
    same = replace(GENOA, usable_cores=2, memory_bytes=1 << 30, gpus=GENOA.gpus * 4)
    assert fingerprint(same) == fingerprint(GENOA) == "df6a13053834"
    others = [
        replace(GENOA, cpu_model="AMD EPYC 9554"),
        replace(GENOA, instruction_sets=("avx2", "avx512f")),
        replace(GENOA, gpus=()),
    ]
    assert len({fingerprint(other) for other in [GENOA, *others]}) == 4


def test_the_same_machine_has_no_differences() -> None:
    assert differences(GENOA, GENOA) == ()
    assert differences(GENOA, replace(GENOA, memory_bytes=int(GENOA.memory_bytes * 0.98))) == ()
    assert differences(GENOA, replace(GENOA, memory_bytes=2 * GENOA.memory_bytes)) == ()


def test_differences_are_sentences_with_both_sides() -> None:
    now = Hardware("Intel Xeon 8488C", 1, ("avx2", "avx512f", "amx_int8"), 4 << 30)
    assert differences(GENOA, now) == (
        "Tuned on AMD EPYC 9654, and this machine has Intel Xeon 8488C.",
        "Tuned with 8 usable cores, and this machine has 1.",
        "Tuned with avx512_bf16, and this CPU lacks that.",
        "Tuned without amx_int8, and this CPU has that.",
        "Tuned with 64 GiB of memory, and this machine has 4 GiB.",
        "Tuned with NVIDIA L4, and this machine has no GPU.",
    )


def test_bf16_needs_instructions_and_nothing_else_does() -> None:
    plain = replace(GENOA, instruction_sets=("avx2",))
    assert "AMD EPYC 9654 has no bf16" in str(missing_instructions("bf16", plain))
    assert missing_instructions("bf16", GENOA) is None
    assert [missing_instructions(p, plain) for p in ("fp32", "fp16", "int8")] == [None] * 3


def test_detecting_loads_no_framework() -> None:
    code = (
        "import sys; from hasten.hardware import detect; detect(); "
        "sys.exit(bool({'torch', 'onnxruntime', 'openvino', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
