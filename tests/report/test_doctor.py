from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from hasten.engines.base import Engine, Options
from hasten.models import ModelFolder
from hasten.records import Candidate, Gpu, Hardware
from hasten.report.doctor import EngineCheck, Obstacle, diagnose, render, to_dict

PLAIN = Hardware("AMD EPYC 7763", 2, ("avx2", "fma"), 24 << 30)
WITH_GPU = Hardware(
    "Intel Xeon", 8, ("avx512_bf16",), 64 << 30, (Gpu("NVIDIA L4", 23 << 30, "8.9"),)
)


class Installed(Engine):
    """Runs bf16 where it is native, and never fp16."""

    name = "quick"
    title = "Quick Runtime"
    requires: Mapping[str, str] = {"numpy": "numpy"}
    exports_with: Mapping[str, str] = {"rich.console": "rich"}
    extra = "quick"
    simplicity = 2

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        assert candidate.engine == self.name
        if candidate.precision == "bf16" and not hardware.has_bf16:
            return f"{hardware.cpu_model} has no bf16 instructions"
        if candidate.precision == "fp16":
            return "Quick Runtime has no fp16 kernels"
        return None

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> NoReturn:
        raise AssertionError

    def session_options(self, candidate: Candidate) -> NoReturn:
        raise AssertionError

    def open(self, folder: Path, candidate: Candidate, options: Options) -> NoReturn:
        raise AssertionError


class Absent(Installed):
    name = "absent"
    title = "Absent Runtime"
    requires: Mapping[str, str] = {"no_such_module": "no-such-dist"}
    extra = "absent"
    simplicity = 9

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        raise AssertionError("an engine that is not installed has nobody to ask")


class CannotExport(Installed):
    name = "reader"
    requires: Mapping[str, str] = {"numpy": "numpy"}
    exports_with: Mapping[str, str] = {"rich": "rich", "no_such_module.inner": "no-such-dist"}
    simplicity = 3


class Rebranded(Installed):
    name = "rebranded"
    requires: Mapping[str, str] = {"numpy": "no-such-dist"}


def check(engine: Engine, hardware: Hardware = PLAIN) -> EngineCheck:
    (row,) = diagnose(hardware, {engine.name: engine}).engines
    return row


def test_an_installed_engine() -> None:
    row = check(Installed())
    assert (row.name, row.title) == ("quick", "Quick Runtime")
    assert row.version == f"numpy {metadata.version('numpy')}"
    assert row.runs == {"cpu": ("fp32", "int8")}
    reason = "AMD EPYC 7763 has no bf16 instructions"
    assert row.obstacles == (Obstacle("run", "cpu", ("bf16",), reason, None),)


def test_gpus_are_asked_about_where_there_are_any() -> None:
    row = check(Installed(), WITH_GPU)
    assert row.runs == {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "bf16")}
    assert [(o.device, o.precisions) for o in row.obstacles] == [("cuda", ("fp16",))]


def test_precisions_with_one_reason_share_its_line() -> None:
    class Fp32Only(Installed):
        def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
            return None if candidate.precision == "fp32" else "only fp32 was built in"

    on_cpu, on_cuda = check(Fp32Only(), WITH_GPU).obstacles
    assert on_cpu.scope == "bf16, int8 on cpu"
    assert on_cuda.precisions == ("bf16", "fp16")
    assert on_cuda.scope == "bf16, fp16 on cuda"


def test_a_missing_engine_has_its_reason_and_its_command() -> None:
    row = check(Absent())
    assert (row.version, row.runs) == (None, {})
    (obstacle,) = row.obstacles
    assert "no-such-dist" in obstacle.reason
    assert obstacle.fix == "pip install 'hasten[absent]'"


def test_an_engine_that_runs_but_cannot_export() -> None:
    row = check(CannotExport())
    assert row.runs["cpu"] == ("fp32", "int8")
    (obstacle,) = [o for o in row.obstacles if o.step == "export"]
    assert "no-such-dist" in obstacle.reason
    assert "rich" not in obstacle.reason
    assert obstacle.fix == "pip install 'hasten[tune]'"


def test_a_module_from_a_distribution_of_another_name() -> None:
    row = check(Rebranded())
    assert row.version == "no-such-dist (version unknown)"
    assert row.runs["cpu"] == ("fp32", "int8")


def test_the_simplest_to_deploy_comes_first() -> None:
    engines = {engine.name: engine for engine in (CannotExport(), Installed(), Absent())}
    assert [e.name for e in diagnose(PLAIN, engines).engines] == ["quick", "reader", "absent"]


def test_the_dict_is_plain_json() -> None:
    plain = to_dict(diagnose(WITH_GPU, {"quick": Installed(), "absent": Absent()}))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["hardware"]["gpus"] == [
        {"name": "NVIDIA L4", "memory_bytes": 23 << 30, "compute_capability": "8.9"}
    ]
    quick, absent = plain["engines"]
    assert absent["obstacles"][0]["fix"] == "pip install 'hasten[absent]'"
    assert quick["runs"]["cuda"] == ["fp32", "bf16"]


def shown(hardware: Hardware, *engines: Engine) -> str:
    screen = io.StringIO()
    diagnosis = diagnose(hardware, {engine.name: engine for engine in engines})
    Console(width=100, file=screen).print(render(diagnosis))
    return screen.getvalue()


def test_what_is_shown() -> None:
    text = shown(WITH_GPU, Installed(), Absent())
    for expected in ("Intel Xeon, 8 usable cores", "avx512_bf16", "64 GiB", "NVIDIA L4, 23 GiB"):
        assert expected in text
    (row,) = [line for line in text.splitlines() if line.startswith(" Quick Runtime")]
    assert row.split()[-4:] == ["bf16", "int8", "fp32", "bf16"]
    assert "Quick Runtime (fp16 on cuda): Quick Runtime has no fp16 kernels" in text
    # Square brackets are rich's markup; the command must come out whole.
    assert "pip install 'hasten[absent]'" in text


def test_engines_with_one_reason_share_its_line() -> None:
    assert "Quick Runtime, Quick Runtime (bf16 on cpu)" in shown(PLAIN, Installed(), Rebranded())


def test_without_gpus_no_column_is_wasted_on_them() -> None:
    text = shown(PLAIN, Installed())
    assert "none found" in text
    assert "cuda" not in text


@pytest.mark.parametrize("framework", ["torch", "onnxruntime", "openvino"])
def test_diagnosing_imports_no_framework(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten import engines

    # A None entry makes every import of that name fail.
    monkeypatch.setitem(sys.modules, framework, None)
    checked = diagnose(PLAIN, engines.discover()).engines
    assert {engine.name for engine in checked} == set(engines.names())
