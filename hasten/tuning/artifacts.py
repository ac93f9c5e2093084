"""Making a candidate's artifact, in a process of its own."""

from __future__ import annotations

import shutil

from hasten.records import Candidate
from hasten.storage.durable import storing
from hasten.tuning.context import Context
from hasten.tuning.worker import Export


def export(context: Context, candidate: Candidate) -> float:
    """Make the artifact, in the place of an earlier one, and before it what it is derived from.

    Exporting imports torch and leaves its memory behind, so no worker that is measured does it.

    Returns:
        The seconds it took.

    Raises:
        EngineError: the engine failed.
        StorageError: the artifact cannot be written.
    """
    artifact, engine = context.artifact(candidate), context.engines[candidate.engine]
    base = engine.base(candidate)
    if base and not context.artifact(base).exists():  # removed since an earlier run
        export(context, base)
    unfinished = artifact.with_name(f"{artifact.name}.unfinished")
    # Calibration passes all its texts through the model, several times over.
    patience_s = context.patience_s * (3 if engine.calibrates(candidate) else 1)
    message = Export(
        context.subject(candidate).reference,
        candidate,
        unfinished,
        context.artifact(base) if base else None,
    )
    with storing(artifact):
        shutil.rmtree(unfinished, ignore_errors=True)
        exporter = context.spawn(f"export-{context.artifact_name(candidate, '-')}")
        try:
            export_s: float = exporter.call(message, patience_s)
        finally:
            exporter.close()
        # A run that ended between this and the journal's line has left one.
        shutil.rmtree(artifact, ignore_errors=True)
        unfinished.rename(artifact)
    return export_s
