"""What the form of attention costs long texts, in ONNX Runtime and in OpenVINO.

    python benchmarks/attention.py                    # the demo's classifier, one stream
    python benchmarks/attention.py --shapes 1x512,4x512 --rounds 12

Exports the model twice, with transformers' ``sdpa`` and with its ``eager`` attention, and a third
time fused by ``onnxruntime.transformers.optimizer``; makes the int8 recipe ``token`` of each; and
lets them take turns. Times are CPU times, which other processes disturb less. Ratios are to the
sdpa export of the same precision and engine, with 95 % intervals over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import figures
import numpy as np
from models import NAMES, prepared

from hasten import engines
from hasten.engines import _onnx_token, _torch, onnx_runtime
from hasten.engines.base import Inputs, Session
from hasten.judging.stats import ratio_interval
from hasten.models import ModelFolder
from hasten.models.module import Attention
from hasten.records import Candidate

_MODEL = "model.onnx"
_IR = "openvino_model.xml"


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reference = prepared("tiny" if options.quick else options.model, folder)
        onnx = dict(_onnx(reference, folder, options.threads))
        openvino = dict(_openvino(reference, folder, options.threads))
    found: list[tuple[str, str, float, str]] = []
    for shape in options.shapes.split(","):
        batch, length = map(int, shape.split("x"))
        for names in (onnx, openvino):
            inputs = _inputs(reference, batch, length)
            found += _compare(names, inputs, shape, options.rounds)
    rows = [f"| {shape} | {form} | {ms:.1f} | {ratio} |" for shape, form, ms, ratio in found]
    lines = ["| shape | graph | ms of CPU time | x sdpa |", "|---|---|---:|---|", *rows]
    figures.publish(options.result, {"attention": "\n".join(lines)}, found)


def _parse() -> argparse.Namespace:
    parser = figures.parser(__doc__)
    parser.add_argument("--model", choices=NAMES, default="minilm")
    parser.add_argument("--shapes", default="8x32,8x128,1x512,4x512")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _onnx(reference: ModelFolder, folder: Path, threads: int) -> Iterator[tuple[str, Session]]:
    """Sessions by precision and form, as in ``fp32 eager``."""
    import onnx

    engine = engines.get("onnx_runtime")
    candidate = Candidate(engine.name, "fp32", "cpu", threads)
    graphs: dict[str, Any] = {}
    for attention in get_args(Attention):
        path = folder / f"{attention}.onnx"
        onnx_runtime.export_graph(reference.module(attention), reference, path)
        graphs[attention] = onnx.load(str(path))
    module: Any = reference.module()
    graphs["fused"] = _fused(folder / "eager.onnx", module.original.config)
    for precision in ("fp32", "int8"):
        for form, graph in graphs.items():
            if precision == "int8":
                _onnx_token.rewrite(graph)
            artifact = folder / f"{precision}-{form}"
            artifact.mkdir()
            onnx.save_model(graph, str(artifact / _MODEL))
            yield f"{precision} {form}", engine.load(artifact, candidate)


def _fused(path: Path, config: Any) -> Any:
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.use_multi_head_attention = True  # its projections stay products of their own
    fused = optimizer.optimize_model(
        str(path),
        "bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        optimization_options=options,
        opt_level=0,
    )
    return fused.model


def _openvino(reference: ModelFolder, folder: Path, threads: int) -> Iterator[tuple[str, Session]]:
    import openvino

    engine = engines.get("openvino")
    candidate = Candidate(engine.name, "fp32", "cpu", threads)
    for attention in get_args(Attention):
        artifact = folder / f"openvino-{attention}"
        artifact.mkdir()
        with _torch.quiet_tracing():
            model = openvino.convert_model(
                reference.module(attention), example_input=_torch.example_inputs(reference.info)
            )
        for port, name in zip(model.inputs, reference.info.input_names, strict=True):
            port.get_tensor().set_names({name})
        model.outputs[0].get_tensor().set_names({reference.info.output_names[0]})
        openvino.save_model(model, str(artifact / _IR), compress_to_fp16=False)
        yield f"OpenVINO {attention}", engine.load(artifact, candidate)


def _inputs(reference: ModelFolder, batch: int, length: int) -> Inputs:
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    named = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: named.get(name, np.zeros_like(ids)) for name in reference.info.input_names}


def _compare(
    sessions: Mapping[str, Session], inputs: Inputs, shape: str, rounds: int
) -> Iterator[tuple[str, str, float, str]]:
    """Shape, form, milliseconds and the ratio to the sdpa export."""
    times_s: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, session in sessions.items():
            begin = time.process_time()
            session.run(inputs)
            if number:  # the first is there to warm up
                times_s[name].append(time.process_time() - begin)
    for name, taken in times_s.items():
        other = times_s[f"{name.partition(' ')[0]} sdpa"]
        ratio = figures.interval(ratio_interval(other, taken, seed=0))
        yield shape, name, 1e3 * float(np.median(taken)), ratio


if __name__ == "__main__":
    main()
