"""Whether a model's answers depend on how a batch is padded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from hasten import tasks
from hasten.inputs.tokenization import Tokens
from hasten.models.folder import ModelFolder
from hasten.records import ModelInfo, Text
from hasten.tasks import Outputs

if TYPE_CHECKING:
    from torch import nn

_MOST_TEXTS = 1000
_QUANTILES = (0.0, 0.5, 0.9)
"""By length, the texts that are run alone and together."""

Side = Literal["left", "right"]


def padding_notice(reference: ModelFolder, texts: Sequence[Text], tolerance: float) -> str | None:
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


def _some(reference: ModelFolder, texts: Sequence[Text]) -> Tokens:
    """A few texts of different lengths."""
    task = tasks.of(reference.info)
    tokens = task.encode(reference.tokenizer(), texts[:_MOST_TEXTS]).windows
    order = np.argsort(tokens.lengths, kind="stable")
    return tokens.select([order[int(share * len(order))] for share in _QUANTILES])


def _largest_move(module: nn.Module, info: ModelInfo, tokens: Tokens, side: Side) -> float:
    """The largest change of an output by padding on ``side``; NaN where none can be computed."""
    tokens = replace(tokens, padding=replace(tokens.padding, side=side))
    places = range(len(tokens))
    try:
        together = _outputs(module, info, tokens, places)
        alone = Outputs.concatenate([_outputs(module, info, tokens, [place]) for place in places])
        return float(np.abs(together.values - alone.values).max(initial=0.0))
    # The model's own code, or rows of unequal width or number: the proof says what is wrong.
    except Exception:  # noqa: BLE001
        return math.nan


def _outputs(module: nn.Module, info: ModelInfo, tokens: Tokens, places: Sequence[int]) -> Outputs:
    import torch

    batch = tokens.batch(places)
    inputs = batch.inputs(info.input_names, info.pad_token_id).values()
    with torch.inference_mode():
        outputs = module(*map(torch.from_numpy, inputs))
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    raw = {name: output.numpy() for name, output in zip(info.output_names, several, strict=True)}
    return tasks.of(info).gather(raw, batch)
