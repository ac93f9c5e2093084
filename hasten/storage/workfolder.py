"""The folder in which a run keeps what it has measured, so that the same command continues."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from hasten.errors import HastenError, StorageError

RESULTS = "results.jsonl"
"""The journal."""

MARKER = ".hasten.lock"


@contextmanager
def held(
    work: Path, *, restart: bool, ours: Sequence[str], worth: Sequence[str] = ()
) -> Iterator[None]:
    """Hold the folder ``work`` for one run's measurements, and keep other runs out of it.

    Where the run is refused before anything was measured, no new folder stays behind.

    Args:
        work: is made if it does not exist. One with anything in it must have been made here: a
            marker in it says so, which is also the lock.
        restart: throw away what an earlier run left in it.
        ours: names of what a run leaves in it, beside the journal.
        worth: names of files or folders that, like measurements, are kept when the run fails.

    Raises:
        StorageError: it holds something else, another run holds it, or it cannot be written.
    """
    lock, new = FileLock(work / MARKER, timeout=0), not work.exists()
    try:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()) and not (work / MARKER).exists():
            raise StorageError(
                f"{work} holds something else, and this is where the run keeps its results",
                fix="Choose another -o, or move it away.",
            )
        lock.acquire()
        if restart:
            remove(work, RESULTS, *ours)
    except Timeout:
        raise StorageError(
            f"another run is writing to {work}", fix="Wait for it to end, or choose another -o."
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write {work}: {error.strerror}") from error
    try:
        yield
    except HastenError:
        if new and not _has_results(work, worth):
            with suppress(OSError):
                discard(work)
        raise
    finally:
        lock.release()


def _has_results(work: Path, worth: Sequence[str]) -> bool:
    """Whether anything is there that another start would go on from."""
    if any(path.name in worth for path in work.rglob("*")):
        return True
    return any(map(_has_lines, work.rglob(RESULTS)))


def _has_lines(journal: Path) -> bool:
    with journal.open("rb") as lines:
        return len(list(islice(lines, 2))) > 1  # the first is the header


def remove(work: Path, *names: str) -> None:
    """Remove these files and folders of ours, as far as they are there."""
    for path in (work / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def discard(work: Path) -> None:
    """Remove a folder that is :func:`held`; what cannot be removed is in nobody's way."""
    # Moved away first, so that a run that begins at once finds nothing that is about to go.
    gone = work.with_name(f"{work.name}.{os.getpid()}.gone")
    work.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
