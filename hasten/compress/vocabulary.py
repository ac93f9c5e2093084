"""A smaller vocabulary: only what some texts need, in the tokenizer and in the model.

Which tokens go is decided so that these texts are read exactly as before, each token by its new
number; :func:`reduce` proves it by reading them again. Why it holds: what a tokenizer prefers it
still prefers when others are missing, as long as nothing goes that had a part in the outcome. For
WordPiece that is the tokens themselves, and for a word that is unknown whatever was tried; for BPE
the merges that lead to a token, and their parts; for Unigram the piece with the lowest score, which
decides how bad an unknown character is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelError
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.models import ModelFolder
from hasten.models.folder import TOKENIZER_FILES
from hasten.storage.durable import write_json

if TYPE_CHECKING:
    from torch import nn

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WORD_START = "\u2581"
_KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which rows of the embedding table stay.

    Attributes:
        kept: their numbers in the original, int64 [rows], ascending; the place is the new number.
        tokenizer: the tokenizer of these alone, as tokenizer.json has it.
        unseen_share: of new texts, those that hold something that is not kept.
    """

    kept: NDArray[np.int64]
    tokenizer: Mapping[str, Any]
    unseen_share: float

    def renumbered(self, tokens: Tokens) -> Tokens:
        """The same tokens, all of which are kept, by their new numbers."""
        return replace(tokens, ids=np.searchsorted(self.kept, tokens.ids).astype(np.int32))

    def reader(self, max_length: int) -> TextTokenizer:
        """The smaller tokenizer, which splits what is not kept into smaller parts."""
        from tokenizers import Tokenizer

        return TextTokenizer(Tokenizer.from_str(json.dumps(self.tokenizer)), max_length)

    def write(self, source: Path, folder: Path) -> None:
        """Write the tokenizer's files into ``folder``, the others after those in ``source``.

        Raises:
            StorageError: they cannot be written.
        """
        for name in TOKENIZER_FILES[1:]:
            if (source / name).exists():
                stored = json.loads((source / name).read_text(encoding="utf-8"))
                if isinstance(numbered := stored.get("added_tokens_decoder"), dict):
                    stored["added_tokens_decoder"] = {
                        str(new): numbered[str(old)]
                        for new, old in enumerate(self.kept.tolist())
                        if str(old) in numbered
                    }
                write_json(folder / name, stored)
        write_json(folder / TOKENIZER_FILES[0], self.tokenizer)


def reduce(
    reference: ModelFolder,
    model: Any,
    texts: Sequence[str],
    tokens: Tokens,
    new: Tokens,
) -> Vocabulary:
    """The vocabulary that ``texts`` need.

    Beside what they use, it has every special and added token, every single character or byte, and
    whatever the model's configuration names. So what was never seen is split smaller.

    Args:
        reference: the original.
        model: whose embedding table the tokens are in.
        texts: those that choose it.
        tokens: what the original's tokenizer makes of them.
        new: what it makes of other texts, which show how many hold something that is not kept.

    Raises:
        ModelError: the tokenizer is of another kind, or would read the texts in another way.
    """
    from tokenizers import Tokenizer

    original = Tokenizer.from_file(str(reference.folder / "tokenizer.json"))
    stored: dict[str, Any] = json.loads(original.to_str())
    if stored["model"].get("type") not in _KINDS:
        raise ModelError(
            f"a {stored['model'].get('type')} tokenizer cannot be made smaller",
            fix=f"Leave --embeddings out; it works with {', '.join(_KINDS)}.",
        )
    rows = model.get_input_embeddings().num_embeddings
    named = _named(model.config, rows)
    words = _unknown_words(original, stored, texts, tokens)
    kept = _needed(stored, named | _used(tokens), words, rows)
    tokenizer = _renumbered(stored, {old: place for place, old in enumerate(kept.tolist())})
    vocabulary = Vocabulary(kept, tokenizer, _unseen(kept, new))
    again = vocabulary.reader(reference.info.max_length).encode(texts)
    if not np.array_equal(again.ids, vocabulary.renumbered(tokens).ids):
        raise ModelError(
            "with fewer words this tokenizer would read some of your texts in another way",
            fix="Leave --embeddings out.",
        )
    return vocabulary


def _used(tokens: Tokens) -> set[int]:
    return set(np.unique(tokens.ids).tolist())


def _unseen(kept: NDArray[np.int64], tokens: Tokens) -> float:
    """Share of texts that hold a token which is not kept."""
    lacking = ~np.isin(tokens.ids, kept)
    texts = np.repeat(np.arange(len(tokens)), tokens.lengths)
    return len(np.unique(texts[lacking])) / max(1, len(tokens))


def shrink(model: Any, vocabulary: Vocabulary) -> None:
    """Leave in ``model`` the rows of ``vocabulary`` alone; its configuration follows."""
    import torch
    from torch import nn

    table: nn.Embedding = model.get_input_embeddings()
    rows = table.weight.detach()[torch.from_numpy(vocabulary.kept)]
    table.weight = nn.Parameter(rows.clone(), requires_grad=table.weight.requires_grad)
    new = {old: place for place, old in enumerate(vocabulary.kept.tolist())}
    for name, numbers in _token_ids(model.config):
        moved = [new.get(number, number) for number in numbers]
        setattr(model.config, name, moved if _is_list(model.config, name) else moved[0])
    table.num_embeddings = model.config.vocab_size = len(rows)


def _token_ids(config: Any) -> Iterator[tuple[str, list[int]]]:
    """Entries of a configuration that name tokens by number."""
    for name in config.to_dict():
        value = getattr(config, name, None)
        numbers: list[Any] = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and all(type(number) is int for number in numbers):
            yield name, numbers


def _is_list(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name), list)


def _named(config: Any, rows: int) -> set[int]:
    numbers = {number for _, some in _token_ids(config) for number in some if 0 <= number < rows}
    pad = getattr(config, "pad_token_id", None)
    # RoBERTa and its kin count positions from the padding's number: it must stay what it is.
    return numbers | set(range(pad + 1 if type(pad) is int else 0))


def _pieces(stored: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of the model's own tokens."""
    vocab = stored["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def _unknown_words(
    tokenizer: Any, stored: Mapping[str, Any], texts: Sequence[str], tokens: Tokens
) -> set[str]:
    """The words in the texts of which WordPiece could make nothing."""
    model = stored["model"]
    unknown = _pieces(stored).get(model.get("unk_token") or "")
    if model["type"] != "WordPiece" or unknown is None:
        return set()
    places = np.flatnonzero(tokens.ids == unknown)
    lacking = np.unique(np.searchsorted(tokens.offsets, places, side="right") - 1)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = set()
    for index in lacking.tolist():
        encoding = tokenizer.encode(texts[index])
        for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number == unknown:
                words.add(texts[index][begin:end])
    normalizer = tokenizer.normalizer
    return words if normalizer is None else words | {normalizer.normalize_str(w) for w in words}


def _needed(
    stored: Mapping[str, Any], used: set[int], unknown: Iterable[str], rows: int
) -> NDArray[np.int64]:
    """Numbers of all tokens that must stay, ascending."""
    model, pieces = stored["model"], _pieces(stored)
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    kept = used | {token["id"] for token in stored["added_tokens"]}
    kept |= set(_processed(stored["post_processor"]))
    kept |= {number for piece, number in pieces.items() if _is_base(piece, prefix, suffix)}
    if model.get("unk_token") in pieces:
        kept.add(pieces[model["unk_token"]])
    if model["type"] == "WordPiece":
        kept |= {pieces[part] for part in _parts(unknown, prefix, model) if part in pieces}
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept |= {model["unk_id"], int(np.argmin(scores))} - {None}
    if model["type"] == "BPE":
        kept |= _merged_from(model["merges"], pieces, prefix, kept)
    return np.array(sorted(number for number in kept if number < rows), np.int64)


def _is_base(piece: str, prefix: str, suffix: str) -> bool:
    """Whether it is one character or byte, wherever in a word it stands."""
    core = piece.removeprefix(prefix) or piece
    core = core.removesuffix(suffix) or core
    core = core.removeprefix(_WORD_START) or core
    return len(core) == 1 or _BYTE.fullmatch(piece) is not None


def _parts(words: Iterable[str], prefix: str, model: Mapping[str, Any]) -> Iterator[str]:
    """Whatever WordPiece may have found in words before it gave up."""
    for word in words:
        if len(word) <= model["max_input_chars_per_word"]:  # longer ones are unknown at once
            for begin in range(len(word)):
                for end in range(begin + 1, len(word) + 1):
                    yield (prefix if begin else "") + word[begin:end]


def _pair(merge: Any) -> tuple[str, str]:
    """One of a BPE's merges, which older files write as text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _merged(merge: Any, prefix: str) -> str:
    left, right = _pair(merge)
    return left + right.removeprefix(prefix)


def _merged_from(
    merges: Iterable[Any], pieces: Mapping[str, int], prefix: str, kept: set[int]
) -> set[int]:
    """The tokens from which merges make those in ``kept``, and from which those are made."""
    made: dict[int, list[int]] = {}
    for merge in merges:
        parts = [pieces[part] for part in _pair(merge)]
        made.setdefault(pieces[_merged(merge, prefix)], []).extend(parts)
    found: set[int] = set()
    open_ends = list(kept)
    while open_ends:
        for part in made.get(open_ends.pop(), ()):
            if part not in found:
                found.add(part)
                open_ends.append(part)
    return found


def _renumbered(stored: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """The tokenizer with these tokens alone, and their new numbers."""
    model, pieces = dict(stored["model"]), _pieces(stored)
    prefix = model.get("continuing_subword_prefix") or ""
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = new.get(model["unk_id"])
    else:
        model["vocab"] = {piece: new[old] for piece, old in pieces.items() if old in new}
    if model["type"] == "BPE":
        model["merges"] = [
            merge
            for merge in model["merges"]
            if all(part in model["vocab"] for part in (*_pair(merge), _merged(merge, prefix)))
        ]
    padding = stored["padding"] and {
        **stored["padding"],
        "pad_id": new.get(stored["padding"]["pad_id"], 0),
    }
    return {
        **stored,
        "model": model,
        "padding": padding,
        "added_tokens": [
            {**token, "id": new[token["id"]]}
            for token in stored["added_tokens"]
            if token["id"] in new
        ],
        "post_processor": _process(stored["post_processor"], new),
    }


def _processed(processor: Mapping[str, Any] | None) -> Iterator[int]:
    """Numbers that a post-processor puts around texts."""
    for part in (processor or {}).get("processors", [processor] if processor else []):
        for token in (part.get("special_tokens") or {}).values():
            yield from token["ids"]
        for name in ("sep", "cls"):
            if name in part:
                yield part[name][1]


def _process(processor: Mapping[str, Any] | None, new: Mapping[int, int]) -> Any:
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in processor:
        changed["processors"] = [_process(part, new) for part in processor["processors"]]
    if processor.get("special_tokens"):
        changed["special_tokens"] = {
            name: {**token, "ids": [new[number] for number in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if name in processor:
            changed[name] = [processor[name][0], new[processor[name][1]]]
    return changed
