"""``hasten.export``: one engine's artifact, checked against the original."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from hasten import engines, hardware
from hasten.errors import StorageError
from hasten.inputs import corpus
from hasten.inputs.datasets import texts_of
from hasten.models.folder import TOKENIZER_FILES, ModelFolder
from hasten.options import ExportOptions, Model, choose, documented, record
from hasten.plain import to_json
from hasten.records import Event, Exported, Settings, Text
from hasten.storage import durable, workfolder
from hasten.tuning import recipes, study
from hasten.tuning.context import Context
from hasten.tuning.recipes import Accepted
from hasten.tuning.study import ModelSource, Study

MANIFEST = "export.json"


@documented(ExportOptions)
def export(
    model: Model,
    texts: Sequence[Text] = (),
    *,
    labels: Sequence[str] | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[ExportOptions],
) -> Exported:
    """Export ``model`` to one engine, and check that it still gives the original's answers.

    The engine's recipes for the precision are tried in its own order, and the first whose answers
    pass is written: the artifact under the name that Optimum looks for, ``config.json``, the
    tokenizer, and ``export.json`` with what is returned here. Nothing is timed.

    Args:
        model: as for ``hasten.tune``.
        texts: texts of the kind that the model will see. Without any, built-in ones in many
            languages are used, which prove less.
        labels: the right label of each text, if known; accuracies are then compared as well.
        on_event: receives progress.

    Returns:
        What was written and how it compares, as stored in ``export.json``.

    Raises:
        NoCandidate: no recipe passes the check.
        HastenError: its message says what to do.
    """
    options = choose("hasten.export", ExportOptions, options)
    settings = record(
        Settings,
        ExportOptions,
        options,
        engines=(options["engine"],),
        precisions=(options["precision"],),
    )
    study.check(settings)
    recipes.require_runnable(hardware.detect(), settings, engines.discover())
    study.require_tune_extra()
    folder = Path(options["output"]).resolve()
    _refuse_foreign_folder(folder)
    source = record(ModelSource, ExportOptions, options, model=model)
    texts = texts_of(texts)
    own_texts = len(texts) > 0
    asked = Study(
        source,
        texts if own_texts else corpus.sample_texts(),
        labels,
        settings,
        on_event or study.ignore_event,
    )
    work = folder.with_name(f"{folder.name}.exporting")
    with workfolder.held(work, restart=True, ours=study.OURS):
        try:
            context = asked.open(work, {"kind": "export"}, settings.budget_s)
            accepted = recipes.first_accepted(context, force=options["force"])
            return _save(folder, context, accepted, own_texts=own_texts)
        finally:
            workfolder.discard(work)


def _save(folder: Path, context: Context, accepted: Accepted, *, own_texts: bool) -> Exported:
    """Put the artifact, with everything that it is loaded with, in place."""
    candidate, complete = accepted.candidate, context.folder / "complete"
    reference = ModelFolder.open(context.reference)
    engine = context.engines[candidate.engine]
    with durable.storing(folder):
        shutil.copytree(context.artifact(candidate), complete)
        for name in ("config.json", *TOKENIZER_FILES):
            if (reference.folder / name).exists() and not (complete / name).exists():
                shutil.copy(reference.folder / name, complete / name)
        exported = Exported(
            candidate=candidate,
            model=context.info,
            parity=accepted.parity,
            refusal=accepted.refusal,
            tried=accepted.tried,
            files=_sizes(complete),
            own_texts=own_texts,
            judged_texts=len(context.texts),
            calibration_texts=(
                len(context.calibration_lengths) if engine.calibrates(candidate) else 0
            ),
            hardware=context.hardware,
            versions=context.versions,
            elapsed_s=context.budget.spent_s,
            usage=engine.usage(folder, reference, candidate),
        )
        durable.write_json(complete / MANIFEST, to_json(exported))
        if folder.exists():  # empty, or an earlier export: it goes with the work folder
            folder.rename(context.folder / "earlier")
        durable.move(complete, folder)
    return exported


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _refuse_foreign_folder(folder: Path) -> None:
    """Make sure that replacing ``folder`` removes nothing but an earlier export.

    Raises:
        StorageError: it is a file, or holds files that an export did not write.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    foreign = _foreign_files(folder) if folder.is_dir() else [folder.name]
    if foreign:
        raise StorageError(
            f"{folder} already exists and holds files that `hasten export` did not write: "
            f"{', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}",
            fix="Choose another -o, or move it away.",
        )


def _foreign_files(folder: Path) -> list[str]:
    present = _sizes(folder)
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        ours = {MANIFEST, *stored["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    return [name for name in present if name not in ours]
