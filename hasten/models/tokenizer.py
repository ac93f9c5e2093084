"""Find the model's tokenizer, in whatever form it comes, and store it as tokenizer.json.

A Hugging Face folder describes its tokenizer in several files: ``tokenizer.json`` is one, and
``tokenizer_config.json`` and the tokenizer's class change what it says (lower case, the prefix
space, which side is cut off). What counts is what transformers makes of all of them, since the
model was trained with that. It is stored as one ``tokenizer.json``, which needs no transformers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten import tasks
from hasten.errors import ModelError
from hasten.inputs.tokenization import TextTokenizer
from hasten.models.folder import TOKENIZER_FILES, ModelFolder
from hasten.models.module import quiet
from hasten.models.sentence import Sentence
from hasten.records import Text
from hasten.storage.durable import storing, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SLOW_TOKENIZER_FILES = ("vocab.txt", "vocab.json", "*.model")
AS_FOUND = "tokenizer-as-found.json"
"""The user's own tokenizer.json, where transformers makes something else of it."""

_SANE_MAX_LENGTH = 1_000_000  # transformers writes 10**30 for "no limit"
_MAX_LENGTH = 512
_EXCERPT = 60
_READING = ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")
"""The parts of a tokenizer.json that decide what a text's ids are, its truncation apart."""


@dataclass(frozen=True, slots=True)
class StoredTokenizer:
    """What the model's description needs to know about a stored tokenizer.

    Attributes:
        tokenizer: as it is stored.
        input_names: what its model takes, where its settings say so.
        max_length: the limit in its settings, if there is one.
        pad_token_id: of its padding token, if it has one.
        mask_token: what stands for a word to be filled in, if there is such a token.
        unusual_ids: ids that no text ends with, special tokens first; one of them can pad where
            there is no padding token.
        notices: what a user would not expect of it.
    """

    tokenizer: Tokenizer
    input_names: tuple[str, ...] | None = None
    max_length: int | None = None
    pad_token_id: int | None = None
    unusual_ids: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()
    mask_token: str | None = None

    @property
    def size(self) -> int:
        """One more than the largest id it can give."""
        return _size(self.tokenizer)

    @property
    def padding_id(self) -> int:
        """The id to pad with: its padding token's, or one that no text ends with."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.unusual_ids[0] if self.unusual_ids else 0

    @property
    def mask(self) -> dict[str, Any]:
        """The mask token as tasks know it, by name and id; empty without one."""
        number = None if self.mask_token is None else self.tokenizer.token_to_id(self.mask_token)
        if number is None:
            return {}
        return {"mask_token": self.mask_token, "mask_token_id": number}

    @property
    def truncation(self) -> int | None:
        """The length at which training cut its texts, where the file says so."""
        return (self.tokenizer.truncation or {}).get("max_length")

    def without_ids_from(self, rows: int, folder: Path) -> StoredTokenizer:
        """The same without the special tokens that transformers added beyond the model's ``rows``.

        A class such as BertTokenizer adds its mask token where the vocabulary has none. A text
        that spells it would get an id that the model's embedding table does not have.
        """
        found = folder / AS_FOUND
        if self.size <= rows or not found.exists() or _size(_opened(found)) > rows:
            return self
        stored = json.loads(self.tokenizer.to_str())
        stored["added_tokens"] = [token for token in stored["added_tokens"] if token["id"] < rows]
        write_json(folder / TOKENIZER_FILES[0], stored)
        return replace(self, tokenizer=_opened(folder / TOKENIZER_FILES[0]))

    def for_sentences(self, sentence: Sentence, folder: Path) -> StoredTokenizer:
        """The same as sentence-transformers uses it, with its limit and its lower case."""
        tokenizer = self
        if sentence.max_length is not None:
            tokenizer = replace(tokenizer, max_length=sentence.max_length)
        stored = json.loads(tokenizer.tokenizer.to_str())
        if not sentence.lowercase or _lowercases(stored["normalizer"]):
            return tokenizer
        others = [stored["normalizer"]] if stored["normalizer"] else []
        stored["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *others]}
        write_json(folder / TOKENIZER_FILES[0], stored)
        return replace(tokenizer, tokenizer=_opened(folder / TOKENIZER_FILES[0]))

    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after every text."""
        try:
            encoding = self.tokenizer.encode("a")
        # The library raises bare Exceptions, here for a vocabulary without an unknown token.
        except Exception:  # noqa: BLE001
            encoding = self.tokenizer.encode("")
        special = encoding.special_tokens_mask
        within = [place for place, is_special in enumerate(special) if not is_special]
        if not within:
            return (), tuple(encoding.ids)
        return tuple(encoding.ids[: within[0]]), tuple(encoding.ids[within[-1] + 1 :])


def _lowercases(normalizer: Any) -> bool:
    """Whether a normalizer of a tokenizer.json makes text lower-case."""
    if not normalizer:
        return False
    inner = normalizer.get("normalizers", [])
    own = normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))
    return own or any(map(_lowercases, inner))


def _size(tokenizer: Tokenizer) -> int:
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def write_tokenizer(source: Any, folder: Path) -> StoredTokenizer:
    """Write ``source`` (a path or a tokenizer in memory) into ``folder``.

    Raises:
        ModelError: there is none, or it cannot be converted.
    """
    from tokenizers import Tokenizer

    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return _from_path(path.parent if path.name == "tokenizer.json" else path, folder)
    if isinstance(source, Tokenizer):
        return _store_plain(Tokenizer.from_str(source.to_str()), folder)
    if isinstance(getattr(source, "backend_tokenizer", None), Tokenizer):
        with tempfile.TemporaryDirectory() as scratch:
            with quiet():
                source.save_pretrained(scratch)
            _copy_settings(Path(scratch), folder)
        return _store(source, folder)
    raise ModelError(
        f"{type(source).__name__} is not a tokenizer that can be stored",
        fix="Give a fast transformers tokenizer, a tokenizers.Tokenizer, or a path.",
    )


def _from_path(source: Path, folder: Path) -> StoredTokenizer:
    if source.is_file():
        return _store_plain(_opened(source), folder)
    files = [source / "tokenizer.json"]
    files += [path for pattern in SLOW_TOKENIZER_FILES for path in source.glob(pattern)]
    if not any(path.is_file() for path in files):
        raise no_tokenizer(str(source))
    _check_settings(source / "tokenizer_config.json")
    as_found = _opened(files[0]) if files[0].is_file() else None
    tokenizer, notices = _read_by_transformers(source, as_found)
    stored = _store(tokenizer, folder, notices)
    _copy_settings(source, folder)
    if as_found and _differ(as_found, stored.tokenizer):
        with storing(folder):
            shutil.copyfile(files[0], folder / AS_FOUND)
    return stored


def no_tokenizer(place: str) -> ModelError:
    """What to say when ``place`` brings no tokenizer."""
    return ModelError(
        f"no tokenizer in {place}: looked for tokenizer.json, {', '.join(SLOW_TOKENIZER_FILES)}",
        fix="Name one with --tokenizer PATH (a folder or a tokenizer.json; tokenizer= in Python).",
    )


def _opened(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{path.name} cannot be read: {error}") from error


def _reading(tokenizer: Tokenizer) -> list[Any]:
    """Everything that decides what the ids of a text are before it is cut."""
    stored = json.loads(tokenizer.to_str())
    return [stored[part] for part in _READING]


def _differ(one: Tokenizer, other: Tokenizer) -> bool:
    sides = [(each.truncation or {}).get("direction", "right") for each in (one, other)]
    return sides[0] != sides[1] or _reading(one) != _reading(other)


def _read_by_transformers(source: Path, as_found: Tokenizer | None) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer as transformers builds it from all files of a folder, and what to tell of it.

    Where the class that transformers chooses does not fit the folder's tokenizer.json, the file is
    read as it is: no pipeline answers sensibly there, and the file is what the model was made with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer, problem = _from_pretrained(AutoTokenizer, source), None
        if as_found and _kind(tokenizer) != _kind(as_found):
            problem = f"it takes a {_kind(as_found)} vocabulary for {_kind(tokenizer)}"
    except ModelError as error:
        if as_found is None:
            raise
        problem = first_line(error.__cause__ or error)
    if problem is None:
        return tokenizer, ()
    notice = f"AutoTokenizer cannot read this folder ({problem}); its tokenizer.json is used as is."
    return _from_pretrained(PreTrainedTokenizerFast, source), (notice,)


def _from_pretrained(kind: Any, source: Path) -> Any:
    with quiet():
        try:
            tokenizer = kind.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each tokenizer class has its own ways to fail
            raise ModelError(
                f"transformers cannot read the tokenizer in {source}: {error}",
                fix="Save it once where it works: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
            ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"the tokenizer in {source} has no fast form ({type(tokenizer).__name__})")
    if getattr(tokenizer, "split_special_tokens", False):
        raise ModelError(
            f"tokenizer_config.json in {source} sets split_special_tokens, which a "
            "tokenizer.json cannot express: texts that spell a special token would be read "
            "differently",
            fix="Remove split_special_tokens from it, or set it to false.",
        )
    return tokenizer


def _kind(tokenizer: Any) -> str:
    """``WordPiece``, ``BPE``, ``Unigram`` or ``WordLevel``."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return type(backend.model).__name__


def first_line(error: BaseException) -> str:
    """What another library says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _store(tokenizer: Any, folder: Path, notices: tuple[str, ...] = ()) -> StoredTokenizer:
    """Store what transformers made, the sides on which it pads and cuts included."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    limit = tokenizer.model_max_length
    limit = int(limit) if 0 < limit < _SANE_MAX_LENGTH else None
    cut = (backend.truncation or {}).get("max_length")
    if cut is not None or tokenizer.truncation_side != "right":
        backend.enable_truncation(cut or limit or _MAX_LENGTH, direction=tokenizer.truncation_side)
    pad = tokenizer.pad_token_id
    unusual = tuple(_unusual_ids(tokenizer))
    filler = pad if pad is not None else unusual[0]
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=filler,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=backend.id_to_token(filler) or "",
    )
    _write(backend, folder)
    names = tuple(tokenizer.model_input_names)
    return StoredTokenizer(
        backend, names, limit, pad, unusual, notices, mask_token=tokenizer.mask_token
    )


def _unusual_ids(tokenizer: Any) -> Iterator[int]:
    """Ids that can pad where there is no padding token: none of those around every text."""
    framing = set(tokenizer("")["input_ids"])
    ids = (*tokenizer.all_special_ids, *range(len(tokenizer) - 1, -1, -1))
    return (number for number in ids if number not in framing)


def _store_plain(tokenizer: Tokenizer, folder: Path) -> StoredTokenizer:
    """Store a tokenizer.json that nothing else describes."""
    _write(tokenizer, folder)
    pad = (tokenizer.padding or {}).get("pad_id")
    if pad is None:
        found = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
        pad = next((number for number in found if number is not None), None)
    mask = next((n for n in ("[MASK]", "<mask>") if tokenizer.token_to_id(n) is not None), None)
    return StoredTokenizer(tokenizer, pad_token_id=pad, mask_token=mask)


def _write(tokenizer: Tokenizer, folder: Path) -> None:
    with storing(folder):
        (folder / TOKENIZER_FILES[0]).write_text(tokenizer.to_str(), encoding="utf-8")


def _copy_settings(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES[1:]:
        if not (source / name).exists():
            continue
        try:
            settings = json.loads((source / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{source / name} cannot be read: {error}") from error
        write_json(folder / name, _for_all_versions(settings))


def _for_all_versions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer as transformers 4 and 5 both read them.

    >>> _for_all_versions({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]})
    {'tokenizer_class': 'PreTrainedTokenizerFast', 'additional_special_tokens': ['<a>']}
    """
    found = dict(settings)
    if found.get("tokenizer_class") == "TokenizersBackend":  # 4 knows the class by its former name
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = found.get("extra_special_tokens")
    if isinstance(extra, list):  # of 4, a mapping; a list has another name there
        del found["extra_special_tokens"]
        if extra:
            found.setdefault("additional_special_tokens", extra)
    return found


def _check_settings(path: Path) -> None:
    if not path.exists():
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path.name} of the tokenizer is damaged: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path.name} of the tokenizer is damaged: it holds no JSON object")


def differing_texts(reference: ModelFolder, texts: Sequence[Text]) -> list[int]:
    """Indices of the texts of which the user's own tokenizer.json, taken alone, gives other ids."""
    folder, info = reference.folder, reference.info
    if not (folder / AS_FOUND).exists():
        return []
    found, stored = (
        tasks.of(info).encode(TextTokenizer.load(folder / name, info.max_length), texts)
        for name in (AS_FOUND, TOKENIZER_FILES[0])
    )
    ours, theirs = (np.split(tokens.ids, tokens.offsets[1:-1]) for tokens in (found, stored))
    pairs = enumerate(zip(ours, theirs, strict=True))
    return [index for index, (one, other) in pairs if not np.array_equal(one, other)]


def reading_notice(reference: ModelFolder, texts: Sequence[Text]) -> str | None:
    """What to say where the folder's tokenizer.json, taken alone, reads some texts otherwise."""
    folder = reference.folder
    differing = differing_texts(reference, texts)
    if not differing:
        return None
    found, stored = (_reading(_opened(folder / name)) for name in (AS_FOUND, TOKENIZER_FILES[0]))
    parts = [p for p, one, other in zip(_READING, found, stored, strict=True) if one != other]
    first = texts[differing[0]]
    example = " ".join((first if isinstance(first, str) else " ".join(first)).split())[:_EXCERPT]
    return (
        f"{len(differing):,} of {len(texts):,} texts get other token ids from the folder's "
        f"tokenizer.json alone than from transformers, which also applies tokenizer_config.json "
        f"and the tokenizer's class (they change: {', '.join(parts) or 'the side that is cut off'})"
        f". hasten follows transformers. The first such text: {example!r}"
    )
