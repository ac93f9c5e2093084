"""TorchScript: the module traced and frozen into one file.

Simplicity 3: PyTorch must be installed, but not transformers; the trace must be trusted, since
it can run code of its author's choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.engines import _torch
from hasten.engines._border import foreign_errors
from hasten.engines.base import Engine, Options, Session
from hasten.errors import EngineError
from hasten.models import ModelFolder
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from torch import Tensor

_MODEL = "model.pt"
_NAMES = "names.json"
# Earlier artifacts name their only output, and take these inputs in this order.
_OUTPUT_NAME = "output_name"
_INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


class TorchScript(Engine):
    """See the module's docstring."""

    name = "torchscript"
    title = "TorchScript"
    requires: Mapping[str, str] = {"torch": "torch"}
    exports_with: Mapping[str, str] = {"transformers": "transformers", "safetensors": "safetensors"}
    extra = "torch"
    simplicity = 3

    def runs_code(self, folder: Path) -> bool:
        return True  # a trace is a program

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        return _torch.supports(self.title, candidate, hardware)

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        import torch

        jit = _torch.jit()
        module = _torch.in_precision(reference.module(), candidate.precision).to(candidate.device)
        info = reference.info
        inputs = _torch.example_inputs(info, candidate.device)
        with (
            foreign_errors(self.title, f"trace {info.architecture}"),
            _torch.quiet_tracing(),
            # Not inference mode, whose tensors cannot be saved.
            torch.no_grad(),
        ):
            # What check_trace compares, the parity check compares on the user's own texts.
            traced = jit.freeze(jit.trace(module, inputs, check_trace=False))
            names, options = _torch.names(info), self.session_options(candidate)
            session = _torch.TorchSession(self.title, _as_traced(traced), names, options)
            _torch.refuse_fixed_shapes(self.title, session, module, info, candidate.device)
            jit.save(traced, str(folder / _MODEL), _extra_files={_NAMES: json.dumps(names)})

    def session_options(self, candidate: Candidate) -> Options:
        return _torch.session_options(candidate)

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        jit = _torch.jit()
        _torch.pin_threads(int(options["num_threads"]))
        files: dict[str, Any] = {_NAMES: "", _OUTPUT_NAME: ""}  # filled with bytes
        with foreign_errors(self.title, f"load {folder / _MODEL}"), _torch.quiet_tracing():
            module = jit.load(
                str(folder / _MODEL), map_location=options["device"], _extra_files=files
            )
        if files[_OUTPUT_NAME]:
            names = _INPUT_NAMES, (files[_OUTPUT_NAME].decode(),)
        elif files[_NAMES]:
            names = json.loads(files[_NAMES])
        else:
            raise EngineError(
                f"{folder / _MODEL} does not name its inputs and outputs: it was not written by "
                "hasten",
                fix="Export the model with hasten export --engine torchscript.",
            )
        return _torch.TorchSession(self.title, _as_traced(module), names, options)


def _as_traced(module: Callable[..., Any]) -> Callable[..., Any]:
    """Run the graph as it was traced, instead of optimising it again for the shapes it meets.

    The profiling executor respecialises on the first three shapes, at 3 to 13 times eager's time
    each, and is then as fast as without (MiniLM, steady state over eager at 1x8, 1x32, 8x32 and
    8x64: 0.73 0.81 0.90 0.96 with it, 0.74 0.82 0.87 0.95 without; optimize_for_inference gains
    nothing on top). The switch belongs to the calling thread, so that each call sets it.
    """
    optimized_execution = _torch.jit().optimized_execution

    def forward(*inputs: Tensor) -> Any:
        with optimized_execution(False):
            return module(*inputs)

    return forward


ENGINE = TorchScript()
