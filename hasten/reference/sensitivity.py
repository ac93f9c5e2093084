"""Which layers of the original suffer most from 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from hasten.reference.folder import Reference

if TYPE_CHECKING:
    from torch import Tensor, nn

_TEXTS = 32
_LEVELS = 127  # of a signed weight; activations have twice as many between their ends
_WRAPPER = "original."


def rank_layers(reference: Reference) -> tuple[str, ...]:
    """Names of the linear layers, the most sensitive first.

    Each in turn is rounded as dynamic quantization rounds it, a scale for every row of weights
    and one for the batch's activations, while all others stay in fp32; what counts is how far the
    outputs then move on some of the calibration texts.

    Raises:
        ModelError: there are no calibration texts.
    """
    import torch
    from torch import nn

    module = reference.module()
    # Spread over the texts, which are stored in no particular order of length.
    batches = list(islice(reference.calibration(), _TEXTS))
    inputs = [[torch.from_numpy(array) for array in batch.values()] for batch in batches]
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    with torch.inference_mode():
        truth = _outputs(module, inputs)
        moved = {}
        for name, layer in layers.items():
            with _rounded(layer):
                moved[name] = float((_outputs(module, inputs) - truth).abs().mean())
    ranked = sorted(layers, key=lambda name: -moved[name])
    return tuple(name.removeprefix(_WRAPPER) for name in ranked)


def _outputs(module: Callable[..., Tensor], inputs: Sequence[Sequence[Tensor]]) -> Tensor:
    import torch

    return torch.cat([module(*batch) for batch in inputs])


@contextmanager
def _rounded(layer: nn.Linear) -> Iterator[None]:
    """Let a layer compute with 8-bit weights and activations, for the time of the block."""
    exact = layer.weight.data
    scale = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LEVELS
    layer.weight.data = (exact / scale).round() * scale
    hook = layer.register_forward_pre_hook(_round_inputs)
    try:
        yield
    finally:
        hook.remove()
        layer.weight.data = exact


def _round_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    del layer
    (values,) = inputs
    low = values.amin()
    step = (values.amax() - low).clamp(min=1e-12) / (2 * _LEVELS + 1)
    return (((values - low) / step).round() * step + low,)
