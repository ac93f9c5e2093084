"""Plain lines: each is a text, blank ones too. There is no place for answers in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from hasten.errors import ChoiceError
from hasten.inputs.formats.base import HEAD_ROWS, Reader, Rows
from hasten.inputs.formats.records import Lines, Record, RecordFormat, RecordReader
from hasten.records import Place


class _PlainReader(RecordReader):
    def open(self) -> None:
        self.columns = ("text",)

    def records(self, lines: Lines) -> Iterator[Record]:
        number = lines.place.number
        for line in lines:
            error = lines.fault()
            values = {} if error else {"text": line.removesuffix("\n").removesuffix("\r")}
            yield Record(number, lines.place, values, error)
            number = lines.place.number


class Plain(RecordFormat):
    """See the module's docstring."""

    extensions = (".txt",)
    holds_answers = False

    def read(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int = HEAD_ROWS,
    ) -> Reader:
        return _PlainReader(stream, name, begin, schema, 0)  # its one column is known

    def write(self, rows: Rows, answers: pa.Table, schema: pa.Schema, *, head: bool) -> bytes:
        raise ChoiceError(
            "plain lines have no place for answers beside the texts",
            fix="Write .csv, .tsv, .jsonl or .parquet.",
        )


FORMATS = (Plain(),)
