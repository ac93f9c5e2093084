"""``hasten.json``, the manifest of a bundle: read, checked, and held against the files beside it.

``docs/bundle.md`` specifies every field. A file that is missing, altered or not listed is refused
before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hasten.engines.base import Options
from hasten.errors import BundleError
from hasten.plain import from_json
from hasten.records import Candidate, CostTable, HandsOn, Hardware, ModelInfo, Parity, Strategy

MANIFEST = "hasten.json"
PROBES = "probes.json"
TOKENIZER = "tokenizer.json"
FORMAT = 2
READABLE = (1, 2)

_AGAIN = "Copy the bundle again."
_SEALS = ("sha256", "signature")


@dataclass(frozen=True, slots=True)
class File:
    """What a file must be: its size in bytes and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """What the outputs mean: a name from :mod:`hasten.tasks`, and that task's settings."""

    name: str
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class StageEntry:
    """One stage. All paths are relative to the bundle, with slashes.

    ``model`` is None where the stage runs the bundle's own.
    """

    folder: str
    model: ModelInfo | None
    tokenizer: str
    candidate: Candidate
    session: Options
    strategy: Strategy
    cost_table: CostTable | None
    max_batch_latency_s: float | None
    hands_on: HandsOn | None
    probes: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that ``hasten.json`` says, but for the two seals over it."""

    format: int
    hasten: str
    model: ModelInfo
    task: TaskEntry
    stages: tuple[StageEntry, ...]
    parity: Parity | None
    hardware: Hardware
    versions: Mapping[str, str]
    files: Mapping[str, File]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A manifest as it was read: ``raw`` without its digest, ``digest`` over the rest."""

    manifest: Manifest
    raw: Mapping[str, Any]
    digest: str


def read(folder: Path) -> Sealed:
    """Read a bundle's manifest, of this format or an older one.

    Raises:
        BundleError: there is none, it is damaged, or this version cannot read it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}",
            fix="Make one with `hasten tune MODEL --data FILE -o BUNDLE`.",
        )
    raw = _parsed(path)
    if raw["format"] not in READABLE:
        raise BundleError(
            f"{folder} has bundle format {raw['format']}; this version of hasten reads "
            f"{' and '.join(map(str, READABLE))}",
            fix="Install the version of hasten that wrote it, or tune again.",
        )
    found = digest(raw)
    if raw.pop("sha256", None) != found:
        raise BundleError(f"{path} has been altered: its SHA-256 does not match", fix=_AGAIN)
    return Sealed(_understood(path, raw), raw, found)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}", fix=_AGAIN) from error
    if not isinstance(raw, dict) or "format" not in raw:
        raise BundleError(f"{path} is damaged: it is not a bundle's manifest", fix=_AGAIN)
    return raw


def _understood(path: Path, raw: Mapping[str, Any]) -> Manifest:
    fields = {name: value for name, value in raw.items() if name not in _SEALS}
    try:
        return from_json(Manifest, _upgraded(fields) if raw["format"] == 1 else fields)
    except (KeyError, ValueError) as error:
        writer = raw.get("hasten", "another version")
        raise BundleError(
            f"{path} was written by hasten {writer}, and this version cannot read it: {error}",
            fix=f"Install the version that wrote it: pip install 'hasten=={writer}'",
        ) from error


def _upgraded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 in the fields of format 2: one stage in the bundle's root, options by default."""
    kept = {name: value for name, value in fields.items() if name != "plan"}
    stage = {
        **fields["plan"],
        "folder": ".",
        "model": None,
        "tokenizer": TOKENIZER,
        "session": {},
        "hands_on": None,
        "probes": PROBES if PROBES in fields["files"] else None,
    }
    model = fields["model"]
    task = {"name": model["task"], "settings": model.get("task_settings", {})}
    return {**kept, "task": task, "stages": [stage]}


def digest(raw: Mapping[str, Any]) -> str:
    """SHA-256 over all fields but the digest's own, in :func:`canonical` form."""
    return hashlib.sha256(canonical(raw)).hexdigest()


def canonical(raw: Mapping[str, Any]) -> bytes:
    """The one spelling that is hashed and signed: keys sorted, no spaces, ASCII only."""
    unsealed = {name: value for name, value in raw.items() if name != "sha256"}
    return json.dumps(unsealed, sort_keys=True, separators=(",", ":")).encode()


def listed(folder: Path, leave_out: str) -> dict[str, File]:
    """Size and digest of every file in ``folder`` but one, by path."""
    names = sorted(set(_files(folder)) - {leave_out})
    return {
        name: File((folder / name).stat().st_size, found)
        for name, found in zip(names, _hashed(folder, names), strict=True)
    }


def verify_files(folder: Path, expected: Mapping[str, File], *, alone: bool = True) -> None:
    """Make sure that these files are what was saved and, if ``alone``, that there is no other.

    Raises:
        BundleError: a file is missing, altered, not listed, a link, or outside the bundle.
    """
    for name in expected:
        refuse_outside(folder, name)
    present = set(_files(folder)) - {MANIFEST}
    if alone and present - expected.keys():
        extra = ", ".join(sorted(present - expected.keys()))
        raise BundleError(
            f"{folder} holds files that its manifest does not list: {extra}",
            fix="Remove them, or copy the bundle again.",
        )
    for name in sorted(expected):
        if name not in present:
            raise BundleError(f"{folder / name} is missing", fix=_AGAIN)
        size = (folder / name).stat().st_size
        if size != expected[name].size:
            raise BundleError(
                f"{folder / name} has {size} bytes and should have {expected[name].size}",
                fix=_AGAIN,
            )
    for name, found in zip(expected, _hashed(folder, expected), strict=True):
        if found != expected[name].sha256:
            raise BundleError(
                f"{folder / name} has been altered: its SHA-256 is not the manifest's",
                fix=_AGAIN,
            )


def refuse_outside(folder: Path, name: str) -> None:
    """Refuse a path that leads out of the bundle."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name:
        raise BundleError(
            f"{folder / MANIFEST} names a file outside the bundle: {name}",
            fix="Do not use it. Copy the bundle again from where you trust it, or tune again: "
            "hasten tune MODEL --data FILE -o BUNDLE",
        )


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BundleError(
                f"{path} is a link or a special file; a bundle holds plain files only",
                fix=f"Copy the bundle with what its links point to: cp -rL {folder} NEW",
            )
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _hashed(folder: Path, names: Iterable[str]) -> list[str]:
    # Hashing releases the interpreter's lock, so it goes as fast as the cores and the disk.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda name: _sha256(folder / name), names))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
