"""What came out of making a model smaller."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.records.measured import Parity


@dataclass(frozen=True, slots=True)
class Student:
    """A smaller model beside its original.

    ``layers`` are the original's blocks that it has, ``ffn_width`` the units of each block's
    feed-forward part. ``before`` and ``after`` compare it with the original on held-out
    texts, before and after training. ``agreements`` are what was seen
    while it was, on other texts, of 0 to 1, and ``agreement`` is that of what was kept.

    ``asked_ffn_width`` may not have been a multiple of what engines like. ``heads`` are those of
    each block, 0 where that is unknown. ``vocabulary`` is how many words and parts of words it
    knows; where it knows fewer, ``unseen_share`` estimates how many new texts hold something that
    it has to split smaller, or does not know. ``predicted_speed`` is how many times as fast as the
    original it should be in PyTorch, where a speed was asked for.

    Where it was also trained with 8-bit integers, ``int8_before`` and ``int8_after`` compare its
    int8 model with the original in the same way: with the ranges that a few texts gave, and with
    those that were trained. ``int8_closeness`` is what was seen before and while it was: 1 less
    the mean difference of its outputs from the fp32 student's, in units of their spread.

    ``notices`` are sentences about what a user would not expect of the original.
    """

    layers: tuple[int, ...]
    of_layers: int
    ffn_width: int
    of_ffn_width: int
    parameter_count: int
    of_parameter_count: int
    taught_texts: int
    steps: int
    agreements: tuple[float, ...]
    before: Parity
    after: Parity
    seconds: float
    agreement: float = 1.0
    asked_ffn_width: int | None = None
    heads: int = 0
    of_heads: int = 0
    vocabulary: int = 0
    of_vocabulary: int = 0
    vocabulary_saved_bytes: int = 0
    unseen_share: float = 0.0
    predicted_speed: float = 0.0
    int8_steps: int = 0
    int8_closeness: tuple[float, ...] = ()
    int8_before: Parity | None = None
    int8_after: Parity | None = None
    notices: tuple[str, ...] = ()
