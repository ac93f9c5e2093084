"""Parquet: columns with types, which rows keep on their way through."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from hasten.errors import InputError
from hasten.inputs.formats.base import HEAD_ROWS, UNREADABLE, Format, Reader, Rows
from hasten.inputs.formats.tables import TableRows, refuse_other_types, row_bytes
from hasten.inputs.formats.values import is_string
from hasten.records import Place

_CHUNK = 1024


class _ParquetReader(Reader):
    def __init__(
        self, stream: IO[bytes], name: str, begin: Place, schema: pa.Schema | None
    ) -> None:
        from pyarrow import parquet  # here, as no other format needs it: it takes 60 ms

        self._file = parquet.ParquetFile(stream, page_checksum_verification=True)
        self._name = name
        self._place = begin
        # Rows that cannot be read have nulls, whatever the file says of its columns.
        fields = self._file.schema_arrow.remove_metadata()
        self._schema = pa.schema([field.with_nullable(True) for field in fields])
        self.columns = tuple(self._schema.names)
        if schema is not None:
            refuse_other_types(name, self._schema, schema)
        self.text_columns = tuple(f.name for f in self._schema if is_string(f.type))
        metadata = self._file.metadata
        groups = range(metadata.num_row_groups)
        self._ends = list(accumulate(metadata.row_group(i).num_rows for i in groups))
        self._chunks: Iterator[pa.Table] | None = None
        self._rest: pa.Table | None = None

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def take(
        self, max_rows: int, max_bytes: int | None = None, columns: Sequence[str] | None = None
    ) -> TableRows:
        if self._chunks is None:
            self._chunks = self._from_here(columns)
        taken: list[pa.Table] = []
        size = 0
        while max_rows and (max_bytes is None or size < max_bytes):
            chunk = self._next_chunk(bool(taken))
            if chunk is None:
                break
            count = min(len(chunk), max_rows)
            if max_bytes is not None:
                sizes = row_bytes(chunk.slice(0, count))
                count = min(count, int(np.searchsorted(sizes, max_bytes - size)) + 1)
                size += int(sizes[count - 1])
            taken.append(chunk.slice(0, count))
            self._rest = chunk.slice(count) if count < len(chunk) else None
            max_rows -= count
        return self._given(pa.concat_tables(taken) if taken else self._schema.empty_table())

    def give_up(self, error: InputError, max_rows: int) -> TableRows:
        """The rest of the row group; the next one has pages of its own."""
        end = self._ends[bisect_right(self._ends, self._place.offset)]
        count = min(end - self._place.offset, max_rows)
        nothing = [pa.nulls(count, field.type) for field in self._schema]
        self._chunks = self._rest = None
        return self._given(
            pa.table(nothing, schema=self._schema), dict.fromkeys(range(count), error)
        )

    def _given(self, table: pa.Table, errors: Mapping[int, InputError] | None = None) -> TableRows:
        rows = TableRows(self._name, self._place, table, errors or {})
        self._place = rows.end
        return rows

    def _next_chunk(self, some: bool) -> pa.Table | None:
        """The next rows; where they cannot be read, none as long as there are ``some``."""
        if self._rest is not None:
            return self._rest
        assert self._chunks is not None
        try:
            return next(self._chunks, None)
        except UNREADABLE:
            self._chunks = None  # the next call meets the same trouble at its first row
            if some:
                return None
            raise

    def _from_here(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        first = bisect_right(self._ends, self._place.offset)
        wanted = None if columns is None else list(dict.fromkeys(columns))
        skipped = self._place.offset - (self._ends[first - 1] if first else 0)
        for group in range(first, len(self._ends)):
            for batch in self._file.iter_batches(_CHUNK, row_groups=[group], columns=wanted):
                chunk = pa.Table.from_batches([batch]).replace_schema_metadata()
                if skipped < len(chunk):
                    yield chunk.slice(skipped)
                skipped = max(skipped - len(chunk), 0)


class Parquet(Format):
    """See the module's docstring."""

    extensions = (".parquet",)
    seeks = True
    holds_answers = True

    def extent(self, path: Path) -> int:
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)

    def read(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int = HEAD_ROWS,
    ) -> Reader:
        return _ParquetReader(stream, name, begin, schema)

    def write(self, rows: Rows, answers: pa.Table, schema: pa.Schema, *, head: bool) -> bytes:
        from pyarrow import parquet

        table = rows.table(schema)
        for name in answers.column_names:
            table = table.append_column(answers.schema.field(name), answers.column(name))
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()

    def join(self, parts: Iterable[IO[bytes]], whole: IO[bytes]) -> None:
        from pyarrow import parquet

        with ExitStack() as closed:
            writer = None
            for part in parts:
                table = parquet.read_table(part)
                if writer is None:
                    writer = closed.enter_context(parquet.ParquetWriter(whole, table.schema))
                writer.write_table(table)


FORMATS = (Parquet(),)
