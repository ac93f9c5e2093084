"""A model and its texts, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Text: TypeAlias = str | tuple[str, str]
"""What a model reads at a time: a text, or a text and its pair."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is, without its weights; everything that running it needs to know.

    ``task`` names an entry of :mod:`hasten.tasks`, and ``task_settings`` are those of its settings
    that are not the usual ones. ``output_names`` are the outputs that it reads. ``max_length``
    counts tokens, special tokens included. ``flops_per_token`` and ``flops_per_token_squared``
    give the floating-point work of one text of ``n`` tokens as ``a*n + b*n*n`` (a multiply-add is
    two operations). ``output_width`` is how many numbers a row of its outputs has; 0 where that
    was not kept.

    ``first_ids`` and ``last_ids`` are the special tokens around every text. ``dtype`` is the
    checkpoint's, of which the original is a copy in fp32; empty where that was not kept.
    ``notices`` are sentences about what a user would not expect of this model.
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
    first_ids: tuple[int, ...] = ()
    last_ids: tuple[int, ...] = ()
    dtype: str = ""
    notices: tuple[str, ...] = ()
    task_settings: Mapping[str, object] = field(default_factory=dict, hash=False)

    def example(self, batch_size: int, length: int) -> list[list[int]]:
        """Ids of ``batch_size`` texts of ``length`` tokens that the model accepts.

        They begin and end as every text does: some models look for their last token.

        >>> model = ModelInfo("m", "Bart", "regression", ("x",), 9, (), (), 1, 1, 1.0, 1.0,
        ...     first_ids=(0,), last_ids=(2,))
        >>> model.example(1, 4)
        [[0, 3, 3, 2]]
        """
        frame = self.first_ids, self.last_ids
        return [example_ids(length, self.pad_token_id, *frame)] * batch_size

    def flops(self, length: int) -> float:
        """Floating-point operations for one text of ``length`` tokens, unpadded."""
        return self.flops_per_token * length + self.flops_per_token_squared * length * length


def example_ids(
    length: int, pad_token_id: int, first: tuple[int, ...], last: tuple[int, ...]
) -> list[int]:
    """Ids of a text of ``length`` tokens between the special tokens ``first`` and ``last``.

    >>> example_ids(4, 1, (0,), (2,))
    [0, 3, 3, 2]
    """
    special = {pad_token_id, *first, *last}
    filler = next(number for number in range(len(special) + 1) if number not in special)
    between = [filler] * (length - len(first) - len(last))
    # What is too short for all of them keeps the last, which such models look for.
    return [*first, *between, *last][-length:]


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
