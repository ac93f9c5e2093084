"""Texts that are longer than a model reads, in windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError
from hasten.inputs.pieces import Pieces
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import Text


def encode_windows(
    tokenizer: TextTokenizer,
    texts: Sequence[Text],
    *,
    overlap: int,
    max_length: int | None = None,
    pairs: bool = False,
) -> Tokens:
    """Tokenize ``texts`` whole, in as many windows as each needs.

    Of a pair the second text is cut into windows, and the first one stands before each of them.
    A first text that leaves no room for ``overlap + 1`` tokens is cut, and counts as truncated.

    Args:
        tokenizer: of the model.
        texts: str, or tuples of two with ``pairs``.
        overlap: tokens that a window shares with the one before it.
        max_length: tokens of a window, special tokens included; at most what the model reads.
        pairs: whether the texts are pairs.

    Returns:
        Tokens with spans, words and cuts. ``special`` is True for every token that does not belong
        to the text that was cut into windows.

    Raises:
        ChoiceError: windows of this length cannot overlap so much.
        InputError: a text cannot be encoded.
    """
    limit = min(max_length or tokenizer.max_length, tokenizer.max_length)
    encodings = tokenizer.encode_whole(texts, pairs=pairs)
    found = [_windows(_sequences(each), limit, overlap, int(pairs)) for each in encodings]
    lengths = [len(window) for windows, _ in found for window in windows]
    counts = [len(windows) for windows, _ in found]

    def chosen(values: Any, *width: int) -> NDArray[np.int32]:
        arrays = [
            np.array(values(encoding), np.int32).reshape(-1, *width)[np.concatenate(windows)]
            for encoding, (windows, _) in zip(encodings, found, strict=True)
        ]
        return np.concatenate([np.empty((0, *width), np.int32), *arrays])

    windows = Tokens(
        ids=chosen(lambda e: e.ids),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        truncated=np.repeat([truncated for _, truncated in found], counts).astype(np.bool_),
        types=chosen(lambda e: e.type_ids) if tokenizer.has_types or pairs else None,
        padding=tokenizer.padding,
        spans=chosen(lambda e: e.offsets, 2),
        special=chosen(_sequences) != int(pairs),
        pieces=Pieces(tokenizer.library),
        words=chosen(lambda e: [-1 if word is None else word for word in e.word_ids]),
    )
    return windows.regrouped(np.cumsum([0, *counts], dtype=np.int64))


def begins(length: int, room: int, overlap: int) -> list[int]:
    """Where windows of ``room`` tokens begin that cover ``length`` tokens.

    >>> begins(10, room=4, overlap=1), begins(11, room=4, overlap=1), begins(0, 4, 1)
    ([0, 3, 6], [0, 3, 6, 9], [0])
    """
    step = room - overlap
    return [step * number for number in range(1 + max(0, -((room - length) // step)))]


def _sequences(encoding: Any) -> list[int]:
    """Which text each token is from: 0, 1, or -1 for special tokens."""
    return [-1 if sequence is None else sequence for sequence in encoding.sequence_ids]


def _windows(
    sequences: Sequence[int], limit: int, overlap: int, cut: int
) -> tuple[list[NDArray[np.int64]], bool]:
    """The tokens of each window, and whether any token is in none of them.

    Args:
        sequences: which text each token is from.
        limit: tokens of a window.
        overlap: tokens that two of them share.
        cut: which text is cut, 0 or 1.
    """
    places = np.arange(len(sequences))
    if len(places) <= limit:
        return [places], False
    own = np.array(sequences)
    content, first = places[own == cut], places[(own != cut) & (own >= 0)]
    special = len(places) - len(content) - len(first)
    most = limit - special - overlap - 1
    if most < 0:
        raise ChoiceError(
            f"windows of {limit} tokens, {special} of them special, cannot share {overlap}",
            fix=f"The stride can be at most {max(limit - special - 1, 0)}.",
        )
    begin = content[0] if len(content) else len(places) - 1
    around = np.setdiff1d(places, np.concatenate([content, first[most:]]))
    before, after = around[around < begin], around[around >= begin]
    room = limit - len(around)
    found = [
        np.concatenate([before, content[start : start + room], after])
        for start in begins(len(content), room, overlap)
    ]
    return found, len(first) > most
