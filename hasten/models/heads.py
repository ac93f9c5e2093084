"""Attention with fewer heads of the same size than a model's configuration counts.

``num_attention_heads`` cannot say it: it also decides the size of a head. ``pruned_heads`` can, the
entry in which transformers 4 keeps what ``model.prune_heads`` took out, ``{block: [heads]}``.
It takes them out while it builds a model; transformers 5 keeps the entry but no longer acts on it,
and here its modules are narrowed before their weights are loaded. Their forward needs nothing else:
it counts heads by the width it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

PRUNABLE = "BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA, DistilBERT"

_LAYOUTS = (
    (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
)
"""Where a block keeps queries, keys, values and what follows: BERT's way, and DistilBERT's."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Where the attention of a model is.

    Attributes:
        path: name of the list of blocks, such as ``bert.encoder.layer``.
        projections: names in a block of the layers for queries, keys and values,
            [heads * head_size, hidden].
        out: of the one behind them, [hidden, heads * head_size].
        head_size: columns of one head.
        heads: for each block, those it has, as the untouched model counts them.
    """

    path: str
    projections: tuple[str, str, str]
    out: str
    head_size: int
    heads: tuple[tuple[int, ...], ...]

    def layer(self, model: nn.Module, block: int, name: str) -> nn.Linear:
        found: Any = model.get_submodule(f"{self.path}.{block}.{name}")
        linear: nn.Linear = found
        return linear

    def out_layers(self, model: nn.Module) -> list[nn.Module]:
        """The layer behind the heads, of each block; its inputs are what the heads give."""
        return [self.layer(model, block, self.out) for block in range(len(self.heads))]

    def columns(self, kept: Sequence[int]) -> Tensor:
        """Where heads are in the width of a projection, int64 [heads * head_size].

        Args:
            kept: heads by their place among those that the block has.
        """
        import torch

        begins = torch.tensor(list(kept), dtype=torch.int64)[:, None] * self.head_size
        return (begins + torch.arange(self.head_size)).flatten()


def find(model: Any) -> Attention | None:
    """Where the attention of ``model`` is; None if its heads cannot be told apart."""
    from torch import nn

    config = getattr(model, "config", None)
    count, hidden = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    if not count or not hidden:
        return None
    for path, stack in model.named_modules():
        if not isinstance(stack, nn.ModuleList) or not len(stack):
            continue
        for *projections, out in _LAYOUTS:
            if all(_has(block, (*projections, out)) for block in stack):
                gone = pruned(config)
                heads = tuple(
                    tuple(head for head in range(count) if head not in gone.get(block, ()))
                    for block in range(len(stack))
                )
                query, key, value = projections
                return Attention(path, (query, key, value), out, hidden // count, heads)
    return None


def _has(block: nn.Module, names: Sequence[str]) -> bool:
    from torch import nn

    parts = dict(block.named_modules())
    return all(isinstance(parts.get(name), nn.Linear) for name in names)


def pruned(config: Any) -> dict[int, tuple[int, ...]]:
    """For each block the heads that it lacks, as far as it lacks any.

    Raises:
        ModelError: the configuration's entry says nothing of the kind.
    """
    entry = getattr(config, "pruned_heads", None) or {}
    try:
        # JSON has no numbers as names.
        gone = {int(block): tuple(sorted(set(map(int, heads)))) for block, heads in entry.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"pruned_heads of the model's config.json is damaged: {error}") from error
    return {block: heads for block, heads in gone.items() if heads}


def note(config: Any, heads: Sequence[Sequence[int]]) -> None:
    """Let a configuration tell which heads each block has."""
    count = config.num_attention_heads
    gone = {
        block: [head for head in range(count) if head not in kept]
        for block, kept in enumerate(heads)
    }
    if any(gone.values()):
        config.pruned_heads = gone
    elif hasattr(config, "pruned_heads"):
        config.pruned_heads = {}


def narrow(model: Any) -> None:
    """Take out of a ``model`` as it was built the heads that its configuration says it lacks.

    Blocks that lack them already stay: transformers 4 has taken them out by then.

    Raises:
        ModelError: it has no such blocks or heads, or they cannot be told apart.
    """
    gone = pruned(model.config)
    if not gone:
        return
    model.config.pruned_heads = {}
    found = find(model)
    model.config.pruned_heads = {block: list(heads) for block, heads in gone.items()}
    if found is None:
        raise ModelError(
            f"config.json takes heads out of {type(model).__name__}, which is not supported",
            fix=f"It works with {PRUNABLE}.",
        )
    for block, heads in gone.items():
        if not 0 <= block < len(found.heads) or not set(heads) < set(found.heads[block]):
            raise ModelError(
                f"config.json takes heads {', '.join(map(str, heads))} out of block {block}",
                fix=f"There are {len(found.heads)} blocks of {len(found.heads[0])} heads, "
                "and one must stay.",
            )
        columns = found.columns([head for head in found.heads[block] if head not in heads])
        if found.layer(model, block, found.out).in_features == len(columns):
            continue
        for name in found.projections:
            _take(found.layer(model, block, name), columns, 0)
        _take(found.layer(model, block, found.out), columns, 1)


def _take(layer: nn.Linear, columns: Tensor, dim: int) -> None:
    """Keep these rows (dim 0) or columns (1) of a layer; in place, on any device."""
    from torch import nn

    columns = columns.to(layer.weight.device)
    with_gradient = layer.weight.requires_grad
    layer.weight = nn.Parameter(
        layer.weight.detach().index_select(dim, columns), requires_grad=with_gradient
    )
    if dim == 0:
        layer.out_features = len(columns)
        if layer.bias is not None:
            layer.bias = nn.Parameter(
                layer.bias.detach().index_select(0, columns), requires_grad=with_gradient
            )
    else:
        layer.in_features = len(columns)


def without_heads(base: Any) -> type[Any]:
    """A class of transformers' as one that lacks, from the beginning, what its config says.

    ``from_pretrained`` of the class loads narrowed weights with every check that transformers
    makes. What it returns is to be turned into its base by :func:`as_usual`.
    """

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        base.__init__(self, config, *arguments, **options)
        narrow(self)

    # Of the same name: transformers writes it to config.json, and messages tell it.
    return type(base.__name__, (base,), {"__init__": build, "__module__": base.__module__})


def as_usual(model: Any) -> Any:
    """Make a model of :func:`without_heads` one of its family's own class."""
    model.__class__ = type(model).__mro__[1]
    return model
