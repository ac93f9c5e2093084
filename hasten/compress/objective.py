"""What training a student minimizes.

The divergence of the softened answers (Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015), plus the squared distance of the hidden states after the blocks that both models
have (Sanh et al., "DistilBERT", 2019; Jiao et al., "TinyBERT", 2020), plus the divergence of the
attention's relations in the last of these blocks (:mod:`hasten.compress.relations`).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from hasten.compress import relations
from hasten.compress.lesson import Lesson
from hasten.models import heads
from hasten.tasks import Objective

if TYPE_CHECKING:
    from torch import Tensor, nn

TEMPERATURE = 2.0


def loss(lesson: Lesson, student: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """The loss of one batch, and the student's outputs."""
    import torch
    from torch.nn import functional

    gold = inputs.pop("gold", None)
    mask = inputs["attention_mask"].bool()
    with ExitStack() as stack:
        # Weights and the loss stay float32: only products are computed in bfloat16.
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=lesson.bf16))
        watched = _watch_relations(lesson, student, stack) if lesson.relations else None
        outputs: Any = student(**inputs, output_hidden_states=True)
        with torch.no_grad():
            truth: Any = lesson.original(**inputs, output_hidden_states=True)
    outputs.logits = outputs.logits.float()
    given, wanted = (rows(each, mask) for each in (outputs.logits, truth.logits.float()))
    total = _divergence(lesson.objective, given, wanted)
    tokens = mask[:, :, None]
    for own, index in zip(outputs.hidden_states[1:], lesson.layers, strict=True):
        other = truth.hidden_states[index + 1].float().masked_select(tokens)
        distance = functional.mse_loss(own.float().masked_select(tokens), other)
        total = total + distance / len(lesson.layers) / other.var()
    if watched is not None:
        total = total + lesson.relations * relations.difference(*watched, mask)
    if gold is not None:
        total = total + functional.cross_entropy(outputs.logits, gold)
    return total, outputs


def rows(logits: Tensor, mask: Tensor) -> Tensor:
    """Of [batch, k] all rows; of [batch, length, k] those under the mask: float [rows, k]."""
    return logits if logits.ndim == 2 else logits[mask.bool()]


def _watch_relations(
    lesson: Lesson, student: nn.Module, stack: ExitStack
) -> tuple[relations.Watched, relations.Watched] | None:
    """The student's last block and the original's that it was, where their parts are known."""
    ours, theirs = heads.find(student), heads.find(lesson.original)
    if ours is None or theirs is None:
        return None
    own = relations.watching(student, ours, len(lesson.layers) - 1)
    other = relations.watching(lesson.original, theirs, lesson.layers[-1])
    return stack.enter_context(own), stack.enter_context(other)


def _divergence(objective: Objective, logits: Tensor, truth: Tensor) -> Tensor:
    """Of the answers, softened, averaged over the rows; of numbers, the squared distance."""
    import torch
    from torch.nn import functional

    own, other = logits / TEMPERATURE, truth / TEMPERATURE
    if objective == "softmax":
        own, other = functional.log_softmax(own, dim=1), functional.log_softmax(other, dim=1)
    elif objective == "sigmoid":  # each label is a choice of its own: yes or no
        own, other = (functional.logsigmoid(torch.stack([each, -each])) for each in (own, other))
    else:
        return functional.mse_loss(logits, truth)
    pointwise = other.exp() * (other - own)
    return pointwise.sum() / len(logits) * TEMPERATURE**2
