"""Files of rows: which formats there are, and opening one by its name.

A file here has ``FORMATS``, one or several of them, and is found by being there; a format by the
extension of a file's name. The corpus reads texts with them, and bulk prediction whole rows, which
it writes again.
"""

from __future__ import annotations

import gzip
import importlib
import io
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import IO, Any, Protocol, cast

import pyarrow as pa

from hasten.errors import InputError
from hasten.inputs.formats.base import UNREADABLE, Format, Reader, Rows

__all__ = [
    "UNREADABLE",
    "Format",
    "Reader",
    "Rows",
    "by_extension",
    "extension",
    "named",
    "opened",
    "packed",
    "packing",
]

_NOT_FORMATS = {"base", "records", "tables", "values"}


_PIECE = 8192
"""Bytes that are unpacked at once: at most so many good ones before a damage are lost."""


def _gzip(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)  # the time would make every run's file another one


def _zstd(raw: bytes) -> bytes:
    return cast("bytes", pa.compress(raw, codec="zstd", asbytes=True))


def _open_zstd(stream: IO[bytes]) -> _Unpacker:
    return cast("_Unpacker", pa.CompressedInputStream(stream, "zstd"))


def _open_gzip(stream: IO[bytes]) -> _Unpacker:
    return cast("_Unpacker", gzip.open(stream))


class _Unpacker(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Steady(io.RawIOBase):
    """Unpacked bytes, which end for good where the packed ones are damaged.

    After an error some unpackers go on with bytes that they gave already, and how many good bytes
    before it they still give depends on how many were asked for at once. Here it is always the
    same number: whoever starts over, further behind, meets the same bytes and the same error.
    """

    def __init__(self, unpacker: _Unpacker) -> None:
        self._unpacker = unpacker
        self._piece = memoryview(b"")
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._piece:
            self._piece = memoryview(self._next())
        asked = memoryview(buffer).cast("B")
        count = min(len(asked), len(self._piece))
        asked[:count], self._piece = self._piece[:count], self._piece[count:]
        return count

    def _next(self) -> bytes:
        if self._error:
            raise self._error
        try:
            return self._unpacker.read1(_PIECE)
        except UNREADABLE as error:
            self._error = error
            raise


_PACKINGS: dict[str, tuple[Callable[[IO[bytes]], _Unpacker], Callable[[bytes], bytes]]] = {
    ".gz": (_open_gzip, _gzip),
    ".zst": (_open_zstd, _zstd),
}


def by_extension() -> Mapping[str, Format]:
    """Formats by the extension of a file's name, in small letters."""
    return _found(tuple(__path__))


@cache
def _found(folders: tuple[str, ...]) -> Mapping[str, Format]:
    names = (module.name for module in pkgutil.iter_modules(folders))
    modules = [importlib.import_module(f"{__name__}.{n}") for n in names if n not in _NOT_FORMATS]
    formats: list[Format] = [each for module in modules for each in module.FORMATS]
    return {extension: each for each in formats for extension in each.extensions}


def packing(path: PurePath) -> str:
    """``.gz``, ``.zst`` or nothing: how a file is packed."""
    suffix = path.suffix.lower()
    return suffix if suffix in _PACKINGS else ""


def extension(path: PurePath) -> str:
    """The extension that names the format, in small letters, below that of a packing.

    >>> extension(PurePath("a.CSV.gz"))
    '.csv'
    """
    return (path.with_suffix("") if packing(path) else path).suffix.lower()


def named(path: PurePath) -> Format:
    """The format that a file's name tells.

    Raises:
        InputError: it tells none.
    """
    known = by_extension()
    if extension(path) not in known:
        raise InputError(
            f"{path}: the extension {path.suffix!r} is not a known format",
            fix=f"Known: {', '.join(known)}, each also with .gz or .zst. Rename or convert "
            "the file.",
        )
    return known[extension(path)]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's unpacked bytes."""
    with path.open("rb") as file:
        if not packing(path):
            yield file
            return
        unpacker = _PACKINGS[packing(path)][0](file)
        if extension(path) in by_extension() and named(path).seeks:
            yield cast("IO[bytes]", unpacker)
            return
        with io.BufferedReader(_Steady(unpacker)) as unpacked:
            yield unpacked


def packed(raw: bytes, packing: str) -> bytes:
    """Bytes packed as the extension ``packing`` says; the same bytes whenever it is done.

    What is packed in parts and written one behind the other is unpacked as one.
    """
    return _PACKINGS[packing][1](raw) if packing else raw
