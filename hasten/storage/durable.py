"""Files that are there whole or not at all, whatever happens meanwhile.

Bytes go to a temporary name, are made durable, and only then get their name; the folder is made
durable too, since a name lives there. See Pillai et al., "All File Systems Are Not Created Equal",
OSDI 2014, for what goes wrong without these steps.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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


def create(path: Path, content: bytes, desk: Path, *, mode: int = 0o666) -> bool:
    """Make a file, unless there is one already: of several writers the first wins.

    Args:
        path: the file.
        content: its bytes.
        desk: the folder, on the same file system, in which the bytes get ready. Once it is gone,
            nothing is made.
        mode: who may do what with it, before the process's umask.

    Returns:
        Whether it was made now.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    with storing(path), _temporary(path, lambda file: file.write(content), desk, mode) as temporary:
        made = _name(temporary, path)
        sync_folder(path.parent)
        return made


def write(path: Path, content: bytes, desk: Path | None = None) -> None:
    """Make a file, in the place of any earlier one; ``desk`` as for :func:`create`.

    Raises:
        StorageError: it cannot be written; the earlier one stays.
    """
    replace(path, lambda file: file.write(content), desk)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Make a file for people and programs to read, in the place of any earlier one.

    Raises:
        StorageError: it cannot be written; the earlier one stays.
    """
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def replace(path: Path, write: Callable[[IO[bytes]], object], desk: Path | None = None) -> None:
    """As :func:`write`, where the bytes come piece by piece: ``write`` gets the file.

    Raises:
        StorageError: it cannot be written; the earlier one stays.
    """
    with storing(path), _temporary(path, write, desk) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def _temporary(
    path: Path, write: Callable[[IO[bytes]], object], desk: Path | None, mode: int = 0o666
) -> Iterator[Path]:
    """A durable file under a name of its own, gone at the end."""
    name = f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}{_UNFINISHED}"
    temporary = (desk or path.parent) / name
    try:
        with open(temporary, "xb", opener=lambda name, how: os.open(name, how, mode)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _name(temporary: Path, path: Path) -> bool:
    """Give a file its name, if nothing has that name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _name_without_links(temporary, path)
    return True


def _name_without_links(temporary: Path, path: Path) -> bool:
    """The same by renaming, which would replace a file: the first to make a claim may do it.

    Where there is a claim and no file, it is being made, or its maker was killed.
    """
    claim = temporary.with_name(f".{path.name}.claim{_UNFINISHED}")
    try:
        claim.open("xb").close()
    except FileExistsError:
        return False
    try:
        if path.exists():
            return False
        temporary.replace(path)
    finally:
        claim.unlink(missing_ok=True)
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


def move(made: Path, folder: Path) -> None:
    """Give a folder its name once all of it is on the disk.

    Raises:
        OSError: the system cannot.
    """
    sync_tree(made)
    made.rename(folder)
    sync_folder(folder.parent)


def sync_tree(folder: Path) -> None:
    """Make all files in a folder durable, and their names.

    Raises:
        OSError: the system cannot.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
