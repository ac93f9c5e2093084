"""Texts become token ids, the way the model was trained to read them.

Ids stay ragged (:class:`Tokens`) until a batch is cut: padding is decided by who shares a batch,
not by the tokenizer. Only the ``tokenizers`` library is used, which deployed bundles carry too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import ModelError
from hasten.inputs.pieces import Pieces
from hasten.inputs.refusals import check_types, failure
from hasten.records import Text

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
        spans: int32 [total, 2], where each token begins and ends in its text, in characters; of
            a pair, in the one that it is from. None where they were not asked for.
        special: bool [total], whether a token is one that the tokenizer adds to every text; None
            where spans were not asked for.
        pieces: how the tokens are written; None where spans were not asked for.
        words: int32 [total], the word of its text that a token belongs to, -1 for none; None where
            they were not asked for.
        cuts: int64 [windows + 1], where texts are read in windows: window ``w`` is
            ``ids[cuts[w]:cuts[w + 1]]``. None where each text is one window.
        parts: int64 [n + 1]; text ``i`` has the windows ``parts[i]`` to ``parts[i + 1] - 1``. None
            as ``cuts``.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    types: NDArray[np.int32] | None = None
    padding: Padding = _RIGHT
    spans: NDArray[np.int32] | None = None
    special: NDArray[np.bool_] | None = None
    pieces: Pieces | None = None
    words: NDArray[np.int32] | None = None
    cuts: NDArray[np.int64] | None = None
    parts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, special tokens included: int64 [n]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def windows(self) -> Tokens:
        """Each window as a text of its own, which is what batches are made of."""
        if self.cuts is None or self.parts is None:
            return self
        truncated = np.repeat(self.truncated, np.diff(self.parts))
        return replace(self, offsets=self.cuts, truncated=truncated, cuts=None, parts=None)

    @property
    def longest(self) -> NDArray[np.int64]:
        """Tokens of the longest window of each text: int64 [n]."""
        if self.cuts is None or self.parts is None:
            return self.lengths
        return np.maximum.reduceat(np.diff(self.cuts), self.parts[:-1])

    @property
    def columns(self) -> NDArray[np.int64]:
        """Columns that each text needs in a batch, int64 [n]: its tokens, but at least one.

        Some tokenizers make no token of an empty text.
        """
        return np.maximum(self.lengths, 1)

    def select(self, indices: ArrayLike) -> Tokens:
        """The texts at ``indices``, in that order; an index may come twice.

        >>> tokens = Tokens(np.arange(5, dtype=np.int32), np.array([0, 2, 5]), np.zeros(2, bool))
        >>> tokens.select([1, 0]).ids.tolist()
        [2, 3, 4, 0, 1]
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if self.parts is not None:
            return self._select_windows(chosen, self.parts)
        lengths = self.lengths[chosen]
        offsets = _offsets(lengths)
        shift = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        positions = np.arange(offsets[-1], dtype=np.int64) + shift
        return Tokens(
            self.ids[positions],
            offsets,
            self.truncated[chosen],
            None if self.types is None else self.types[positions],
            self.padding,
            None if self.spans is None else self.spans[positions],
            None if self.special is None else self.special[positions],
            self.pieces,
            None if self.words is None else self.words[positions],
        )

    def _select_windows(self, chosen: NDArray[np.int64], parts: NDArray[np.int64]) -> Tokens:
        places = [np.arange(parts[text], parts[text + 1]) for text in chosen.tolist()]
        windows = self.windows.select(np.concatenate([np.empty(0, np.int64), *places]))
        return windows.regrouped(_offsets(np.array([len(own) for own in places], np.int64)))

    def regrouped(self, parts: NDArray[np.int64]) -> Tokens:
        """Neighbouring texts as the windows of one: the inverse of :attr:`windows`.

        Args:
            parts: int64 [fewer + 1], ascending from 0 to the number of these texts.
        """
        truncated = np.logical_or.reduceat(self.truncated, parts[:-1]) if len(parts) > 1 else ()
        return replace(
            self,
            offsets=self.offsets[parts],
            truncated=np.array(truncated, np.bool_),
            cuts=self.offsets,
            parts=parts,
        )

    def between(self, begin: int, end: int) -> Tokens:
        """The texts from ``begin`` to ``end - 1``; without a copy where none has windows."""
        if self.cuts is not None:
            return self.select(np.arange(begin, end))
        first, last = self.offsets[begin], self.offsets[end]
        return replace(
            self,
            ids=self.ids[first:last],
            offsets=self.offsets[begin : end + 1] - first,
            truncated=self.truncated[begin:end],
            types=None if self.types is None else self.types[first:last],
            spans=None if self.spans is None else self.spans[first:last],
            special=None if self.special is None else self.special[first:last],
            words=None if self.words is None else self.words[first:last],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Tokens]) -> Tokens:
        """The texts of all parts, of which there must be at least one; all of one tokenizer."""

        def whole(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            return None if any(array is None for array in arrays) else np.concatenate(arrays)

        if parts[0].parts is not None:
            counts = [np.diff(part.parts) for part in parts if part.parts is not None]
            return cls.concatenate([part.windows for part in parts]).regrouped(
                _offsets(np.concatenate(counts))
            )
        return cls(
            whole("ids"),
            _offsets(whole("lengths")),
            whole("truncated"),
            whole("types"),
            parts[0].padding,
            whole("spans"),
            whole("special"),
            parts[0].pieces,
            whole("words"),
        )

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
        batch = self.batch(indices)
        return batch.input_ids(pad_token_id), batch.mask.astype(np.int64)

    def batch(self, indices: ArrayLike) -> Batch:
        """Lay the texts at ``indices`` out as one batch, as long as the longest of them."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        width = max(1, int(lengths.max(initial=0)))
        places = np.broadcast_to(np.arange(width, dtype=np.int64), (len(chosen), width))
        if self.padding.side == "left":
            places = places - (width - lengths[:, None])
        mask = (places >= 0) & (places < lengths[:, None])
        return Batch(self, mask, (self.offsets[chosen][:, None] + places)[mask])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some texts side by side, padded to equal length.

    Attributes:
        tokens: of these and other texts.
        mask: bool [batch, length], where there is text.
        positions: int64 [tokens of the batch], which of ``tokens`` stand there, row by row.
    """

    tokens: Tokens
    mask: NDArray[np.bool_]
    positions: NDArray[np.int64]

    def inputs(self, names: Iterable[str], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
        """A model's inputs of these names: int64 [batch, length] each."""
        make = {
            "input_ids": lambda: self.input_ids(pad_token_id),
            "attention_mask": lambda: self.mask.astype(np.int64),
            "token_type_ids": self.token_types,
        }
        return {name: make[name]() for name in names}

    def input_ids(self, pad_token_id: int) -> NDArray[np.int64]:
        """Token ids, ``pad_token_id`` at padded positions: int64 [batch, length]."""
        return _filled(self.mask, self.tokens.ids[self.positions], pad_token_id)

    def token_types(self) -> NDArray[np.int64]:
        """Token types, padding's own included: int64 [batch, length].

        >>> offsets, types = np.array([0, 1, 3]), np.array([2, 0, 2], dtype=np.int32)
        >>> tokens = Tokens(types, offsets, np.zeros(2, bool), types, Padding("left", type_id=3))
        >>> tokens.batch([0, 1]).token_types().tolist()
        [[3, 2], [0, 2]]
        """
        types, filler = self.tokens.types, self.tokens.padding.type_id
        if types is None and filler == 0:
            return np.zeros(self.mask.shape, dtype=np.int64)
        return _filled(self.mask, 0 if types is None else types[self.positions], filler)


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
        self.library = tokenizer
        self.padding = Padding(
            "left" if padding.get("direction") == "left" else "right",
            padding.get("pad_type_id", 0),
        )
        # XLNet gives its last token another type; in most models, all types of a single text are 0.
        self.has_types = any(tokenizer.encode("").type_ids)
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
            ModelError: the file does not exist, it is not a tokenizer, or ``max_length`` leaves no
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

    def encode(self, texts: Sequence[Text], *, pairs: bool = False, spans: bool = False) -> Tokens:
        """Tokenize ``texts``; an empty text becomes just the special tokens.

        Args:
            texts: str, or with ``pairs`` tuples of two, of which the longer one is cut first.
            pairs: whether the texts are pairs.
            spans: whether the result has :attr:`Tokens.spans` and :attr:`Tokens.special`.

        Raises:
            InputError: a text is not a str or pair, or cannot be encoded (lone surrogates); the
                message names its index.
        """
        check_types(texts, pairs)
        encodings = self._encode(texts, spans)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        offsets = _offsets(lengths)
        # Only a text that fills the window can have been cut.
        truncated = lengths == self.max_length
        for index in np.flatnonzero(truncated):
            truncated[index] = bool(encodings[index].overflowing)
        total = int(offsets[-1])
        return Tokens(
            _flat((e.ids for e in encodings), total, np.int32),
            offsets,
            truncated,
            _flat((e.type_ids for e in encodings), total, np.int32)
            if self.has_types or pairs
            else None,
            self.padding,
            _flat((chain.from_iterable(e.offsets) for e in encodings), 2 * total, np.int32).reshape(
                total, 2
            )
            if spans
            else None,
            _flat((e.special_tokens_mask for e in encodings), total, np.bool_) if spans else None,
            Pieces(self.library) if spans else None,
        )

    def encode_whole(self, texts: Sequence[Text], *, pairs: bool = False) -> list[Any]:
        """The library's encodings of ``texts``, with nothing cut off.

        Raises:
            InputError: as :meth:`encode`.
        """
        check_types(texts, pairs)
        kept: Any = self.library.truncation
        self.library.no_truncation()
        try:
            return self._encode_batch(list(texts), spans=True)
        except Exception as error:  # the library raises bare Exceptions and TypeErrors
            raise failure(texts, error) from error
        finally:
            self.library.enable_truncation(**kept)

    def _encode(self, texts: Sequence[Text], spans: bool) -> list[Any]:
        heads = [self._head(text) if isinstance(text, str) else text for text in texts]
        try:
            encodings: list[Any] = self._encode_batch(heads, spans)
            for index, (text, head) in enumerate(zip(texts, heads, strict=True)):
                # A head that fills the window twice over decides all that is kept; the rest of
                # the text, perhaps megabytes of it, need not be read.
                if len(head) < len(text) and len(encodings[index].overflowing) < 2:
                    encodings[index] = self._encode_batch([text], spans)[0]
        except Exception as error:  # the library raises bare Exceptions and TypeErrors
            raise failure(texts, error) from error
        return encodings

    def _encode_batch(self, texts: list[Text], spans: bool) -> list[Any]:
        """Encode on at most the threads that were given.

        The library's pool belongs to the process, and its size cannot be set from here. But it
        takes up no more texts at once than a call has, so calls of as many texts as there are
        threads hold it to them: 55 instead of 42 microseconds a text. For one thread there is a
        call that leaves the pool alone, and takes 47.
        """
        threads = self._threads
        # The fast way leaves out where each token stands in its text.
        encode: Any = self.library.encode_batch if spans else self.library.encode_batch_fast
        if threads == 1:
            return [
                self.library.encode(*((text,) if isinstance(text, str) else text)) for text in texts
            ]
        if threads is None or threads >= _pool_threads():
            return list(encode(texts))
        parts = (texts[begin : begin + threads] for begin in range(0, len(texts), threads))
        return list(chain.from_iterable(map(encode, parts)))

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


def _flat(parts: Iterable[Iterable[int]], count: int, dtype: type[Any]) -> NDArray[Any]:
    """All numbers of all parts, ``count`` in all."""
    return np.fromiter(chain.from_iterable(parts), dtype=dtype, count=count)
