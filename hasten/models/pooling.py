"""An encoder and what makes one vector of a text's tokens, as one module that engines export."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError
from hasten.models.sentence import SPARSE, WEIGHTS, Dense, Sentence

if TYPE_CHECKING:
    from torch import Tensor, nn


def complete(encoder: nn.Module, sentence: Sentence, folder: Path) -> nn.Module:
    """The encoder with what follows it, whose weights lie in ``folder``, a ``module/``.

    Its forward takes the encoder's inputs by name, and returns float [batch, numbers], or without
    pooling [batch, length, numbers].

    Raises:
        ModelError: the weights are missing, or do not fit.
    """
    steps = steps_of(sentence)
    if any(sentence.after):
        load(steps, folder / WEIGHTS)
    module: nn.Module = _classes()[0](encoder, sentence, steps)
    return module.eval()


def encoder_of(module: nn.Module) -> nn.Module:
    """The encoder in a module that :func:`complete` made; any other module itself."""
    inner: Any = getattr(module, "encoder", None)
    return inner if isinstance(module, _classes()[0]) else module


def load(steps: nn.Module, path: Path) -> None:
    """Read the weights of the steps after pooling.

    Raises:
        ModelError: they are missing, or do not fit.
    """
    from safetensors.torch import load_model

    try:
        load_model(steps, str(path), strict=True)
    except Exception as error:  # safetensors and torch raise their own and RuntimeError
        raise ModelError(f"the dense layers in {path.name} do not fit: {error}") from error


def steps_of(sentence: Sentence) -> nn.ModuleList:
    """The steps after pooling, with random weights."""
    from torch import nn

    _, dense, normalize = _classes()
    return nn.ModuleList(dense(step) if step else normalize() for step in sentence.after)


@cache
def _classes() -> tuple[type[Any], type[Any], type[Any]]:
    """The vector model, the dense layer and the normalization: torch is imported late."""
    from torch import nn

    class SentenceModel(nn.Module):
        def __init__(self, encoder: nn.Module, sentence: Sentence, steps: nn.ModuleList) -> None:
            super().__init__()
            self.encoder, self.steps = encoder, steps
            self.config: Any = encoder.config
            self.modes, self.width = sentence.pooling, sentence.truncate_dim

        def get_input_embeddings(self) -> Any:
            embeddings: Any = self.encoder.get_input_embeddings
            return embeddings()

        def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
            outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **others)
            vectors = pooled(outputs[0], attention_mask, self.modes)
            for step in self.steps:
                vectors = step(vectors)
            return vectors if self.width is None else vectors[:, : self.width]

    class DenseLayer(nn.Module):
        def __init__(self, plan: Dense) -> None:
            super().__init__()
            self.linear = nn.Linear(plan.inputs, plan.outputs, bias=plan.bias)
            self.activation = getattr(nn, plan.activation)()
            self.adds = plan.residual
            if plan.residual and plan.inputs != plan.outputs:
                self.residual = nn.Linear(plan.inputs, plan.outputs, bias=False)

        def forward(self, vectors: Tensor) -> Tensor:
            made: Tensor = self.activation(self.linear(vectors))
            if not self.adds:
                return made
            return made + (self.residual(vectors) if hasattr(self, "residual") else vectors)

    class Normalize(nn.Module):
        def forward(self, vectors: Tensor) -> Tensor:
            return nn.functional.normalize(vectors, p=2.0, dim=-1)

    return SentenceModel, DenseLayer, Normalize


def pooled(tokens: Tensor, mask: Tensor, modes: tuple[str, ...]) -> Tensor:
    """One vector a text, float [batch, numbers], several ways of pooling joined.

    Without any, the tokens' own vectors.

    Padding may be on either side. The formulas are sentence-transformers'.

    Args:
        tokens: float [batch, length, width].
        mask: int64 [batch, length], 1 where there is text.
        modes: of :data:`hasten.models.sentence.POOLING`, or ``SPARSE``.
    """
    import torch

    if not modes:
        return tokens
    vectors = [_POOLED[mode](tokens, mask) for mode in modes]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)


def _sums(tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    weights = weights.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sums(tokens, mask)
    return total / count


def _mean_sqrt(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sums(tokens, mask)
    return total / count.sqrt()


def _weighted_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    total, count = _sums(tokens, mask.cumsum(dim=1) * mask)
    return total / count


def _max(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _splade(tokens: Tensor, mask: Tensor) -> Tensor:
    import torch

    weights = torch.log1p(torch.relu(tokens)) * mask.unsqueeze(-1).to(tokens.dtype)
    return weights.amax(dim=1)


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    padding = (mask.cumsum(dim=1) == 0).to(mask.dtype).sum(dim=1)
    # All padding, where a tokenizer makes nothing of an empty text: the first column.
    return _at(tokens, padding * mask.amax(dim=1))


def _last(tokens: Tensor, mask: Tensor) -> Tensor:
    places = ((mask * 0 + 1).cumsum(dim=1) - 1) * mask
    return _at(tokens * mask.unsqueeze(-1).to(tokens.dtype), places.amax(dim=1))


def _at(tokens: Tensor, places: Tensor) -> Tensor:
    """The token at one place of each text, ``places`` being int64 [batch]."""
    index = places.view(-1, 1, 1).expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, index).squeeze(1)


_POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
    SPARSE: _splade,
}
