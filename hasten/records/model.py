"""A model and its texts, described."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is, without its weights; everything that running it needs to know.

    ``task`` names an entry of :mod:`hasten.tasks`. ``max_length`` counts tokens, special tokens
    included. ``flops_per_token`` and ``flops_per_token_squared`` give the floating-point work of
    one text of ``n`` tokens as ``a*n + b*n*n`` (a multiply-add is two operations).
    ``output_width`` is how many numbers it gives for a text; 0 where that was not kept.
    """

    name: str
    architecture: str
    task: str
    labels: tuple[str, ...]
    max_length: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    pad_token_id: int
    parameter_count: int
    flops_per_token: float
    flops_per_token_squared: float
    random_weights: bool = False
    output_width: int = 0

    def flops(self, length: int) -> float:
        """Floating-point operations for one text of ``length`` tokens, unpadded."""
        return self.flops_per_token * length + self.flops_per_token_squared * length * length


@dataclass(frozen=True, slots=True)
class LengthProfile:
    """How long the texts are, in tokens after truncation, special tokens included.

    ``texts`` of the ``given`` ones were looked at, a random sample where there are very many.
    """

    texts: int
    tokens: int
    mean: float
    p5: int
    p25: int
    p50: int
    p75: int
    p95: int
    longest: int
    truncated: int
    max_length: int
    given: int

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.texts
