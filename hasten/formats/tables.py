"""Rows of Arrow tables, from Parquet or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hasten.errors import InputError
from hasten.formats.base import Rows
from hasten.formats.values import is_string, to_objects
from hasten.records import Place


class TableRows(Rows):
    """Rows of an Arrow table."""

    unit = "row"

    end: Place

    def __init__(
        self, name: str, begin: Place, table: pa.Table, errors: Mapping[int, InputError]
    ) -> None:
        self.name, self._table = name, table
        self.begin = begin
        self.end = Place(begin.offset + len(table), begin.number + len(table))
        self.numbers = range(begin.number, self.end.number)
        self.errors = errors

    def column(self, name: str) -> Sequence[object]:
        column = self._table.column(name)
        if is_string(column.type):
            # As bytes, which nobody has checked: decoding them one by one tells which is broken.
            column = column.cast(pa.large_string()).combine_chunks()
            column = column.view(pa.large_binary())
        return list(column.to_pylist())

    def table(self, schema: pa.Schema) -> pa.Table:
        if not self._table.schema.equals(schema):
            raise InputError(
                f"{self.name}: its columns are not those of the first file",
                fix="Predict it in a run of its own.",
            )
        return self._table

    def objects(self) -> Iterable[Mapping[str, object]]:
        return to_objects(self._table)


def text_bytes(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Bytes of text in the first row, the first two rows, and so on; a row has at least one."""
    sizes = np.ones(len(table), np.int64)
    for column in table.columns:
        if is_string(column.type):
            lengths = pc.binary_length(column.cast(pa.large_string()))
            sizes += pc.fill_null(lengths, 0).to_numpy()
    return np.cumsum(sizes)
