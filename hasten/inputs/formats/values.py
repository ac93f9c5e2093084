"""Values on their way from one format to another."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

_INT64 = np.iinfo(np.int64)

_SURROGATES = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """``text`` with U+FFFD for halves of characters, which have no UTF-8 form.

    >>> whole("a" + chr(0xD800))
    'a\ufffd'
    """
    return _SURROGATES.sub("\ufffd", text)


def as_json(value: object) -> str:
    """A value as JSON on one line, in plain characters where they have a UTF-8 form."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN, or what is too large for a number, from somebody's JSON
        value = _finite(value)
        text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or not _SURROGATES.search(text) else json.dumps(value)


def _finite(value: object) -> object:
    """The same with null for numbers that JSON has no name for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def as_field(value: object) -> str:
    """A value as one field of a delimited file: null is empty, lists and objects are JSON."""
    if value is None:
        return ""
    return whole(value) if isinstance(value, str) else as_json(value)


def looks_like_text(values: Iterable[object]) -> bool:
    """Whether a value is text and no number. Blanks and nulls tell nothing; only they: text."""
    filled = [v for v in values if v is not None and not (isinstance(v, str) and not v.strip())]
    return not filled or any(isinstance(v, str) and not _is_number(v) for v in filled)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def is_string(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, as categories or otherwise."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind) in {"string", "large_string", "string_view"}


def type_of(values: Iterable[object]) -> pa.DataType:
    """The Arrow type for a column of JSON values; of mixed ones, string, which holds their JSON.

    >>> type_of([1, None, 2.5]), type_of([1, "a"]), type_of([[1]])
    (DataType(double), DataType(string), DataType(string))
    """
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        fits = all(_INT64.min <= value <= _INT64.max for value in known if isinstance(value, int))
        return pa.int64() if fits else pa.string()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


def to_column(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """JSON values as an Arrow array of a type that :func:`type_of` gives.

    Raises:
        ArrowException, OverflowError: a value that the type cannot hold.
    """
    if pa.types.is_string(kind):
        return pa.array([None if v is None else as_field(v) for v in values], kind)
    return pa.array(values, kind)


def to_objects(table: pa.Table) -> Iterator[dict[str, object]]:
    """The rows of a table as values that JSON can hold."""
    columns = [to_values(column) for column in table.columns]
    names = table.column_names
    if not columns:
        return
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


def to_values(column: pa.ChunkedArray | pa.Array) -> list[object]:
    """A column as values that JSON can hold: times and decimals as text, bytes in base 64.

    A single-precision number becomes the shortest decimal that stands for it: 0.1, not the
    0.10000000149011612 that it is in double precision.

    >>> to_values(pa.array([[0.1, None]], pa.list_(pa.float32())))
    [[0.1, None]]
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array.type, pa.BaseExtensionType):
        return to_values(array.storage)
    kind = str(array.type).partition("<")[0].partition("[")[0]
    if kind == "dictionary":
        return to_values(array.dictionary_decode())
    if kind in {"float", "halffloat", "double"}:
        return _numbers(array)
    if kind == "struct":
        return _structs(array)
    if kind == "map":
        return [None if item.values is None else _pairs(item.values) for item in array]
    if "list" in kind:
        return [None if item.values is None else to_values(item.values) for item in array]
    if pa.types.is_temporal(array.type) or pa.types.is_decimal(array.type):
        return list(array.cast(pa.string()).to_pylist())
    if "binary" in kind:
        raw = array.to_pylist()
        return [None if value is None else b64encode(value).decode() for value in raw]
    return _texts(array) if is_string(array.type) else list(array.to_pylist())


def _numbers(array: pa.Array) -> list[object]:
    """Numbers; what is none, or infinite, JSON has no name for, and it becomes null."""
    if pa.types.is_float64(array.type):
        values = array.to_pylist()
    else:
        texts = array.cast(pa.float32()).cast(pa.string()).to_pylist()
        values = [None if text is None else float(text) for text in texts]
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _pairs(entries: pa.Array) -> dict[str, object]:
    """A map as an object."""
    pairs = _structs(entries)
    return {str(pair["key"]): pair["value"] for pair in pairs if isinstance(pair, dict)}


def _texts(array: pa.Array) -> list[object]:
    """Texts as they are; Parquet may hold bytes that are not UTF-8, which become U+FFFD."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        raw = array.cast(pa.large_string()).view(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="replace") for value in raw]


def _structs(array: pa.StructArray) -> list[object]:
    names = [field.name for field in array.type]
    fields = [to_values(array.field(name)) for name in names]
    rows: Iterable[Mapping[str, object]] = (
        dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)
    )
    return [
        row if there else None
        for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]
