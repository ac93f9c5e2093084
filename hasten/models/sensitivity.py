"""Which layers of the original suffer most from 8-bit integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hasten.models.folder import ModelFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

# One pass a layer: a base-size model has 74, and a pass of so many tokens takes half a second.
_TEXTS, _TOKENS = 16, 48
_LEVELS = 127  # of a signed weight; activations have twice as many between their ends
_WRAPPER = "original."


def rank_layers(reference: ModelFolder, threads: int) -> tuple[str, ...]:
    """Names of the linear layers, the most sensitive first.

    Each in turn is rounded to 8 bits, a scale for every row of weights and one for the batch's
    activations, while all others stay in fp32; what counts is how far the outputs then move on
    some of the calibration texts. Layers that are not called as such are left out.

    Raises:
        ModelError: there are no calibration texts.
    """
    import torch

    torch.set_num_threads(threads)
    module = reference.module()
    batch = reference.calibration_batch(_TEXTS, _TOKENS)
    inputs = [torch.from_numpy(array) for array in batch.values()]
    moved: dict[str, float] = {}
    with torch.inference_mode():
        layers, truth = _called_layers(module, inputs)
        for name, layer in layers.items():
            with _rounded(layer):
                moved[name] = float((module(*inputs) - truth).abs().mean())
    ranked = sorted(layers, key=lambda name: -moved[name])
    return tuple(name.removeprefix(_WRAPPER) for name in ranked)


def _called_layers(
    module: nn.Module, inputs: Sequence[Tensor]
) -> tuple[dict[str, nn.Linear], Tensor]:
    """The linear layers that a pass calls, by name, and what the pass gives."""
    from torch import nn

    called: dict[str, nn.Linear] = {}

    def note(name: str, layer: Any, inputs: tuple[Any, ...]) -> None:
        if len(inputs) == 1:
            called[name] = layer

    with ExitStack() as stack:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                hook = layer.register_forward_pre_hook(partial(note, name))
                stack.callback(hook.remove)
        return called, module(*inputs)


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
    low = values.amin().clamp(max=0.0)  # ranges hold 0, so that padding stays exact
    step = (values.amax().clamp(min=0.0) - low).clamp(min=1e-12) / (2 * _LEVELS + 1)
    return (((values - low) / step).round() * step + low,)
