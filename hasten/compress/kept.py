"""What an interrupted run leaves in its folder, for the same command to continue with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hasten.compress.sizes import Wanted
from hasten.errors import ResumeError
from hasten.models import ModelFolder
from hasten.storage.durable import write_json

ASKED, SIZES, CHOICE = "asked.json", "sizes.json", "choice.json"
STEPS, INT8_STEPS = "steps.json", "int8-steps.json"
CHECKPOINTS, INT8 = "checkpoints", "int8"
STUDENT = "student"
RUNGS = "rungs"
"""Where the students of a search are made, each in a folder of its own."""

FILES = (ASKED, SIZES, CHOICE, STEPS, INT8_STEPS, CHECKPOINTS, INT8, STUDENT, RUNGS)
"""All names that may be in the folder, beside the original's."""

WORTH = (CHOICE, STEPS, INT8_STEPS, CHECKPOINTS, STUDENT)
"""Those that took time: a folder with any of them, at any depth, is kept for the next start."""

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


def once(path: Path, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an interrupted run decided, or what is decided now and kept."""
    if not path.exists():
        write_json(path, decide())
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def take_up(
    work: Path,
    reference: ModelFolder,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    wanted: Wanted,
) -> None:
    """Make sure that what is in ``work`` was asked for in the same way.

    Before any training, another request may replace this one; what was chosen is discarded.

    Raises:
        ResumeError: training for something else has begun.
        StorageError: ``work`` cannot be written.
    """
    asked = {
        "model": reference.fingerprint(),
        "texts": _digest(texts),
        "labels": None if labels is None else _digest(labels),
        **{name: getattr(wanted, name) for name in _DECISIVE},
    }
    then = once(work / ASKED, lambda: asked)
    if then == asked:
        return
    if (work / STEPS).exists():
        what = ", ".join(sorted(name for name in asked if asked[name] != then.get(name)))
        raise ResumeError(
            f"{work} was started with different {what}",
            fix="--restart throws it away and starts over; or choose another -o.",
        )
    for name in (SIZES, CHOICE):
        (work / name).unlink(missing_ok=True)
    write_json(work / ASKED, asked)


def _digest(values: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
