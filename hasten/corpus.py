"""Texts and labels from a file, and how long the texts are.

A format is one function that opens a :class:`_Table`: the columns there are, which of them hold
text, and the rows of some of them. What follows, choosing a column and turning values into texts
and labels, is the same for all formats. ``docs/text.md`` is this module's page for users.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hasten.errors import ChoiceError, InputError
from hasten.records import LengthProfile

TEXT_COLUMNS = ("text", "texte", "sentence", "content", "review", "comment", "body", "document")
"""Names by which a text column is known without asking, in any mixture of capitals."""

_HEAD = 1000  # rows that are looked at before a column is chosen
_Rows = Iterator[tuple[int, tuple[object, ...]]]  # line or row number, values
_SURROGATES = re.compile("[\ud800-\udfff]")
_UTF16 = "This is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW"
_NOT_UTF8 = {  # the bytes with which it starts, what to do
    codecs.BOM_UTF16_LE: _UTF16,
    codecs.BOM_UTF16_BE: _UTF16,
    b"\x1f\x8b": "This is gzip: add .gz to the file's name.",
    b"": "If the file is Latin-1, convert it: iconv -f LATIN1 -t UTF-8 OLD > NEW",
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts in the file's order, with one label each if labels were asked for."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    source: str


@dataclass(frozen=True, slots=True)
class _Table:
    """An open file: its columns, those that hold text, and the rows of some columns.

    ``rows(names)`` yields ``(number, values)``; ``number`` counts the file's lines or rows, as
    ``unit`` says, from 1. Values are str, UTF-8 bytes, None, or whatever else the column holds.
    """

    path: Path
    unit: str
    columns: tuple[str, ...]
    text_columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], _Rows]


def read(
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """Read texts, and labels if ``label_column`` is given, from one file.

    The extension names the format: ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson``, ``.json`` (JSON
    Lines), ``.parquet`` and ``.txt`` (one text per line), each also with ``.gz`` behind it.
    A missing text (null, an absent key) is the empty text, so that rows are neither lost nor
    moved; lone surrogates, which only JSON escapes can bring in, become U+FFFD.

    Args:
        path: the file.
        text_column: which column holds the texts. Without it: the only one that holds text, or
            else the only one of those whose name is among :data:`TEXT_COLUMNS`.
        label_column: which column holds the labels. Numbers become their decimal notation.
        limit: read the first ``limit`` rows only; the rest of a long file is not looked at.

    Raises:
        InputError: the file cannot be found or read, a column is missing or cannot be told, a
            row is broken, or there is no text that is more than blanks.
        ChoiceError: ``limit`` is below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ChoiceError(f"the number of texts to read must be at least 1, not {limit}")
    open_table = _format_of(path)
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            table = open_table(path, cast("IO[bytes]", stream))
            text = _text_column(table, text_column, label_column)
            texts, labels = _collect(table, text, label_column, limit)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(
            f"{path} cannot be read: {reason}",
            fix="Check its permissions, and that it is complete; else write it again.",
        ) from error
    if not any(text and not text.isspace() for text in texts):
        raise InputError(
            f"{path}: the column {text!r} is blank in every row ({len(texts)} read)",
            fix=f"Columns: {_listed(table.columns)}. Choose another with --text-column NAME.",
        )
    return Corpus(texts, labels, str(path))


def profile(
    lengths: NDArray[np.int64],
    truncated: NDArray[np.bool_],
    max_length: int,
    *,
    given: int | None = None,
) -> LengthProfile:
    """Summarise how long texts are.

    Args:
        lengths: int64 [n], tokens per text after truncation, special tokens included.
        truncated: bool [n], whether the text was longer than the model takes.
        max_length: the most tokens that the model takes.
        given: how many texts there are, where these are a sample of them.

    Returns:
        A profile whose percentiles are lengths that occur: ``p95`` is the smallest length that
        at least 95 % of the texts do not exceed (the inverse of the distribution function, type 1
        in Hyndman and Fan, Sample Quantiles in Statistical Packages, 1996).

    Raises:
        ValueError: there are no texts, or the arrays differ in shape.

    >>> profile(np.array([3, 4, 8, 8]), np.array([False, False, False, True]), 8).p50
    4
    """
    if lengths.ndim != 1 or lengths.shape != truncated.shape or not lengths.size:
        raise ValueError(f"need [n] and [n] with n > 0, not {lengths.shape}, {truncated.shape}")
    p5, p25, p50, p75, p95 = np.percentile(lengths, (5, 25, 50, 75, 95), method="inverted_cdf")
    return LengthProfile(
        texts=lengths.size,
        tokens=int(lengths.sum()),
        mean=float(lengths.mean()),
        p5=int(p5),
        p25=int(p25),
        p50=int(p50),
        p75=int(p75),
        p95=int(p95),
        longest=int(lengths.max()),
        truncated=int(truncated.sum()),
        max_length=max_length,
        given=lengths.size if given is None else given,
    )


def stratified_sample(lengths: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Choose texts whose lengths are distributed as those of all texts.

    Systematic sampling (Cochran, Sampling Techniques, chapter 8): along the texts in order of
    length, every ``len(lengths) / n``-th from a random start. The k-th of ``n`` equal slices of
    that order gives exactly one text, and every text is equally likely to be taken.

    Args:
        lengths: int64 [texts].
        n: how many to choose, at least 1.
        seed: the same seed gives the same sample.

    Returns:
        int64 [min(n, texts)], distinct indices into ``lengths`` in ascending order.

    Raises:
        ValueError: ``n`` is below 1.

    >>> lengths = np.array([9, 1, 9, 1, 9, 1])
    >>> lengths[stratified_sample(lengths, 2, seed=0)]
    array([9, 1])
    """
    if n < 1:
        raise ValueError(f"a sample needs at least 1 text, not {n}")
    total = lengths.size
    if n >= total:
        return np.arange(total, dtype=np.int64)
    rng = np.random.default_rng(seed)
    # Equal lengths are shuffled: a file that alternates between two kinds of text would else
    # beat in time with the fixed step, and one kind would be missed.
    order = np.lexsort((rng.random(total), lengths))
    # In integers, floor((start + k * total) / n) is exact and never reaches `total`.
    places = (rng.integers(total) + np.arange(n, dtype=np.int64) * total) // n
    return np.sort(order[places]).astype(np.int64)


def _format_of(path: Path) -> Callable[[Path, IO[bytes]], _Table]:
    if path.is_dir():
        files = [p.name for p in sorted(path.iterdir()) if _extension(p) in _FORMATS]
        raise InputError(
            f"{path} is a folder, and a file with texts is wanted",
            fix=f"Name one of its files: {', '.join(files[:5])}" if files else None,
        )
    if not path.exists():
        folder = path.parent
        there = [p.name for p in sorted(folder.iterdir())] if folder.is_dir() else []
        close = difflib.get_close_matches(path.name, there, n=3)
        raise InputError(
            f"there is no file {path}" + ("" if folder.is_dir() else f", and no folder {folder}"),
            fix=f"Did you mean {' or '.join(close)}?" if close else None,
        )
    if _extension(path) not in _FORMATS:
        raise InputError(
            f"{path}: the extension {path.suffix!r} names no format that can be read",
            fix=f"Known: {', '.join(_FORMATS)}, each also with .gz. Rename or convert the file.",
        )
    return _FORMATS[_extension(path)]


def _extension(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower()


def _text_column(table: _Table, wanted: str | None, label_column: str | None) -> str:
    if not table.columns:
        raise _no_rows(table.path)
    if len(set(table.columns)) < len(table.columns):
        raise InputError(
            f"{table.path}: two columns share a name: {_listed(table.columns)}",
            fix="Give every column a name of its own.",
        )
    for option, name in (("--text-column", wanted), ("--label-column", label_column)):
        if name is not None and name not in table.columns:
            close = difflib.get_close_matches(name, table.columns, n=1)
            raise InputError(
                f"{table.path} has no column {name!r}; it has: {_listed(table.columns)}",
                fix=f"{option} {close[0] if close else 'NAME'}",
            )
    if wanted is not None:
        return wanted
    holding = [name for name in table.text_columns if name != label_column]
    named = [name for name in holding if name.lower() in TEXT_COLUMNS]
    for found in (holding, named):
        if len(found) == 1:
            return found[0]
    raise InputError(
        f"{table.path}: {'several columns hold' if holding else 'no column holds'} text, so which "
        f"one to read cannot be told; columns: {_listed(table.columns)}",
        fix="--text-column NAME",
    )


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(_SURROGATES.sub("\ufffd", name) or "''" for name in columns)


def _collect(
    table: _Table, text: str, label: str | None, limit: int | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    texts: list[str] = []
    labels: list[str] = []
    names = (text,) if label is None else (text, label)
    for number, values in islice(table.rows(names), limit):
        texts.append(_as_text(values[0], table, number, text))
        if label is not None:
            labels.append(_as_label(values[1], table, number, label))
    if not texts:
        raise _no_rows(table.path)
    return tuple(texts), tuple(labels) if label is not None else None


def _as_text(value: object, table: _Table, number: int, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return _decoded(value, f"{table.path}, {table.unit} {number}, column {column!r}")
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    raise InputError(
        f"{table.path}, {table.unit} {number}: the text column {column!r} holds "
        f"{str(value)[:60]}, which is not text",
        fix=f"Columns: {_listed(table.columns)}. Choose another with --text-column NAME.",
    )


def _as_label(value: object, table: _Table, number: int, column: str) -> str:
    if isinstance(value, str | bytes) and value:
        return _as_text(value, table, number, column)
    if isinstance(value, int | float):
        return str(value)
    found = f"holds {str(value)[:60]}" if value else "is empty"
    raise InputError(
        f"{table.path}, {table.unit} {number}: the label column {column!r} {found}, and a label "
        "is text or a number",
        fix="Complete the labels, or leave --label-column out.",
    )


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path} is empty: there are no texts in it", fix="Name a file with texts.")


def _decoded(raw: bytes, place: str, offset: int = 0) -> str:
    """``raw`` as text; ``offset`` is where it starts, for the message."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        fixes = (fix for start, fix in _NOT_UTF8.items() if raw.startswith(start))
        raise InputError(
            f"{place}: the byte 0x{raw[error.start]:02x} at byte offset {offset + error.start} "
            "is not valid UTF-8",
            fix=next(fixes),
        ) from error


def _lines(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """Lines with their ends. Offsets count the bytes of the unpacked file."""
    offset = 0
    for number, raw in enumerate(stream, 1):
        line = _decoded(raw, f"{path}, line {number}", offset)
        offset += len(raw)
        yield line.removeprefix("\ufeff") if number == 1 else line


def _looks_like_text(values: Iterable[object]) -> bool:
    """Whether a value is text and no number. Blanks and nulls tell nothing; only they: text."""
    filled = [v for v in values if v is not None and not (isinstance(v, str) and not v.strip())]
    return not filled or any(isinstance(v, str) and not _is_number(v) for v in filled)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _open_plain(path: Path, stream: IO[bytes]) -> _Table:
    def rows(names: Sequence[str]) -> _Rows:
        for number, line in enumerate(_lines(path, stream), 1):
            yield number, (line.removesuffix("\n").removesuffix("\r"),) * len(names)

    return _Table(path, "line", ("text",), ("text",), rows)


def _open_csv(path: Path, stream: IO[bytes]) -> _Table:
    lines = _lines(path, stream)
    first = next(lines, "")
    # Spreadsheets set to a decimal comma write semicolons; the header tells which it is.
    delimiter = max(",;\t", key=first.count)
    return _delimited(path, chain([first], lines), delimiter)


def _open_tsv(path: Path, stream: IO[bytes]) -> _Table:
    return _delimited(path, _lines(path, stream), "\t")


def _delimited(path: Path, lines: Iterable[str], delimiter: str) -> _Table:
    records = _records(path, lines, delimiter)
    _, header = next(records, (0, []))
    head = list(islice(records, _HEAD))
    # `zip` stops at a short record's end; `rows` is where its width is checked.
    columns: dict[str, list[str]] = {name: [] for name in header}
    for _, record in head:
        for name, value in zip(header, record, strict=False):
            columns[name].append(value)

    def rows(names: Sequence[str]) -> _Rows:
        places = [header.index(name) for name in names]
        for number, record in chain(head, records):
            if len(record) != len(header):
                raise InputError(
                    f"{path}, line {number}: {len(record)} fields, but the header has "
                    f"{len(header)}",
                    fix="Put texts that contain the delimiter or a line break in double quotes.",
                )
            yield number, tuple(record[place] for place in places)

    holding = tuple(name for name, values in columns.items() if _looks_like_text(values))
    return _Table(path, "line", tuple(header), holding, rows)


def _records(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line on which each starts; blank lines are none."""
    # The limit of 131,072 characters guards programs that read strangers' files line by line; a
    # long document is no attack here. It belongs to the whole process: raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    # The standard library rather than pyarrow: `strict` finds wrong quotes, which pyarrow reads
    # as something else, and nothing guesses types ("007" stays a label).
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {number}: the quoting of the record that starts here is wrong "
                f"({str(error).partition(' - ')[0]})",
                fix='Double the quotes inside a quoted field: "say ""hello"" to them".',
            ) from error
        if record is None:
            return
        if record:
            yield number, record


def _open_json_lines(path: Path, stream: IO[bytes]) -> _Table:
    objects = _objects(path, _lines(path, stream))
    head = list(islice(objects, _HEAD))
    columns = dict.fromkeys(key for _, item in head for key in item)

    def rows(names: Sequence[str]) -> _Rows:
        for number, item in chain(head, objects):
            yield number, tuple(item.get(name) for name in names)

    holding = (name for name in columns if _looks_like_text(item.get(name) for _, item in head))
    return _Table(path, "line", tuple(columns), tuple(holding), rows)


def _objects(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """JSON objects with their line numbers; blank lines are none."""
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            yield number, _object(line, f"{path}, line {number}")


def _object(line: str, place: str) -> dict[str, object]:
    fix = (
        'Every line must be one object, such as {"text": "..."}. A JSON array is rewritten by: '
        "jq -c '.[]' OLD.json > NEW.jsonl"
    )
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.colno}"
        raise InputError(f"{place}: broken JSON ({what})", fix=fix) from error
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits; 100,000 brackets
        raise InputError(f"{place}: JSON beyond what can be read ({error})", fix=fix) from error
    if not isinstance(item, dict):
        raise InputError(f"{place}: a JSON {type(item).__name__}, not an object", fix=fix)
    return item


def _open_parquet(path: Path, stream: IO[bytes]) -> _Table:
    from pyarrow import parquet  # here, as no other format needs it: it takes 60 ms

    file = parquet.ParquetFile(stream)

    def rows(names: Sequence[str]) -> _Rows:
        numbers = count(1)
        for batch in file.iter_batches(batch_size=_HEAD, columns=list(set(names))):
            columns = [_values(batch.column(name)) for name in names]
            yield from zip(numbers, zip(*columns, strict=True), strict=False)

    schema = file.schema_arrow
    holding = (field.name for field in schema if _is_string(field.type))
    return _Table(path, "row", tuple(schema.names), tuple(holding), rows)


def _is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind) in {"string", "large_string", "string_view"}


def _values(column: pa.Array) -> list[object]:
    if _is_string(column.type):
        # As bytes, which nobody has checked: decoding them one by one tells which is broken.
        column = column.cast(pa.large_string()).view(pa.large_binary())
    return list(column.to_pylist())


_FORMATS: Mapping[str, Callable[[Path, IO[bytes]], _Table]] = {
    ".csv": _open_csv,
    ".tsv": _open_tsv,
    ".jsonl": _open_json_lines,
    ".ndjson": _open_json_lines,
    ".json": _open_json_lines,
    ".parquet": _open_parquet,
    ".txt": _open_plain,
}
