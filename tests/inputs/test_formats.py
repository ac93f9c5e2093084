"""Rows are the same wherever reading begins, and come back as they were written."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import PurePath

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from hasten.inputs import formats
from hasten.inputs.formats import Reader, Rows
from hasten.inputs.formats.records import Lines, Records
from hasten.inputs.formats.values import as_field, as_json, to_values, type_of
from hasten.records import Place


def written(extension: str, texts: list[str]) -> bytes:
    if extension == ".parquet":
        sink = io.BytesIO()
        parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), sink, 3)
        return sink.getvalue()
    if extension == ".jsonl":
        rows = ({"id": i, "text": text} for i, text in enumerate(texts))
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if extension == ".txt":
        return "".join(f"{text}\n" for text in texts).encode()
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="," if extension == ".csv" else "\t").writerows(
        [("id", "text"), *enumerate(texts)]
    )
    return out.getvalue().encode()


def opened(extension: str, raw: bytes, begin: Place = Place(), schema: pa.Schema = None) -> Reader:  # noqa: B008
    return formats.by_extension()[extension].read(io.BytesIO(raw), "a", begin, schema)


def drained(reader: Reader, rows: int, size: int | None = None) -> list[Rows]:
    taken = []
    while len(one := reader.take(rows, size)):
        taken.append(one)
    return taken


def texts_of(rows: Rows) -> list[object]:
    values = rows.column("text")
    return [value.decode() if isinstance(value, bytes) else value for value in values]


extensions = st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"])
cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(extensions, st.lists(cells, min_size=1, max_size=12), st.integers(1, 5))
def test_reading_can_begin_wherever_rows_ended(extension: str, texts: list[str], size: int) -> None:
    raw = written(extension, texts)
    reader = opened(extension, raw)
    shards = drained(reader, size)
    assert [text for shard in shards for text in texts_of(shard)] == texts
    assert all(one.end == other.begin for one, other in pairwise(shards))
    for shard in shards:
        again = opened(extension, raw, shard.begin, reader.schema).take(size)
        assert texts_of(again) == texts_of(shard)
        assert (again.numbers[0], again.end) == (shard.numbers[0], shard.end)


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
def test_large_rows_make_small_shards(extension: str) -> None:
    texts = ["x" * 100] * 3 + ["y" * 1000] + ["z"] * 4
    shards = drained(opened(extension, written(extension, texts)), 100, 300)
    assert [len(shard) for shard in shards][:2] == [3, 1]
    assert sum(len(shard) for shard in shards) == 8


@given(st.sampled_from([".csv", ".tsv", ".jsonl"]), st.lists(cells, min_size=1, max_size=8))
def test_what_is_written_is_read_back(extension: str, texts: list[str]) -> None:
    kind = formats.by_extension()[extension]
    reader = opened(extension, written(extension, texts))
    rows = reader.take(100)
    answers = pa.table({"label": pa.array(texts[::-1]), "score": pa.array([0.1] * len(texts))})
    whole = kind.write(rows, answers, reader.schema, head=True)
    again = opened(extension, whole).take(100)
    assert texts_of(again) == texts
    assert list(again.column("label")) == texts[::-1]


def test_parts_without_heads_join_to_one_file() -> None:
    for extension in (".csv", ".jsonl"):
        kind = formats.by_extension()[extension]
        reader = opened(extension, written(extension, ["a", "b", "c"]))
        parts = [
            kind.write(
                shard, pa.table({"label": ["x"] * len(shard)}), reader.schema, head=index == 0
            )
            for index, shard in enumerate(drained(reader, 2))
        ]
        for packing in ("", ".gz", ".zst"):
            whole = io.BytesIO()
            kind.join((io.BytesIO(formats.packed(part, packing)) for part in parts), whole)
            raw = whole.getvalue()
            if packing == ".zst":
                raw = pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()
            if packing == ".gz":
                raw = pa.CompressedInputStream(pa.BufferReader(raw), "gzip").read()
            assert texts_of(opened(extension, raw).take(9)) == ["a", "b", "c"]


def test_a_bare_carriage_return_survives_csv() -> None:
    rows = opened(".jsonl", b'{"text": "a\\rb"}\n').take(1)
    raw = formats.by_extension()[".csv"].write(
        rows, pa.table({"label": ["x"]}), pa.schema([("text", pa.string())]), head=True
    )
    assert texts_of(opened(".csv", raw).take(1)) == ["a\rb"]


def test_broken_rows_are_rows() -> None:
    raw = b'text,n\nok,1\n\xff,2\nshort\n"a"b,4\nlast,5\n'
    rows = opened(".csv", raw).take(10)
    assert isinstance(rows, Records)
    assert rows.numbers == [2, 3, 4, 5, 6]
    assert sorted(rows.errors) == [1, 2, 3]
    assert texts_of(rows) == ["ok", None, None, None, "last"]


def test_a_line_without_end_is_one_broken_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.inputs.formats.records.LONGEST_LINE", 10)
    rows = opened(".txt", b"short\n" + b"x" * 35 + b"\nlast\n").take(9)
    assert rows.column("text") == ["short", None, "last"]
    assert "36 bytes" in rows.errors[1].message


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([1, 2.5, None], "double"),
        ([True, None], "bool"),
        ([True, 1], "string"),
        (["a", 1], "string"),
        ([{"a": 1}], "string"),
        ([None], "string"),
    ],
)
def test_types_of_json_columns(values: list[object], kind: str) -> None:
    assert str(type_of(values)) == kind


def test_values_for_json() -> None:
    assert as_field({"a": [1, None]}) == '{"a": [1, null]}'
    assert as_json("\ud800é") == '"\\ud800\\u00e9"'
    assert as_json("é") == '"é"'
    column = pa.array([{"x": 0.1}, None], pa.struct([("x", pa.float32())]))
    assert to_values(column) == [{"x": 0.1}, None]
    assert to_values(pa.array([b"\x00", None])) == ["AA==", None]
    assert to_values(pa.array([[1], None, []])) == [[1], None, []]


def test_extensions() -> None:
    assert formats.extension(PurePath("a.CSV.GZ")) == ".csv"
    assert formats.packing(PurePath("a.csv.zst")) == ".zst"
    assert formats.packing(PurePath("a.csv")) == ""


def test_what_a_file_is_stands_at_its_beginning_for_all_its_lines() -> None:
    lines = Lines(io.BytesIO("ok\nyé\n".encode("utf-16")), "a.txt")
    fixes = []
    for _ in lines:
        fault = lines.fault()
        fixes += [fault.fix] if fault else []
    assert len(fixes) == 2  # the line breaks and the text between them are ASCII and NUL
    assert all("iconv -f UTF-16 -t UTF-8 a.txt > NEW" in str(fix) for fix in fixes)
    lines = Lines(io.BytesIO(b"ok\n" + "ok".encode("utf-16")), "my {file}.txt")
    first, *_ = lines
    assert first == "ok\n"
    fault = lines.fault()
    assert fault
    assert "UTF-16" not in str(fault)
    assert "iconv -f LATIN1 -t UTF-8 'my {file}.txt' > NEW" in str(fault.fix)
    assert "line 2: the byte 0xff at byte offset 3" in fault.message
