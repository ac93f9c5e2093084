"""ONNX Runtime: the module exported to one ONNX file, which Optimum loads as well.

Simplicity 0: one file and one small library that has no dependencies of its own worth naming.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten import tasks
from hasten.engines._border import Pool, foreign_errors, shape_of, why_not, with_optimum
from hasten.engines.base import Engine, Inputs, Options, Raw, Session
from hasten.errors import EngineError
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from torch import nn

    from hasten.models import ModelFolder
    from hasten.models.module import Attention

# On the CPU, its provider has no bf16 kernels, and computes fp16 in fp32.
_OFFERED = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16")}
_BYTES = {"fp32": 4, "fp16": 2, "int8": 4}  # of what is exported first
_MODEL = "model.onnx"
_WEIGHTS = "model.onnx_data"
_TRAINED = "trained"
_SPINNING = "session.intra_op.allow_spinning"
# sdpa's export puts IsNaN and Where nodes around every softmax: with long texts it takes 1.1 to
# 1.2 times as long (docs/precision.md).
_ATTENTION: Attention = "eager"
# A protobuf message ends at 2 GiB; some is left for the graph around the weights.
_LARGEST_FILE_BYTES = 2**31 - 2**26
# The first opset with LayerNormalization as one operator.
_OPSET = 17


class OnnxSession(Session):
    """One ONNX Runtime session per stream, or one for all where a stream is one thread."""

    def __init__(self, title: str, path: Path, streams: int, options: Options) -> None:
        self._title = title
        # Calls share their session's pool of threads, and without a pool each call runs on its
        # own thread: one session then serves all (two sessions took 0.92 to 1.11 of its time on
        # MiniLM). With a pool, each stream needs its own, weights included.
        shared = 1 if options["intra_op_num_threads"] == 1 else streams
        self.sessions = [_open(path, options) for _ in range(shared)]
        self._pool = Pool(self.sessions[stream % shared] for stream in range(streams))
        self._names = [output.name for output in self.sessions[0].get_outputs()]

    def run(self, inputs: Inputs) -> Raw:
        doing = f"run a batch of {shape_of(inputs)}"
        with self._pool.borrow() as session, foreign_errors(self._title, doing):
            outputs = session.run(self._names, dict(inputs))
        return dict(zip(self._names, outputs, strict=True))


class OnnxRuntime(Engine):
    """See the module's docstring."""

    name = "onnx_runtime"
    title = "ONNX Runtime"
    requires: Mapping[str, str] = {"onnxruntime": "onnxruntime"}
    exports_with: Mapping[str, str] = {
        "torch": "torch",
        "transformers": "transformers",
        "safetensors": "safetensors",
        "onnx": "onnx",
    }
    recipes_export_with: Mapping[str, Mapping[str, str]] = {"weights": {"onnx_ir": "onnx-ir"}}
    trained_recipes = (_TRAINED,)
    extra = "onnx"
    simplicity = 0
    can_spin = True

    def recipes(self, precision: str, hardware: Hardware) -> Sequence[str]:
        from hasten.engines import _onnx_int8

        return _onnx_int8.recipes(hardware) if precision == "int8" else ("",)

    def not_worth_trying(self, precision: str, hardware: Hardware) -> Mapping[str, str]:
        from hasten.engines import _onnx_int8

        return _onnx_int8.not_worth_trying(hardware) if precision == "int8" else {}

    def versions(self) -> dict[str, str]:
        # The package with CUDA has another name, and provides the same module.
        for name in ("onnxruntime-gpu", "onnxruntime"):
            if installed := list(metadata.distributions(name=name)):
                return {name: installed[0].version}
        return {}

    def calibrates(self, candidate: Candidate) -> bool:
        return candidate.recipe.startswith("static")

    def depends_on_batch(self, candidate: Candidate) -> bool:
        from hasten.engines import _onnx_int8

        return _onnx_int8.depends_on_batch(candidate.recipe)

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        reason = why_not(self.title, candidate, hardware, _OFFERED)
        if reason is None and candidate.device == "cuda":
            import onnxruntime

            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                return "the installed onnxruntime has no CUDA; the package onnxruntime-gpu has"
        return reason

    def artifact_name(self, candidate: Candidate) -> str:
        if candidate.recipe:
            return candidate.format
        # The same graph serves both devices.
        return f"{self.name}-{candidate.precision}"

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        if candidate.recipe == _TRAINED:
            self._export_trained(reference, candidate, folder)
            return
        module = reference.module(_ATTENTION)
        with foreign_errors(self.title, f"export {reference.info.architecture} to ONNX"):
            parameters = sum(parameter.numel() for parameter in module.parameters())
            large = parameters * _BYTES[candidate.precision] > _LARGEST_FILE_BYTES
            if candidate.precision == "fp32" and not large:
                self._export_checked(module, reference, folder)
                return
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                self._export_checked(module, reference, Path(scratch))
                if candidate.precision == "int8":
                    self.derive(Path(scratch), reference, candidate, folder)
                    return
                _rewrite(Path(scratch, _MODEL), folder, candidate.precision, large)

    def _export_checked(self, module: nn.Module, reference: ModelFolder, folder: Path) -> None:
        # Here, as it is not needed where a bundle runs, and takes a while to import.
        from hasten.engines import _torch

        export_graph(module, reference, folder / _MODEL)
        exported = Candidate(self.name, "fp32", "cpu", 1)
        session = self.open(folder, exported, self.session_options(exported))
        _torch.refuse_fixed_shapes(self.title, session, module, reference.info)

    def _export_trained(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        # Here, as they are not needed where a bundle runs.
        from hasten.engines import _onnx_int8
        from hasten.models import load_trained

        module = load_trained(reference, candidate.spared, _ATTENTION)
        with (
            foreign_errors(self.title, f"export {reference.info.architecture} to ONNX"),
            tempfile.TemporaryDirectory(dir=folder) as scratch,
        ):
            export_graph(module, reference, Path(scratch, _MODEL))
            _onnx_int8.fold_weights(Path(scratch, _MODEL), folder / _MODEL)

    def base(self, candidate: Candidate) -> Candidate | None:
        exact = replace(candidate, precision="fp32", recipe="", spared=())
        derived = candidate.precision == "int8" and candidate.recipe != _TRAINED
        return exact if derived else None

    def derive(
        self, base: Path, reference: ModelFolder, candidate: Candidate, folder: Path
    ) -> None:
        # Here, as it is not needed where a bundle runs.
        from hasten.engines import _onnx_int8

        with foreign_errors(self.title, f"quantize {reference.info.architecture}"):
            _onnx_int8.quantize(base / _MODEL, folder / _MODEL, reference, candidate)

    def usage(self, folder: Path, reference: ModelFolder, candidate: Candidate) -> str:
        provider = f"{candidate.device.upper()}ExecutionProvider"
        task = tasks.of(reference.info)
        if reference.kind == "huggingface" and task.pipeline:
            chosen = f', provider="{provider}"'
            return with_optimum(task, "optimum.onnxruntime", "ORT", folder, chosen)
        return (
            "import onnxruntime\n\n"
            f"path = {str(folder / _MODEL)!r}\n"
            f'session = onnxruntime.InferenceSession(path, providers=["{provider}"])\n'
            f"outputs = session.run(None, inputs)  # int64: {', '.join(reference.info.input_names)}"
        )

    def session_options(self, candidate: Candidate) -> Options:
        # ONNX Runtime's default on GPUs since Ampere is TF32, which keeps 10 bits of fp32's 23.
        exact = {"use_tf32": "0"} if candidate.device == "cuda" else {}
        return exact | {
            "provider": f"{candidate.device.upper()}ExecutionProvider",
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "execution_mode": "ORT_SEQUENTIAL",
            # Explicit, since the default counts the host's cores and not the container's.
            "intra_op_num_threads": candidate.intra_op_num_threads,
            "inter_op_num_threads": 1,
            # Waiting threads sleep unless the candidate says otherwise. On two idle cores
            # spinning made a batch faster (0.78 of the time at 1x8, 0.86 at 8x128), but with
            # anything else running, a tokenizer to begin with, it took 1.1 to 2.4 times as long;
            # stopping the spin between batches (force_spinning_stop) did not help.
            _SPINNING: "1" if candidate.spinning else "0",
        }

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        with foreign_errors(self.title, f"load {folder / _MODEL}"):
            return OnnxSession(self.title, folder / _MODEL, candidate.streams, options)


def export_graph(module: nn.Module, reference: ModelFolder, path: Path) -> None:
    """Write ``module``, which has the reference's face, as an ONNX graph in fp32."""
    import torch

    # Here, as it is not needed where a bundle runs, and takes a while to import.
    from hasten.engines import _torch

    info = reference.info
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in info.input_names}
    with _torch.quiet_tracing():
        torch.onnx.export(
            module,
            _torch.example_inputs(info),
            str(path),
            input_names=list(info.input_names),
            output_names=list(info.output_names),
            dynamic_axes={**axes, **_torch.varying_axes(module, info)},
            opset_version=_OPSET,
            # The exporter that traces: what dynamo's makes ran 10 % slower in ONNX Runtime.
            dynamo=False,
        )


def _rewrite(exported: Path, folder: Path, precision: str, large: bool) -> None:
    """Store ``exported`` in ``folder``, in ``precision`` and in the files Optimum looks for."""
    import onnx

    model = _in_half(exported) if precision == "fp16" else onnx.load(str(exported))
    # PyTorch puts each weight of a large model into a file of its own; here they share one.
    onnx.save_model(
        model,
        str(folder / _MODEL),
        save_as_external_data=large,
        location=_WEIGHTS if large else None,
    )


def _in_half(exported: Path) -> Any:
    """The model in fp16 with float32 outputs.

    Converted here, since the exporter gives a half-precision module's attention fp32 outputs, and
    all that follows stays fp32 with them.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # A mask's lowest number: fp16's own lowest serves as well.
        warnings.filterwarnings("ignore", "the float32 number .* will be truncated to")
        return convert_float_to_float16(str(exported), keep_io_types=True)


def _open(path: Path, options: Options) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # on by default in the Windows builds
    levels, modes = onnxruntime.GraphOptimizationLevel, onnxruntime.ExecutionMode
    opened = onnxruntime.SessionOptions()
    opened.graph_optimization_level = getattr(levels, str(options["graph_optimization_level"]))
    opened.execution_mode = getattr(modes, str(options["execution_mode"]))
    opened.intra_op_num_threads = options["intra_op_num_threads"]
    opened.inter_op_num_threads = options["inter_op_num_threads"]
    opened.add_session_config_entry(_SPINNING, options[_SPINNING])
    provider = options["provider"]
    if provider == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()  # CUDA's libraries from pip's packages, where they are
    session = onnxruntime.InferenceSession(str(path), opened, providers=_providers(options))
    if session.get_providers()[0] != provider:
        # It would run on the CPU and only log that; the numbers would be another device's.
        raise EngineError(
            "ONNX Runtime could not start its CUDA provider",
            fix="Install the CUDA and cuDNN versions that this onnxruntime-gpu was built for.",
        )
    return session


def _providers(options: Options) -> list[Any]:
    """The provider and its options, and the CPU for what a GPU's provider leaves to it."""
    provider = options["provider"]
    if provider == "CPUExecutionProvider":
        return [provider]
    given = {"use_tf32": options["use_tf32"]} if "use_tf32" in options else {}
    return [(provider, given), "CPUExecutionProvider"]


ENGINE = OnnxRuntime()
