"""A transformer encoder as a stack of blocks, whatever its family calls them.

Nothing here knows model families by name: a block is found by its two feed-forward products, and
the fields of the configuration by the numbers that they must hold.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError
from hasten.models import heads as attention
from hasten.models.heads import Attention

if TYPE_CHECKING:
    from torch import Tensor, nn

_FEED_FORWARD = (("intermediate.dense", "output.dense"), ("ffn.lin1", "ffn.lin2"))
"""Where a block keeps its feed-forward products, up and down: BERT's way, and DistilBERT's."""

_LAYER_FIELDS = ("num_hidden_layers", "n_layers")
_WIDTH_FIELDS = ("intermediate_size", "hidden_dim")

WORKS_WITH = "BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA, MPNet, DistilBERT"


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a model.

    Attributes:
        path: name of the list of blocks in the model, such as ``bert.encoder.layer``.
        up: name in a block of the linear layer that widens, [width, hidden].
        down: of the one that narrows, [hidden, width].
        count: how many blocks there are.
        width: of their feed-forward products.
    """

    path: str
    up: str
    down: str
    count: int
    width: int

    def block(self, model: nn.Module, index: int) -> nn.Module:
        return model.get_submodule(f"{self.path}.{index}")

    def down_layers(self, model: nn.Module) -> list[nn.Module]:
        """The narrowing layer of each block; its inputs are the feed-forward units."""
        return [self.block(model, index).get_submodule(self.down) for index in range(self.count)]


def find(model: nn.Module) -> Blocks:
    """The blocks of ``model``.

    Raises:
        ModelError: it has none that this knows how to take apart.
    """
    from torch import nn

    for path, stack in model.named_modules():
        if not isinstance(stack, nn.ModuleList) or not len(stack):
            continue
        for up, down in _FEED_FORWARD:
            widths = [_width(block, up, down) for block in stack]
            if widths[0] and len(set(widths)) == 1:
                return Blocks(path, up, down, len(stack), widths[0])
    raise ModelError(
        f"the blocks of {type(model).__name__} cannot be pruned",
        fix=f"This works with {WORKS_WITH}, and models with the same layout.",
    )


def _width(block: nn.Module, up: str, down: str) -> int | None:
    from torch import nn

    try:
        wide, narrow = block.get_submodule(up), block.get_submodule(down)
    except AttributeError:
        return None
    if not (isinstance(wide, nn.Linear) and isinstance(narrow, nn.Linear)):
        return None
    return wide.out_features if wide.out_features == narrow.in_features else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays of a model; each sequence has an entry for each block that stays."""

    blocks: Blocks
    attention: Attention | None
    layers: Sequence[int]
    units: Sequence[Sequence[int]]
    heads: Sequence[Sequence[int]] | None


def cut(
    model: Any,
    layers: Sequence[int],
    units: Sequence[Sequence[int]],
    heads: Sequence[Sequence[int]] | None = None,
) -> Any:
    """A smaller model with some blocks of ``model``, and some units and heads of each.

    It computes what ``model`` would if the blocks left out did nothing, and the units and heads
    left out were zero.

    Args:
        model: a ``transformers`` model.
        layers: which blocks stay, in their order.
        units: for each of these, which feed-forward units stay; as many of each.
        heads: for each of these, which attention heads stay, by their place among those it has;
            None keeps all.

    Returns:
        A new model of the same class, in eval mode, whose configuration tells the new sizes.

    Raises:
        ModelError: its blocks are unknown, or its configuration cannot tell other sizes.
    """
    import torch

    kept = _Kept(find(model), attention.find(model), layers, units, heads)
    config = copy.deepcopy(model.config)
    _set(config, _LAYER_FIELDS, kept.blocks.count, len(layers))
    _set(config, _WIDTH_FIELDS, kept.blocks.width, len(units[0]))
    if kept.attention is not None:
        had = [kept.attention.heads[layer] for layer in layers]
        if heads is not None:
            had = [
                tuple(one[place] for place in some) for one, some in zip(had, heads, strict=True)
            ]
        attention.note(config, had)
    student = type(model)(config)
    attention.narrow(student)
    given = model.state_dict()
    with torch.no_grad():
        student.load_state_dict({name: _part(name, given, kept) for name in student.state_dict()})
    return student.eval()


def _set(config: Any, fields: Sequence[str], old: int, new: int) -> None:
    """Set the one of ``fields`` that tells ``old``."""
    for field in fields:
        if getattr(config, field, None) == old:
            setattr(config, field, new)
            return
    raise ModelError(
        f"{type(config).__name__} does not tell its size in any of {', '.join(fields)}",
        fix=f"This works with {WORKS_WITH}, and models with the same layout.",
    )


def _part(name: str, given: Mapping[str, Tensor], kept: _Kept) -> Tensor:
    """What a tensor of the student is in the original."""
    import torch

    inside = re.fullmatch(rf"{re.escape(kept.blocks.path)}\.(\d+)\.(.+)", name)
    if inside is None:
        return given[name]
    index, inner = int(inside[1]), inside[2]
    tensor = given[f"{kept.blocks.path}.{kept.layers[index]}.{inner}"]
    layer, _, kind = inner.rpartition(".")
    chosen = torch.tensor(kept.units[index])
    if layer == kept.blocks.up:
        return tensor[chosen]
    if layer == kept.blocks.down and kind == "weight":
        return tensor[:, chosen]
    if kept.attention is not None and kept.heads is not None:
        columns = kept.attention.columns(kept.heads[index])
        if layer in kept.attention.projections:
            return tensor[columns]
        if layer == kept.attention.out and kind == "weight":
            return tensor[:, columns]
    return tensor
