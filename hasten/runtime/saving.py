"""Write a bundle, all of it or nothing."""

from __future__ import annotations

import filecmp
import glob
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten import __version__, engines
from hasten.errors import StorageError
from hasten.plain import to_json
from hasten.records import HandsOn, ModelInfo, Plan, Probes, Tuning
from hasten.runtime import manifest, signature
from hasten.runtime.bundle import TUNING, refuse_unfit
from hasten.runtime.manifest import MANIFEST, PROBES, TOKENIZER, Manifest, StageEntry, TaskEntry
from hasten.storage import durable

_MARKER = ".hasten.unfinished"
_TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class NewStage:
    """One stage of a bundle that is to be saved.

    ``artifact`` is the folder that the engine loads, ``reference`` the model folder with the
    configuration and the tokenizer. Stages that share an artifact share its copy.
    """

    artifact: Path
    reference: Path
    model: ModelInfo
    plan: Plan
    probes: Probes | None
    hands_on: HandsOn | None = None


def save(
    folder: Path,
    tuning: Tuning,
    *,
    stages: Sequence[NewStage],
    extra: Mapping[str, str],
    results: Path,
) -> None:
    """Write a bundle, all of it or nothing.

    Args:
        folder: where; an earlier bundle there is replaced, anything else is refused.
        tuning: the result that the bundle stands for.
        stages: what runs, in order; each but the last hands texts on.
        extra: further text files by path in the bundle, such as the report.
        results: the journal with the raw samples.

    Raises:
        BundleError: the stages do not fit together.
        StorageError: the folder holds something else, or cannot be written.
    """
    refuse_unfit([(stage.model, stage.hands_on) for stage in stages], folder)
    refuse_foreign_folder(folder)
    unfinished = _beside(folder, "unfinished")
    try:
        _sweep(folder, "unfinished")
        unfinished.mkdir(parents=True)
        (unfinished / _MARKER).touch()
        entries = _put_stages(unfinished, stages)
        shutil.copy(results, unfinished / "results.jsonl")
        (unfinished / TUNING).write_text(json.dumps(to_json(tuning)), encoding="utf-8")
        for name, text in extra.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text, encoding="utf-8")
        sealed = json.dumps(_sealed(unfinished, tuning, stages, entries), indent=1)
        (unfinished / MANIFEST).write_text(sealed, encoding="utf-8")
        _put_in_place(unfinished, folder)
        _sweep(folder, "replaced")
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StorageError(
            f"cannot write the bundle {folder}: {_cause(error)}",
            fix="Free some space or choose another -o; the same command continues from what "
            "was measured.",
        ) from error


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


def _put_stages(bundle: Path, stages: Sequence[NewStage]) -> tuple[StageEntry, ...]:
    """Copy each stage's files: the first into the bundle itself, others into their own folders."""
    entries: list[StageEntry] = []
    folders: dict[Path, str] = {}
    for number, stage in enumerate(stages, 1):
        home = "." if number == 1 else f"stages/{number}"
        target = bundle / home
        target.mkdir(parents=True, exist_ok=True)
        if stage.artifact not in folders:
            shutil.copytree(stage.artifact, target, dirs_exist_ok=True)
            _copy_missing(("config.json",), stage.reference, target)
        if number == 1 or not _same_tokenizer(stage, stages[0]):
            _copy_missing(_TOKENIZER_FILES, stage.reference, target)
        if stage.probes:
            (target / PROBES).write_text(json.dumps(to_json(stage.probes)), encoding="utf-8")
        folder = folders.setdefault(stage.artifact, home)
        entries.append(_entry(bundle, home, folder, stage, stages[-1].model))
    return tuple(entries)


def _entry(bundle: Path, home: str, folder: str, stage: NewStage, model: ModelInfo) -> StageEntry:
    """What the manifest says of a stage whose artifact is in ``folder``, and the rest ``home``."""
    plan = stage.plan
    own = f"{home}/{TOKENIZER}" if home != "." else TOKENIZER
    probes = f"{home}/{PROBES}" if home != "." else PROBES
    return StageEntry(
        folder=folder,
        model=None if stage.model == model else stage.model,
        tokenizer=own if (bundle / own).exists() else TOKENIZER,
        candidate=plan.candidate,
        session=engines.get(plan.candidate.engine).session_options(plan.candidate),
        strategy=plan.strategy,
        cost_table=plan.cost_table,
        max_batch_latency_s=plan.max_batch_latency_s,
        hands_on=stage.hands_on,
        probes=probes if stage.probes else None,
    )


def _copy_missing(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).exists() and not (target / name).exists():
            shutil.copy(source / name, target / name)


def _same_tokenizer(stage: NewStage, first: NewStage) -> bool:
    own, shared = stage.reference / TOKENIZER, first.reference / TOKENIZER
    return own == shared or filecmp.cmp(own, shared, shallow=False)


def _sealed(
    folder: Path, tuning: Tuning, stages: Sequence[NewStage], entries: tuple[StageEntry, ...]
) -> dict[str, Any]:
    """The manifest of the files in ``folder``, with its digest, signed where that matters."""
    model = stages[-1].model
    raw: dict[str, Any] = to_json(
        Manifest(
            format=manifest.FORMAT,
            hasten=__version__,
            model=model,
            task=TaskEntry(model.task, model.task_settings),
            stages=entries,
            parity=tuning.chosen.parity,
            hardware=tuning.hardware,
            versions=tuning.versions,
            files=manifest.listed(folder, leave_out=_MARKER),
        )
    )
    if any(engines.get(e.candidate.engine).runs_code(folder / e.folder) for e in entries):
        # Whoever made the bundle may load it here without further ado.
        raw = signature.signed(raw)
    return {**raw, "sha256": manifest.digest(raw)}


def _cause(error: OSError) -> str:
    """What the system said; copying a tree collects its refusals in a list."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][2])
    return error.strerror or str(error)


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
    """Remove folders of this kind that an earlier save of ``folder`` left beside it."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}.{kind}"):
        if path.is_dir() and any((path / name).is_file() for name in (_MARKER, MANIFEST)):
            shutil.rmtree(path, ignore_errors=True)
