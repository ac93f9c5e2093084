"""ONNX models in 8-bit integers.

``token`` has one activation scale a token: see :mod:`hasten.engines._onnx_token`. The others are
made by ONNX Runtime's own tools. ``dynamic`` finds one range for the activations of a whole batch,
``static`` finds it from calibration texts beforehand; ``weights`` stores weights in blocks, and the
runtime rounds activations. The last two leave the head, whose products carry their bias, in
floating point. A ``tensor`` recipe has one scale a weight matrix instead of one a column. A
``reduced`` one has 7-bit weights, for CPUs without VNNI, on which pairs of full 8-bit products
overflow the 16 bits that they are summed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.engines import _onnx_token
from hasten.engines._border import nodes_of, quiet_logger
from hasten.errors import EngineError
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from hasten.models import ModelFolder

_ROW_SCALES = "token"
_DYNAMIC = ("dynamic", "dynamic-tensor")
_REDUCED = "-reduced"
_BLOCK = 128  # weights that share a scale
_IN_INTEGERS = 4  # MatMulNBits' accuracy level at which activations become int8 as well


def recipes(hardware: Hardware) -> tuple[str, ...]:
    """What is worth trying on this CPU, the likeliest to win first: see docs/precision.md."""
    if hardware.has_vnni:
        return (_ROW_SCALES, "static", "dynamic", "weights")
    return (_ROW_SCALES, f"static{_REDUCED}")


def not_worth_trying(hardware: Hardware) -> dict[str, str]:
    """What cannot win on this CPU, and why: see docs/precision.md."""
    if hardware.has_vnni:
        return {}
    return {
        "static": "sums of 8-bit products overflow without VNNI; static-reduced avoids that",
        "dynamic": "without VNNI it flips more labels than token, and is no faster",
        "weights": "without VNNI it is slower than fp32",
    }


def depends_on_batch(recipe: str) -> bool:
    """Whether activations are rounded on one scale for the whole batch."""
    return recipe.removesuffix(_REDUCED) in _DYNAMIC


def quantize(exported: Path, path: Path, reference: ModelFolder, candidate: Candidate) -> None:
    """Write the fp32 model ``exported`` to ``path`` as the candidate's recipe wants it."""
    import onnx

    model = onnx.load(str(exported))
    spared = nodes_of(candidate.spared, (node.name for node in model.graph.node))
    if candidate.recipe == _ROW_SCALES:
        _onnx_token.rewrite(model, spared)
        onnx.save_model(model, str(path))
        return
    if not any(node.op_type == "MatMul" for node in model.graph.node):
        raise EngineError("nothing in its graph can become int8: it has no matrix product")
    reduced = candidate.recipe.endswith(_REDUCED)
    recipe = candidate.recipe.removesuffix(_REDUCED)
    # Its advice goes to the root logger, whatever was done.
    with quiet_logger(None):
        if recipe == "weights":
            _weights(model, path, spared)
        elif recipe == "static":
            kept = [*spared, *_products_of_activations(model)]
            _static(exported, path, reference, kept, reduced)
        else:
            _dynamic(exported, path, spared, reduced, per_channel=recipe == "dynamic")


def _products_of_activations(model: Any) -> list[str]:
    """The products inside attention, which have no weights: as in ``dynamic``, they stay."""
    weights = {tensor.name for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type == "MatMul")
    return [node.name for node in products if not weights & set(node.input)]


def _dynamic(
    exported: Path, path: Path, spared: list[str], reduced: bool, *, per_channel: bool
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Products with a bias in one operator are taken apart first, and get other names.
    spared = [*spared, *(f"{name}_MatMul" for name in spared)]
    quantize_dynamic(
        exported,
        path,
        # Embeddings stay in fp32: they cost little, and their error goes through all layers.
        op_types_to_quantize=["MatMul"],
        per_channel=per_channel,
        reduce_range=reduced,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=spared,
        extra_options={"MatMulConstBOnly": True},
    )


def _static(
    exported: Path, path: Path, reference: ModelFolder, kept: list[str], reduced: bool
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        exported,
        path,
        _reader(reference.calibration()),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=reduced,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept,
        extra_options={
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            # The sums are added to in floating point anyway; rounding them first gains nothing.
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )


def _weights(model: Any, path: Path, spared: list[str]) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK, is_symmetric=True, accuracy_level=_IN_INTEGERS, bits=8
    )
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=spared, algo_config=config)
    quantizer.process()
    onnx.save_model(quantizer.model.model, str(path))


def _reader(batches: Iterator[Mapping[str, NDArray[np.int64]]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Mapping[str, NDArray[np.int64]] | None:
            return next(batches, None)

    return Reader()


def fold_weights(exported: Path, path: Path) -> None:
    """Write the model ``exported`` to ``path``, with the weights that it rounds stored as int8."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(exported))
    graph = model.graph
    known = constants(graph)
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        if any(name not in known for name in node.input):
            continue  # an activation
        weight, scale, zero_point = (numpy_helper.to_array(known[n]) for n in node.input)
        axis = next(a.i for a in node.attribute if a.name == "axis")
        shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
        levels = np.rint(weight / scale.reshape(shape)) + zero_point.reshape(shape)
        kept = np.clip(levels, -128, 127).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(kept, node.output[0]))
        graph.node.remove(node)
    needed = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    onnx.save_model(model, str(path))


def constants(graph: Any) -> dict[str, Any]:
    """What is known beforehand, by name; equal tensors share one, by way of ``Identity``."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:  # in the order in which they run
        if node.op_type == "Constant":
            found[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found
