"""A model whose linear layers compute in 8-bit integers, with ranges from training.

``int8/model.safetensors`` holds its whole state. For every layer that became int8::

    <layer>.weight             int8 [outputs, inputs], at most 63 in size
    <layer>.weight_scale       float32 [outputs]: of a row of weight
    <layer>.input_smoothing    float32 [inputs]: what inputs are multiplied with before rounding
    <layer>.input_scale        float32 []
    <layer>.input_zero_point   int32 [], of 0 to 255: the integer that stands for 0.0

and everything else as in the fp32 model. The layer's weights in floating point are
``weight * weight_scale[:, None] * input_smoothing``. They have 7 bits, since CPUs without VNNI
(AVX2) sum pairs of 8-bit products in 16 bits: sums of these cannot overflow, so that one file is
right on any CPU. Training makes up for the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError
from hasten.models.folder import ModelFolder
from hasten.models.module import Attention, load_original, with_face

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_WEIGHT = 63
LARGEST_INPUT = 255


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """What an int8 layer computes with; see the module's docstring for the shapes."""

    weight: Tensor
    weight_scale: Tensor
    input_smoothing: Tensor
    input_scale: float
    input_zero_point: int
    bias: Tensor | None


def load_trained(
    reference: ModelFolder, spared: Collection[str] = (), attention: Attention = "sdpa"
) -> nn.Module:
    """The int8 model that came with the original, as fp32 PyTorch that rounds as integers do.

    Args:
        reference: of a model that has one: its ``trained_ranges`` exist.
        spared: names of layers that are to compute in floating point, with their rounded weights.
        attention: the form of attention, where transformers builds the model.

    Returns:
        A module with the face of :func:`hasten.models.load_module`. Rounding is done by
        PyTorch's ``fake_quantize`` operators, which exporters know: OpenVINO makes
        ``FakeQuantize`` of them, and ONNX ``QuantizeLinear`` and ``DequantizeLinear``.

    Raises:
        ModelError: the file is damaged, or belongs to another model.
    """
    from safetensors.torch import load_file

    path = reference.trained_ranges
    model = load_original(reference.folder / "module", attention)
    try:
        state = load_file(path)
        layers = {
            name.removesuffix(".weight_scale"): _layer(state, name.removesuffix(".weight_scale"))
            for name in list(state)
            if name.endswith(".weight_scale")
        }
        for name, layer in layers.items():
            rounded = layer.weight.float() * layer.weight_scale[:, None]
            state[f"{name}.weight"] = rounded * layer.input_smoothing
        model.load_state_dict(state)
    except Exception as error:  # safetensors and torch raise their own, KeyError and RuntimeError
        raise ModelError(
            f"{path.name} in int8/ does not belong to {type(model).__name__}: {error}",
            fix="Remove the folder int8, or make the model again with hasten compress --int8.",
        ) from error
    chosen = {name: layer for name, layer in layers.items() if name not in spared}
    info = reference.info
    return with_face(with_layers(model, chosen), info.input_names, info.output_names)


def _layer(state: dict[str, Tensor], name: str) -> QuantizedLayer:
    """Take a layer's own numbers out of the state."""
    scale, zero_point = state.pop(f"{name}.input_scale"), state.pop(f"{name}.input_zero_point")
    return QuantizedLayer(
        weight=state[f"{name}.weight"],
        weight_scale=state.pop(f"{name}.weight_scale"),
        input_smoothing=state.pop(f"{name}.input_smoothing"),
        input_scale=float(scale),
        input_zero_point=int(zero_point),
        bias=state.get(f"{name}.bias"),
    )


def save_trained(model: nn.Module, layers: Mapping[str, QuantizedLayer], path: Path) -> None:
    """Write what :func:`load_trained` reads.

    Args:
        model: the fp32 model; its ``layers`` may still be in it, or be replaced.
        layers: the int8 ones, by name.
        path: of the file.
    """
    from safetensors.torch import save_file

    inside = tuple(f"{name}." for name in layers)
    kept = model.state_dict().items()
    state = {name: tensor.clone() for name, tensor in kept if not name.startswith(inside)}
    for name, layer in layers.items():
        state |= _numbers(name, layer)
    save_file(state, path, metadata={"format": "pt"})


def _numbers(name: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    import torch

    numbers = {
        "weight": layer.weight.to(torch.int8).contiguous(),
        "weight_scale": layer.weight_scale.contiguous(),
        "input_smoothing": layer.input_smoothing.clone(),
        "input_scale": torch.tensor(layer.input_scale, dtype=torch.float32),
        "input_zero_point": torch.tensor(layer.input_zero_point, dtype=torch.int32),
    }
    if layer.bias is not None:
        numbers["bias"] = layer.bias.contiguous()
    return {f"{name}.{key}": value for key, value in numbers.items()}


def with_layers(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> nn.Module:
    """``model`` with these of its linear layers replaced, in place."""
    make = _rounding_linear()
    for name, layer in layers.items():
        model.set_submodule(name, make(layer))
    return model.requires_grad_(False).eval()


@cache
def _rounding_linear() -> Callable[[QuantizedLayer], nn.Module]:
    import torch
    from torch import nn

    class RoundingLinear(nn.Module):
        def __init__(self, layer: QuantizedLayer) -> None:
            super().__init__()
            self._scale, self._zero_point = layer.input_scale, layer.input_zero_point
            weight = layer.weight.float() * layer.weight_scale[:, None]
            # [inputs, outputs]: runtimes look for the rounded weights right before the product,
            # with no transposition in between.
            self.register_buffer("weight", weight.T.contiguous())
            self.register_buffer("weight_scale", layer.weight_scale.clone())
            self.register_buffer("smoothing", layer.input_smoothing.clone())
            self.register_buffer("zeros", torch.zeros(len(layer.weight_scale), dtype=torch.int32))
            self.register_buffer("bias", None if layer.bias is None else layer.bias.clone())

        def forward(self, inputs: Tensor) -> Tensor:
            own: Any = self  # buffers have no types
            rounded = torch.fake_quantize_per_tensor_affine(
                inputs * own.smoothing, self._scale, self._zero_point, 0, LARGEST_INPUT
            )
            # All 8 bits of a type that runtimes know; the weights fill 7 of them.
            weight = torch.fake_quantize_per_channel_affine(
                own.weight, own.weight_scale, own.zeros, 1, -128, 127
            )
            product = torch.matmul(rounded, weight)
            return product if own.bias is None else product + own.bias

    return RoundingLinear
