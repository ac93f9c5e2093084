"""Whether a model's answers depend on how a batch is padded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.inputs.tokenization import Tokens
from hasten.models.folder import ModelFolder
from hasten.records import ModelInfo

if TYPE_CHECKING:
    from torch import nn

_MOST_TEXTS = 1000
_QUANTILES = (0.0, 0.5, 0.9)
"""By length, the texts that are run alone and together."""

Side = Literal["left", "right"]


def padding_notice(reference: ModelFolder, texts: Sequence[str], tolerance: float) -> str | None:
    """What to say where the original answers a padded text otherwise than the text alone.

    Args:
        reference: the original.
        texts: the user's.
        tolerance: the largest difference between outputs that count as the same.
    """
    tokens, module = _some(reference, texts), reference.module()
    side = tokens.padding.side
    other: Side = "left" if side == "right" else "right"
    move = _largest_move(module, reference.info, tokens, side)
    if not move > tolerance:
        return None
    if _largest_move(module, reference.info, tokens, other) <= tolerance:
        return (
            f"the tokenizer pads on the {side}, and that changes this model's outputs by up to "
            f"{move:.2g}; padding on the {other} does not. Set padding_side to {other!r} in "
            "tokenizer_config.json, or use --objective latency, which never pads"
        )
    return (
        f"padding changes this model's outputs by up to {move:.2g}, on either side, so that its "
        "answers depend on the other texts of a batch; --objective latency never pads"
    )


def _some(reference: ModelFolder, texts: Sequence[str]) -> Tokens:
    """A few texts of different lengths."""
    tokens = reference.tokenizer().encode(texts[:_MOST_TEXTS])
    order = np.argsort(tokens.lengths, kind="stable")
    return tokens.select([order[int(share * len(order))] for share in _QUANTILES])


def _largest_move(module: nn.Module, info: ModelInfo, tokens: Tokens, side: Side) -> float:
    """The largest change of an output by padding on ``side``; NaN where none can be computed."""
    tokens = replace(tokens, padding=replace(tokens.padding, side=side))
    places = range(len(tokens))
    try:
        together = _outputs(module, info, tokens, places)
        alone = np.concatenate([_outputs(module, info, tokens, [place]) for place in places])
        return float(np.abs(together - alone).max())
    # The model's own code, or outputs that are not one row a text: the proof says what is wrong.
    except Exception:  # noqa: BLE001
        return math.nan


def _outputs(
    module: nn.Module, info: ModelInfo, tokens: Tokens, places: Sequence[int]
) -> NDArray[np.float32]:
    import torch

    inputs = [*tokens.pad(places, info.pad_token_id), tokens.token_types(places)]
    with torch.inference_mode():
        outputs = module(*map(torch.from_numpy, inputs[: len(info.input_names)]))
    array: NDArray[np.float32] = outputs.numpy()
    return array
