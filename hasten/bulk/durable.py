"""Files that are there whole or not at all, whatever happens meanwhile.

Bytes go to a temporary name, are made durable, and only then get their name; the folder is made
durable too, since a name lives there. See Pillai et al., "All File Systems Are Not Created Equal",
OSDI 2014, for what goes wrong without these steps.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hasten.errors import StorageError

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_FULL = {errno.ENOSPC, errno.EDQUOT}

_UNFINISHED = ".unfinished"

_RANDOM_BYTES = 4


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write ``path`` into our error."""
    try:
        yield
    except OSError as error:
        mend = "Free some space" if error.errno in _FULL else "Mend it, or choose another -o"
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            fix=f"{mend}; what is finished is kept, and the same command continues.",
        ) from error


def create(path: Path, content: bytes) -> bool:
    """Make a file, unless there is one already: of several writers the first wins.

    Returns:
        Whether it was made now.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    with storing(path), _temporary(path, lambda file: _write(file, content)) as temporary:
        made = _link(temporary, path)
        sync_folder(path.parent)
        return made


def replace(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file with ``write``, in the place of any earlier one.

    Raises:
        StorageError: it cannot be written; the earlier one stays.
    """
    with storing(path), _temporary(path, write) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)


@contextmanager
def _temporary(path: Path, write: Callable[[IO[bytes]], None]) -> Iterator[Path]:
    """A durable file beside ``path`` under a name of its own, gone at the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}{_UNFINISHED}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name, if nothing has that name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS or path.exists():
            raise
        # Some network file systems know no links; a name is then taken by renaming.
        temporary.rename(path)
    return True


def sweep(*folders: Path, of: str | None = None) -> None:
    """Remove what runs that were killed left unfinished: of all files, or of the one called ``of``.

    Nobody must be writing these.
    """
    name = "*" if of is None else f"{glob.escape(of)}.{'?' * (2 * _RANDOM_BYTES)}"
    for folder in folders:
        for path in folder.glob(f".{name}{_UNFINISHED}"):
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder that is still there after a power cut, and those above it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
