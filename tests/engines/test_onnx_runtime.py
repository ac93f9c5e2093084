"""What is ONNX Runtime's own: names that Optimum expects, weights beside the graph, sessions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hasten.engines import onnx_runtime
from hasten.engines.onnx_runtime import ENGINE, OnnxSession
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate
from tests.tiny import save_tiny

BATCH = (np.full((3, 11), 5), np.tri(3, 11, 6, dtype=np.int64), np.zeros((3, 11), np.int64))
INPUTS = dict(zip(("input_ids", "attention_mask", "token_type_ids"), BATCH, strict=True))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("onnx")
    return prepare(save_tiny(folder / "model"), folder / "reference")


def candidate(threads: int = 1, streams: int = 1, precision: str = "fp32") -> Candidate:
    return Candidate("onnx_runtime", precision, "cpu", threads, streams)


def load(folder: Path, wanted: Candidate) -> OnnxSession:
    session = ENGINE.load(folder, wanted)
    assert isinstance(session, OnnxSession)
    return session


def truth(reference: ModelFolder) -> np.ndarray:
    with torch.inference_mode():
        logits = reference.module()(*map(torch.from_numpy, BATCH))
    return np.asarray(logits)


def test_the_file_is_what_optimum_loads(reference: ModelFolder, tmp_path: Path) -> None:
    ENGINE.export(reference, candidate(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = load(tmp_path, candidate()).sessions[0]
    assert [port.name for port in session.get_inputs()] == list(reference.info.input_names)
    assert {tuple(port.shape) for port in session.get_inputs()} == {
        ("batch_size", "sequence_length")
    }
    assert [(port.name, port.shape) for port in session.get_outputs()] == [
        ("logits", ["batch_size", 3])
    ]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


@pytest.mark.parametrize("recipe", ["", "token"])
def test_nothing_but_the_softmax_stands_between_the_products_of_attention(
    recipe: str, reference: ModelFolder, tmp_path: Path
) -> None:
    precision = "int8" if recipe else "fp32"
    ENGINE.export(reference, replace(candidate(precision=precision), recipe=recipe), tmp_path)
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert kinds.count("Softmax") == 2
    assert "IsNaN" not in kinds


def test_weights_that_one_file_cannot_hold_go_into_a_second(
    reference: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "_LARGEST_FILE_BYTES", 0)
    ENGINE.export(reference, candidate(), tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"model.onnx", "model.onnx_data"}
    assert sizes["model.onnx_data"] > 50_000
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    outputs = load(moved, candidate()).run(INPUTS)
    np.testing.assert_allclose(outputs["logits"], truth(reference), atol=1e-4)


def test_half_precision_keeps_its_names_and_returns_float32(
    reference: ModelFolder, tmp_path: Path
) -> None:
    # Made for GPUs; the CPU computes the same graph in fp32 around its fp16 weights.
    ENGINE.export(reference, candidate(precision="fp16"), tmp_path)
    stored = onnx.load(str(tmp_path / "model.onnx"))
    kinds = {weight.data_type for weight in stored.graph.initializer if len(weight.dims) == 2}
    assert kinds == {onnx.TensorProto.FLOAT16}
    logits = load(tmp_path, candidate(precision="fp16")).run(INPUTS)["logits"]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, truth(reference), atol=0.05)


@pytest.mark.parametrize(("streams", "threads", "sessions"), [(1, 2, 1), (2, 1, 1), (2, 2, 2)])
def test_every_stream_has_its_threads(
    streams: int, threads: int, sessions: int, reference: ModelFolder, tmp_path: Path
) -> None:
    ENGINE.export(reference, candidate(), tmp_path)
    session = load(tmp_path, candidate(threads, streams))
    assert len(session.sessions) == sessions
    for one in session.sessions:
        options = one.get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_spin_where_the_candidate_says_so(reference: ModelFolder, tmp_path: Path) -> None:
    ENGINE.export(reference, candidate(), tmp_path)
    (session,) = load(tmp_path, replace(candidate(2), spinning=True)).sessions
    entry = session.get_session_options().get_session_config_entry(
        "session.intra_op.allow_spinning"
    )
    assert entry == "1"


def test_devices_share_an_artifact_and_precisions_do_not() -> None:
    names = {
        ENGINE.artifact_name(Candidate("onnx_runtime", precision, device, 1))
        for precision in ("fp32", "fp16")
        for device in ("cpu", "cuda")
    }
    assert names == {"onnx_runtime-fp32", "onnx_runtime-fp16"}
