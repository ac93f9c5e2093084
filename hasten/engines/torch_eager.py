"""PyTorch as it comes: the original module, run operator by operator.

Simplicity 2: no conversion that could fail or change an answer, but PyTorch and transformers
must be installed where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hasten.engines import _torch
from hasten.engines.base import Options, Session
from hasten.records import Candidate, Hardware

_DYNAMIC = "dynamic"


class TorchEager(_torch.WeightsEngine):
    """See the module's docstring."""

    name = "torch_eager"
    title = "PyTorch eager"
    simplicity = 2

    def recipes(self, precision: str, hardware: Hardware) -> Sequence[str]:
        if precision != "int8":
            return ("",)
        return (_DYNAMIC,) if hardware.has_vnni else ()

    def not_worth_trying(self, precision: str, hardware: Hardware) -> Mapping[str, str]:
        if precision != "int8" or hardware.has_vnni:
            return {}
        return {_DYNAMIC: "without VNNI other engines are faster, in int8 or in fp32"}

    def depends_on_batch(self, candidate: Candidate) -> bool:
        return candidate.recipe == _DYNAMIC

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        if candidate.recipe == _DYNAMIC and candidate.device == "cpu":
            return None
        return super().supports(candidate, hardware)

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        module, info = _torch.load_weights(self.title, folder, candidate, options)
        return _torch.TorchSession(self.title, module, _torch.names(info), options)

    def ceiling_flops_per_s(self, candidate: Candidate) -> float | None:
        return _torch.matrix_product_flops_per_s(candidate)


ENGINE = TorchEager()
