"""Find the model's tokenizer, in whatever form it comes, and store it as tokenizer.json."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hasten.errors import ModelError
from hasten.reference.folder import TOKENIZER_FILES, storing
from hasten.reference.module import quiet

SLOW_TOKENIZER_FILES = ("vocab.txt", "vocab.json", "*.model")
_SANE_MAX_LENGTH = 1_000_000  # transformers writes 10**30 for "no limit"


def write_tokenizer(source: Any, folder: Path) -> None:
    """Write ``source`` (a path or a tokenizer in memory) into ``folder``.

    Raises:
        ModelError: there is none, or it cannot be converted.
    """
    from tokenizers import Tokenizer

    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        _copy_files(path.parent if path.name == "tokenizer.json" else path, folder)
    elif isinstance(source, Tokenizer):
        with storing(folder):
            (folder / "tokenizer.json").write_text(source.to_str(), encoding="utf-8")
    elif isinstance(getattr(source, "backend_tokenizer", None), Tokenizer):
        _save_pretrained(source, folder)
    else:
        raise ModelError(
            f"{type(source).__name__} is not a tokenizer that can be stored",
            fix="Give a fast transformers tokenizer, a tokenizers.Tokenizer, or a path.",
        )


def _copy_files(source: Path, folder: Path) -> None:
    if source.is_file():
        with storing(folder):
            shutil.copyfile(source, folder / "tokenizer.json")
    elif (source / "tokenizer.json").exists():
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                with storing(folder):
                    shutil.copyfile(source / name, folder / name)
    elif any(any(source.glob(pattern)) for pattern in SLOW_TOKENIZER_FILES):
        _save_pretrained(_converted(source), folder)
    else:
        raise no_tokenizer(str(source))


def no_tokenizer(place: str) -> ModelError:
    """What to say when ``place`` brings no tokenizer."""
    return ModelError(
        f"no tokenizer in {place}: looked for tokenizer.json, {', '.join(SLOW_TOKENIZER_FILES)}",
        fix="Name one with --tokenizer PATH (a folder or a tokenizer.json; tokenizer= in Python).",
    )


def _converted(source: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # each tokenizer class has its own ways to fail
            raise ModelError(
                f"the tokenizer in {source} cannot be converted to tokenizer.json: {error}",
                fix="Convert it once where it works: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
            ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"the tokenizer in {source} has no fast form ({type(tokenizer).__name__})")
    return tokenizer


def _save_pretrained(tokenizer: Any, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        tokenizer.save_pretrained(scratch)
        _copy_files(Path(scratch), folder)


class StoredTokenizer:
    """What the model's description needs to know about the tokenizer in ``folder``."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            raise ModelError(f"tokenizer.json cannot be read: {error}") from error
        self._settings = _settings(folder / "tokenizer_config.json")

    @property
    def size(self) -> int:
        """One more than the largest id it can give."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def input_names(self) -> tuple[str, ...] | None:
        """What its model takes, where the settings say so."""
        names = self._settings.get("model_input_names")
        return tuple(names) if names is not None else None

    @property
    def max_length(self) -> int | None:
        """The limit in its settings, or else the truncation stored in the file."""
        limit = self._settings.get("model_max_length")
        if isinstance(limit, int) and 0 < limit < _SANE_MAX_LENGTH:
            return limit
        return None

    @property
    def truncation(self) -> int | None:
        """The length at which training cut its texts, where the file says so."""
        return (self._tokenizer.truncation or {}).get("max_length")

    @property
    def pad_token_id(self) -> int:
        """The id of its padding token; 0 where it has none, as padding is masked anyway."""
        if self._tokenizer.padding:
            return int(self._tokenizer.padding["pad_id"])
        stored = self._settings.get("pad_token")
        named = stored.get("content") if isinstance(stored, dict) else stored
        ids = (self._tokenizer.token_to_id(name) for name in (named, "[PAD]", "<pad>") if name)
        return next((token_id for token_id in ids if token_id is not None), 0)


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path.name} of the tokenizer is damaged: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path.name} of the tokenizer is damaged: it holds no JSON object")
    return settings
