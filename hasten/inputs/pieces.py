"""The words of a tokenizer: how a token is written, and what several say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Pieces:
    """The vocabulary of a tokenizer, which is only read and may be read by several threads."""

    tokenizer: Tokenizer

    def written(self, token: int) -> str:
        """A token as the vocabulary spells it, such as ``##ing``."""
        return self.tokenizer.id_to_token(token) or ""

    def joined(self, pieces: Sequence[str]) -> str:
        """Pieces of a text as text."""
        decoder = self.tokenizer.decoder
        return " ".join(pieces) if decoder is None else decoder.decode(list(pieces))

    def decoded(self, tokens: Sequence[int], *, skip_special: bool) -> str:
        """Tokens as text."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special)

    def id_of(self, word: str) -> int | None:
        """The id of a word as the vocabulary spells it, or of its first piece; None without one."""
        known: int | None = self.tokenizer.token_to_id(word)
        if known is not None:
            return known
        ids = self.tokenizer.encode(word, add_special_tokens=False).ids
        return ids[0] if ids else None

    @cached_property
    def marks_subwords(self) -> bool:
        """Whether pieces inside a word begin with a mark, as in WordPiece."""
        return bool(getattr(self.tokenizer.model, "continuing_subword_prefix", None))

    @cached_property
    def unknown(self) -> int | None:
        """The token that stands for what the vocabulary lacks; None without one."""
        model = self.tokenizer.model
        if hasattr(model, "unk_token"):
            name = model.unk_token
            return None if name is None else self.tokenizer.token_to_id(name)
        # Unigram does not show it, and writes it down.
        written: int | None = json.loads(self.tokenizer.to_str())["model"].get("unk_id")
        return written
