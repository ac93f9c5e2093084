"""Rows of Arrow tables, from Parquet or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hasten.errors import InputError
from hasten.inputs.formats.base import Rows
from hasten.inputs.formats.values import is_string, to_objects
from hasten.records import Place

_NUMBER_BYTES = 8


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
        if self._table.schema.equals(schema):
            return self._table
        refuse_other_types(self.name, self._table.schema, schema)
        try:
            return self._table.select(schema.names).cast(schema)
        except pa.ArrowException as error:
            raise InputError(
                f"{self.name}: a value does not fit the type that its column has in the first "
                f"file: {error}",
                fix="Predict it in a run of its own.",
            ) from error

    def objects(self) -> Iterable[Mapping[str, object]]:
        return to_objects(self._table)


def row_bytes(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """About how many bytes the first row has, the first two rows, and so on; a row has some."""
    sizes = np.ones(len(table), np.int64)
    for column in table.columns:
        lengths = _bytes_of(column)
        if lengths is not None:
            sizes += pc.fill_null(lengths, 0).to_numpy().astype(np.int64)
    return np.cumsum(sizes)


def _bytes_of(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """About how many bytes each value has, of types whose values may be large."""
    kind = column.type
    if is_string(kind):
        return pc.binary_length(column.cast(pa.large_string()))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pc.multiply(pc.list_value_length(column), _NUMBER_BYTES)
    if pa.types.is_fixed_size_list(kind):
        return pa.chunked_array([np.full(len(column), kind.list_size * _NUMBER_BYTES)])
    return None


def refuse_other_types(name: str, own: pa.Schema, wanted: pa.Schema) -> None:
    """Make sure that a file has the columns of the first one, of types that become theirs.

    Raises:
        InputError: it has not; the message says which.
    """
    if set(own.names) != set(wanted.names):
        raise InputError(
            f"{name}: its columns are {', '.join(own.names)}, and those of the first file "
            f"{', '.join(wanted.names)}",
            fix="Predict it in a run of its own.",
        )
    for field in wanted:
        try:
            pa.array([], own.field(field.name).type).cast(field.type)
        except pa.ArrowException as error:
            raise InputError(
                f"{name}: its column {field.name!r} is {own.field(field.name).type}, and in the "
                f"first file it is {field.type}",
                fix="Predict it in a run of its own.",
            ) from error
