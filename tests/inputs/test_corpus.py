from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet

from hasten.errors import ChoiceError, InputError
from hasten.inputs.corpus import Corpus, profile, read, stratified_sample


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet_bytes(**columns: object) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


TEXTS = ["first", 'says "hi", twice\r\non two lines', "é, 東京, 🎉", "nul\x00byte", ""]
LABELS = ["007", "a", "b", "a", "c"]


def as_delimited(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    rows = [("id", "text", "label"), *zip("12345", TEXTS, LABELS, strict=True)]
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


def as_json_lines() -> bytes:
    pairs = zip(TEXTS, LABELS, strict=True)
    return b"\n".join(json.dumps({"text": t, "label": k}).encode() for t, k in pairs)


FORMATS = {
    ".csv": as_delimited(","),
    ".tsv": as_delimited("\t"),
    ".jsonl": as_json_lines(),
    ".ndjson": as_json_lines(),
    ".json": as_json_lines(),
    ".parquet": parquet_bytes(id=[1, 2, 3, 4, 5], text=TEXTS, label=LABELS),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_gives_the_same_texts_and_labels(
    tmp_path: Path, extension: str, packed: bool
) -> None:
    content = FORMATS[extension]
    path = write(tmp_path, f"reviews{extension}", content)
    if packed:
        path = write(tmp_path, f"reviews{extension}.gz", gzip.compress(content))

    corpus = read(path, text_column="text", label_column="label")

    assert corpus == Corpus(tuple(TEXTS), tuple(LABELS), str(path))
    assert read(path, limit=2) == Corpus(tuple(TEXTS[:2]), None, str(path))


def test_extensions_count_in_capitals_too(tmp_path: Path) -> None:
    assert read(write(tmp_path, "A.TXT", "a")).texts == ("a",)
    assert read(write(tmp_path, "A.TXT.GZ", gzip.compress(b"a"))).texts == ("a",)


def test_plain_lines_keep_blank_ones_and_inner_space(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one \r\n\r\n\ttwo\u2028still two\nthree")
    assert read(path).texts == ("one ", "", "\ttwo\u2028still two", "three")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "\ufefftext,y\na,1\n"),
        ("a.tsv", "\ufefftext\ty\na\t1\n"),
        ("a.jsonl", '\ufeff{"text": "a"}'),
        ("a.txt", "\ufeffa"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_first_text_or_column(
    tmp_path: Path, name: str, content: bytes | str
) -> None:
    assert read(write(tmp_path, name, content), text_column="text").texts == ("a",)


def test_semicolons_are_seen_in_the_header_and_commas_stay_in_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "avis.csv", "texte;note\r\nbon, vraiment bon;5\r\n")
    assert read(path, label_column="note") == Corpus(("bon, vraiment bon",), ("5",), str(path))


def test_missing_texts_are_empty_and_no_row_is_lost(tmp_path: Path) -> None:
    lines = '{"text": null}\n\n{"other": 1}\n{"text": "a"}\n'
    assert read(write(tmp_path, "a.jsonl", lines)).texts == ("", "", "a")
    rows = parquet_bytes(text=[None, "", "a"])
    assert read(write(tmp_path, "a.parquet", rows)).texts == ("", "", "a")


def test_lone_surrogates_become_the_replacement_character(tmp_path: Path) -> None:
    line = r'{"text": "a\ud800b \ud83d\ude00", "y": "\udfff"}'
    corpus = read(write(tmp_path, "a.jsonl", line), text_column="text", label_column="y")
    assert (corpus.texts, corpus.labels) == (("a\ufffdb 😀",), ("\ufffd",))


def test_labels_become_str(tmp_path: Path) -> None:
    lines = '{"text": "a", "y": 1}\n{"text": "b", "y": 2.5}\n{"text": "c", "y": "x"}'
    path = write(tmp_path, "a.jsonl", lines)
    assert read(path, text_column="text", label_column="y").labels == ("1", "2.5", "x")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_strings_of_every_kind(tmp_path: Path, kind: pa.DataType) -> None:
    plain = pa.array(["a", None, "é"]).cast(kind)
    path = write(tmp_path, "a.parquet", parquet_bytes(text=plain))
    assert read(path).texts == ("a", "", "é")


def test_parquet_categories(tmp_path: Path) -> None:
    coded = pa.array(["x", "y", "x"]).dictionary_encode()
    path = write(tmp_path, "a.parquet", parquet_bytes(text=coded, y=coded))
    assert read(path, label_column="y").labels == ("x", "y", "x")


def test_a_very_long_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,y\n" + "x" * 1_000_000 + ",1\n")
    assert len(read(path).texts[0]) == 1_000_000


def test_rows_beyond_those_looked_at_first_are_read_in_order(tmp_path: Path) -> None:
    texts = tuple(f"text {i}" for i in range(2500))
    path = write(tmp_path, "a.csv", "text\n" + "\n".join(texts))
    assert read(path).texts == texts
    table = write(tmp_path, "a.parquet", parquet_bytes(text=list(texts)))
    assert read(table).texts == texts
    assert read(table, limit=1500).texts == texts[:1500]


def test_the_rest_of_a_long_file_is_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"fine\n" * 5 + b"\xff\n")
    assert len(read(path, limit=5).texts) == 5


@pytest.mark.parametrize(
    ("header", "row", "label", "chosen"),
    [
        ("phrase,y", "some words,1", None, "some words"),
        ("id,title,Review,y", "1,a title,a review,0", None, "a review"),
        ("phrase,topic", "some words,sport", "topic", "some words"),
        (",text", "0,a", None, "a"),
    ],
)
def test_the_text_column_is_found_where_it_is_clear(
    tmp_path: Path, header: str, row: str, label: str | None, chosen: str
) -> None:
    path = write(tmp_path, "a.csv", f"{header}\n{row}\n")
    assert read(path, label_column=label).texts == (chosen,)


def test_the_text_column_of_parquet_is_found_by_type(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", parquet_bytes(x=[1.5], y=["words"]))
    assert read(path).texts == ("words",)


def failure(path: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("header", ["title,author", "text,body"])
def test_an_unclear_text_column_is_asked_for(tmp_path: Path, header: str) -> None:
    error = failure(write(tmp_path, "a.csv", f"{header}\nsome,words\n"))
    assert header.replace(",", ", ") in error.message
    assert error.fix == f"Name one of them, as in: --text-column {header.partition(',')[0]}"


def test_no_column_of_text(tmp_path: Path) -> None:
    assert "no column holds text" in failure(write(tmp_path, "a.csv", "x,y\n1,2.5\n")).message


@pytest.mark.parametrize("option", ["text_column", "label_column"])
@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_a_missing_column_is_named_with_those_that_exist(
    tmp_path: Path, option: str, extension: str
) -> None:
    path = write(tmp_path, f"a{extension}", FORMATS[extension])
    error = failure(path, **{option: "labels"})
    assert "'labels'" in error.message
    assert "text, label" in error.message
    assert error.fix == f"--{option.replace('_', '-')} label"


def test_a_missing_column_like_no_other_gets_one_that_holds_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,the words\n1,some\n")
    assert (
        failure(path, text_column="zzz").fix == "Name one of them, as in: --text-column 'the words'"
    )
    assert failure(path, label_column="zzz").fix == "Name one of them, as in: --label-column id"


def test_no_such_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "reviews.csv", "text\na\n")
    assert "reviews.csv" in str(failure(tmp_path / "review.csv").fix)
    assert failure(tmp_path / "zzz.parquet").fix is None
    assert "nor does its folder" in failure(tmp_path / "nowhere" / "a.csv").message


def test_a_folder_names_its_files(tmp_path: Path) -> None:
    write(tmp_path, "b.csv.gz", b"")
    write(tmp_path, "README.md", b"")
    error = failure(tmp_path)
    assert "folder" in error.message
    assert error.fix == "Name one of its files: b.csv.gz"


@pytest.mark.parametrize("name", ["a.docx", "a", "a.gz", "a.docx.gz"])
def test_an_unknown_extension_names_the_known(tmp_path: Path, name: str) -> None:
    error = failure(write(tmp_path, name, b"a"))
    assert ".csv" in str(error.fix)
    assert ".parquet" in str(error.fix)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ""),
        ("a.csv", "text,y\n"),
        ("a.csv", "\n\n"),
        ("a.jsonl", ""),
        ("a.jsonl", "\n \n"),
        ("a.txt", ""),
        ("a.txt.gz", gzip.compress(b"", mtime=0)),
        ("a.parquet", parquet_bytes(text=pa.array([], pa.string()))),
    ],
)
def test_a_file_without_rows(tmp_path: Path, name: str, content: bytes | str) -> None:
    error = failure(write(tmp_path, name, content))
    assert "has no rows" in error.message
    assert error.fix == "Name a file with texts, one a row."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,y\n ,1\n\t,2\n"),
        ("a.txt", "\n \n\u3000\n"),
        ("a.jsonl", '{"text": ""}\n{"text": null}'),
        ("a.parquet", parquet_bytes(text=pa.array([None], pa.string()))),
    ],
)
def test_blank_texts_only(tmp_path: Path, name: str, content: bytes | str) -> None:
    assert "'text' is blank in every row" in failure(write(tmp_path, name, content)).message


@pytest.mark.parametrize(
    ("name", "content", "place", "fix"),
    [
        ("a.csv", b"text,y\nok,1\nab\xe9,2\n", "line 3: the byte 0xe9 at byte offset 14", "LATIN1"),
        ("a.txt", b"\xef\xbb\xbfok\n\xc3(\n", "line 2: the byte 0xc3 at byte offset 6", "LATIN1"),
        ("a.txt", "ok".encode("utf-16"), "line 1: the byte 0xff at byte offset 0", "UTF-16"),
        (
            "a.txt",
            b"one\ntwo\n\xff\xfethree\n",
            "line 3: the byte 0xff at byte offset 8 is not valid UTF-8; in Latin-1 it is 'ÿ'",
            "If only this place is damaged",
        ),
        ("a.csv", b"text,y\nok,1\n\x1f\x8b,2\n", "line 3: the byte 0x8b", "LATIN1"),
        ("a.jsonl", b'{"text": "\xed\xa0\x80"}', "line 1: the byte 0xed at byte offset 10", "LAT"),
        (
            "a.csv",
            gzip.compress(b"text\na", mtime=0),
            "line 1: the byte 0x8b at byte offset 1",
            ".gz",
        ),
        (
            "a.parquet",
            parquet_bytes(text=pa.array([b"ok", None, b"a\xff"], pa.binary()).view(pa.string())),
            "row 3, column 'text': the byte 0xff at byte offset 1",
            "latin-1",
        ),
        (
            "a.parquet",
            parquet_bytes(text=pa.array([b"\xff\xfea"], pa.binary()).view(pa.string())),
            "row 1, column 'text': the byte 0xff at byte offset 0",
            "latin-1",
        ),
    ],
)
def test_invalid_utf8_is_placed(
    tmp_path: Path, name: str, content: bytes | str, place: str, fix: str
) -> None:
    error = failure(write(tmp_path, name, content))
    assert place in error.message
    assert fix in str(error.fix)
    assert isinstance(error.__cause__, UnicodeDecodeError)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a",}', "character 14"),
        ("{", "character 2"),
        ('["text"]', "a JSON list"),
        ('"text"', "a JSON str"),
        ("[" * 100_000, "beyond"),
        ('{"text": ' + "1" * 5000 + "}", "beyond"),
    ],
)
def test_a_broken_json_line_is_placed(tmp_path: Path, line: str, reason: str) -> None:
    error = failure(write(tmp_path, "a.jsonl", '{"text": "a"}\n\n' + line))
    assert "line 3" in error.message
    assert reason in error.message


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a,1\n"never closed,2\nb,3\n', 3),
        ('"two\nlines",1\n"clo"sed,2\n', 4),
        ("a,1\rb,2\n", 2),
    ],
)
def test_wrong_csv_quoting_is_placed_where_the_record_starts(
    tmp_path: Path, rows: str, line: int
) -> None:
    error = failure(write(tmp_path, "a.csv", "text,y\n" + rows))
    assert f"line {line}: the quoting" in error.message
    assert '""' in str(error.fix)


@pytest.mark.parametrize("row", ["a, b,2", "alone"])
def test_a_csv_row_of_another_width_is_placed(tmp_path: Path, row: str) -> None:
    error = failure(write(tmp_path, "a.csv", f"text,y\na,1\n{row}\n"))
    assert "line 3" in error.message
    assert "the header has 2" in error.message


def test_columns_that_share_a_name(tmp_path: Path) -> None:
    assert "share a name" in failure(write(tmp_path, "a.csv", "text,text\na,b\n")).message


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": 3}', "line 2"),
        ("a.parquet", parquet_bytes(text=[[1, 2]]), "row 1"),
    ],
)
def test_a_text_column_that_is_not_text(
    tmp_path: Path, name: str, content: bytes | str, place: str
) -> None:
    error = failure(write(tmp_path, name, content), text_column="text")
    assert place in error.message
    assert "is not text" in error.message


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"text": "a", "y": 1}\n{"text": "b", "y": {"z": 1}}', "line 2"),
        ("a.jsonl", '{"text": "a", "y": [["z"], {"z": 1}]}', "line 1"),
        ("a.parquet", parquet_bytes(text=["a", "b"], y=[{"z": 1}, {"z": 2}]), "row 1"),
    ],
)
def test_a_label_that_is_none(tmp_path: Path, name: str, content: bytes | str, place: str) -> None:
    error = failure(write(tmp_path, name, content), text_column="text", label_column="y")
    assert place in error.message
    assert "a label is text, a number, or a list of texts" in error.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,y\na,1\nb,\n"),
        ("a.jsonl", '{"text": "a", "y": [1]}\n{"text": "b"}'),
        ("a.parquet", parquet_bytes(text=["a", "b"], y=[1, None])),
    ],
)
def test_a_missing_label_is_the_empty_text(tmp_path: Path, name: str, content: bytes | str) -> None:
    path = write(tmp_path, name, content)
    assert read(path, text_column="text", label_column="y").labels == ("1", "")


GZIP = gzip.compress(bytes(range(1, 128)) * 50)
PARQUET = parquet_bytes(text=["a" * 50, "b"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", b"not gzip"),
        ("a.txt.gz", GZIP[:-20]),
        ("a.txt.gz", GZIP[:30] + bytes([GZIP[30] ^ 255]) + GZIP[31:]),
        ("a.parquet", b"not parquet"),
        ("a.parquet", PARQUET[: len(PARQUET) // 2]),
        ("a.parquet", PARQUET[:4] + b"\xff" * 40 + PARQUET[44:]),
        ("a.parquet.gz", gzip.compress(PARQUET)[:-30]),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    error = failure(write(tmp_path, name, content))
    assert "cannot be read" in error.message
    assert error.__cause__ is not None


def test_a_limit_below_one() -> None:
    with pytest.raises(ChoiceError):
        read("a.txt", limit=0)


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(cells, min_size=1, max_size=20))
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "n"), *((t, "x") for t in texts), ("end", "x")])
    assert read(path, text_column="text").texts == (*texts, "end")


@given(st.lists(st.text(max_size=20), min_size=1, max_size=20))
def test_json_of_any_text_can_be_encoded_afterwards(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in [*texts, "end"]))
    found = read(path).texts
    assert len(found) == len(texts) + 1
    "".join(map(str, found)).encode()


@given(st.binary(max_size=60), st.sampled_from([".csv", ".tsv", ".jsonl", ".txt", ".parquet"]))
def test_any_bytes_are_read_or_refused_in_our_words(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, extension: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{extension}"
    path.write_bytes(content)
    try:
        assert read(path).texts
    except InputError as error:
        assert str(path) in error.message  # noqa: PT017 - either outcome is right


def test_reading_loads_no_framework(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", PARQUET)
    code = (
        "import sys; from hasten.inputs.corpus import read; read(sys.argv[1]); "
        "sys.exit(bool({'torch', 'transformers', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


def test_profile() -> None:
    lengths = np.array([2, 4, 4, 9, 16, 16], dtype=np.int64)
    summary = profile(lengths, lengths == 16, max_length=16)
    assert (summary.texts, summary.tokens, summary.mean) == (6, 51, 8.5)
    assert (summary.p5, summary.p25, summary.p50, summary.p75, summary.p95) == (2, 4, 4, 16, 16)
    assert (summary.longest, summary.truncated, summary.truncated_share) == (16, 2, 1 / 3)


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 1)])
def test_profile_needs_as_many_flags_as_lengths(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="n > 0"):
        profile(np.ones(2 if shape != (0,) else 0, np.int64), np.ones(shape, np.bool_), 8)


lengths_of_texts = st.lists(st.integers(1, 512), min_size=5, max_size=200).map(
    lambda values: np.array(values, dtype=np.int64)
)
sizes = st.integers(1, 20)  # now above, now below the number of texts


@given(lengths_of_texts, sizes, st.integers(0, 2**32))
def test_a_sample_is_distinct_ordered_and_repeatable(
    lengths: NDArray[np.int64], n: int, seed: int
) -> None:
    chosen = stratified_sample(lengths, n, seed)
    assert chosen.dtype == np.int64
    assert len(chosen) == min(n, len(lengths))
    assert all(a < b for a, b in pairwise(chosen.tolist()))
    assert 0 <= chosen[0] <= chosen[-1] < len(lengths)
    assert np.array_equal(chosen, stratified_sample(lengths, n, seed))


@given(lengths_of_texts, sizes, st.integers(0, 2**32))
def test_a_sample_has_one_text_of_each_slice_of_lengths(
    lengths: NDArray[np.int64], n: int, seed: int
) -> None:
    whole = np.sort(lengths)
    sample = np.sort(lengths[stratified_sample(lengths, n, seed)])
    total, n = len(whole), len(sample)
    for k, length in enumerate(sample.tolist()):
        # The k-th of the sample lies between the ends of the k-th slice, so that every quantile
        # is within one slice of the whole's.
        assert whole[k * total // n] <= length <= whole[((k + 1) * total - 1) // n]


def test_every_text_is_taken_equally_often() -> None:
    lengths = np.arange(10, dtype=np.int64)
    counts = np.zeros(10)
    for seed in range(2000):
        counts[stratified_sample(lengths, 3, seed)] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.05  # five standard deviations


def test_equal_lengths_do_not_beat_with_the_files_order() -> None:
    # Positive and negative texts in turn, all cut to the same length.
    chosen = stratified_sample(np.full(1000, 128), 100, seed=0)
    assert 25 < np.count_nonzero(chosen % 2) < 75


def test_a_sample_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        stratified_sample(np.ones(3, np.int64), 0, seed=0)


def test_lists_of_labels_become_one_field(tmp_path: Path) -> None:
    lines = b'{"text": "a", "y": ["x", "z"]}\n{"text": "b", "y": []}\n'
    path = write(tmp_path, "lists.jsonl", lines)
    assert read(path, text_column="text", label_column="y").labels == ("x,z", "")
