"""Formats of which a record is some lines of text: what they have in common."""

from __future__ import annotations

import codecs
import io
import shlex
import shutil
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from hasten.errors import InputError
from hasten.inputs.formats.base import (
    HEAD_BYTES,
    LONGEST_LINE,
    UNREADABLE,
    Format,
    Reader,
    Rows,
)
from hasten.inputs.formats.values import looks_like_text, to_column, to_objects, type_of
from hasten.records import Place

_UTF16 = "This is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {file} > NEW"
_KINDS = {  # the bytes with which a file begins, what to do
    codecs.BOM_UTF16_LE: _UTF16,
    codecs.BOM_UTF16_BE: _UTF16,
    b"\x1f\x8b": "This is gzip: add .gz to the file's name.",
    b"\x28\xb5\x2f\xfd": "This is zstd: add .zst to the file's name.",
}
_LATIN1 = (
    "If the file is Latin-1, convert it: iconv -f LATIN1 -t UTF-8 {file} > NEW. If only this place "
    "is damaged, mend or remove it."
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its values by column, or the error that it is; ``end`` is behind it."""

    number: int
    end: Place
    values: Mapping[str, object]
    error: InputError | None = None


def decoded(raw: bytes, place: str, fix: str, offset: int = 0, file: str = "") -> str:
    """``raw`` as text.

    Args:
        raw: bytes.
        place: what the message calls it.
        fix: what helps if it is not UTF-8; ``{file}`` in it stands for ``file``.
        offset: where it starts, for the message.
        file: which one it is from.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        wrong = raw[error.start : error.start + 1]
        raise InputError(
            f"{place}: the byte 0x{wrong.hex()} at byte offset {offset + error.start} is not valid "
            f"UTF-8; in Latin-1 it is {wrong.decode('latin-1')!r}",
            fix=fix.replace("{file}", shlex.quote(file)),
        ) from error


class Lines(Iterator[str]):
    """A stream's lines with their ends, and where in the stream they are.

    A line that is not UTF-8, or too long, comes with replacement characters; what is wrong with it
    is ``fault`` until somebody asks for it, so that a record of several lines stays one record.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self.place = Place()
        self._fault: InputError | None = None
        self._fix = _LATIN1
        self._peeked: bytes | None = None

    def __next__(self) -> str:
        raw, self._peeked = self._peeked or self._stream.readline(LONGEST_LINE), None
        if not raw:
            raise StopIteration
        begin, where = self.place, f"{self._name}, line {self.place.number}"
        if begin.offset == 0:  # what a file is, its first bytes say, and no others
            kinds = (fix for start, fix in _KINDS.items() if raw.startswith(start))
            self._fix = next(kinds, self._fix)
        size = len(raw)
        if size == LONGEST_LINE and not raw.endswith(b"\n"):
            size += self._skip()
            self._fault = InputError(
                f"{where}: the line has {size:,} bytes, and {LONGEST_LINE:,} are read at most",
                fix="Is this a text file? Break the line, or remove it.",
            )
        self.place = Place(begin.offset + size, begin.number + 1)
        try:
            line = decoded(raw, where, self._fix, begin.offset, self._name)
        except InputError as error:
            self._fault = self._fault or error
            line = raw.decode(errors="replace")
        return line.removeprefix("\ufeff") if begin.offset == 0 else line

    def peek(self) -> str:
        """The next line, roughly: it stays the next."""
        self._peeked = self._peeked or self._stream.readline(LONGEST_LINE)
        return self._peeked.decode(errors="replace")

    def jump(self, to: Place) -> None:
        """Go on from a place further behind; streams that cannot jump are read up to there."""
        distance = to.offset - self.place.offset - len(self._peeked or b"")
        self.place, self._peeked = to, None
        if self._stream.seekable():
            self._stream.seek(distance, io.SEEK_CUR)
            return
        while distance > 0 and (passed := self._stream.read(min(distance, 1 << 20))):
            distance -= len(passed)

    def _skip(self) -> int:
        """Leave the rest of a line unread."""
        skipped = 0
        while raw := self._stream.readline(LONGEST_LINE):
            skipped += len(raw)
            if raw.endswith(b"\n"):
                break
        return skipped

    def fault(self) -> InputError | None:
        """What is wrong with the lines since this was last asked."""
        fault, self._fault = self._fault, None
        return fault


class Records(Rows):
    """Rows that are records."""

    unit = "line"

    def __init__(self, name: str, begin: Place, records: Sequence[Record]) -> None:
        self.name = name
        self.begin = begin
        self.end: Place | None = records[-1].end if records else begin
        self.numbers = [record.number for record in records]
        self.errors = {i: r.error for i, r in enumerate(records) if r.error is not None}
        self._values = [record.values for record in records]

    @classmethod
    def lost(cls, name: str, begin: Place, error: InputError) -> Records:
        """One row for all that cannot be read of a file from ``begin`` on."""
        rows = cls(name, begin, [Record(begin.number, begin, {}, error)])
        rows.end = None
        return rows

    def column(self, name: str) -> Sequence[object]:
        return [values.get(name) for values in self._values]

    def table(self, schema: pa.Schema) -> pa.Table:
        for index, values in enumerate(self._values):
            refuse_others(self, index, values, schema.names)
        columns = [self._column(field) for field in schema]
        return pa.table(columns, schema=schema)

    def _column(self, field: pa.Field) -> pa.Array:
        values = self.column(field.name)
        try:
            return to_column(values, field.type)
        except (pa.ArrowException, OverflowError):
            return pa.concat_arrays(
                [self._cell(index, value, field) for index, value in enumerate(values)]
            )

    def _cell(self, index: int, value: object, field: pa.Field) -> pa.Array:
        """One value alone, to say which one it is that does not fit."""
        try:
            return to_column([value], field.type)
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{self.where(index)}: {field.name!r} holds {str(value)[:60]}, and the "
                f"first rows made it a column of {field.type}",
                fix="Write JSON Lines (-o OUTPUT.jsonl), whose values may be of any type.",
            ) from error

    def objects(self) -> Iterable[Mapping[str, object]]:
        return self._values


def refuse_others(
    rows: Rows, index: int, values: Mapping[str, object], names: Sequence[str]
) -> None:
    """Raise for a row with values that none of the columns ``names`` is for."""
    others = values.keys() - set(names)
    if others:
        raise InputError(
            f"{rows.where(index)}: there is a {min(others)!r}, which the first rows did "
            "not have, so the output has no column for it",
            fix="Write JSON Lines (-o OUTPUT.jsonl), whose lines may differ.",
        )


class RecordReader(Reader):
    """Reads records one after the other; a format says how."""

    def __init__(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int,
    ) -> None:
        self._name = name
        self._lines = Lines(stream, name)
        self._ahead: deque[Record] = deque()
        self._schema = schema
        self.columns = tuple(schema.names) if schema else ()
        self.open()
        # What comes before the rows is read wherever they begin.
        if begin > self._lines.place:
            self._lines.jump(begin)
        self._place = self._lines.place
        self._records = self.records(self._lines)
        if schema is None and head_rows:
            self._look_ahead(head_rows)
        self.text_columns = tuple(
            column
            for column in self.columns
            if looks_like_text(record.values.get(column) for record in self._ahead)
        )

    def open(self) -> None:
        """Read what comes before the first record."""

    @abstractmethod
    def records(self, lines: Lines) -> Iterator[Record]:
        """The records from here on; broken ones as well."""

    def take(
        self, max_rows: int, max_bytes: int | None = None, columns: Sequence[str] | None = None
    ) -> Records:
        begin = self._place
        taken: list[Record] = []
        while len(taken) < max_rows:
            try:
                record = self._ahead.popleft() if self._ahead else next(self._records, None)
            except UNREADABLE:
                if not taken:
                    raise
                # The generator has ended with it; another one meets the same trouble.
                self._records = self.records(self._lines)
                break
            if record is None:
                break
            taken.append(record)
            self._place = record.end
            if max_bytes is not None and self._place.offset - begin.offset >= max_bytes:
                break
        return Records(self._name, begin, taken)

    def give_up(self, error: InputError, max_rows: int) -> Records:
        return Records.lost(self._name, self._place, error)

    def _look_ahead(self, head_rows: int) -> None:
        begin = self._place.offset
        try:
            for record in self._records:
                self._ahead.append(record)
                if len(self._ahead) == head_rows or record.end.offset - begin > HEAD_BYTES:
                    break
        except UNREADABLE:
            if not self._ahead:
                raise
            # Whoever takes the rows before the damage meets it then, if it is still there.
            self._records = self.records(self._lines)
        self.columns = self.columns or tuple(
            dict.fromkeys(key for record in self._ahead for key in record.values)
        )
        broken = next((record.error for record in self._ahead if record.error), None)
        if broken and not self.columns:  # not one good row tells what rows there are
            raise broken

    @property
    def schema(self) -> pa.Schema:
        if self._schema is None:
            self._schema = pa.schema([(name, self._type(name)) for name in self.columns])
        return self._schema

    def _type(self, column: str) -> pa.DataType:
        return type_of(record.values.get(column) for record in self._ahead)


class RecordFormat(Format):
    """Parts of such files are joined by writing one after the other."""

    seeks = False
    holds_answers = True

    def extent(self, path: Path) -> int:
        return path.stat().st_size

    def join(self, parts: Iterable[IO[bytes]], whole: IO[bytes]) -> None:
        for part in parts:
            shutil.copyfileobj(part, whole, 1 << 20)


def answered(
    rows: Rows, answers: pa.Table
) -> Iterator[tuple[Mapping[str, object], dict[str, object]]]:
    """Each row's own values beside its answers."""
    return zip(rows.objects(), to_objects(answers), strict=True)
