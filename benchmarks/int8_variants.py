"""Variants of the int8 recipe ``token``: which flip fewer labels, on real weights and equal texts.

    python benchmarks/int8_variants.py minilm --folder work
    python benchmarks/int8_variants.py mpnet --folder work
    python benchmarks/int8_variants.py mpnet --folder work --variants token,smooth

Each rewrites the exported graph so that its answers are those of the variant; none is as fast as it
could be made, so that only flips count. A variant's flips are compared with those of ``token`` by
McNemar's test. Channels are judged on texts that the flips are not counted on. With ``--folder``,
answers are kept, and several processes may share the variants.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import int8
import numpy as np
from numpy.typing import NDArray

from hasten import engines
from hasten.engines import _onnx_int8, _onnx_token
from hasten.judging.stats import mcnemar_p
from hasten.models import ModelFolder
from hasten.records import Candidate, Strategy, Text
from hasten.runtime.batching import plan

CHANNELS = 8  # that stay in fp32, of every product's input
CALIBRATION_BATCHES = 100
_MODEL = "model.onnx"

Largest = Mapping[str, NDArray[np.float32]]
"""The largest magnitude of every channel, by the tensor's name."""


def main() -> None:
    options = _parse()
    chosen = int8.model(options.model)
    texts = chosen.texts[: options.texts]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        reference = int8.reference(chosen, folder / options.model)
        engine = engines.get("onnx_runtime")
        exact = int8.artifact(engine, reference, Candidate(engine.name, "fp32", "cpu", 1))
        answers = _Answers(reference, exact / _MODEL, texts)
        found = {name: answers.of(name) for name in options.variants.split(",")}
        truth = answers.of("fp32").argmax(axis=1)
        token = answers.of("token").argmax(axis=1) != truth
        print(f"{options.model}: flips of {len(texts)}, and texts that one of both flips")
        for name, outputs in found.items():
            flipped = outputs.argmax(axis=1) != truth
            only, spared = int((flipped & ~token).sum()), int((token & ~flipped).sum())
            print(
                f"{name:16} {flipped.sum():4}   +{only} -{spared}, p {mcnemar_p(only, spared):.2g}"
                f"   outputs off by {_apart(answers.of('fp32'), outputs):.4f} of their spread",
                flush=True,
            )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=("minilm", "mpnet"))
    parser.add_argument("--variants", default=",".join(VARIANTS), help="by comma")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="keep graphs and answers here, or find them")
    return parser.parse_args()


def _apart(truth: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
    return float(np.abs(outputs - truth).mean() / truth.std())


class _Answers:
    """What variants of one model answer; kept beside the model's artifact."""

    def __init__(self, reference: ModelFolder, exact: Path, texts: Sequence[Text]) -> None:
        self._reference, self._exact = reference, exact
        self._tokens = reference.tokenizer().encode(texts)

    def of(self, name: str) -> NDArray[np.float32]:
        """The outputs of a variant, or of ``fp32``: float32 [texts, labels]."""
        kept = self._exact.with_name(f"{name}-{len(self._tokens)}.npy")
        if not kept.exists():
            np.save(kept, self._run(name))
        found: NDArray[np.float32] = np.load(kept)
        return found

    def _run(self, name: str) -> NDArray[np.float32]:
        import onnx

        model = onnx.load(str(self._exact))
        if name != "fp32":
            VARIANTS[name](model, self._largest(model) if name in CALIBRATED else {})
        session, info = _session(model), self._reference.info
        outputs = np.empty((len(self._tokens), len(info.labels)), np.float32)
        for batch in plan(self._tokens.lengths, Strategy("token_budget", 64, token_budget=512)):
            ids, mask = self._tokens.pad(batch, info.pad_token_id)
            named = {"input_ids": ids, "attention_mask": mask}
            feed = {each: named.get(each, np.zeros_like(ids)) for each in info.input_names}
            (outputs[batch],) = session.run(None, feed)
        return outputs

    def _largest(self, model: Any) -> Largest:
        import onnx

        rows = sorted({node.input[0] for node in products(model)})
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in rows)
        session, found = _session(probe), {name: np.float32(0) for name in rows}
        for number, feed in enumerate(self._reference.calibration()):
            if number == CALIBRATION_BATCHES:
                break
            for name, value in zip(rows, session.run(rows, dict(feed)), strict=True):
                channels = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
                found[name] = np.maximum(found[name], channels)
        return found  # type: ignore[return-value]


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def products(model: Any) -> list[Any]:
    """The products of activations and constant weights; the head's, which have a bias, are not."""
    known = _onnx_int8.constants(model.graph)
    return [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in known]


def token(model: Any, _: Largest) -> None:
    """As shipped."""
    _onnx_token.rewrite(model)


def smooth(model: Any, largest: Largest) -> None:
    """SmoothQuant with 0.5 where a LayerNorm comes before, which could take the factors in."""
    _move_outliers(model, largest)
    _onnx_token.rewrite(model)


def smooth_asymmetric(model: Any, largest: Largest) -> None:
    """Both."""
    _move_outliers(model, largest)
    asymmetric(model, largest)


def _move_outliers(model: Any, largest: Largest) -> None:
    """Divide the channels of normed activations by factors that the weights are multiplied by."""
    normed = {n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"}
    edit = _Edit(model)
    for rows, nodes in edit.by_rows():
        if rows not in normed:
            continue
        weights = np.max([np.abs(edit.weights(node)).max(axis=1) for node in nodes], axis=0)
        factors = np.sqrt(np.maximum(largest[rows], 1e-5) / np.maximum(weights, 1e-5))
        edit.before(rows, "Mul", [rows, edit.constant(1 / factors)], f"{rows}_smooth")
        for node in nodes:
            smoothed = edit.constant(edit.weights(node) * factors[:, None])
            node.input[:] = [f"{rows}_smooth", smoothed]
    edit.finish()


def outliers(model: Any, largest: Largest) -> None:
    """The largest channels in fp32, the others as ``token`` has them."""
    edit, exact = _Edit(model), []
    for rows, nodes in edit.by_rows():
        few = np.sort(np.argsort(largest[rows])[-CHANNELS:])
        others = np.ones(len(largest[rows]))
        others[few] = 0
        edit.before(rows, "Mul", [rows, edit.constant(others)], f"{rows}_others")
        chosen = edit.constant(few, np.int64)
        edit.before(rows, "Gather", [rows, chosen], f"{rows}_few", axis=-1)
        for node in nodes:
            output, name = node.output[0], f"{node.name}_few"
            few_weights = edit.constant(edit.weights(node)[few])
            node.input[0], node.output[0] = f"{rows}_others", f"{output}_others"
            edit.after(node, "MatMul", [f"{rows}_few", few_weights], f"{output}_few", name=name)
            edit.after(node, "Add", [f"{output}_others", f"{output}_few"], output)
            exact.append(name)
    edit.finish()
    _onnx_token.rewrite(model, exact)


def exact_head(model: Any, _: Largest) -> None:
    """The head in fp32."""
    _onnx_token.rewrite(model, _head(model))


def exact_ffn(model: Any, _: Largest) -> None:
    """The head, and the second product of every feed-forward part, in fp32."""
    edit = _Edit(model)
    seconds = [n.name for n in products(model) if np.divide(*edit.weights(n).shape) > 1]
    _onnx_token.rewrite(model, [*_head(model), *seconds])


def _head(model: Any) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "Gemm"]


def asymmetric(model: Any, _: Largest) -> None:
    """From every row's smallest to its largest number, with a correction behind the product."""
    work = _Asymmetric(model.graph)
    nodes = [new for node in model.graph.node for new in work.replaced(node, ())]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    work.add_constants()
    model.opset_import.add(domain="com.microsoft", version=1)


class _Asymmetric(_onnx_token._Rewrite):  # noqa: SLF001 - it is ``token`` but for two steps
    """Rows of ``q = (x - smallest) / (largest - smallest)``.

    With ``W``, the sums of the columns of the int8 weights ``w``, a product is
    ``q w (largest - smallest) + smallest W``. The operators take one zero point a tensor, so that
    this takes a product of rank 1 and an addition more.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._add("span_scale", np.array(1 / 255, np.float32))
        self._add("span_zero_point", np.array(0, np.uint8))

    def _quantize(self, rows: str) -> Iterator[Any]:
        from onnx import helper

        quantized, span = self._rows[rows]
        part = f"{rows}_span".__add__
        yield helper.make_node("ReduceMax", [rows], [part("_max")], axes=[-1])
        yield helper.make_node("ReduceMin", [rows], [part("_min")], axes=[-1])
        for operator, inputs, output in (
            ("Sub", [part("_max"), part("_min")], part("_width")),
            ("Max", [part("_width"), "token_smallest"], span),
            ("Sub", [rows, part("_min")], part("_above")),
            ("Div", [part("_above"), span], part("_unit")),
            ("QuantizeLinear", [part("_unit"), "span_scale", "span_zero_point"], quantized),
        ):
            yield helper.make_node(operator, inputs, [output], output)

    def _product(self, node: Any) -> Iterator[Any]:
        from onnx import helper

        rows, output = node.input[0], node.output[0]
        known = {tensor.name for tensor in self._new}
        for new in super()._product(node):
            if new.op_type == "MatMulIntegerToFloat":
                new.input[2], new.input[4] = "span_scale", "span_zero_point"
                sums = self._column_sums(new.input[1], new.input[3], known)
            if new.op_type == "Mul" and new.name == f"{node.name}_token_scale":
                scaled = new.output[0]
                new.output[0] = f"{output}_span_scaled"
                yield new
                yield helper.make_node("MatMul", [f"{rows}_span_min", sums], [f"{output}_span_add"])
                corrected = [f"{output}_span_scaled", f"{output}_span_add"]
                yield helper.make_node("Add", corrected, [scaled])
                continue
            yield new

    def _column_sums(self, weights: str, scale: str, known: set[str]) -> str:
        from onnx import numpy_helper

        name = f"{weights}_sums"
        if name not in known:
            made = {tensor.name: numpy_helper.to_array(tensor) for tensor in self._new}
            sums = made[weights].astype(np.int64).sum(axis=0, keepdims=True) * made[scale]
            self._add(name, sums.astype(np.float32))
        return name


class _Edit:
    """Nodes put before and behind those of a graph."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._products = products(model)
        self._known = _onnx_int8.constants(model.graph)
        self._before: dict[str, list[Any]] = {}
        self._after: dict[str, list[Any]] = {}
        self._made = 0

    def by_rows(self) -> list[tuple[str, list[Any]]]:
        """The products that share an input, by its name."""
        found: dict[str, list[Any]] = {}
        for node in self._products:
            found.setdefault(node.input[0], []).append(node)
        return list(found.items())

    def weights(self, node: Any) -> NDArray[np.float32]:
        """float32 [inputs, outputs]."""
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._known[node.input[1]]), np.float32)

    def constant(self, value: NDArray[Any], dtype: Any = np.float32) -> str:
        """The name of a new constant."""
        from onnx import numpy_helper

        self._made += 1
        name = f"variant_{self._made}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, dtype), name)
        self._graph.initializer.append(tensor)
        return name

    def before(self, rows: str, operator: str, inputs: list[str], output: str, **more: Any) -> None:
        """A node that runs as soon as ``rows`` is there."""
        self._put(self._before.setdefault(rows, []), operator, inputs, output, **more)

    def after(self, node: Any, operator: str, inputs: list[str], output: str, **more: Any) -> None:
        """A node that runs behind ``node``."""
        self._put(self._after.setdefault(node.name, []), operator, inputs, output, **more)

    def _put(
        self, nodes: list[Any], operator: str, inputs: list[str], output: str, **more: Any
    ) -> None:
        from onnx import helper

        nodes.append(helper.make_node(operator, inputs, [output], **{"name": output, **more}))

    def finish(self) -> None:
        """Put the nodes into the graph."""
        nodes = []
        for node in self._graph.node:
            nodes += [node, *self._after.get(node.name, [])]
            for name in node.output:
                nodes += self._before.get(name, [])
        del self._graph.node[:]
        self._graph.node.extend(nodes)


VARIANTS: Mapping[str, Callable[[Any, Largest], None]] = {
    each.__name__: each
    for each in (token, smooth, asymmetric, smooth_asymmetric, outliers, exact_head, exact_ffn)
}
CALIBRATED = {"smooth", "smooth_asymmetric", "outliers"}


if __name__ == "__main__":
    main()
