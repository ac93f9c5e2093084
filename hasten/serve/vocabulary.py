"""How a bundle's tokenizer splits texts, and the texts of token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hasten.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")


class Vocabulary:
    """A ``tokenizer.json`` that neither cuts nor pads, used by one thread of its own.

    Apart from the tokenizers that feed the model, so that their settings stay as they are.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "hasten-vocabulary")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    async def encode(self, texts: Sequence[str], *, special: bool = True) -> list[Any]:
        """The library's encodings of texts, with or without special tokens.

        Raises:
            InputError: a text cannot be encoded.
        """
        return await self._run(
            lambda: [self._tokenizer.encode(text, add_special_tokens=special) for text in texts]
        )

    async def decode(self, ids: Sequence[Sequence[int]], *, skip_special: bool = True) -> list[str]:
        """The texts of token ids.

        Raises:
            InputError: an id cannot be one.
        """
        return await self._run(
            lambda: [
                self._tokenizer.decode(list(some), skip_special_tokens=skip_special) for some in ids
            ]
        )

    async def cut(self, texts: Sequence[str], tokens: int) -> list[str]:
        """The texts, each cut behind its first ``tokens`` tokens.

        Raises:
            InputError: a text cannot be encoded.
        """
        encodings = await self.encode(texts, special=False)
        return [
            text if len(encoding) <= tokens else text[: encoding.offsets[tokens - 1][1]]
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Exception as error:  # the library raises bare Exceptions, TypeErrors, OverflowErrors
            raise InputError(f"the tokenizer cannot do this: {error}") from error

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
