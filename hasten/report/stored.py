"""Reads stored results: a bundle's folder or a bench's."""

from __future__ import annotations

import json
from pathlib import Path

from hasten.errors import InputError, StorageError
from hasten.plain import from_json
from hasten.records import Bench, Tuning
from hasten.runtime import bundle
from hasten.runtime.manifest import MANIFEST

BENCH = "bench.json"
"""The file in a bench's folder that holds its result."""

_MAKE = "Make one with `hasten tune MODEL --data FILE -o BUNDLE` or `hasten bench ... -o FOLDER`."


def read(path: Path) -> Tuning | Bench:
    """The result in a folder, or the one that a file of such a folder belongs to.

    Raises:
        InputError: there are no results, or another version of hasten wrote them.
        BundleError: a bundle that has been altered.
    """
    folder = path.parent if path.name in {BENCH, MANIFEST} else path
    if not folder.exists():
        raise InputError(f"{folder} does not exist", fix=_MAKE)
    if (folder / BENCH).is_file():
        return _read_bench(folder)
    if (folder / MANIFEST).is_file():
        return _read_tuning(folder)
    if (folder / "results.jsonl").is_file():
        raise InputError(
            f"{folder} holds an interrupted run without a result",
            fix="Repeat the command that started it; it continues.",
        )
    raise InputError(
        f"{folder} holds no results: it is not a bundle and has no {BENCH}",
        fix=_MAKE,
    )


def _read_bench(folder: Path) -> Bench:
    path = folder / BENCH
    again = "Repeat the `hasten bench` command: results.jsonl is kept, and the result is rewritten."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}", fix=again) from error
    try:
        return from_json(Bench, value)
    except ValueError as error:
        raise InputError(f"{_other_version(path)}: {_brief(error)}", fix=again) from error


def _read_tuning(folder: Path) -> Tuning:
    try:
        return bundle.read_tuning(folder)
    except ValueError as error:
        raise InputError(
            f"{_other_version(folder / 'tuning.json')}: {_brief(error)}",
            fix="Open it with the version of hasten named in hasten.json, or tune again.",
        ) from error


def _other_version(path: Path) -> str:
    return f"{path} was written by an incompatible version of hasten"


def _brief(error: ValueError) -> str:
    text = str(error)
    return text if len(text) < 200 else f"{text[:200]}..."


def labels(a: Path, b: Path) -> tuple[str, str]:
    """What to call two results: their folders' names, or as much of the paths as tells them apart.

    >>> labels(Path("old/bench"), Path("new/bench")), labels(Path("x/a"), Path("y/b"))
    (('old/bench', 'new/bench'), ('a', 'b'))
    """
    parts_a, parts_b = a.resolve().parts, b.resolve().parts
    for count in range(1, max(len(parts_a), len(parts_b))):
        names = "/".join(parts_a[-count:]), "/".join(parts_b[-count:])
        if names[0] != names[1]:
            return names
    return "A", "B"
