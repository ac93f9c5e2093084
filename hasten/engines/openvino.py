"""OpenVINO: the module converted to OpenVINO's IR, which Optimum Intel loads as well.

Simplicity 1: two files and one library, larger than ONNX Runtime and for CPUs only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten import tasks
from hasten.engines._border import Pool, foreign_errors, shape_of, why_not, with_optimum
from hasten.engines.base import Engine, Inputs, Options, Raw, Session
from hasten.hardware import missing_instructions
from hasten.records import Candidate, Hardware, ModelInfo

if TYPE_CHECKING:
    from hasten.models import ModelFolder

# The plugin for GPUs is for Intel's; "cuda" it does not know.
_OFFERED = {"cpu": ("fp32", "bf16", "int8")}
_HINTS = {
    "fp32": "f32",
    "bf16": "bf16",
    "int8": "f32",
}  # of int8, for what is not an integer product
_REST_IN_BF16 = "-bf16"
_TRAINED = "trained"
_MODEL = "openvino_model.xml"
# Which input of ScaledDotProductAttention; and what hides a token in every floating-point type
# that has a range as large as float32's.
_MASK, _HIDDEN = 3, -1e30


class OpenVinoSession(Session):
    """One compiled model, and one of its infer requests per stream."""

    def __init__(self, title: str, compiled: Any, streams: int) -> None:
        self._title = title
        self.compiled = compiled
        self._names = [port.any_name for port in compiled.outputs]
        requests = [compiled.create_infer_request() for _ in range(streams)]
        tokens = np.ones((1, 2), dtype=np.int64)
        feed = dict.fromkeys((port.any_name for port in compiled.inputs), tokens)
        for request in requests:
            # Once here, alone: the bindings set themselves up at the first call, and two threads
            # that make it at the same time wait for each other for ever (seen with 2026.4).
            request.infer(feed)
        self._pool = Pool(requests)

    def run(self, inputs: Inputs) -> Raw:
        doing = f"run a batch of {shape_of(inputs)}"
        with self._pool.borrow() as request, foreign_errors(self._title, doing):
            # Outputs are copied, as share_outputs is off: the request's own memory is
            # overwritten by its next batch.
            outputs = request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        return {name: outputs[place] for place, name in enumerate(self._names)}


class OpenVino(Engine):
    """See the module's docstring."""

    name = "openvino"
    title = "OpenVINO"
    requires: Mapping[str, str] = {"openvino": "openvino"}
    exports_with: Mapping[str, str] = {
        "torch": "torch",
        "transformers": "transformers",
        "safetensors": "safetensors",
    }
    recipes_export_with: Mapping[str, Mapping[str, str]] = {
        name: {"nncf": "nncf"} for name in ("static", "static-reduced", "static-bf16", "weights")
    }
    trained_recipes = (_TRAINED,)
    extra = "openvino"
    simplicity = 1

    def recipes(self, precision: str, hardware: Hardware) -> Sequence[str]:
        from hasten.engines import _openvino_int8

        return _openvino_int8.recipes(hardware) if precision == "int8" else ("",)

    def not_worth_trying(self, precision: str, hardware: Hardware) -> Mapping[str, str]:
        from hasten.engines import _openvino_int8

        return _openvino_int8.not_worth_trying(hardware) if precision == "int8" else {}

    def calibrates(self, candidate: Candidate) -> bool:
        return candidate.recipe.startswith("static")

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        reason = why_not(self.title, candidate, hardware, _OFFERED)
        if reason is None and candidate.recipe.endswith(_REST_IN_BF16):
            return missing_instructions("bf16", hardware)
        return reason

    def artifact_name(self, candidate: Candidate) -> str:
        if candidate.recipe:
            recipe = candidate.recipe.removesuffix(_REST_IN_BF16)
            return replace(candidate, recipe=recipe).format
        # The fp32 weights; the precision is applied when the model is compiled.
        return self.name

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        # Here, as they are not needed where a bundle runs, and take a while to import.
        from hasten.engines import _torch
        from hasten.models import load_trained

        info, trained = reference.info, candidate.recipe == _TRAINED
        module = load_trained(reference, candidate.spared) if trained else reference.module()
        with (
            foreign_errors(self.title, f"convert {info.architecture}"),
            _torch.quiet_tracing(),
            _without_telemetry(),
        ):
            import openvino

            model = openvino.convert_model(module, example_input=_torch.example_inputs(info))
            for port, name in zip(model.inputs, info.input_names, strict=True):
                port.get_tensor().set_names({name})
            for port, name in zip(model.outputs, info.output_names, strict=True):
                port.get_tensor().set_names({name})
            _number_masks(model)
            self._refuse_fixed_shapes(model, module, info)
            if candidate.recipe and not trained:
                model = _quantized(model, reference, candidate)
            openvino.save_model(model, str(folder / _MODEL), compress_to_fp16=False)

    def _refuse_fixed_shapes(self, model: Any, module: Any, info: ModelInfo) -> None:
        # Here, as they are not needed where a bundle runs.
        import openvino

        from hasten.engines import _torch

        options = self.session_options(Candidate(self.name, "fp32", "cpu", 1))
        compiled = openvino.Core().compile_model(model, "CPU", dict(options))
        session = OpenVinoSession(self.title, compiled, 1)
        _torch.refuse_fixed_shapes(self.title, session, module, info)

    def base(self, candidate: Candidate) -> Candidate | None:
        exact = replace(candidate, precision="fp32", recipe="", spared=())
        return exact if candidate.recipe not in ("", _TRAINED) else None

    def derive(
        self, base: Path, reference: ModelFolder, candidate: Candidate, folder: Path
    ) -> None:
        doing = f"quantize {reference.info.architecture}"
        with foreign_errors(self.title, doing), _without_telemetry():
            import openvino

            model = openvino.Core().read_model(str(base / _MODEL))
            model = _quantized(model, reference, candidate)
            openvino.save_model(model, str(folder / _MODEL), compress_to_fp16=False)

    def usage(self, folder: Path, reference: ModelFolder, candidate: Candidate) -> str:
        settings = f'{{"INFERENCE_PRECISION_HINT": "{_hint(candidate)}"}}'
        task = tasks.of(reference.info)
        if reference.kind == "huggingface" and task.pipeline:
            options = f", ov_config={settings}"
            return with_optimum(task, "optimum.intel", "OV", folder, options)
        return (
            "import openvino\n\n"
            f"path, settings = {str(folder / _MODEL)!r}, {settings}\n"
            'model = openvino.Core().compile_model(path, "CPU", settings)\n'
            f"outputs = model(inputs)  # int64: {', '.join(reference.info.input_names)}"
        )

    def session_options(self, candidate: Candidate) -> Options:
        return {
            # Explicit, since the default is bf16 wherever the CPU has it.
            "INFERENCE_PRECISION_HINT": _hint(candidate),
            "INFERENCE_NUM_THREADS": candidate.threads,
            "NUM_STREAMS": candidate.streams,
            # Pinned threads were not faster (0.95 to 1.05 of the time at one stream, 0.95 to 1.05
            # at two), and those of two processes sit on the same cores.
            "ENABLE_CPU_PINNING": False,
        }

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        with foreign_errors(self.title, f"load {folder / _MODEL}"), _without_telemetry():
            import openvino

            compiled = openvino.Core().compile_model(str(folder / _MODEL), "CPU", dict(options))
            return OpenVinoSession(self.title, compiled, candidate.streams)


def _number_masks(model: Any) -> None:
    """Give attention masks of numbers instead of booleans, in place.

    OpenVINO's attention answers NaN for a token that may look at nothing: padding, where each
    token sees only its neighbours (ModernBERT), or only those before it. A large negative number
    leaves the mean of all values instead, as eager attention does, and nobody reads it.
    """
    from openvino import Type, opset13

    numbers: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() <= _MASK:
            continue
        mask = node.input_value(_MASK)
        if mask.get_element_type() != Type.boolean:
            continue
        name = f"{mask.get_node().get_name()}:{mask.get_index()}"
        if name not in numbers:
            numbers[name] = opset13.select(mask, np.float32(0), np.float32(_HIDDEN))
        node.input(_MASK).replace_source_output(numbers[name].output(0))


def _hint(candidate: Candidate) -> str:
    """The precision in which everything runs that is not an integer product."""
    return "bf16" if candidate.recipe.endswith(_REST_IN_BF16) else _HINTS[candidate.precision]


def _quantized(model: Any, reference: ModelFolder, candidate: Candidate) -> Any:
    # Here, as it is not needed where a bundle runs, and takes a while to import.
    from hasten.engines import _openvino_int8

    return _openvino_int8.quantize(model, reference, candidate)


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import OpenVINO as if ``openvino_telemetry`` were not installed.

    Importing OpenVINO, not only converting with it, reports to Google Analytics unless the user
    has opted out. Where the package is missing it uses a stub that is silent; ``None`` in
    ``sys.modules`` is the import system's way to say so.
    """
    name = "openvino_telemetry"
    real = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if real is None:
            del sys.modules[name]
        else:
            sys.modules[name] = real


ENGINE = OpenVino()
