"""int8 with one activation scale a token: what is rewritten, and what odd inputs give."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hasten import engines
from hasten.engines import _onnx_token
from hasten.errors import EngineError
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate
from tests.tiny import save_tiny, tiny_texts

INPUTS, OUTPUTS = 64, 24
TOKEN = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="token")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def column(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, np.newaxis]


def graph_of(nodes: list[Any], **weights: np.ndarray) -> Any:
    """A model from ``x``, float32 [rows, INPUTS], to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "test", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def product(weights: np.ndarray) -> Any:
    return graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], w=weights)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def rewritten(model: Any, *spared: str) -> Any:
    _onnx_token.rewrite(model, spared)
    return model


def kinds(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


# Products


def test_rows_of_very_different_size_are_equally_exact() -> None:
    weights = normal(INPUTS, OUTPUTS)
    x = normal(5, INPUTS, seed=1) * column(1e-6, 1, 50, 3000, 1e6)
    exact = x @ weights
    off = np.abs(run(rewritten(product(weights)), x) - exact).max(axis=1)
    assert (off < 0.05 * np.abs(exact).max(axis=1)).all()


def test_a_gemm_keeps_its_bias_and_may_have_transposed_weights() -> None:
    weights, bias, x = normal(OUTPUTS, INPUTS), normal(OUTPUTS, seed=2) * 100, normal(4, INPUTS)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", transB=1)
    model = rewritten(graph_of([node], w=weights, b=bias))
    assert "Gemm" not in kinds(model)
    np.testing.assert_allclose(run(model, x), x @ weights.T + bias, atol=1.0)


def test_sums_do_not_overflow_on_any_cpu() -> None:
    # The largest integers there are, all of one sign: without VNNI, neighbours share 16 bits.
    weights = np.ones((INPUTS, OUTPUTS), np.float32)
    x = np.ones((3, INPUTS), np.float32)
    np.testing.assert_allclose(run(rewritten(product(weights)), x), INPUTS, rtol=0.01)


def test_weights_without_large_neighbours_keep_eight_bits() -> None:
    weights = np.tile(column(1.0, -1.0), (INPUTS // 2, OUTPUTS))
    np.testing.assert_allclose(_onnx_token.column_scales(weights), 1 / 127, rtol=0.01)


def test_an_odd_number_of_inputs_has_a_last_weight_without_neighbour() -> None:
    scales = _onnx_token.column_scales(column(0, 0, 254))
    np.testing.assert_allclose(scales, [2])


def test_an_answer_does_not_depend_on_its_batch() -> None:
    model = rewritten(product(normal(INPUTS, OUTPUTS)))
    x = normal(9, INPUTS, seed=1)
    x[3] *= 1e4
    together = run(model, x)
    for row in range(len(x)):
        np.testing.assert_array_equal(run(model, x[row : row + 1]), together[row : row + 1])


def test_products_of_the_same_tensor_share_its_integers() -> None:
    names = ("query", "key", "value")
    nodes = [helper.make_node("MatMul", ["x", n], [f"{n}_out"], n) for n in names]
    nodes.append(helper.make_node("Sum", [f"{n}_out" for n in names], ["y"]))
    model = rewritten(graph_of(nodes, **{n: normal(INPUTS, OUTPUTS) for n in names}))
    assert kinds(model).count("QuantizeLinear") == 1
    assert kinds(model).count("MatMulIntegerToFloat") == 3


def test_the_fp32_weights_are_gone() -> None:
    model = rewritten(product(normal(INPUTS, OUTPUTS)))
    sizes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert "w" not in sizes
    assert TensorProto.INT8 in sizes.values()


# Bad input


def test_an_all_zero_row_gives_zeros_and_leaves_the_others_alone() -> None:
    model = rewritten(product(normal(INPUTS, OUTPUTS)))
    x = normal(3, INPUTS, seed=1)
    kept = run(model, x)
    x[1] = 0
    kept[1] = 0
    np.testing.assert_array_equal(run(model, x), kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_row_nan_wherever_it_stands(bad: float) -> None:
    model = rewritten(product(normal(INPUTS, OUTPUTS)))
    x = np.tile(normal(1, INPUTS, seed=1), (INPUTS, 1))
    kept = run(model, x)[:1]
    np.fill_diagonal(x, bad)
    assert np.isnan(run(model, x)).all()
    x[1] = x[0]
    x[1, 0] = normal(1, INPUTS, seed=1)[0, 0]
    np.testing.assert_array_equal(run(model, x)[1:2], kept)


def test_unknown_products_stay_in_fp32_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["known"], "known"),
        helper.make_node("Gemm", ["known", "v"], ["scaled"], "scaled", alpha=2.0),
        helper.make_node("MatMul", ["scaled", "stack"], ["y"], "stacked"),
    ]
    weights = {"w": normal(INPUTS, 8), "v": normal(8, 8), "stack": normal(2, 8, 8)}
    with caplog.at_level(logging.WARNING):
        model = rewritten(graph_of(nodes, **weights))
    assert kinds(model)[-2:] == ["Gemm", "MatMul"]
    (told,) = model.metadata_props
    assert (told.key, told.value) == (_onnx_token.LEFT_IN_FP32, "scaled\nstacked")
    assert "scaled, stacked" in caplog.text
    assert run(model, normal(3, INPUTS)).shape == (2, 3, 8)


def test_spared_products_stay_without_being_unknown() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["first"], "first"),
        helper.make_node("MatMul", ["first", "v"], ["y"], "second"),
    ]
    model = rewritten(graph_of(nodes, w=normal(INPUTS, 8), v=normal(8, 8)), "second")
    assert kinds(model)[-1] == "MatMul"
    assert not model.metadata_props


def test_a_graph_without_products_of_weights_says_so() -> None:
    between = [
        helper.make_node("Transpose", ["x"], ["turned"], "turn"),
        helper.make_node("MatMul", ["x", "turned"], ["y"], "activations"),
    ]
    with pytest.raises(EngineError, match="no matrix product with constant weights"):
        rewritten(graph_of(between))


# In a model


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("token")
    return prepare(save_tiny(folder / "model"), folder / "reference")


@pytest.fixture(scope="module")
def artifact(reference: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    engines.get("onnx_runtime").export(reference, TOKEN, folder)
    return folder


def test_all_linear_layers_become_int8(artifact: Path) -> None:
    model = onnx.load(str(artifact / "model.onnx"))
    assert kinds(model).count("MatMulIntegerToFloat") == 2 * 6 + 2
    assert kinds(model).count("QuantizeLinear") == 2 * 4 + 2


def test_answers_are_bit_equal_alone_and_in_batches(reference: ModelFolder, artifact: Path) -> None:
    session = engines.get("onnx_runtime").load(artifact, TOKEN)
    tokens = reference.tokenizer().encode(tiny_texts(40, seed=5))
    order = np.argsort(tokens.lengths)
    for batch in np.array_split(order, 8):
        inputs = tokens.batch(batch).inputs(reference.info.input_names, 0)
        together = session.run(inputs)["logits"]
        for row in range(len(batch)):
            one = np.s_[row : row + 1]
            alone = session.run({name: array[one] for name, array in inputs.items()})["logits"]
            np.testing.assert_array_equal(alone, together[one])
