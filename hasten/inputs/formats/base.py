"""What reading and writing rows has in common, whatever the format.

A :class:`Reader` goes through one file from any :class:`Place` on and gives :class:`Rows`: some
consecutive rows with all their columns. A row that cannot be read is still a row: it has an error
where the others have values, so that whoever reads may stop at it or go on.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa

from hasten.errors import InputError
from hasten.records import Place

HEAD_ROWS = 1000
"""Rows that are looked at before a column is chosen, or a type."""

HEAD_BYTES = 16 << 20
"""Where rows are large, fewer are looked at."""

LONGEST_LINE = 64 << 20
"""Bytes of a line, or characters of a field, that are read; what is longer is not text for us."""


UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What reading a damaged file raises."""


class Rows(ABC):
    """Consecutive rows of one file, from ``begin`` up to ``end``.

    ``name`` is the file's, ``unit`` what is counted: lines or rows. ``numbers`` has the line or row
    of each, from 1; ``errors`` those that cannot be read, by index. Their values are None. Where
    nothing more can be read of the file, ``end`` is None.
    """

    name: str
    unit: str
    begin: Place
    end: Place | None
    numbers: Sequence[int]
    errors: Mapping[int, InputError]

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, index: int) -> str:
        """File and row, for messages."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"

    @abstractmethod
    def column(self, name: str) -> Sequence[object]:
        """One column's values: str, UTF-8 bytes, None, or whatever else the file holds."""

    @abstractmethod
    def table(self, schema: pa.Schema) -> pa.Table:
        """All columns of ``schema`` as Arrow.

        Raises:
            InputError: a value that its column's type cannot hold; the message says where.
        """

    @abstractmethod
    def objects(self) -> Iterable[Mapping[str, object]]:
        """One mapping a row, of values that JSON can hold."""


class Reader(ABC):
    """One open file.

    Attributes:
        columns: names, in the file's order.
        text_columns: those that hold text.
        schema: how the columns are typed in Arrow.
    """

    columns: tuple[str, ...]
    text_columns: tuple[str, ...]

    @property
    @abstractmethod
    def schema(self) -> pa.Schema: ...

    @abstractmethod
    def take(
        self, max_rows: int, max_bytes: int | None = None, columns: Sequence[str] | None = None
    ) -> Rows:
        """The next rows: at most ``max_rows``, and as few as reach ``max_bytes``; none at the end.

        Which rows these are depends on the file's content from here on and on nothing else.

        Args:
            max_rows: at least 1.
            max_bytes: stop behind the row with which the rows so far have so many bytes.
            columns: those that will be asked for, where others need not be read.

        Raises:
            OSError, EOFError, zlib.error, pyarrow.ArrowException: the file cannot be read on from
                here; what could be read before was given.
        """

    @abstractmethod
    def give_up(self, error: InputError, max_rows: int) -> Rows:
        """Go on where that is possible after :meth:`take` has raised.

        Returns:
            Rows with that error, at most ``max_rows`` of them: those that cannot be read, where
            it is known how many they are, or else one that stands for all.
        """


class Format(ABC):
    """How one kind of file is read and written."""

    extensions: tuple[str, ...]
    seeks: bool
    """Whether reading jumps about in the file, so that a pipe will not do."""
    holds_answers: bool
    """Whether there is a place for answers beside what was read."""

    @abstractmethod
    def read(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int = HEAD_ROWS,
    ) -> Reader:
        """Open a file.

        Args:
            stream: its unpacked bytes, from the first.
            name: what messages call it.
            begin: where to begin.
            schema: the columns, where they are known from an earlier look at its beginning.
            head_rows: else so many rows are waited for, to look at.

        Raises:
            InputError: it is not such a file.
        """

    @abstractmethod
    def extent(self, path: Path) -> int:
        """How far an unpacked file goes, as :attr:`Place.offset` counts."""

    @abstractmethod
    def write(self, rows: Rows, answers: pa.Table, schema: pa.Schema, *, head: bool) -> bytes:
        """Rows with their answers, as a file or, without ``head``, as the continuation of one.

        Args:
            rows: what was read.
            answers: one row for each, in further columns.
            schema: of the rows' own columns.
            head: begin with what a file of this format begins with.

        Raises:
            InputError: the format cannot hold a value.
        """

    @abstractmethod
    def join(self, parts: Iterable[IO[bytes]], whole: IO[bytes]) -> None:
        """Write parts, of which only the first has a head, as one file."""
