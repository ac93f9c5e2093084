"""Texts become token ids, the way the model was trained to read them.

Ids stay ragged (:class:`Tokens`) until a batch is cut: padding is decided by who shares a batch,
not by the tokenizer. Only the ``tokenizers`` library is used, which deployed bundles carry too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import InputError, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HEAD_CHARACTERS_PER_TOKEN = 16
"""How much of a long text is looked at first, per token that the model takes."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How the texts of a batch are made equally long.

    Attributes:
        side: where padding goes.
        type_id: the token type of padding, for models that take token types.
    """

    side: Literal["left", "right"] = "right"
    type_id: int = 0


_RIGHT = Padding()


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids of ``n`` texts, one after the other.

    Attributes:
        ids: int32 [total].
        offsets: int64 [n + 1]; text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        truncated: bool [n]; whether the text was longer than the model takes.
        types: int32 [total], the token type of each; None where all are 0.
        padding: how :meth:`pad` fills a batch up.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    types: NDArray[np.int32] | None = None
    padding: Padding = _RIGHT

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, special tokens included: int64 [n]."""
        return np.diff(self.offsets)

    def select(self, indices: ArrayLike) -> Tokens:
        """The texts at ``indices``, in that order; an index may come twice.

        >>> tokens = Tokens(np.arange(5, dtype=np.int32), np.array([0, 2, 5]), np.zeros(2, bool))
        >>> tokens.select([1, 0]).ids.tolist()
        [2, 3, 4, 0, 1]
        """
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = _offsets(lengths)
        shift = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        positions = np.arange(offsets[-1], dtype=np.int64) + shift
        types = None if self.types is None else self.types[positions]
        return Tokens(self.ids[positions], offsets, self.truncated[chosen], types, self.padding)

    def pad(
        self, indices: ArrayLike, pad_token_id: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The texts at ``indices`` as one batch, padded to the longest of them.

        >>> tokens = Tokens(np.arange(5, dtype=np.int32), np.array([0, 2, 5]), np.zeros(2, bool))
        >>> input_ids, attention_mask = tokens.pad([0, 1], pad_token_id=9)
        >>> input_ids.tolist(), attention_mask.tolist()
        ([[0, 1, 9], [2, 3, 4]], [[1, 1, 0], [1, 1, 1]])

        Returns:
            ``input_ids`` and ``attention_mask``, both int64 [batch, length]. The length is at
            least 1, even for texts without any token: frameworks reject empty axes.
        """
        mask, positions = self._layout(indices)
        return _filled(mask, self.ids[positions], pad_token_id), mask.astype(np.int64)

    def token_types(self, indices: ArrayLike) -> NDArray[np.int64]:
        """The token types of the batch that :meth:`pad` makes: int64 [batch, length].

        >>> offsets, types = np.array([0, 1, 3]), np.array([2, 0, 2], dtype=np.int32)
        >>> tokens = Tokens(types, offsets, np.zeros(2, bool), types, Padding("left", type_id=3))
        >>> tokens.token_types([0, 1]).tolist()
        [[3, 2], [0, 2]]
        """
        mask, positions = self._layout(indices)
        if self.types is None and self.padding.type_id == 0:
            return np.zeros(mask.shape, dtype=np.int64)
        types = np.int32(0) if self.types is None else self.types[positions]
        return _filled(mask, types, self.padding.type_id)

    def _layout(self, indices: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Where a batch holds text, bool [batch, length], and where ``ids`` has those tokens."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        width = max(1, int(lengths.max(initial=0)))
        places = np.broadcast_to(np.arange(width, dtype=np.int64), (len(chosen), width))
        if self.padding.side == "left":
            places = places - (width - lengths[:, None])
        mask = (places >= 0) & (places < lengths[:, None])
        return mask, (self.offsets[chosen][:, None] + places)[mask]


def _filled(mask: NDArray[np.bool_], values: ArrayLike, filler: int) -> NDArray[np.int64]:
    """``values`` where ``mask`` is true, row by row, and ``filler`` elsewhere."""
    batch = np.full(mask.shape, filler, dtype=np.int64)
    batch[mask] = values
    return batch


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class TextTokenizer:
    """A ``tokenizer.json``, set to cut at ``max_length`` tokens and never to pad.

    Not to be shared between threads: the library underneath locks a tokenizer while it works
    ("Already borrowed"). Load one per thread.

    ``threads`` is how many threads it may use at once; without it, the library decides, which
    takes one for every core of the host.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, threads: int | None = None) -> None:
        special = tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ModelError(
                f"max_length is {max_length}, but the tokenizer adds {special} special tokens "
                "to every text: nothing of the text would be left",
                fix=f"Give a max_length of at least {special + 1}.",
            )
        # The file's own lengths come from training (often 128 tokens). Properties of the model are
        # the side that is cut off, the side that is padded, and the token type of padding.
        direction = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(max_length, direction=direction)
        padding: dict[str, Any] = tokenizer.padding or {}
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.padding = Padding(
            "left" if padding.get("direction") == "left" else "right",
            padding.get("pad_type_id", 0),
        )
        # XLNet gives its last token another type; in most models, all types of a single text are 0.
        self._has_types = any(tokenizer.encode("").type_ids)
        self._head_characters = (
            _HEAD_CHARACTERS_PER_TOKEN * max_length if direction == "right" else None
        )
        self._threads = threads
        self.max_length = max_length

    @classmethod
    def load(
        cls, path: str | PathLike[str], max_length: int, threads: int | None = None
    ) -> TextTokenizer:
        """Read a ``tokenizer.json``; ``max_length`` counts special tokens too.

        Raises:
            ModelError: there is no such file, it is not a tokenizer, or ``max_length`` leaves no
                room for text.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise ModelError(
                f"{path} cannot be read as a tokenizer: {error}",
                fix="It should be the tokenizer.json that the tokenizers library writes.",
            ) from error
        return cls(tokenizer, max_length, threads)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize ``texts``; an empty text becomes just the special tokens.

        Raises:
            InputError: a text is not a str, or cannot be encoded (lone surrogates); the message
                names its index.
        """
        encodings = self._encode(texts)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        offsets = _offsets(lengths)
        ids = np.fromiter(
            chain.from_iterable(encoding.ids for encoding in encodings),
            dtype=np.int32,
            count=int(offsets[-1]),
        )
        # Only a text that fills the window can have been cut.
        truncated = lengths == self.max_length
        for index in np.flatnonzero(truncated):
            truncated[index] = bool(encodings[index].overflowing)
        types = None
        if self._has_types:
            types = np.fromiter(
                chain.from_iterable(encoding.type_ids for encoding in encodings),
                dtype=np.int32,
                count=int(offsets[-1]),
            )
        return Tokens(ids, offsets, truncated, types, self.padding)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        _check_types(texts)
        heads = [self._head(text) for text in texts]
        try:
            encodings: list[Any] = self._encode_batch(heads)
            for index, (text, head) in enumerate(zip(texts, heads, strict=True)):
                # A head that fills the window twice over decides all that is kept; the rest of
                # the text, perhaps megabytes of it, need not be read.
                if len(head) < len(text) and len(encodings[index].overflowing) < 2:
                    encodings[index] = self._encode_batch([text])[0]
        except Exception as error:  # the library raises bare Exceptions and TypeErrors
            raise _failure(texts, error) from error
        return encodings

    def _encode_batch(self, texts: list[str]) -> list[Any]:
        """Encode on at most the threads that were given.

        The library's pool belongs to the process, and its size cannot be set from here. But it
        takes up no more texts at once than a call has, so calls of as many texts as there are
        threads hold it to them: 55 instead of 42 microseconds a text. For one thread there is a
        call that leaves the pool alone, and takes 47.
        """
        threads = self._threads
        if threads is None or threads >= _pool_threads():
            return list(self._tokenizer.encode_batch_fast(texts))
        if threads == 1:
            return [self._tokenizer.encode(text) for text in texts]
        parts = (texts[begin : begin + threads] for begin in range(0, len(texts), threads))
        return list(chain.from_iterable(map(self._tokenizer.encode_batch_fast, parts)))

    def _head(self, text: str) -> str:
        if self._head_characters is None or len(text) <= self._head_characters:
            return text
        # Whole words only: half of one may be read quite differently.
        end = text.rfind(" ", 0, self._head_characters)
        return text if end < 0 else text[:end]


def _pool_threads() -> int:
    """The most threads that the library's pool can have: rayon's, the same for all its users."""
    named = os.environ.get("RAYON_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else os.cpu_count() or 1


def _check_types(texts: Sequence[object]) -> None:
    # The library would take a tuple for a pair of texts.
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, not str")


def _failure(texts: Sequence[str], error: Exception) -> InputError:
    for index, text in enumerate(texts):
        surrogate = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
        if surrogate is not None:
            return InputError(
                f"text {index} holds a lone surrogate (U+{ord(surrogate):04X}), "
                "which is half a character and has no UTF-8 form",
                fix="Replace it: text.encode('utf-8', 'replace').decode('utf-8').",
            )
    return InputError(f"the tokenizer cannot encode these texts: {error}")
