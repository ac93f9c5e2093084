"""PyTorch as it comes: the original module, run operator by operator.

Simplicity 2: no conversion that could fail or change an answer, but PyTorch and transformers
must be installed where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hasten.engines import _torch
from hasten.engines.base import Engine, Session
from hasten.records import Candidate, Hardware
from hasten.reference import Reference


class TorchEager(Engine):
    """See the module's docstring."""

    name = "torch_eager"
    title = "PyTorch eager"
    requires: Mapping[str, str] = {
        "torch": "torch",
        "transformers": "transformers",
        "safetensors": "safetensors",
    }
    exports_with: Mapping[str, str] = {}
    extra = "torch"
    simplicity = 2

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        return _torch.supports(self.title, candidate, hardware)

    def artifact_name(self, candidate: Candidate) -> str:
        # The fp32 weights; the precision is applied when they are loaded.
        return self.name

    def runs_code(self, folder: Path) -> bool:
        return _torch.weights_run_code(folder)

    def export(self, reference: Reference, candidate: Candidate, folder: Path) -> None:
        _torch.export_weights(self.title, reference, folder)

    def load(self, folder: Path, candidate: Candidate) -> Session:
        module, info = _torch.load_weights(self.title, folder, candidate)
        return _torch.TorchSession(self.title, module, info.output_names[0], candidate)

    def ceiling_flops_per_s(self, candidate: Candidate) -> float | None:
        return _torch.matrix_product_flops_per_s(candidate)


ENGINE = TorchEager()
