"""How the tokens of a text relate to each other within a block, as something that can be trained.

"MiniLMv2: Multi-Head Self-Attention Relation Distillation" (Wang et al., Findings of ACL 2021): the
softmax over scaled dot products of queries with queries, keys with keys and values with values, of
the original and of the student, in one block. The products are divided into relation heads, which
need not be the heads of either: so they may have different numbers of heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Any

from hasten.models.heads import Attention

if TYPE_CHECKING:
    from torch import Tensor, nn


TOKENS = 128
"""Of each text, from its beginning: relations of all with all take memory by their square."""


@dataclass(slots=True)
class Watched:
    """Queries, keys and values of one block, [batch, length, width] each, as a forward sets them.

    Attributes:
        heads: how many heads the block has.
        outputs: of its three projections, in this order.
    """

    heads: int = 0
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def watching(model: nn.Module, attention: Attention, block: int) -> Iterator[Watched]:
    """Keep what the projections of one block give while ``model`` runs."""
    seen = Watched(len(attention.heads[block]))

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.outputs.append(output)

    layers = [attention.layer(model, block, name) for name in attention.projections]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def difference(student: Watched, original: Watched, mask: Tensor) -> Tensor:
    """The divergence of the student's relations from the original's, a number.

    Averaged over the first tokens, relation heads, and queries, keys and values.

    Args:
        student: what its block computed.
        original: what its block computed.
        mask: bool [batch, length], whether there is a token.
    """
    import torch

    widths = student.outputs[0].shape[-1], original.outputs[0].shape[-1]
    count = common_heads(*widths, most=original.heads)
    mask = mask[:, :TOKENS]
    total = torch.zeros(())
    for own, other in zip(student.outputs, original.outputs, strict=True):
        ours, theirs = (_relations(each[:, :TOKENS], count, mask) for each in (own, other))
        # A masked column has probability 0, of which the logarithm is not to be multiplied.
        pointwise = theirs.exp() * (theirs - ours).masked_fill(~mask[:, None, None, :], 0.0)
        rows = pointwise.sum(-1).masked_select(mask[:, None, :])
        total = total + rows.mean() / len(student.outputs)
    return total


def common_heads(student: int, original: int, most: int) -> int:
    """The largest number, of at most ``most``, that divides both widths.

    >>> common_heads(384, 768, most=12), common_heads(448, 768, most=12)
    (12, 8)
    """
    both = gcd(student, original)
    return max(number for number in range(1, most + 1) if both % number == 0)


def _relations(states: Tensor, count: int, mask: Tensor) -> Tensor:
    """Logarithms of the relations of all tokens with all: [batch, count, length, length]."""
    from torch.nn import functional

    split = states.float().reshape(*states.shape[:2], count, -1).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    lowest = -1e9  # not infinite: a difference of two of them is not a number
    return functional.log_softmax(scores.masked_fill(~mask[:, None, None, :], lowest), dim=-1)
