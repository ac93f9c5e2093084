"""What a student is to have of each thing that can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.compress import blocks
from hasten.compress.search import MULTIPLE, rounded
from hasten.errors import ChoiceError, ModelError
from hasten.models import heads as attention


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; None leaves it as it is."""

    layers: int | None
    ffn_width: int | None
    budget_s: float
    seed: int
    heads: int | None = None
    embeddings: bool = False
    freeze_embeddings: bool = True
    int8: bool = False
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the student has of each; ``heads`` is 0 where they cannot be told apart."""

    layers: int
    ffn_width: int
    heads: int


def whole_sizes(original: Any) -> Sizes:
    """What the original has of each.

    Raises:
        ModelError: its blocks cannot be taken apart.
    """
    found, known = blocks.find(original), attention.find(original)
    counts = {len(heads) for heads in known.heads} if known else set()
    return Sizes(found.count, found.width, counts.pop() if len(counts) == 1 else 0)


def resolve(whole: Sizes, wanted: Wanted) -> Sizes:
    """The student's sizes.

    Raises:
        ChoiceError: there are none such, or nothing was asked for.
        ModelError: the heads cannot be taken out.
    """
    layers = whole.layers if wanted.layers is None else wanted.layers
    width = whole.ffn_width if wanted.ffn_width is None else wanted.ffn_width
    heads = whole.heads if wanted.heads is None else wanted.heads
    if not 1 <= layers <= whole.layers:
        raise ChoiceError(
            f"--layers is {layers}, and the model has {whole.layers}",
            fix=f"It must be from 1 to {whole.layers}.",
        )
    narrowest = min(MULTIPLE, whole.ffn_width)
    if not narrowest <= width <= whole.ffn_width:
        raise ChoiceError(
            f"--ffn-width is {width}, and the model's is {whole.ffn_width}",
            fix=f"It must be from {narrowest} to {whole.ffn_width}.",
        )
    if wanted.heads is not None and not whole.heads:
        raise ModelError(
            "the attention heads of this model cannot be pruned",
            fix=f"--heads works with {attention.PRUNABLE}, with as many heads in each block; "
            "leave it out.",
        )
    if wanted.heads is not None and not 1 <= heads <= whole.heads:
        raise ChoiceError(
            f"--heads is {heads}, and each block has {whole.heads}",
            fix=f"It must be from 1 to {whole.heads}.",
        )
    if width < whole.ffn_width:
        width = rounded(width)
    sizes = Sizes(layers, width, heads)
    if sizes == whole and not (wanted.target or wanted.embeddings or wanted.int8):
        raise ChoiceError(
            "no reduction was requested",
            fix=f"--layers {max(1, whole.layers // 2)} or --ffn-width {whole.ffn_width // 2}, or "
            "both; there are --heads, --embeddings and --int8 as well.",
        )
    return sizes
