"""CSV and TSV: records of fields, quoted where they have to be, below a header.

The standard library reads them rather than pyarrow: ``strict`` finds wrong quotes, which pyarrow
takes for something else, and nothing guesses types ("007" stays a text).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa

from hasten.errors import InputError
from hasten.inputs.formats.base import HEAD_ROWS, LONGEST_LINE, Reader, Rows
from hasten.inputs.formats.records import (
    Lines,
    Record,
    RecordFormat,
    RecordReader,
    answered,
    refuse_others,
)
from hasten.inputs.formats.values import as_field
from hasten.records import Place


class _DelimitedReader(RecordReader):
    def __init__(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int,
        *,
        delimiters: str,
    ) -> None:
        self._delimiters = delimiters
        super().__init__(stream, name, begin, schema, head_rows)

    def open(self) -> None:
        # Spreadsheets set to a decimal comma write semicolons; the header tells which it is.
        self._delimiter = max(self._delimiters, key=self._lines.peek().count)
        _, header, error = next(self._parsed(self._lines), (0, (), None))
        if error:
            raise error
        self._header = tuple(header)
        self.columns = self.columns or self._header
        if sorted(self._header) != sorted(self.columns):
            raise InputError(
                f"{self._name}: its columns are {', '.join(self._header)}, and those of the first "
                f"file {', '.join(self.columns)}",
                fix="Predict it in a run of its own.",
            )

    def records(self, lines: Lines) -> Iterator[Record]:
        for number, fields, problem in self._parsed(lines):
            error = problem
            if error is None and len(fields) != len(self._header):
                error = InputError(
                    f"{self._name}, line {number}: {len(fields)} fields, but the header has "
                    f"{len(self._header)}",
                    fix="Put texts that contain the delimiter or a line break in double quotes.",
                )
            values = {} if error else dict(zip(self._header, fields, strict=True))
            yield Record(number, lines.place, values, error)

    def _parsed(self, lines: Lines) -> Iterator[tuple[int, Sequence[str], InputError | None]]:
        """Where a record starts, its fields, and what is wrong with it; blank lines are none."""
        # The usual limit of 131,072 characters guards programs that read strangers' files; a long
        # document is not an attack here. It belongs to the whole process: raised, never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            number = lines.place.number
            misquoted = None
            try:
                fields = next(reader, None)
            except csv.Error as problem:
                fields, misquoted = [], self._misquoted(number, problem)
            if fields is None:
                return
            error = lines.fault() or misquoted
            if fields or error:
                yield number, fields, error

    def _misquoted(self, number: int, problem: csv.Error) -> InputError:
        error = InputError(
            f"{self._name}, line {number}: the quoting of the record that starts here is wrong "
            f"({str(problem).partition(' - ')[0]})",
            fix='Double the quotes inside a quoted field: "say ""hello"" to them".',
        )
        error.__cause__ = problem
        return error


class Delimited(RecordFormat):
    """Fields between delimiters: any of ``delimiters`` when reading, the first when writing."""

    def __init__(self, extension: str, delimiters: str) -> None:
        self.extensions = (extension,)
        self._delimiters = delimiters

    def read(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int = HEAD_ROWS,
    ) -> Reader:
        return _DelimitedReader(stream, name, begin, schema, head_rows, delimiters=self._delimiters)

    def write(self, rows: Rows, answers: pa.Table, schema: pa.Schema, *, head: bool) -> bytes:
        names = schema.names
        text = io.StringIO(newline="")
        delimiter = self._delimiters[0]
        usual = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        # A bare carriage return ends a line for some readers, and the usual writer lets it stand.
        careful = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        if head:
            usual.writerow([*names, *answers.column_names])
        for index, (values, answer) in enumerate(answered(rows, answers)):
            refuse_others(rows, index, values, names)
            fields = [as_field(values.get(name)) for name in names]
            fields += map(as_field, answer.values())
            (careful if any("\r" in field for field in fields) else usual).writerow(fields)
        return text.getvalue().encode()


FORMATS = (Delimited(".csv", ",;\t"), Delimited(".tsv", "\t"))
