"""A bundle: one folder that holds everything needed to run the winner, and the proof.

``hasten.json`` is the manifest: the plan, the model, the machine, the evidence, and the size and
SHA-256 of every other file. A file that is missing, altered or not listed is refused before
anything is loaded. Beside it lie the artifact, ``config.json`` and the tokenizer's files under
the names that other tools expect, ``probes.json`` with a few texts and the winner's outputs for
them (see :mod:`hasten.runtime.probes`), ``tuning.json`` with all rows, ``results.jsonl`` with the
raw samples, and the report.
"""

from __future__ import annotations

import glob
import hashlib
import hmac
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs

from hasten import __version__, engines, hardware
from hasten.engines.base import Engine
from hasten.errors import BundleError, StorageError
from hasten.plain import from_json, to_json
from hasten.records import Hardware, ModelInfo, Parity, Plan, Probes, Tuning
from hasten.storage import durable

MANIFEST = "hasten.json"
PROBES = "probes.json"
FORMAT = 1

_MARKER = ".hasten.unfinished"
_KEY_BYTES = 32
_AGAIN = "Copy the bundle again."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its files are the ones that were saved.

    ``differences`` says, in sentences, how this machine is not the one it was tuned on;
    ``probes`` show whether it computes the same. ``digest`` stands for all that is in it, and
    ``here`` is this machine.
    """

    folder: Path
    plan: Plan
    model: ModelInfo
    parity: Parity | None
    hardware: Hardware
    versions: Mapping[str, str]
    differences: tuple[str, ...]
    probes: Probes | None
    digest: str
    here: Hardware

    @property
    def columns(self) -> int:
        """How many numbers the model gives for a text."""
        if self.model.labels:
            return len(self.model.labels)
        probed = len(self.probes.outputs[0]) if self.probes else 1
        return self.model.output_width or probed  # older bundles do not keep the width

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


def save(
    folder: Path,
    tuning: Tuning,
    *,
    artifact: Path,
    reference: Path,
    extra: Mapping[str, str],
    results: Path,
) -> None:
    """Write a bundle, all of it or nothing.

    Args:
        folder: where; an earlier bundle there is replaced, anything else is refused.
        tuning: the result that the bundle stands for.
        artifact: the winner's artifact.
        reference: the winner's reference folder, for the configuration and the tokenizer.
        extra: further text files by path in the bundle, such as the report.
        results: the journal with the raw samples.

    Raises:
        StorageError: the folder holds something else, or cannot be written.
    """
    refuse_foreign_folder(folder)
    unfinished = _beside(folder, "unfinished")
    try:
        _sweep(folder, "unfinished")
        unfinished.mkdir(parents=True)
        (unfinished / _MARKER).touch()
        shutil.copytree(artifact, unfinished, dirs_exist_ok=True)
        for name in ("config.json", *_TOKENIZER_FILES):
            if (reference / name).exists() and not (unfinished / name).exists():
                shutil.copy(reference / name, unfinished / name)
        shutil.copy(results, unfinished / "results.jsonl")
        (unfinished / "tuning.json").write_text(json.dumps(to_json(tuning)), encoding="utf-8")
        if tuning.probes:
            probes = json.dumps(to_json(tuning.probes))
            (unfinished / PROBES).write_text(probes, encoding="utf-8")
        for name, text in extra.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text, encoding="utf-8")
        manifest = _manifest(unfinished, tuning)
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _put_in_place(unfinished, folder)
        _sweep(folder, "replaced")
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StorageError(
            f"cannot write the bundle {folder}: {_cause(error)}",
            fix="Free some space or choose another -o; the same command continues from what "
            "was measured.",
        ) from error


def _cause(error: OSError) -> str:
    """What the system said; copying a tree collects its refusals in a list."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][2])
    return error.strerror or str(error)


def load(folder: Path, *, trust: bool = False, here: Hardware | None = None) -> Bundle:
    """Verify a bundle and say whether and how it can run on this machine.

    Args:
        folder: the bundle.
        trust: accept an artifact that can run code, from whoever made it.
        here: this machine, when it is known already.

    Raises:
        BundleError: not a bundle, a damaged or incomplete one, one whose artifact could run
            foreign code, or one whose precision this machine does not have.
    """
    manifest = _read_manifest(folder)
    _verify_files(folder, manifest["files"])
    plan = from_json(Plan, manifest["plan"])
    engine = engines.get(plan.candidate.engine)
    if not trust and engine.runs_code(folder):
        _require_own(folder, manifest)
    then, now = from_json(Hardware, manifest["hardware"]), here or hardware.detect()
    _require_precision(plan, now, engine)
    return Bundle(
        folder,
        plan,
        from_json(ModelInfo, manifest["model"]),
        from_json(Parity, manifest["parity"]) if manifest["parity"] else None,
        then,
        manifest["versions"],
        hardware.differences(then, now) + _other_versions(engine, manifest["versions"]),
        _read_probes(folder) if PROBES in manifest["files"] else None,
        _digest(manifest),
        now,
    )


def read_tuning(folder: Path) -> Tuning:
    """The whole result that a bundle was made from, for the report."""
    listed = _read_manifest(folder)["files"]
    _verify_files(folder, {name: listed[name] for name in ("tuning.json",)}, alone=False)
    return from_json(Tuning, json.loads((folder / "tuning.json").read_text(encoding="utf-8")))


def _read_probes(folder: Path) -> Probes:
    return from_json(Probes, json.loads((folder / PROBES).read_text(encoding="utf-8")))


def refuse_foreign_folder(folder: Path) -> None:
    """Make sure that writing a bundle to ``folder`` destroys nothing but an earlier bundle.

    Raises:
        StorageError: it is a file, or a folder with other things in it.
    """
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / MANIFEST).exists()):
        return
    if folder.exists() or folder.is_symlink():
        raise StorageError(
            f"{folder} exists and is not a bundle; it would be overwritten",
            fix="Choose another -o, or move it away.",
        )


def _manifest(folder: Path, tuning: Tuning) -> dict[str, Any]:
    with ThreadPoolExecutor() as pool:
        names = sorted(set(_files(folder)) - {_MARKER})
        digests = pool.map(lambda name: _sha256(folder / name), names)
        files = {
            name: {"size": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in zip(names, digests, strict=True)
        }
    manifest = {
        "format": FORMAT,
        "hasten": __version__,
        "plan": to_json(tuning.plan),
        "model": to_json(tuning.chosen_model),
        "parity": to_json(tuning.chosen.parity),
        "hardware": to_json(tuning.hardware),
        "versions": to_json(tuning.versions),
        "files": files,
    }
    if not engines.get(tuning.plan.candidate.engine).runs_code(folder):
        return {**manifest, "sha256": _digest(manifest)}
    # Whoever made the bundle may load it here without further ado.
    manifest["signature"] = _signature(manifest, _own_key())
    return {**manifest, "sha256": _digest(manifest)}


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}",
            fix="Make one with `hasten tune MODEL --data FILE -o BUNDLE`.",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}", fix=_AGAIN) from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise BundleError(f"{path} is damaged: it is not a bundle's manifest", fix=_AGAIN)
    if manifest["format"] != FORMAT:
        raise BundleError(
            f"{folder} has bundle format {manifest['format']}; this version of hasten reads "
            f"{FORMAT}",
            fix="Install the version of hasten that made it, or tune again.",
        )
    # With this, whatever stands in it is what was written, and need not be doubted again.
    if manifest.pop("sha256", None) != _digest(manifest):
        raise BundleError(f"{path} has been altered: it is not what was saved", fix=_AGAIN)
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(manifest)).hexdigest()


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _other_versions(engine: Engine, then: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences about the engine's libraries that are not those it was tuned with."""
    now = {} if engine.missing() else engine.versions()
    return tuple(
        f"it was tuned with {name} {then[name]}, and here is {version}"
        for name, version in now.items()
        if name in then and then[name] != version
    )


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BundleError(
                f"{path} is a link or a special file; a bundle holds plain files only"
            )
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _verify_files(
    folder: Path, listed: Mapping[str, Mapping[str, Any]], *, alone: bool = True
) -> None:
    """Make sure that the listed files are what was saved and, if ``alone``, that no other is."""
    for name in listed:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise BundleError(f"{folder / MANIFEST} names a file outside the bundle: {name}")
    present = set(_files(folder)) - {MANIFEST}
    if alone and present - listed.keys():
        extra = ", ".join(sorted(present - listed.keys()))
        raise BundleError(
            f"{folder} holds files that its manifest does not list: {extra}",
            fix="Remove them, or copy the bundle again.",
        )
    for name in sorted(listed):
        if name not in present:
            raise BundleError(f"{folder / name} is missing", fix=_AGAIN)
        size = (folder / name).stat().st_size
        if size != listed[name]["size"]:
            raise BundleError(
                f"{folder / name} has {size} bytes and should have {listed[name]['size']}",
                fix=_AGAIN,
            )
    # Hashing releases the interpreter's lock, so it goes as fast as the cores and the disk.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _sha256(folder / name), listed)
        for name, digest in zip(listed, digests, strict=True):
            if digest != listed[name]["sha256"]:
                raise BundleError(
                    f"{folder / name} has been altered: its SHA-256 is not the manifest's",
                    fix=_AGAIN,
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_precision(plan: Plan, here: Hardware, engine: Engine) -> None:
    candidate = plan.candidate
    if candidate.device == "cuda":
        reason = None if here.gpus else "this machine has no GPU"
    else:
        reason = hardware.missing_instructions(candidate.precision, here)
    if reason is None and candidate.recipe and not engine.missing():
        reason = engine.supports(candidate, here)
    if reason:
        raise BundleError(
            f"the bundle runs in {candidate.precision} on {candidate.device}, but {reason}",
            fix="Tune on this machine: hasten tune MODEL --data FILE -o BUNDLE",
        )


def _require_own(folder: Path, manifest: dict[str, Any]) -> None:
    claimed = str(manifest.get("signature", ""))
    unsigned = {key: value for key, value in manifest.items() if key != "signature"}
    key_file = _key_file()
    key = key_file.read_bytes() if key_file.exists() else b""
    own = len(key) == _KEY_BYTES and hmac.compare_digest(claimed, _signature(unsigned, key))
    if not own:
        raise BundleError(
            f"the artifact in {folder} can run code when it is loaded, and it was not made by "
            "you on this machine",
            fix="If you trust whoever made it: hasten.load(..., trust=True).",
        )


def _signature(manifest: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, _canonical(manifest), hashlib.sha256).hexdigest()


def _key_file() -> Path:
    return platformdirs.user_data_path("hasten") / "bundle.key"


def _own_key() -> bytes:
    """This user's key on this machine, made at the first use and readable by nobody else."""
    path = _key_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Where another process was first, its key is the one.
        durable.create(path, secrets.token_bytes(_KEY_BYTES), path.parent, mode=0o600)
    return path.read_bytes()


def _beside(folder: Path, kind: str) -> Path:
    """A new name in the same folder, for what becomes ``folder`` or was it."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{kind}")


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Give a folder its name, once all of it is on the disk."""
    durable.sync_tree(unfinished)
    (unfinished / _MARKER).unlink()
    durable.sync_folder(unfinished)
    if folder.exists() and any(folder.iterdir()):
        # Renaming cannot replace a folder that has files; the old bundle steps aside first.
        folder.rename(_beside(folder, "replaced"))
    unfinished.rename(folder)
    durable.sync_folder(folder.parent)


def _sweep(folder: Path, kind: str) -> None:
    """Remove what is of this kind beside ``folder``, if it holds a file of ours that says so."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}.{kind}"):
        if path.is_dir() and any((path / name).is_file() for name in (_MARKER, MANIFEST)):
            shutil.rmtree(path, ignore_errors=True)
