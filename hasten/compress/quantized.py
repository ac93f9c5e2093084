"""Quantization-aware training: a model that rounds as 8-bit integers do while it is trained.

Every linear layer of the blocks gets a fake quantizer in front of its inputs and one on its
weights. Their ranges begin where a few texts put them, and are then trained with the weights: the
gradient passes where a number is within its range, and a range is moved by its own gradient
(Esser et al., "Learned Step Size Quantization", ICLR 2020; with a zero point: Bhalgat et al.,
"LSQ+", CVPR Workshops 2020). The head, embeddings and normalization stay in floating point, as
do the products inside attention: as in ONNX Runtime's ``static``.

NNCF has such quantizers too, but needs torchao to export what it has trained, and compiles C++ on
the user's machine when it first rounds (3.4).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hasten.compress import blocks, distil
from hasten.compress.lesson import Lesson, Tell
from hasten.models.folder import TRAINED_RANGES, storing_weights
from hasten.models.quantized import (
    LARGEST_INPUT,
    LARGEST_WEIGHT,
    QuantizedLayer,
    save_trained,
    with_layers,
)
from hasten.records import Parity

if TYPE_CHECKING:
    from torch import Tensor, nn

_GAIN = 30.0
"""How much faster than weights ranges move, relative to their size: at a learning rate of 3e-5, by
a thousandth a step. Adam's steps have one size, and weights are about a tenth."""

_LEARNING_RATE = 3e-5
"""Lower than that of new students: little is wrong yet, and all of it is rounding."""

_SMOOTHING = 0.7
"""How much of what makes single inputs large moves to the weights. Before any training, it left 8
of 400 answers of MiniLM-L6 changed; 0.3 left 50, 0.5 (SmoothQuant's own) 27, and 0.85 left 13."""

_LEAST = 1e-6
"""Of a range, so that a layer whose inputs are all zero divides by something."""


def lesson_of(lesson: Lesson, batches: Iterable[Mapping[str, Tensor]]) -> Lesson:
    """A :func:`quantizable` copy of the lesson's student, trained by the student as it is now.

    By the student and not by the original: the two are one folder, and what ``hasten tune`` asks
    of int8 is the fp32 model's answers. Labels have trained it already. Without bfloat16, which
    has no more bits than the integers. What is frozen in the student stays so; the attention's
    relations follow from hidden states that are trained behind every block.
    """
    teacher = copy.deepcopy(lesson.student).requires_grad_(False).eval()
    student = quantizable(teacher, batches)
    frozen = {
        name for name, weight in lesson.student.named_parameters() if not weight.requires_grad
    }
    for name, weight in student.named_parameters():
        weight.requires_grad_(name not in frozen)
    return replace(
        lesson,
        original=teacher,
        student=student,
        layers=range(blocks.find(teacher).count),
        gold=None,
        learning_rate=_LEARNING_RATE,
        relations=0.0,
        bf16=False,
    )


def teach(
    rounding: Lesson, work: Path, parity: Callable[[Any], Parity], tell: Tell
) -> dict[str, Any]:
    """Train the int8 model and write it beside the student, in ``work / "student"``.

    Args:
        rounding: of :func:`lesson_of`, with all that it lacks.
        work: where the run keeps its checkpoints.
        parity: of a model with the original.
        tell: is told of every step.

    Returns:
        The fields of :class:`hasten.records.Student` that are about it.

    Raises:
        StorageError: ``work`` cannot be written.
    """
    untrained = copy.deepcopy(rounding.student.state_dict())
    before = parity(settled(rounding.student))
    looks = [rounding.look(rounding.student)]
    taught = distil.teach_once(rounding, work / "int8", tell)
    looks += taught.looks
    if taught.best.closeness <= looks[0].closeness:  # a short time may have made it worse
        rounding.student.load_state_dict(untrained)
    path = work / "student" / TRAINED_RANGES
    with storing_weights(path):
        path.parent.mkdir(exist_ok=True)
        save_trained(rounding.student, layers_of(rounding.student), path)
    return {
        "int8_steps": taught.steps,
        "int8_closeness": tuple(look.closeness for look in looks),
        "int8_before": before,
        "int8_after": parity(settled(rounding.student)),
    }


def quantizable(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Any:
    """A copy of ``model`` that computes as int8 would, and can be trained.

    Args:
        model: a ``transformers`` model, in eval mode.
        batches: its inputs by name, each [batch, length]; they set the ranges to begin with.

    Returns:
        A model of the same class; see :func:`layers_of` for what was trained.

    Raises:
        ModelError: its blocks are unknown.
    """
    quantized = copy.deepcopy(model).eval()
    linear = _inside_blocks(quantized)
    ends, readers = _observed(quantized, linear, batches)
    make_inputs, make_layer = _classes()
    for first, names in readers.items():
        # Query, key and value read the same tensor: rounded once, it is rounded for all.
        smoothing = _smoothing(ends[first], [linear[name].weight for name in names])
        inputs = make_inputs(ends[first] * smoothing, smoothing)
        for name in names:
            quantized.set_submodule(name, make_layer(linear[name], inputs, name == first))
    return quantized.requires_grad_()


def _smoothing(ends: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What a layer's inputs are multiplied with, and its weights divided by: [inputs].

    A few inputs of a transformer are many times as large as the others, and would leave them few
    levels. The weights take over a part of it (Xiao et al., "SmoothQuant", ICML 2023).
    """
    import torch

    inputs = ends.abs().amax(dim=0).clamp(min=_LEAST)
    largest = torch.stack([weight.detach().abs().amax(dim=0) for weight in weights]).amax(dim=0)
    return largest.clamp(min=_LEAST) ** (1.0 - _SMOOTHING) / inputs**_SMOOTHING


def _inside_blocks(model: nn.Module) -> dict[str, nn.Linear]:
    from torch import nn

    stack = blocks.find(model).path
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(f"{stack}.")
    }


def _observed(
    model: nn.Module, linear: Mapping[str, nn.Linear], batches: Iterable[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Ends of every layer's inputs, [2, inputs], and the layers that read the same tensor.

    Smallest and largest number of each input are averaged over the batches: an outlier in one
    does not cost all others a part of their levels. Layers are listed by the first of them.
    """
    import torch

    seen: dict[str, list[Tensor]] = {name: [] for name in linear}
    readers: dict[str, list[str]] = {}
    read: dict[int, tuple[Tensor, str]] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        del layer
        (values,) = inputs
        rows = values.flatten(0, -2)
        seen[name].append(torch.stack([rows.amin(dim=0), rows.amax(dim=0)]))
        # The tensor is kept, so that no other gets its identity.
        _, first = read.setdefault(id(values), (values, name))
        if name not in readers.setdefault(first, []):
            readers[first].append(name)

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in linear.items()]
    with torch.no_grad():
        for batch in batches:
            read.clear()
            model(**batch)
    for hook in hooks:
        hook.remove()
    ends = {name: torch.stack(found).mean(dim=0) for name, found in seen.items() if found}
    return ends, readers


@cache
def _classes() -> tuple[Any, Any]:
    """The quantizer of inputs, and the linear layer; made here, since torch is slow to import."""
    import torch
    from torch import nn
    from torch.nn import functional

    rounding = _rounding()

    class InputRange(nn.Module):
        """Rounds to 256 levels between two trained ends; 0 is always one of them."""

        def __init__(self, ends: Tensor, smoothing: Tensor) -> None:
            super().__init__()
            low, high = ends[0].min().clamp(max=0.0), ends[1].max().clamp(min=_LEAST)
            self.register_buffer("begin", torch.stack([low, high]))
            self.register_buffer("smoothing", smoothing)
            self.ends = nn.Parameter(torch.zeros(2))

        def grid(self) -> tuple[Tensor, Tensor]:
            own: Any = self  # buffers have no types
            low, high = own.begin * torch.exp(_GAIN * self.ends)
            scale = (high - low) / LARGEST_INPUT
            return scale, torch.round(-low / scale).detach()

        def forward(self, values: Tensor) -> Tensor:
            own: Any = self
            smooth = values * own.smoothing
            rounded: Tensor = rounding.apply(smooth, *self.grid(), (0, LARGEST_INPUT))
            return rounded

    class QuantizedLinear(nn.Linear):
        """A linear layer with 7-bit weights, a trained scale a row, and rounded inputs."""

        def __init__(self, layer: nn.Linear, inputs: InputRange, own_inputs: bool) -> None:
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
            self.load_state_dict(layer.state_dict())
            self.weight.data /= cast("Tensor", inputs.smoothing)
            largest = self.weight.detach().abs().amax(dim=1).clamp(min=_LEAST)
            self.register_buffer("weight_begin", largest / LARGEST_WEIGHT)
            self.weight_range = nn.Parameter(torch.zeros(self.out_features))
            if own_inputs:
                self.inputs = inputs
            # Beside the modules: a state with one tensor under several names could not be stored.
            self._shared = (inputs,)

        def weight_scale(self) -> Tensor:
            own: Any = self
            scale: Tensor = own.weight_begin * torch.exp(_GAIN * self.weight_range)
            return scale

        def forward(self, values: Tensor) -> Tensor:
            scale, zeros = self.weight_scale(), torch.zeros(self.out_features)
            weight = rounding.apply(self.weight, scale, zeros, (-LARGEST_WEIGHT, LARGEST_WEIGHT))
            return functional.linear(self._shared[0](values), weight, self.bias)

        def trained(self) -> QuantizedLayer:
            with torch.no_grad():
                scale, (input_scale, zero_point) = self.weight_scale(), self._shared[0].grid()
                own: Any = self  # torch says that there is always a bias
                bias = None if own.bias is None else own.bias.detach()
                levels = torch.round(self.weight / scale[:, None])
                weight = levels.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).to(torch.int8)
                return QuantizedLayer(
                    weight=weight,
                    weight_scale=scale,
                    input_smoothing=cast("Tensor", self._shared[0].smoothing),
                    input_scale=float(input_scale),
                    input_zero_point=int(zero_point),
                    bias=bias,
                )

    return InputRange, QuantizedLinear


@cache
def _rounding() -> Any:
    import torch

    class Rounding(torch.autograd.Function):
        """Rounds to ``(round(values / scale + zero_point) clamped - zero_point) * scale``.

        Of a number ``v`` that becomes ``r``, the derivative by the scale is ``(r - v) / scale``
        within the range and ``r / scale`` outside.
        """

        @staticmethod
        def forward(
            ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, levels: tuple[int, int]
        ) -> Tensor:
            low, high = levels
            zeros = zero_point.to(torch.int32)
            if scale.ndim:
                grid: Any = (scale, zeros, 0, low, high)
                rounded = torch.fake_quantize_per_channel_affine(values, *grid)
                scale, zero_point = scale[:, None], zero_point[:, None]
            else:
                rounded = torch.fake_quantize_per_tensor_affine(values, scale, zeros, low, high)
            smallest, largest = (low - zero_point) * scale, (high - zero_point) * scale
            ctx.save_for_backward(values, rounded, scale, smallest, largest)
            return rounded

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (gradient,) = gradients
            values, rounded, scale, smallest, largest = ctx.saved_tensors
            passed = gradient * ((values >= smallest) & (values <= largest))
            moved = gradient * rounded - passed * values
            if scale.ndim:
                return passed, moved.sum(dim=1) / scale[:, 0], None, None
            return passed, moved.sum() / scale, None, None

    return Rounding


def layers_of(quantized: nn.Module) -> dict[str, QuantizedLayer]:
    """What the layers of a :func:`quantizable` model compute with now, by name."""
    _, kind = _classes()
    return {
        name: layer.trained()
        for name, layer in quantized.named_modules()
        if isinstance(layer, kind)
    }


def settled(quantized: nn.Module) -> Any:
    """A copy that computes with what was trained so far, and that no training changes."""
    return with_layers(copy.deepcopy(quantized), layers_of(quantized))
