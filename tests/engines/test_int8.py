"""int8 as the engines make it: ranges, spared layers, and what damage does to the answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hasten import engines, hardware, tasks
from hasten.engines._border import nodes_of
from hasten.engines.base import Session
from hasten.errors import EngineError, ModelError
from hasten.judging.parity import compare, verdict
from hasten.models import ModelFolder, prepare, rank_layers
from hasten.records import Candidate, Hardware
from hasten.tasks import Outputs
from tests.tiny import save_tiny, tiny_texts

HERE = hardware.detect()
VNNI = Hardware("Xeon", 2, ("avx2", "avx512f", "avx512_vnni"), 8 << 30)
OLD = Hardware("EPYC", 2, ("avx2",), 8 << 30)
QUERY = "bert.encoder.layer.1.attention.self.query"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("int8")
    made = prepare(save_tiny(folder / "model"), folder / "reference")
    made.keep_calibration(tiny_texts(32, seed=7))
    return made


def artifact(reference: ModelFolder, candidate: Candidate, root: Path) -> Path:
    folder = root / candidate.format
    folder.mkdir()
    engines.get(candidate.engine).export(reference, candidate, folder)
    return folder


def answers(session: Session, reference: ModelFolder) -> np.ndarray:
    tokens = reference.tokenizer().encode(tiny_texts(60, seed=3))
    rows = []
    for index in range(len(tokens)):
        inputs = tokens.batch([index]).inputs(reference.info.input_names, 0)
        rows.append(session.run(inputs)["logits"])
    return np.concatenate(rows)


def judge(reference: ModelFolder, truth: np.ndarray, outputs: np.ndarray) -> str | None:
    parity = compare(
        Outputs.of_rows(truth),
        Outputs.of_rows(outputs),
        task=tasks.get("single_label"),
        labels=reference.info.labels,
        texts=tiny_texts(60, seed=3),
    )
    return verdict(parity, exact=False, max_flips=0.25, strict=False)


def exact(reference: ModelFolder, root: Path) -> np.ndarray:
    candidate = Candidate("onnx_runtime", "fp32", "cpu", 1)
    folder = artifact(reference, candidate, root)
    return answers(engines.get("onnx_runtime").load(folder, candidate), reference)


def test_a_damaged_scale_is_refused(reference: ModelFolder, tmp_path: Path) -> None:
    import onnx

    engine = engines.get("onnx_runtime")
    candidate = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="dynamic-reduced")
    folder, truth = artifact(reference, candidate, tmp_path), exact(reference, tmp_path)
    assert judge(reference, truth, answers(engine.load(folder, candidate), reference)) is None
    model = onnx.load(str(folder / "model.onnx"))
    scales = [t for t in model.graph.initializer if t.name.endswith("_scale")]
    assert len(scales) == 2 * 6 + 2  # one for each linear layer
    scale = scales[0]  # the first query
    wrong = onnx.numpy_helper.to_array(scale) * np.float32(30.0)
    scale.CopyFrom(onnx.numpy_helper.from_array(wrong, scale.name))
    onnx.save(model, str(folder / "model.onnx"))
    reason = judge(reference, truth, answers(engine.load(folder, candidate), reference))
    assert reason is not None
    assert "flipped" in reason


@pytest.mark.parametrize(
    ("engine", "recipe"),
    [
        ("onnx_runtime", "token"),
        ("onnx_runtime", "dynamic"),
        ("onnx_runtime", "static"),
        ("openvino", "static"),
        ("openvino", "weights"),
    ],
)
def test_spared_layers_stay_in_floating_point(
    reference: ModelFolder, tmp_path: Path, engine: str, recipe: str
) -> None:
    all_of_it = Candidate(engine, "int8", "cpu", 1, recipe=recipe)
    spared = Candidate(engine, "int8", "cpu", 1, recipe=recipe, spared=(QUERY,))
    sizes = [_bytes(artifact(reference, each, tmp_path)) for each in (all_of_it, spared)]
    weights = 32 * 32  # a query's, in the tiny models
    assert sizes[1] - sizes[0] > weights  # three bytes each, less what goes with a scale
    assert engines.get(engine).artifact_name(all_of_it) != engines.get(engine).artifact_name(spared)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("layer", [QUERY, "bert.pooler.dense", "classifier"])
def test_every_spared_layer_is_a_product_of_integers_less(
    reference: ModelFolder, tmp_path: Path, layer: str
) -> None:
    import onnx

    counts = []
    for spared in ((), (layer,)):
        candidate = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="dynamic", spared=spared)
        model = onnx.load(str(artifact(reference, candidate, tmp_path) / "model.onnx"))
        counts.append(sum(node.op_type == "MatMulInteger" for node in model.graph.node))
    assert counts == [14, 13]


def test_a_model_without_linear_layers_does_not_become_int8() -> None:
    from torch import nn

    from hasten.engines import _torch

    with pytest.raises(EngineError, match="no linear layer"):
        _torch.dynamic_int8(nn.Sequential(nn.Embedding(4, 4)), ())


def test_weights_alone_can_be_spared_as_well(reference: ModelFolder, tmp_path: Path) -> None:
    import onnx

    counts = []
    for spared in ((), (QUERY,)):
        candidate = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="weights", spared=spared)
        model = onnx.load(str(artifact(reference, candidate, tmp_path) / "model.onnx"))
        counts.append(sum(node.op_type == "MatMulNBits" for node in model.graph.node))
    assert counts == [12, 11]


def test_pytorch_spares_layers_as_well(reference: ModelFolder, tmp_path: Path) -> None:
    from hasten.engines import _torch

    module = _torch.dynamic_int8(reference.module(), (QUERY,))
    kinds = {
        name.removeprefix("original."): type(layer).__module__
        for name, layer in module.named_modules()
        if name.endswith(("query", "key"))
    }
    assert "quantized" not in kinds[QUERY]
    assert "quantized" in kinds[QUERY.replace("query", "key")]


def test_a_layer_that_the_graph_does_not_have_is_an_error(
    reference: ModelFolder, tmp_path: Path
) -> None:
    candidate = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="dynamic", spared=("nowhere",))
    with pytest.raises(EngineError, match="no node of the layer nowhere"):
        artifact(reference, candidate, tmp_path)


def test_layers_are_not_mistaken_for_their_namesakes() -> None:
    names = (
        "layer.1/dense/MatMul",
        "layer.11/dense/MatMul",
        "layer.1/dense/Add",
        "in/layer.1/dense/Add",
    )
    nodes = [f"/original/{name}" for name in names]
    assert nodes_of(["layer.1.dense"], nodes) == [nodes[0], nodes[2]]
    assert nodes_of((), nodes) == []


def test_without_calibration_texts_the_message_says_so(tmp_path: Path) -> None:
    bare = prepare(save_tiny(tmp_path / "model"), tmp_path / "reference")
    candidate = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="static")
    with pytest.raises((EngineError, ModelError), match="no calibration texts"):
        artifact(bare, candidate, tmp_path)


def test_without_vnni_only_what_can_win_is_tried() -> None:
    assert engines.get("onnx_runtime").recipes("int8", OLD) == ("token", "static-reduced")
    assert engines.get("openvino").recipes("int8", OLD) == ()
    assert engines.get("torch_eager").recipes("int8", OLD) == ()


@pytest.mark.parametrize("name", ["onnx_runtime", "openvino", "torch_eager"])
def test_what_cannot_win_without_vnni_has_a_reason_and_is_tried_with_it(name: str) -> None:
    engine = engines.get(name)
    reasons = engine.not_worth_trying("int8", OLD)
    assert reasons
    tried = engine.recipes("int8", VNNI)
    assert {recipe.removesuffix("-reduced") for recipe in reasons} <= set(tried)
    assert all("without VNNI" in reason for reason in reasons.values())
    assert not engine.not_worth_trying("int8", VNNI)
    assert not engine.not_worth_trying("fp32", OLD)


def test_with_vnni_every_range_is_full_and_scales_a_token_come_first() -> None:
    for name in ("onnx_runtime", "openvino", "torch_eager"):
        found = engines.get(name).recipes("int8", VNNI)
        assert found
        assert not any(recipe.endswith("-reduced") for recipe in found)
        assert engines.get(name).recipes("fp32", OLD) == ("",)
    assert engines.get("onnx_runtime").recipes("int8", VNNI)[0] == "token"


def test_bf16_for_the_rest_needs_a_cpu_that_has_it() -> None:
    candidate = Candidate("openvino", "int8", "cpu", 1, recipe="static-bf16")
    assert "no bf16" in (engines.get("openvino").supports(candidate, OLD) or "")


def test_the_layer_that_hurts_most_is_ranked_first(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_tiny(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    layer = "bert.encoder.layer.0"
    # One huge weight a row leaves no levels of int8 for all the others; what it is multiplied
    # with is always 0, so that in fp32 nobody sees it.
    weights[f"{layer}.intermediate.dense.weight"][:, 0] = 500.0
    for part in ("weight", "bias"):
        weights[f"{layer}.attention.output.LayerNorm.{part}"][0] = 0.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    reference = prepare(model, tmp_path / "reference")
    reference.keep_calibration(tiny_texts(8, seed=7))
    ranked = rank_layers(reference, 1)
    assert ranked[0] == "bert.encoder.layer.0.intermediate.dense"
    assert len(ranked) == len(set(ranked)) == 2 * 6 + 2
    assert ranked == rank_layers(reference, 1)
    shutil.rmtree(reference.folder)
