"""Which units and which blocks a model can do without, measured on the user's texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.compress import blocks
from hasten.compress.objective import rows
from hasten.models.heads import Attention
from hasten.tasks import Objective

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = Mapping[str, "Tensor"]
Importance = NDArray[np.float64]


def of_units(model: Any, objective: Objective, batches: Iterable[Inputs]) -> Importance:
    """How much the answers depend on each feed-forward unit.

    The first-order Taylor estimate of what leaving a unit out does to the loss: the activation
    times its gradient, summed over a text's tokens, its absolute value averaged over the texts
    (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019; Michel et
    al., "Are Sixteen Heads Really Better than One?", NeurIPS 2019, for transformers). The loss is
    the model's own surprise at its own decision, so no labels are needed.

    Args:
        model: a ``transformers`` classifier, in eval mode.
        objective: of its task.
        batches: its inputs by name, each [batch, length].

    Returns:
        float64 [blocks, width].
    """
    return _effects(model, objective, blocks.find(model).down_layers(model), 1, batches)


def of_heads(
    model: Any, objective: Objective, attention: Attention, batches: Iterable[Inputs]
) -> Importance:
    """How much the answers depend on each attention head; measured as for units.

    What a head gives is a vector: leaving it out is what leaving out all of it does (Michel et
    al., NeurIPS 2019).

    Args:
        model: a ``transformers`` classifier, in eval mode, with as many heads in each block.
        objective: of its task.
        attention: its.
        batches: its inputs by name, each [batch, length].

    Returns:
        float64 [blocks, heads].
    """
    return _effects(model, objective, attention.out_layers(model), attention.head_size, batches)


def _effects(
    model: Any,
    objective: Objective,
    layers: Sequence[nn.Module],
    together: int,
    batches: Iterable[Inputs],
) -> Importance:
    """What leaving out inputs of ``layers`` does, so many ``together``: [layers, groups]."""
    import torch

    sums: list[Any] = [0.0] * len(layers)
    texts = 0
    for inputs in batches:
        seen: list[Tensor] = []
        hooks = [layer.register_forward_pre_hook(_keeping(seen)) for layer in layers]
        try:
            with torch.enable_grad():
                logits = rows(model(**inputs).logits, inputs["attention_mask"])
                gradients = torch.autograd.grad(_surprise(objective, logits), seen)
        finally:
            for hook in hooks:
                hook.remove()
        batch = len(inputs["input_ids"])
        texts += batch
        for index, (units, gradient) in enumerate(zip(seen, gradients, strict=True)):
            effect = (units * gradient).flatten(1, -2).sum(1)
            effect = effect.reshape(batch, -1, together).sum(2).abs().sum(0)
            sums[index] = sums[index] + effect.detach().double().numpy()
    return np.stack(sums) / max(texts, 1)


def _keeping(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that keeps a layer's input, and lets a gradient reach it."""

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        units = inputs[0] if inputs[0].requires_grad else inputs[0].requires_grad_()
        seen.append(units)
        return (units, *inputs[1:])

    return keep


def _surprise(objective: Objective, logits: Tensor) -> Tensor:
    """Summed over the rows: minus the logarithm of what the model gives to its own answer."""
    from torch.nn import functional

    if objective == "softmax":
        return functional.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
    if objective == "sigmoid":
        return -functional.logsigmoid(logits.abs()).sum()
    return logits.abs().sum()


def most_important(importance: Importance, width: int) -> list[list[int]]:
    """For each block the ``width`` units that matter most, in their order.

    >>> most_important(np.array([[0.1, 0.9, 0.5]]), 2)
    [[1, 2]]
    """
    return [sorted(np.argsort(-row, kind="stable")[:width].tolist()) for row in importance]


def choose_layers(
    count: int,
    keep: int,
    loss: Callable[[Sequence[int]], float],
    tell: Callable[[float], None] = lambda _: None,
) -> list[int]:
    """Which blocks stay: one after the other, the one that is missed least goes.

    Greedy backward elimination. Evenly spaced blocks are judged too, and taken if they are better.

    Args:
        count: how many blocks there are.
        keep: how many stay, at least 1.
        loss: how badly a model with these blocks alone agrees with the whole one.
        tell: is given the share of the work that is done.

    >>> choose_layers(4, 2, lambda layers: -sum(layers))
    [2, 3]
    """
    total = sum(range(keep + 1, count + 1)) + 1
    done = 0

    def judged(layers: Sequence[int]) -> float:
        nonlocal done
        result = loss(layers)
        done += 1
        tell(done / total)
        return result

    kept = list(range(count))
    best = 0.0
    while len(kept) > keep:
        losses = [judged([layer for layer in kept if layer != gone]) for gone in kept]
        best = min(losses)
        del kept[losses.index(best)]
    even = evenly(count, keep)
    return even if len(kept) < count and judged(even) < best else kept


def evenly(count: int, keep: int) -> list[int]:
    """``keep`` of ``count`` blocks, the last one among them.

    >>> evenly(12, 6), evenly(6, 3), evenly(6, 1)
    ([1, 3, 5, 7, 9, 11], [1, 3, 5], [5])
    """
    return [(index + 1) * count // keep - 1 for index in range(keep)]
