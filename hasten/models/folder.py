"""The prepared folder: open it, share its files, tell whether it changed."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten import tasks
from hasten.errors import ModelError, StorageError
from hasten.inputs.corpus import TAUGHT
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.models.module import Attention, load_module
from hasten.plain import from_json
from hasten.records import ModelInfo, Text
from hasten.storage.durable import storing, write_json

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["huggingface", "factory", "pickle"]

PICKLE_IDENTITY = "module.sha256"
"""Stands beside a pickled module, and for it in :meth:`ModelFolder.fingerprint`."""

_CALIBRATION = "calibration.json"

TRAINED_RANGES = "int8/model.safetensors"
"""An int8 model that came with the original: see :mod:`hasten.models.quantized`."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A prepared folder. Cheap to hold and to send to another process: nothing is loaded."""

    folder: Path
    info: ModelInfo
    kind: Kind

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ModelFolder:
        """Read a folder that :func:`hasten.models.prepare` completed.

        Raises:
            ModelError: it was not completed, or is damaged.
        """
        folder = Path(folder)
        try:
            stored = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
            return cls(folder, from_json(ModelInfo, stored["info"]), stored["kind"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder} is not a complete reference: {error}") from error

    def module(self, attention: Attention = "sdpa") -> nn.Module:
        """The fp32 original, as :func:`hasten.models.load_module` describes it."""
        return load_module(self.folder / "module", self.info, attention)

    @property
    def trained_ranges(self) -> Path:
        """Where the int8 model is that came with the original, if one did."""
        return self.folder / TRAINED_RANGES

    def taught(self) -> frozenset[str]:
        """Digests of the texts that the model was made with, where it is a student that says so.

        They are those of :func:`hasten.inputs.corpus.digest`.

        Raises:
            ModelError: the file that says it is damaged.
        """
        path = self.folder / TAUGHT
        if not path.is_file():
            return frozenset()
        try:
            return frozenset(map(str, json.loads(path.read_text(encoding="utf-8"))["texts"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{TAUGHT} of {self.info.name} is damaged: {error}",
                fix="It names the student's training texts, which must not judge it. Copy the "
                "student's folder again; or remove the file from it, and give --data other texts "
                "than those.",
            ) from error

    def tokenizer(self, threads: int | None = None) -> TextTokenizer:
        """A tokenizer of the caller's own, set to the model's ``max_length``."""
        path = self.folder / "tokenizer.json"
        return TextTokenizer.load(path, self.info.max_length, threads)

    def keep_calibration(self, texts: Sequence[Text]) -> None:
        """Store texts that :meth:`calibration` gives to whoever opens the folder.

        Raises:
            StorageError: they cannot be written.
        """
        write_json(self.folder / _CALIBRATION, {"texts": list(texts)})

    def calibration(self) -> Iterator[dict[str, NDArray[np.int64]]]:
        """The calibration texts as the model's inputs by name, int64 [1, length], not padded.

        Raises:
            ModelError: there are none.
        """
        tokens = self._calibration_tokens()
        for index in range(len(tokens)):
            yield self._inputs(tokens, [index])

    def calibration_batch(self, texts: int, longest: int) -> dict[str, NDArray[np.int64]]:
        """Some of these texts as one batch, int64 [texts, at most longest], padded and cut off.

        Raises:
            ModelError: there are none.
        """
        tokens = self._calibration_tokens()
        every = max(1, len(tokens) // texts)  # they stand in the order of the user's file
        chosen = np.arange(len(tokens))[::every][:texts]
        kept = slice(-longest, None) if tokens.padding.side == "left" else slice(longest)
        inputs = self._inputs(tokens, chosen)
        return {name: array[:, kept].copy() for name, array in inputs.items()}

    def _calibration_tokens(self) -> Tokens:
        stored = self.folder / _CALIBRATION
        if not stored.exists():
            raise ModelError("there are no calibration texts", fix="Give more texts.")
        texts = json.loads(stored.read_text(encoding="utf-8"))["texts"]
        # JSON has no tuples, which pairs are.
        given = [text if isinstance(text, str) else tuple(text) for text in texts]
        return tasks.of(self.info).encode(self.tokenizer(), given).windows

    def _inputs(self, tokens: Tokens, indices: ArrayLike) -> dict[str, NDArray[np.int64]]:
        return tokens.batch(indices).inputs(self.info.input_names, self.info.pad_token_id)

    def copy_module(self, folder: Path) -> Path:
        """Put ``module/`` into ``folder``, sharing the disk space where that is possible.

        Returns:
            ``folder / "module"``, for :func:`hasten.models.load_module`.

        Raises:
            StorageError: it cannot be written.
        """
        target = folder / "module"
        with storing(target):
            # Both folders are hasten's and never written again: one file may have two names.
            shutil.copytree(self.folder / "module", target, copy_function=_link)
        return target

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the names and contents of all files: another model, another value."""
        digest = hashlib.sha256()
        for name, path in self._files().items():
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()

    def same_as(self, other: ModelFolder) -> bool:
        """Whether the other is this very model, whatever it is called."""
        ours, theirs = self._files(), other._files()
        # The description holds the name, which a copy of the folder does not share.
        compared = ours.keys() - {"reference.json"}
        return ours.keys() == theirs.keys() and all(
            filecmp.cmp(ours[name], theirs[name], shallow=False) for name in compared
        )

    def _files(self) -> dict[str, Path]:
        """Everything that makes it this model, by name in the folder."""
        names = ("reference.json", "config.json", TRAINED_RANGES, *TOKENIZER_FILES)
        files = [self.folder / name for name in names if (self.folder / name).exists()]
        stored = sorted(path for path in (self.folder / "module").rglob("*") if path.is_file())
        # Two pickles of one module differ.
        files += [path for path in stored if path.name != "module.pkl"]
        return {path.relative_to(self.folder).as_posix(): path for path in files}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@contextmanager
def storing_weights(path: Path) -> Iterator[None]:
    """As :func:`storing`, where safetensors writes: a full disk is an error of its own there."""
    from safetensors import SafetensorError

    try:
        with storing(path):
            yield
    except SafetensorError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
