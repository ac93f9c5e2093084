"""ONNX models in 8-bit integers with one activation scale a token (a row of a product's input).

One scale a tensor is set by its largest value. Transformers have a few channels that are 40 to 60
times the median on a few tokens, so that everything else is left with two or three levels, and
which ones depends on the texts that happen to share the batch. Here every row is divided by its
own largest magnitude first::

    largest = max(|x|) of the row                    float32 [..., 1]
    q       = QuantizeLinear(x / largest)            uint8, scale 1/127, zero point 128
    y       = MatMulIntegerToFloat(q, w) * largest   w int8 [inputs, outputs], a scale a column

A row's answer then depends on this row alone. Products that read the same tensor (query, key and
value) share one quantized copy of it.

CPUs without VNNI add two neighbouring products in 16 bits, which 255 times 128 just fits. Weights
are scaled so that no two neighbours of one sign exceed 128 together. Few columns need more than
their largest weight's scale for it, so that most weights keep their 8 bits, and the sums are exact
everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError

LEFT_IN_FP32 = "hasten_left_in_fp32"
"""Metadata of the model: names of the products that the rewrite does not know, one a line."""

_DOMAIN = "com.microsoft"
_LEVELS = 127  # of a quantized activation, on either side of the zero point
_ZERO_POINT = 128
_SMALLEST = 1e-30  # of what a row is divided by: an all-zero row stays zero
# Of two neighbouring weights in units of their scale; rounding adds at most 1, and 255 * 128 fits.
_LARGEST_PAIR = 127.4
# What multiplies by weights, in graphs that exporters write.
_PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv"}

_TO_INTEGERS = ("token_scale", "token_zero_point")

_log = logging.getLogger(__name__)


def rewrite(model: Any, spared: Collection[str] = ()) -> None:
    """Replace the products with constant weights of an fp32 ``onnx.ModelProto``, in place.

    Args:
        model: as the exporter wrote it.
        spared: names of nodes that stay in fp32.

    Raises:
        EngineError: the graph has no product that can become int8.
    """
    work = _Rewrite(model.graph)
    nodes = [new for node in model.graph.node for new in work.replaced(node, spared)]
    if not work.products:
        raise EngineError(
            "nothing in its graph can become int8: it has no matrix product with constant weights"
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    work.add_constants()
    if work.unknown:
        _log.warning("left in fp32, as no rewrite is known for them: %s", ", ".join(work.unknown))
        model.metadata_props.add(key=LEFT_IN_FP32, value="\n".join(work.unknown))
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.add(domain=_DOMAIN, version=1)


@dataclass
class _Rewrite:
    """What is known of the graph so far, and what is to be added to it."""

    graph: Any
    products: int = 0
    unknown: list[str] = field(default_factory=list)
    _new: list[Any] = field(default_factory=list)
    _rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    _weights: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from hasten.engines._onnx_int8 import constants

        self._constants = constants(self.graph)
        self._add("token_scale", np.array(1 / _LEVELS, np.float32))
        self._add("token_zero_point", np.array(_ZERO_POINT, np.uint8))
        self._add("token_smallest", np.array(_SMALLEST, np.float32))
        self._add("token_zero", np.array(0, np.float32))
        self._add("token_last_axis", np.array([-1], np.int64))

    def replaced(self, node: Any, spared: Collection[str]) -> Iterator[Any]:
        """The nodes that compute ``node``'s output: itself, where it stays."""
        if node.op_type not in _PRODUCTS or not self._weighted(node) or node.name in spared:
            yield node
        elif not self._is_known(node):
            self.unknown.append(node.name)
            yield node
        else:
            self.products += 1
            yield from self._product(node)

    def add_constants(self) -> None:
        """Put what the new nodes need into the graph, and take out what none needs any longer."""
        needed = {name for node in self.graph.node for name in node.input}
        for tensor in [each for each in self.graph.initializer if each.name not in needed]:
            self.graph.initializer.remove(tensor)
        self.graph.initializer.extend(self._new)

    def _weighted(self, node: Any) -> bool:
        return any(name in self._constants for name in node.input[:2])

    def _is_known(self, node: Any) -> bool:
        attributes = {each.name: each for each in node.attribute}
        plain = node.op_type == "MatMul" or (
            node.op_type == "Gemm"
            and not ("transA" in attributes and attributes["transA"].i)
            and all(attributes[name].f == 1 for name in ("alpha", "beta") if name in attributes)
        )
        weights = self._constants.get(node.input[1])
        return plain and weights is not None and len(weights.dims) == 2

    def _product(self, node: Any) -> Iterator[Any]:
        from onnx import helper

        rows = node.input[0]
        if rows not in self._rows:
            self._rows[rows] = f"{rows}_token_q", f"{rows}_token_largest"
            yield from self._quantize(rows)
        quantized, largest = self._rows[rows]
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        weights, scale = self._quantized_weights(node.input[1], transposed=transposed)
        unit, (output,) = f"{node.output[0]}_token_unit", node.output
        scales = (quantized, weights, "token_scale", scale, "token_zero_point")
        yield helper.make_node(
            "MatMulIntegerToFloat", scales, [unit], f"{node.name}_token", domain=_DOMAIN
        )
        bias = node.input[2] if len(node.input) > 2 else ""
        scaled = f"{output}_token_scaled" if bias else output
        yield helper.make_node("Mul", [unit, largest], [scaled], f"{node.name}_token_scale")
        if bias:
            yield helper.make_node("Add", [scaled, bias], [output], f"{node.name}_token_bias")

    def _quantize(self, rows: str) -> Iterator[Any]:
        """Nodes that divide every row by its largest magnitude and round it.

        ONNX Runtime's maximum may pass over a NaN; the row's sum, multiplied by 0, never does.
        """
        from onnx import helper

        quantized, largest = self._rows[rows]
        part = f"{rows}_token".__add__
        yield helper.make_node("ReduceMax", [rows], [part("_max")], part("_max"), axes=[-1])
        yield helper.make_node("ReduceMin", [rows], [part("_min")], part("_min"), axes=[-1])
        for operator, inputs, output in (
            ("Neg", [part("_min")], part("_neg")),
            ("Max", [part("_max"), part("_neg"), "token_smallest"], part("_top")),
            ("ReduceSum", [rows, "token_last_axis"], part("_sum")),
            ("Mul", [part("_sum"), "token_zero"], part("_nan")),
            ("Add", [part("_top"), part("_nan")], largest),
            ("Reciprocal", [largest], part("_inverse")),
            ("Mul", [rows, part("_inverse")], part("_unit")),
            ("QuantizeLinear", [part("_unit"), *_TO_INTEGERS], quantized),
        ):
            yield helper.make_node(operator, inputs, [output], output)

    def _quantized_weights(self, name: str, *, transposed: bool) -> tuple[str, str]:
        """Names of the int8 weights [inputs, outputs] and of their scales [outputs]."""
        from onnx import numpy_helper

        key = f"{name}_token{'_transposed' if transposed else ''}"
        if key not in self._weights:
            exact = numpy_helper.to_array(self._constants[name]).astype(np.float32)
            exact = exact.T if transposed else exact
            scale = column_scales(exact)
            rounded = np.rint(exact / scale).astype(np.int8)
            self._weights[key] = f"{key}_int8", f"{key}_scale"
            self._add(f"{key}_int8", np.ascontiguousarray(rounded))
            self._add(f"{key}_scale", scale)
        return self._weights[key]

    def _add(self, name: str, value: NDArray[Any]) -> None:
        from onnx import numpy_helper

        self._new.append(numpy_helper.from_array(value, name))


def column_scales(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """What one step of the int8 weights is worth, a column: float32 [inputs, outputs] -> [outputs].

    >>> column_scales(np.float32([[127, 50], [0, -50], [-127, 127]])).tolist()
    [1.0, 1.0]
    >>> float(column_scales(np.float32([[127], [127]]))[0]) > 1.99
    True
    """
    inputs, outputs = weights.shape
    even = np.concatenate([weights, np.zeros((inputs % 2, outputs), np.float32)])
    pairs = even.reshape(-1, 2, outputs)
    positive, negative = np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)
    widest = np.maximum(positive, negative).max(axis=0) / _LARGEST_PAIR
    largest = np.abs(weights).max(axis=0) / _LEVELS
    scales: NDArray[np.float32] = np.maximum(np.maximum(widest, largest), _SMALLEST)
    return scales.astype(np.float32)
