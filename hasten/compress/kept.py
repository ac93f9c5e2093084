"""What an interrupted run leaves in its folder, for the same command to continue with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from hasten.compress.sizes import Wanted
from hasten.models import ModelFolder
from hasten.storage import workfolder
from hasten.storage.journal import Journal

CHECKPOINTS, INT8 = "checkpoints", "int8"
STUDENT = "student"
RUNGS = "rungs"
"""Where the students of a search are made, each in a folder of its own."""

SIZES, CHOICE, STEPS, INT8_STEPS = "sizes", "choice", "steps", "int8 steps"
"""Keys of the journal: what was decided, in this order."""

FILES = ("reference", CHECKPOINTS, INT8, STUDENT, RUNGS)
"""Folders that a run makes in its own."""

WORTH = (CHECKPOINTS, STUDENT)
"""Those that took time: a run's folder with any of them, at any depth, is kept if it fails."""

_DECISIVE = (
    "layers",
    "ffn_width",
    "heads",
    "embeddings",
    "freeze_embeddings",
    "target",
    "seed",
)
"""What an interrupted run must have been asked for as well. QAT comes afterwards."""


def take_up(
    work: Path,
    original: ModelFolder,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    wanted: Wanted,
) -> Journal:
    """The decisions of an interrupted run that was asked for in the same way, or none yet.

    Before any training, another request may replace this one; what was chosen is discarded.

    Raises:
        ResumeError: training for something else has begun.
        StorageError: ``work`` cannot be written.
    """
    asked = {
        "model": original.fingerprint(),
        "texts": _digest(texts),
        "labels": None if labels is None else _digest(labels),
        **{name: getattr(wanted, name) for name in _DECISIVE},
    }
    journal = Journal(work / workfolder.RESULTS, asked, binding=STEPS)
    if not journal.resumed:  # what is left of another run was trained for another number of steps
        workfolder.remove(work, CHECKPOINTS, INT8, STUDENT)
    return journal


def _digest(values: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
