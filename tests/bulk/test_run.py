"""Files in, files out: what hasten predict makes of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import hasten
from hasten.bulk.progress import Meter
from hasten.bulk.store import Store
from hasten.errors import ChoiceError, InputError, ResumeError, StorageError
from hasten.records import Place, Progress, Receipt, Shard, Summary, Tally
from tests.tiny import tiny_texts

TEXTS = tiny_texts(50)


def expected(bundle: Path, texts: list[str] = TEXTS) -> list[str]:
    with hasten.load(bundle) as classify:
        return [answer["label"] for answer in classify(texts)]


def write_csv(path: Path, texts: list[str] = TEXTS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = ((i, text, f"{i:03}") for i, text in enumerate(texts))
        csv.writer(file).writerows([("id", "text", "code"), *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predict(bundle: Path, given: Any, output: Any, **options: Any) -> Summary:
    return hasten.predict_file(bundle, given, output, **{"shard_rows": 8, **options})


def test_rows_keep_their_columns_and_order_and_get_answers(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    summary = predict(scripted_bundle, write_csv(tmp_path / "a.csv"), tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "text", "code", "label", "score"]
    assert [row["code"] for row in rows] == [f"{i:03}" for i in range(50)]
    assert [row["label"] for row in rows] == expected(scripted_bundle)
    assert summary.total.rows == 50
    assert summary.shards == 7
    assert sorted(p.name for p in tmp_path.glob("*.csv*")) == ["a.csv", "out.csv"]


def as_bytes(kind: str, texts: list[str] = TEXTS) -> bytes:
    if kind == "csv":
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("text",), *((text,) for text in texts)])
        return out.getvalue().encode()
    if kind == "jsonl":
        return "".join(f"{json.dumps({'text': text})}\n" for text in texts).encode()
    if kind == "txt":
        return "".join(f"{text}\n" for text in texts).encode()
    sink = io.BytesIO()
    parquet.write_table(pa.table({"text": texts}), sink, row_group_size=20)
    return sink.getvalue()


def read_any(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if path.suffix == ".zst":
        raw = pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()
    kind = path.suffixes[0]
    if kind in {".csv", ".tsv"}:
        delimiter = "," if kind == ".csv" else "\t"
        return list(csv.DictReader(io.StringIO(raw.decode(), newline=""), delimiter=delimiter))
    if kind == ".jsonl":
        return [json.loads(line) for line in raw.decode().splitlines()]
    return list(parquet.read_table(pa.BufferReader(raw)).to_pylist())


@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet", "txt", "csv.gz", "jsonl.zst"])
@pytest.mark.parametrize("wanted", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.zst"])
def test_any_format_becomes_any_other(
    scripted_bundle: Path, tmp_path: Path, given: str, wanted: str
) -> None:
    raw = as_bytes(given.partition(".")[0])
    if given.endswith(".gz"):
        raw = gzip.compress(raw)
    if given.endswith(".zst"):
        raw = pa.compress(raw, codec="zstd", asbytes=True)
    (tmp_path / f"a.{given}").write_bytes(raw)
    predict(scripted_bundle, tmp_path / f"a.{given}", tmp_path / f"b.{wanted}")
    rows = read_any(tmp_path / f"b.{wanted}")
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == expected(scripted_bundle)
    assert all(0.0 < float(row["score"]) <= 1.0 for row in rows)


def test_parquet_keeps_the_types_of_its_columns(scripted_bundle: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(TEXTS).dictionary_encode(),
            "when": pa.array(range(50), pa.timestamp("ns")),
            "price": pa.array([None, *range(49)], pa.decimal128(9, 2)),
            "tags": pa.array([["a", "b"]] * 50),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    predict(scripted_bundle, tmp_path / "a.parquet", tmp_path / "b.parquet", text_column="text")
    written = parquet.read_table(tmp_path / "b.parquet")
    assert written.select(table.column_names).cast(table.schema).equals(table)
    predict(scripted_bundle, tmp_path / "a.parquet", tmp_path / "b.jsonl", text_column="text")
    second = read_any(tmp_path / "b.jsonl")[1]
    assert second["when"] == "1970-01-01 00:00:00.000000001"
    assert (second["price"], second["tags"]) == ("0.00", ["a", "b"])


def test_json_lines_keep_whatever_keys_each_has(scripted_bundle: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "ba", "deep": {"x": [1, None]}},
        {"text": "ke", "é": 1.5},
        {"text": None},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    predict(scripted_bundle, tmp_path / "a.jsonl", tmp_path / "b.jsonl", columns=["label"])
    labels = expected(scripted_bundle, ["ba", "ke", ""])
    written = read_any(tmp_path / "b.jsonl")
    assert written == [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]


def test_a_value_that_does_not_fit_its_column_is_placed(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    lines = [{"text": "ba", "n": i} for i in range(1200)] + [{"text": "ba", "n": "many"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"line 1201: 'n' holds many") as caught:
        predict(scripted_bundle, tmp_path / "a.jsonl", tmp_path / "b.parquet", shard_rows=1000)
    assert "jsonl" in str(caught.value.fix)


def test_a_folder_is_read_in_the_order_of_its_names_and_becomes_a_dataset(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "in" / "deep"
    inside.mkdir(parents=True)
    write_csv(tmp_path / "in" / "b.csv", TEXTS[30:])
    write_csv(inside / "a.csv", TEXTS[50:])
    write_csv(tmp_path / "in" / "a.csv", TEXTS[:30])
    (tmp_path / "in" / "_SUCCESS").touch()
    (tmp_path / "in" / ".hidden.csv").write_text("no")
    out = tmp_path / "out"
    predict(scripted_bundle, tmp_path / "in", f"{out}/", output_format="parquet")
    assert (out / "_SUCCESS").exists()
    table = parquet.ParquetDataset(out).read()
    assert table["text"].to_pylist() == TEXTS
    assert table["label"].to_pylist() == expected(scripted_bundle)
    predict(scripted_bundle, tmp_path / "in" / "?.csv", tmp_path / "o.csv")
    assert [row["text"] for row in read_csv(tmp_path / "o.csv")] == TEXTS


def test_equal_texts_are_run_once(scripted_bundle: Path, tmp_path: Path) -> None:
    texts = ["ba", "ke", "ba", "ba"]
    summary = predict(scripted_bundle, write_csv(tmp_path / "a.csv", texts), tmp_path / "b.csv")
    assert summary.total.duplicates == 2
    assert summary.total.tokens == 8
    assert [row["label"] for row in read_csv(tmp_path / "b.csv")] == expected(
        scripted_bundle, texts
    )


def test_the_answers_do_not_depend_on_the_shards(scripted_bundle: Path, tmp_path: Path) -> None:
    given = write_csv(tmp_path / "a.csv")
    for rows in (1, 7, 50):
        predict(scripted_bundle, given, tmp_path / f"{rows}.csv", shard_rows=rows)
    one, seven, fifty = ((tmp_path / f"{rows}.csv").read_text() for rows in (1, 7, 50))
    assert one == seven == fifty


def test_pipes(scripted_bundle: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    pipes = (io.BytesIO(as_bytes("txt")), out)
    summary = predict(scripted_bundle, "-", "-", input_format="txt", pipes=pipes)
    rows = [json.loads(line) for line in out.getvalue().decode().splitlines()]
    assert [row["label"] for row in rows] == expected(scripted_bundle)
    assert (summary.output, summary.total.rows) == ("-", 50)
    predict(
        scripted_bundle,
        "-",
        tmp_path / "o.csv",
        input_format="csv",
        pipes=(io.BytesIO(as_bytes("csv")), out),
    )
    assert [row["text"] for row in read_csv(tmp_path / "o.csv")] == TEXTS


def test_the_first_answers_of_a_pipe_do_not_wait_for_many_rows(scripted_bundle: Path) -> None:
    class Pipe(io.BytesIO):
        def write(self, data: Any) -> int:
            pieces.append(bytes(data).count(b"\n"))
            return super().write(data)

    pieces: list[int] = []
    texts = io.BytesIO(as_bytes("txt", TEXTS * 20))
    predict(scripted_bundle, "-", "-", input_format="txt", pipes=(texts, Pipe()), shard_rows=500)
    assert pieces == [32, 64, 128, 256, 500, 20]


def test_a_header_without_rows_gives_a_header_without_rows(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("text,id\n")
    summary = predict(scripted_bundle, tmp_path / "a.csv", tmp_path / "b.csv", text_column="text")
    assert (tmp_path / "b.csv").read_text() == "text,id,label,score\n"
    assert summary.total.rows == 0


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (["label=topic"], ["topic"]),
        (["score", "label"], ["score", "label"]),
        (["scores=all"], ["all"]),
    ],
)
def test_answers_can_be_chosen_and_named(
    scripted_bundle: Path, tmp_path: Path, columns: list[str], names: list[str]
) -> None:
    predict(scripted_bundle, write_csv(tmp_path / "a.csv"), tmp_path / "b.jsonl", columns=columns)
    first = read_any(tmp_path / "b.jsonl")[0]
    assert list(first) == ["id", "text", "code", *names]
    if "all" in names:
        assert list(first["all"]) == ["no", "yes", "maybe"]
        assert sum(first["all"].values()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        ({"columns": ["text"]}, "no answer 'text'", "label, score, scores"),
        ({"columns": ["label=code"]}, "has a column 'code'", "predicted_label"),
        ({"columns": ["label", "score=label"]}, "share a name", "of its own"),
        ({"on_error": "ignore"}, "--on-error is 'ignore'", "stop, record"),
        ({"text_column": "body"}, "no column 'body'", "--text-column"),
        ({"output_format": "jsonl"}, "contradict", "--output-format"),
        ({"shard_rows": 0}, "--shard-rows is 0", "from 1"),
        ({"input_format": "csv"}, "--input-format is for standard input", "< FILE"),
    ],
)
def test_options_that_cannot_be(
    scripted_bundle: Path, tmp_path: Path, options: dict[str, Any], message: str, fix: str | None
) -> None:
    given = write_csv(tmp_path / "a.csv")
    with pytest.raises((ChoiceError, InputError), match=message) as caught:
        predict(scripted_bundle, given, tmp_path / "b.csv", **options)
    assert (fix or "") in str(caught.value.fix)
    assert not list(tmp_path.glob("b.csv*"))


@pytest.mark.parametrize(
    ("given", "output", "message"),
    [
        ("nothing.csv", "b.csv", "does not exist"),
        ("no*.csv", "b.csv", "no file matches"),
        ("a.csv", "b.docx", "not a known format"),
        ("a.csv", "b.txt", "with answers"),
        ("a.csv", "b.parquet.gz", "packs its columns itself"),
        ("a.csv", "a.csv", "is the input itself"),
        ("only", "only/b.csv", "lie in the input"),
        ("mixed", "b.csv", "several formats"),
        ("bare", "b.csv", "no file"),
        ("-", "b.csv", "format of standard input is unknown"),
    ],
)
def test_inputs_and_outputs_that_cannot_be(
    scripted_bundle: Path, tmp_path: Path, given: str, output: str, message: str
) -> None:
    write_csv(tmp_path / "a.csv")
    (tmp_path / "bare").mkdir()
    (tmp_path / "only").mkdir()
    write_csv(tmp_path / "only" / "a.csv")
    (tmp_path / "mixed").mkdir()
    write_csv(tmp_path / "mixed" / "a.csv")
    (tmp_path / "mixed" / "a.txt").write_text("a")
    named = "-" if given == "-" else f"{tmp_path}/{given}"
    with pytest.raises((ChoiceError, InputError), match=message):
        predict(scripted_bundle, named, tmp_path / output)


def test_files_of_a_folder_must_have_the_same_columns(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("text,x\nba,1\n")
    (folder / "b.csv").write_text("x,text\n2,ke\n")
    predict(scripted_bundle, folder, tmp_path / "out.csv", text_column="text")
    assert [row["x"] for row in read_csv(tmp_path / "out.csv")] == ["1", "2"]
    (folder / "c.csv").write_text("text,y\nba,1\n")
    with pytest.raises(InputError, match=r"c\.csv: its columns are text, y"):
        predict(scripted_bundle, folder, tmp_path / "new.csv", text_column="text")


def test_a_finished_output_is_not_replaced_unless_asked(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    given = write_csv(tmp_path / "a.csv")
    for output in ("b.csv", "parts/"):
        predict(scripted_bundle, given, f"{tmp_path}/{output}")
        with pytest.raises(StorageError, match="already exists") as caught:
            predict(scripted_bundle, given, f"{tmp_path}/{output}")
        assert "--restart" in str(caught.value.fix)
        predict(scripted_bundle, given, f"{tmp_path}/{output}", restart=True, columns=["score"])
    assert "label" not in read_csv(tmp_path / "b.csv")[0]


def test_a_folder_of_somebody_else_is_left_alone(scripted_bundle: Path, tmp_path: Path) -> None:
    given = write_csv(tmp_path / "a.csv")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.csv").write_text("mine")
    with pytest.raises(StorageError, match="is not the output of such a run"):
        predict(scripted_bundle, given, tmp_path / "thesis", restart=True)
    (tmp_path / "b.csv.parts").mkdir()
    (tmp_path / "b.csv.parts" / "chapter.csv").write_text("mine")
    with pytest.raises(StorageError, match="is not the output of such a run"):
        predict(scripted_bundle, given, tmp_path / "b.csv", restart=True)


class Killed(BaseException):
    """Stands for whatever ends a process."""


def interrupt(bundle: Path, given: Path, output: Path, after: int, **options: Any) -> None:
    """Begin a run, and end it when so many shards have been put."""
    real, count = Store.put, 0

    def put(self: Store, *arguments: Any) -> Any:
        nonlocal count
        if count == after:
            raise Killed
        count += 1
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "put", put)
        with pytest.raises(Killed):
            predict(bundle, given, output, **options)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt"])
def test_an_interrupted_run_goes_on_where_it_stopped(
    scripted_bundle: Path, tmp_path: Path, kind: str
) -> None:
    given = tmp_path / f"a.{kind}"
    given.write_bytes(as_bytes(kind))
    predict(scripted_bundle, given, tmp_path / "whole.parquet")
    for after in range(7):
        interrupt(scripted_bundle, given, tmp_path / "b.parquet", after)
        assert not (tmp_path / "b.parquet").exists()
        summary = predict(scripted_bundle, given, tmp_path / "b.parquet")
        assert summary.kept_rows == 8 * after
        assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        (tmp_path / "b.parquet").unlink()


def test_what_was_begun_otherwise_is_not_continued(scripted_bundle: Path, tmp_path: Path) -> None:
    given, output = write_csv(tmp_path / "a.csv"), tmp_path / "b.csv"
    interrupt(scripted_bundle, given, output, 2)
    with pytest.raises(ResumeError, match=r"--columns was label=label,score=score and is label=x"):
        predict(scripted_bundle, given, output, columns=["label=x"])
    with given.open("a") as file:
        file.write("50,more,050\n")
    with pytest.raises(ResumeError, match=r"a\.csv had 3,\d{3} bytes and has 3,\d{3}") as caught:
        predict(scripted_bundle, given, output)
    assert "--restart" in str(caught.value.fix)
    assert predict(scripted_bundle, given, output, restart=True).total.rows == 51


def test_a_pipe_cannot_be_continued(scripted_bundle: Path, tmp_path: Path) -> None:
    def pipes() -> tuple[io.BytesIO, io.BytesIO]:
        return io.BytesIO(as_bytes("txt")), io.BytesIO()

    output = tmp_path / "b.csv"
    interrupt(scripted_bundle, Path("-"), output, 2, input_format="txt", pipes=pipes())
    with pytest.raises(ResumeError, match="pipe"):
        predict(scripted_bundle, "-", output, input_format="txt", pipes=pipes())
    assert (
        predict(
            scripted_bundle, "-", output, input_format="txt", pipes=pipes(), restart=True
        ).total.rows
        == 50
    )


def test_progress_tells_how_far_it_is(scripted_bundle: Path, tmp_path: Path) -> None:
    now = iter([0.0, 10.0, 10.0])
    told: list[Any] = []
    meter = Meter(100, told.append, lambda: next(now))
    receipt = Receipt(Shard(0, 0, Place()), Place(25, 9), Tally(8, 1, 2, 60, 80), "part", 1, "")
    meter.arrived(receipt)
    assert told == [
        Progress(
            "predict",
            "8 rows, 1 rows/s, 6 tokens/s, 25 % padding, 2 duplicates, 1 error",
            0.25,
            30.0,
        )
    ]
