"""What surrounds a run: other streams, other types, and inputs that change or hold its output."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import sys
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

import hasten
from hasten import cli, hardware
from hasten.bulk.store import Store
from hasten.engines.fake import COLUMNS
from hasten.errors import ChoiceError, InputError, StorageError
from hasten.storage import durable
from tests.bulk.test_run import expected, interrupt, predict, read_any, read_csv, write_csv
from tests.scripted import INFO, Lab, save_bundle, save_reference
from tests.tiny import tiny_texts, tiny_tokenizer


def test_a_program_without_standard_streams_can_predict_files(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    predict(scripted_bundle, write_csv(tmp_path / "a.csv"), tmp_path / "b.csv")
    assert len(read_csv(tmp_path / "b.csv")) == 50


def test_answers_come_while_the_pipe_is_still_open(scripted_bundle: Path) -> None:
    given, typed = os.pipe()
    answered, shown = os.pipe()
    with (
        os.fdopen(typed, "wb", 0) as typing,
        os.fdopen(given, "rb") as source,
        os.fdopen(answered, "rb", 0) as reading,
        os.fdopen(shown, "wb", 0) as target,
    ):
        run = threading.Thread(
            target=predict,
            args=(scripted_bundle, "-", "-"),
            kwargs={"input_format": "txt", "pipes": (source, target), "shard_rows": 500},
        )
        run.start()
        texts = tiny_texts(32)
        typing.write("".join(f"{text}\n" for text in texts).encode())
        lines = b""
        while lines.count(b"\n") < 32:
            lines += reading.read(65536)
        typing.close()
        run.join()
    labels = [json.loads(line)["label"] for line in lines.splitlines()]
    assert labels == expected(scripted_bundle, texts)


ARROW = {
    "flag": (pa.bool_(), True, True),
    "half": (pa.float16(), 0.5, 0.5),
    "single": (pa.float32(), 0.1, 0.1),
    "double": (pa.float64(), 0.1, 0.1),
    "nan": (pa.float64(), float("nan"), None),
    "infinite": (pa.float32(), float("inf"), None),
    "money": (pa.decimal128(9, 2), Decimal("1.50"), "1.50"),
    "day": (pa.date32(), date(2020, 2, 29), "2020-02-29"),
    "moment": (pa.timestamp("us", "UTC"), datetime(2020, 1, 2, tzinfo=UTC), None),
    "span": (pa.duration("s"), timedelta(seconds=5), None),
    "raw": (pa.binary(), b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
    "fixed": (pa.binary(2), b"ab", base64.b64encode(b"ab").decode()),
    "list": (pa.list_(pa.float32()), [0.1, None], [0.1, None]),
    "wide": (pa.large_list(pa.string()), ["a"], ["a"]),
    "vector": (pa.list_(pa.int8(), 2), [1, 2], [1, 2]),
    "deep": (
        pa.struct([("x", pa.list_(pa.binary()))]),
        {"x": [b"a"]},
        {"x": [base64.b64encode(b"a").decode()]},
    ),
    "map": (pa.map_(pa.string(), pa.int32()), [("k", 1)], {"k": 1}),
    "word": (pa.dictionary(pa.int8(), pa.string()), "ba", "ba"),
    "big": (pa.large_string(), "ba", "ba"),
}


@pytest.mark.parametrize("wanted", [".jsonl", ".csv", ".parquet"])
def test_every_type_of_parquet_can_be_kept(
    scripted_bundle: Path, tmp_path: Path, wanted: str
) -> None:
    columns = {name: pa.array([value, None], kind) for name, (kind, value, _) in ARROW.items()}
    parquet.write_table(pa.table({"text": ["ba", "ke"], **columns}), tmp_path / "a.parquet")
    output = tmp_path / f"b{wanted}"
    predict(scripted_bundle, tmp_path / "a.parquet", output, text_column="text")
    first, second = read_any(output)
    assert all(second[name] in (None, "") for name in ARROW)
    if wanted == ".jsonl":
        for name, (_, _, told) in ARROW.items():
            if name not in {"moment", "span"}:
                assert first[name] == told, name
        assert "2020-01-02" in first["moment"]
    if wanted == ".parquet":
        table = parquet.read_table(output).select(list(ARROW))
        assert table.slice(1).to_pylist() == [dict.fromkeys(ARROW)]
        assert table["map"].to_pylist()[0] == [("k", 1)]


def test_json_without_numbers_for_it_becomes_null(scripted_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ba", "x": NaN, "y": [1e999]}\n')
    predict(scripted_bundle, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert "NaN" not in (tmp_path / "b.jsonl").read_text()
    row = read_any(tmp_path / "b.jsonl")[0]
    assert (row["x"], row["y"]) == (None, [None])


def test_rows_that_cannot_be_read_are_null_where_the_file_has_no_nulls(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
    folder = tmp_path / "in"
    folder.mkdir()
    parquet.write_table(pa.table({"text": ["ba"]}, schema), folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[:-20])
    predict(scripted_bundle, folder, tmp_path / "out.parquet", on_error="record")
    assert parquet.read_table(tmp_path / "out.parquet")["text"].to_pylist() == ["ba", None]


def test_files_whose_columns_have_other_types(scripted_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    parquet.write_table(pa.table({"text": ["ba"], "n": [1]}), folder / "a.parquet")
    narrow = pa.table({"n": pa.array([2], pa.int32()), "text": ["ke"]})
    parquet.write_table(narrow, folder / "b.parquet")
    predict(scripted_bundle, folder, tmp_path / "o.parquet", text_column="text")
    assert parquet.read_table(tmp_path / "o.parquet")["n"].to_pylist() == [1, 2]
    parquet.write_table(pa.table({"text": ["ba"], "n": [[1]]}), folder / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet: its column 'n' is list.*it is int64"):
        predict(scripted_bundle, folder, tmp_path / "p.parquet", text_column="text")


def test_long_values_of_any_type_make_small_shards(scripted_bundle: Path, tmp_path: Path) -> None:
    raw = pa.array([bytes(4 << 20)] * 9)
    parquet.write_table(pa.table({"text": ["ba"] * 9, "raw": raw}), tmp_path / "a.parquet")
    summary = hasten.predict_file(
        scripted_bundle, tmp_path / "a.parquet", tmp_path / "b.parquet", text_column="text"
    )
    assert summary.shards > 1


@pytest.mark.parametrize("pattern", ["*.csv", "**/*.csv"])
def test_an_output_that_would_match_its_own_pattern_is_refused(
    scripted_bundle: Path, tmp_path: Path, pattern: str
) -> None:
    write_csv(tmp_path / "a.csv")
    with pytest.raises(InputError, match="lie in the input"):
        predict(scripted_bundle, tmp_path / pattern, tmp_path / "out.csv")


def test_what_an_interrupted_run_left_is_no_input(scripted_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    interrupt(scripted_bundle, write_csv(folder / "a.csv"), folder / "b.jsonl", 2)
    assert list(folder.glob("b.jsonl.parts/*.jsonl"))
    for given in (folder, folder / "**" / "*"):
        summary = predict(scripted_bundle, given, tmp_path / "out.csv", restart=True)
        assert summary.total.rows == 50


def test_an_input_that_changes_under_the_run_is_told(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_csv(tmp_path / "a.csv")
    real = Store.put

    def put(self: Store, *arguments: Any) -> Any:
        with given.open("a") as file:
            file.write("51,late,051\n")
        return real(self, *arguments)

    monkeypatch.setattr(Store, "put", put)
    with pytest.raises(InputError, match="the input changed while it was read") as caught:
        predict(scripted_bundle, given, tmp_path / "b.csv")
    assert "--restart" in str(caught.value.fix)
    assert not (tmp_path / "b.csv").exists()


def scripted(tmp_path: Path, lab: Lab) -> Path:
    lab.hardware = hardware.detect()
    return save_bundle(tmp_path / "bundle", lab, lab.tune())


def test_a_tokenizer_that_makes_nothing_of_an_empty_text(tmp_path: Path) -> None:
    reference = save_reference(tmp_path / "lab" / "reference")
    stored = json.loads(reference.folder.joinpath("tokenizer.json").read_text())
    stored["post_processor"] = None
    reference.folder.joinpath("tokenizer.json").write_text(json.dumps(stored))
    bundle = scripted(tmp_path, Lab(tmp_path / "lab", {"*": {}}, precisions=("fp32",)))
    texts = ["ba", "", "ke"]
    answers = expected(bundle, texts)
    assert answers[::2] == [expected(bundle, ["ba"])[0], expected(bundle, ["ke"])[0]]
    predict(bundle, write_csv(tmp_path / "a.csv", texts), tmp_path / "b.csv")
    assert [row["label"] for row in read_csv(tmp_path / "b.csv")] == answers


def test_a_shard_without_any_answer_has_as_many_columns_as_the_others(tmp_path: Path) -> None:
    info = replace(INFO, task="tensors", labels=(), output_names=("output",))
    save_reference(tmp_path / "lab" / "reference", info)
    poison = tiny_tokenizer().token_to_id("z")
    lab = Lab(tmp_path / "lab", {"*": {"poison": poison}}, precisions=("fp32",))
    bundle = scripted(tmp_path, lab)
    given = write_csv(tmp_path / "a.csv", ["z a", "z b", "ba", "ke"])
    predict(bundle, given, tmp_path / "b.parquet", on_error="record", shard_rows=2)
    vectors = parquet.read_table(tmp_path / "b.parquet")["embedding"].to_pylist()
    assert vectors[:2] == [None, None]
    assert [len(vector) for vector in vectors[2:]] == [COLUMNS, COLUMNS]


def test_the_same_answer_twice(scripted_bundle: Path, tmp_path: Path) -> None:
    given = write_csv(tmp_path / "a.csv")
    with pytest.raises(ChoiceError, match="names 'label' twice"):
        predict(scripted_bundle, given, tmp_path / "b.csv", columns=["label=x", "label=y"])
    (tmp_path / "c.csv").write_text("text,text\nba,ke\n")
    with pytest.raises(InputError, match=r"c\.csv has two columns 'text'"):
        predict(scripted_bundle, tmp_path / "c.csv", tmp_path / "d.csv")


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_csv(folder / "b.csv", tiny_texts(20))
    return folder


def test_an_empty_file_in_a_folder_has_no_rows(scripted_bundle: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for name in ("a.csv", "c.csv"):
        (folder / name).touch()
    assert predict(scripted_bundle, folder, tmp_path / "o.csv").total.rows == 20


def test_a_file_with_other_columns_is_told_before_anything_is_done(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path)
    (folder / "z.csv").write_text("text,extra\nba,1\n")
    with pytest.raises(InputError, match=r"z\.csv: its columns are text, extra"):
        predict(scripted_bundle, folder, f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()


def test_a_part_that_was_altered_is_told_at_once_and_can_be_made_again(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    given, output = write_csv(tmp_path / "a.csv"), tmp_path / "b.csv"
    interrupt(scripted_bundle, given, output, 3)
    part = tmp_path / "b.csv.parts" / "part-00001.csv"
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(StorageError, match=r"part-00001\.csv is missing or has been") as caught:
        interrupt(scripted_bundle, given, output, 0)
    for path in re.findall(r"'([^']+)'", str(caught.value.fix)):
        Path(path).unlink()
    predict(scripted_bundle, given, output)
    predict(scripted_bundle, given, tmp_path / "whole.csv")
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_link_stays_a_link(scripted_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "b.csv").symlink_to(tmp_path / "disk" / "b.csv")
    predict(scripted_bundle, write_csv(tmp_path / "a.csv"), tmp_path / "b.csv")
    assert (tmp_path / "b.csv").is_symlink()
    assert len(read_csv(tmp_path / "disk" / "b.csv")) == 50


def test_a_pipe_with_a_name_is_told_how_to_be_read(scripted_bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="not a file but a pipe") as caught:
        predict(scripted_bundle, tmp_path / "a.csv", tmp_path / "b.csv")
    assert "--input-format" in str(caught.value.fix)


@pytest.mark.parametrize("empty", ["input", "output", "bundle"])
def test_an_empty_name_is_not_the_current_folder(
    scripted_bundle: Path, tmp_path: Path, empty: str
) -> None:
    given: dict[str, Path | str]
    given = {"bundle": scripted_bundle, "input": tmp_path / "a.csv", "output": tmp_path / "b.csv"}
    given[empty] = ""
    with pytest.raises(ChoiceError, match="is empty"):
        hasten.predict_file(given["bundle"], given["input"], given["output"])


def test_the_advice_for_taken_names_can_be_followed(scripted_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,score\nba,x,1\n")
    options = {"text_column": "text"}
    with pytest.raises(ChoiceError) as caught:
        predict(scripted_bundle, tmp_path / "a.csv", tmp_path / "b.csv", **options)
    advised = str(caught.value.fix).rpartition(" ")[2].split(",")
    predict(scripted_bundle, tmp_path / "a.csv", tmp_path / "b.csv", columns=advised, **options)
    assert read_csv(tmp_path / "b.csv")[0]["predicted_score"]


def test_integers_beyond_64_bits_are_text_in_parquet(scripted_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ba", "n": 123456789012345678901}\n')
    predict(scripted_bundle, tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert parquet.read_table(tmp_path / "b.parquet")["n"].to_pylist() == ["123456789012345678901"]


@pytest.mark.parametrize("data", [pa.array(["ba", None]), pa.chunked_array([["ba"], [None]])])
def test_a_bare_column_of_texts(scripted_bundle: Path, data: Any) -> None:
    table = pa.Table.from_batches(list(hasten.predict(scripted_bundle, data)))
    assert table["label"].to_pylist() == expected(scripted_bundle, ["ba", ""])


def test_a_series_of_texts(scripted_bundle: Path) -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(["ba", "ke"])
    table = pa.Table.from_batches(list(hasten.predict(scripted_bundle, series)))
    assert table["label"].to_pylist() == expected(scripted_bundle, ["ba", "ke"])


def test_what_the_system_refuses_is_no_traceback(tmp_path: Path, scripted_bundle: Path) -> None:
    given = write_csv(tmp_path / "a.csv")
    long = str(tmp_path / f"{'x' * 300}.csv")
    result = CliRunner().invoke(
        cli.app, ["predict", str(scripted_bundle), str(given), "-o", long, "--text-column", "text"]
    )
    assert result.exit_code == 2
    assert "File name too long" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "Free some space"), (errno.EACCES, "choose another -o")]
)
def test_advice_fits_what_keeps_it_from_writing(code: int, advice: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, durable.storing(tmp_path):
        raise OSError(code, os.strerror(code))
    assert advice in str(caught.value.fix)
