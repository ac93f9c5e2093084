"""Whether a model's answers depend on how a batch is padded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from hasten import tasks
from hasten.errors import ModelError
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
    if move is None or move <= tolerance:
        return None
    other_move = _largest_move(module, reference.info, tokens, other)
    if other_move is not None and other_move <= tolerance:
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


def _largest_move(module: nn.Module, info: ModelInfo, tokens: Tokens, side: Side) -> float | None:
    """The largest change of an output by padding on ``side``.

    None where it cannot be said: the model fails on these texts, as one may whose positions do not
    count from the first token, gives NaN, or gives a text other numbers of rows or columns in a
    batch than alone. This is a notice's business only; the run of the original raises the error.
    """
    tokens = replace(tokens, padding=replace(tokens.padding, side=side))
    places = range(len(tokens))
    try:
        together = _outputs(module, info, tokens, places)
        alone = [_outputs(module, info, tokens, [place]) for place in places]
    except ModelError:
        return None
    if {each.values.shape[1:] for each in alone} != {together.values.shape[1:]}:
        return None
    if not np.array_equal(together.counts, [len(each.values) for each in alone]):
        return None
    with np.errstate(invalid="ignore"):  # of infinite outputs
        moves = np.abs(together.values - Outputs.concatenate(alone).values)
    move = float(moves.max(initial=0.0))
    return move if math.isfinite(move) else None


def _outputs(module: nn.Module, info: ModelInfo, tokens: Tokens, places: Sequence[int]) -> Outputs:
    """The module's outputs for some texts in one batch.

    Raises:
        ModelError: its own code fails, whose exception is chained, or gives no such outputs.
    """
    import torch

    batch = tokens.batch(places)
    inputs = batch.inputs(info.input_names, info.pad_token_id).values()
    try:
        with torch.inference_mode():
            outputs = module(*map(torch.from_numpy, inputs))
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        named = zip(info.output_names, several, strict=True)
        raw = {name: output.numpy() for name, output in named}
    except Exception as error:
        raise ModelError(f"{info.name} cannot run a batch of {len(places)} texts") from error
    return tasks.of(info).gather(raw, batch)
