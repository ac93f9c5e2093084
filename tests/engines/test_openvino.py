"""What is OpenVINO's own: names that Optimum expects, fp32 weights, explicit settings."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.engines import openvino as module
from hasten.engines.openvino import ENGINE, OpenVinoSession
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("openvino")
    return prepare(save_tiny(folder / "model"), folder / "reference")


@pytest.fixture(scope="module")
def artifact(reference: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    ENGINE.export(reference, Candidate("openvino", "fp32", "cpu", 1), folder)
    return folder


def load(folder: Path, candidate: Candidate) -> OpenVinoSession:
    session = ENGINE.load(folder, candidate)
    assert isinstance(session, OpenVinoSession)
    return session


def test_the_files_are_what_optimum_loads(reference: ModelFolder, artifact: Path) -> None:
    names = {path.name for path in artifact.iterdir()}
    assert names == {"openvino_model.xml", "openvino_model.bin"}
    # Not compressed to fp16: four bytes for nearly all parameters (some are never read).
    assert (artifact / "openvino_model.bin").stat().st_size > 3 * reference.info.parameter_count
    compiled = load(artifact, Candidate("openvino", "fp32", "cpu", 1)).compiled
    assert [port.any_name for port in compiled.inputs] == list(reference.info.input_names)
    assert {str(port.partial_shape) for port in compiled.inputs} == {"[?,?]"}
    assert [port.any_name for port in compiled.outputs] == ["logits"]


@pytest.mark.parametrize(("streams", "threads"), [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_streams_and_precision_are_the_candidates(
    streams: int, threads: int, precision: str, artifact: Path
) -> None:
    candidate = Candidate("openvino", precision, "cpu", threads, streams)
    compiled = load(artifact, candidate).compiled
    assert compiled.get_property("NUM_STREAMS") == streams
    assert compiled.get_property("INFERENCE_NUM_THREADS") == streams * threads
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert hint in ({"f32"} if precision == "fp32" else {"bf16", "f32"})  # f32 without bf16 in it


def test_precisions_share_an_artifact() -> None:
    names = {
        ENGINE.artifact_name(Candidate("openvino", precision, "cpu", 1))
        for precision in ("fp32", "bf16")
    }
    assert names == {"openvino"}


@pytest.mark.parametrize("before", [None, np])
def test_telemetry_is_hidden_only_while_openvino_is_at_work(
    before: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "openvino_telemetry"
    if before is None:
        monkeypatch.delitem(sys.modules, name, raising=False)
    else:
        monkeypatch.setitem(sys.modules, name, before)
    with module._without_telemetry(), pytest.raises(ImportError):
        __import__(name)
    assert sys.modules.get(name) is before
