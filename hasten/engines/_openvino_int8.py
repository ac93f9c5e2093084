"""OpenVINO models in 8-bit integers, made by NNCF.

``static`` finds the ranges of activations from calibration texts, with SmoothQuant, which moves
outliers of activations into the weights; ``static-bf16`` runs what is left over in bf16.
``weights`` stores weights alone in 8 bits. ``static-reduced`` uses half of the weights' range:
without VNNI, sums of full products overflow. It is slower than fp32 there, as all of them are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.engines._border import nodes_of, quiet_logger
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from hasten.models import ModelFolder


def recipes(hardware: Hardware) -> tuple[str, ...]:
    """What is worth trying on this CPU: see docs/precision.md."""
    return ("static", "static-bf16", "weights") if hardware.has_vnni else ()


def not_worth_trying(hardware: Hardware) -> dict[str, str]:
    """What cannot win on this CPU, and why: see docs/precision.md."""
    if hardware.has_vnni:
        return {}
    reason = "without VNNI it is slower than OpenVINO's fp32"
    return dict.fromkeys(("static-reduced", "weights"), reason)


def quantize(model: Any, reference: ModelFolder, candidate: Candidate) -> Any:
    """The converted fp32 ``model`` as the candidate's recipe wants it."""
    import nncf

    # Importing NNCF has set the level, so that it is lowered behind that.
    with quiet_logger("nncf"):
        products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
        names = [node.get_friendly_name() for node in products]
        ignored = nncf.IgnoredScope(names=nodes_of(candidate.spared, names))
        if candidate.recipe == "weights":
            # Embeddings stay, as in all recipes: their rounding goes through all layers.
            kept = nncf.IgnoredScope(names=ignored.names, types=["Gather"])
            mode = nncf.CompressWeightsMode.INT8_SYM
            return nncf.compress_weights(model, mode=mode, ignored_scope=kept)
        texts = list(reference.calibration())
        reduced = candidate.recipe == "static-reduced"
        fix = nncf.OverflowFix.ENABLE if reduced else nncf.OverflowFix.DISABLE
        return nncf.quantize(
            model,
            nncf.Dataset(texts),
            subset_size=len(texts),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=ignored,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )
