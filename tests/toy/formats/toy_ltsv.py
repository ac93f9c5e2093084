"""Labelled tab-separated values: ``name:value`` fields with tabs between them, a record a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from hasten.errors import InputError
from hasten.inputs.formats.base import HEAD_ROWS, Reader, Rows
from hasten.inputs.formats.records import Lines, Record, RecordFormat, RecordReader, answered
from hasten.inputs.formats.values import as_field
from hasten.records import Place


class _LtsvReader(RecordReader):
    def records(self, lines: Lines) -> Iterator[Record]:
        number = lines.place.number
        for line in lines:
            error = lines.fault()
            pairs = [field.partition(":") for field in line.rstrip("\n").split("\t")]
            if not error and not all(colon for _, colon, _ in pairs):
                error = InputError(f"{self._name}, line {number}: a field without a name")
            values = {} if error else {name: value for name, _, value in pairs}
            yield Record(number, lines.place, values, error)
            number = lines.place.number


class Ltsv(RecordFormat):
    """See the module's docstring."""

    extensions = (".ltsv",)

    def read(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int = HEAD_ROWS,
    ) -> Reader:
        return _LtsvReader(stream, name, begin, schema, head_rows)

    def write(self, rows: Rows, answers: pa.Table, schema: pa.Schema, *, head: bool) -> bytes:
        lines = (
            "\t".join(f"{name}:{as_field(value)}" for name, value in {**values, **answer}.items())
            for values, answer in answered(rows, answers)
        )
        return "".join(f"{line}\n" for line in lines).encode()


FORMATS = (Ltsv(),)
