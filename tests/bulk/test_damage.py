"""Rows that cannot be read or answered: what becomes of them, and that no other row suffers."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import hasten
from hasten import hardware
from hasten.bulk.source import Input, schema_text
from hasten.bulk.store import Store
from hasten.errors import EngineError, InputError
from hasten.inputs import formats
from hasten.inputs.formats import Rows
from hasten.records import BulkPlan, Receipt, Shard, Summary, Tally
from tests.scripted import Lab, save_bundle
from tests.tiny import tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(3000)


@pytest.fixture(scope="module")
def poisoned_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine raises where the letter z is in a batch, and gives NaN for texts with a q."""
    tokenizer = tiny_tokenizer()
    script = {"poison": tokenizer.token_to_id("z"), "nan_on": tokenizer.token_to_id("q")}
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": script}, precisions=("fp32",))
    lab.hardware = hardware.detect()
    return save_bundle(tmp_path_factory.mktemp("bundle") / "bundle", lab, lab.tune())


def predict(bundle: Path, given: Any, output: Any, **options: Any) -> Summary:
    return hasten.predict_file(bundle, given, output, **{"shard_rows": 50, **options})


def labels(bundle: Path, texts: list[str]) -> list[str]:
    """Each text's answer when it is alone."""
    with hasten.load(bundle) as classify:
        return [classify(text)[0]["label"] for text in texts]


def answers(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def recorded(bundle: Path, given: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """An undisturbed run that records errors; one that is stopped at every shard gives the same."""
    predict(bundle, given, output, on_error="record", **options)
    again = output.with_name(f"stopped-{output.name}")
    for _ in count():
        if _one_shard(bundle, given, again, **options):
            break
    assert again.read_bytes() == output.read_bytes()
    return answers(output)


def _one_shard(bundle: Path, given: Path, output: Path, **options: Any) -> bool:
    """Go on for some shards; whether that was all."""
    put, left = Store.put, iter(range(7))

    def puts(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return put(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", puts)
        try:
            predict(bundle, given, output, on_error="record", **options)
        except KeyboardInterrupt:
            return False
    return True


# --- Parquet ----------------------------------------------------------------------------------


def write_parquet(path: Path, *, damaged: bool, codec: str = "snappy") -> None:
    """Three row groups of 1,000 rows, 8 pages or so in each; one page in the second is damaged."""
    table = pa.table({"id": range(3000), "text": TEXTS})
    options: dict[str, Any] = {"row_group_size": 1000, "data_page_size": 4096, "compression": codec}
    parquet.write_table(
        table, path, use_dictionary=False, write_page_checksum=True, write_batch_size=100, **options
    )
    if damaged:
        column = parquet.read_metadata(path).row_group(1).column(1)
        begin = column.data_page_offset + column.total_compressed_size * 2 // 3
        with path.open("r+b") as file:
            file.seek(begin)
            file.write(bytes(64))


@pytest.mark.parametrize("codec", ["snappy", "none"])
def test_a_damaged_page_costs_the_rest_of_its_row_group(
    scripted_bundle: Path, tmp_path: Path, codec: str
) -> None:
    write_parquet(tmp_path / "in.parquet", damaged=True, codec=codec)
    given, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    rows = recorded(scripted_bundle, given, output, shard_rows=150)
    assert len(rows) == 3000
    broken = [index for index, row in enumerate(rows) if row["error"]]
    assert broken == list(range(broken[0], 2000))
    assert broken[0] >= 1000
    sound = [row for row in rows if not row["error"]]
    assert [row["id"] for row in sound] == [*range(broken[0]), *range(2000, 3000)]
    assert [row["text"] for row in sound] == [TEXTS[row["id"]] for row in sound]
    some = sound[:: len(sound) // 40]
    assert [row["label"] for row in some] == labels(scripted_bundle, [row["text"] for row in some])
    assert str(tmp_path / "in.parquet") in rows[1999]["error"]


def test_a_damaged_page_stops_the_run_by_default(scripted_bundle: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "in.parquet", damaged=True)
    with pytest.raises(InputError, match=r"in\.parquet cannot be read"):
        predict(scripted_bundle, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_cut_footer_is_one_row_among_the_other_files(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        write_parquet(folder / f"{name}.parquet", damaged=False)
    cut = folder / "b.parquet"
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"b\.parquet cannot be read"):
        predict(scripted_bundle, folder, tmp_path / "stopped.csv")
    rows = recorded(scripted_bundle, folder, tmp_path / "out.csv", shard_rows=400)
    assert len(rows) == 6001
    assert [i for i, row in enumerate(rows) if row["error"]] == [3000]
    assert "b.parquet cannot be read" in rows[3000]["error"]
    assert rows[0]["label"] == rows[3001]["label"] != ""


def test_a_parquet_file_of_other_columns_is_refused(scripted_bundle: Path, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": [1], "text": ["ba"]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"id": [1], "body": ["ba"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: its columns are id, body"):
        predict(scripted_bundle, tmp_path / "*.parquet", tmp_path / "out.csv")


def test_bytes_that_are_not_utf8_are_errors_and_pass_through(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    raw = [b"ba ke", b"\xff\xfe", None, b"li mo \xc3"]
    column = pa.array(raw, pa.binary()).view(pa.string())
    table = pa.table({"text": column, "own": column.filter(pa.array([True] * 4))})
    parquet.write_table(table, tmp_path / "in.parquet")
    options = {"text_column": "text"}
    for suffix in (".csv", ".jsonl"):
        rows = recorded(
            scripted_bundle, tmp_path / "in.parquet", tmp_path / f"out{suffix}", **options
        )
        assert [bool(row["error"]) for row in rows] == [False, True, False, True]
        assert [row["own"] or None for row in rows] == [
            "ba ke",
            "\ufffd\ufffd",
            None,
            "li mo \ufffd",
        ]
    predict(
        scripted_bundle,
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        on_error="record",
        **options,
    )
    own = parquet.read_table(tmp_path / "out.parquet")["own"].combine_chunks()
    assert own.view(pa.binary()).to_pylist() == raw
    with pytest.raises(InputError, match=r"in\.parquet, row 2, column 'text': the byte 0xff"):
        predict(scripted_bundle, tmp_path / "in.parquet", tmp_path / "stopped.csv", **options)


# --- packed -----------------------------------------------------------------------------------


LINES = ["id,text\n", *(f"{i},{text}\n" for i, text in enumerate(TEXTS))]


def packed(packing: str) -> bytearray:
    """In stretches, as `cat a.gz b.gz` makes them."""
    stretches = ("".join(LINES[i : i + 100]).encode() for i in range(0, len(LINES), 100))
    return bytearray(b"".join(formats.packed(part, packing) for part in stretches))


def cut(raw: bytearray) -> bytes:
    return bytes(raw[: len(raw) * 3 // 4])


def flipped(raw: bytearray) -> bytes:
    raw[len(raw) * 3 // 4] ^= 0x10
    return bytes(raw)


def false_sum(raw: bytearray) -> bytes:
    raw[-6] ^= 0x10
    return bytes(raw)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [cut, flipped, false_sum])
def test_of_a_damaged_packed_file_the_good_beginning_is_answered(
    scripted_bundle: Path, tmp_path: Path, packing: str, damage: Callable[[bytearray], bytes]
) -> None:
    path = tmp_path / f"in.csv{packing}"
    path.write_bytes(damage(packed(packing)))
    if packing == ".gz":
        with pytest.raises(InputError, match=rf"in\.csv{packing}"):
            predict(scripted_bundle, path, tmp_path / "stopped.csv")
        assert not (tmp_path / "stopped.csv").exists()
    rows = recorded(scripted_bundle, path, tmp_path / "out.csv", shard_rows=150)
    sound = 0
    while sound < min(len(rows), len(TEXTS)) and rows[sound]["text"] == TEXTS[sound]:
        assert not rows[sound]["error"]
        sound += 1
    if packing == ".gz":
        # A flipped bit may still unpack to something; the checksum tells in the end.
        assert "in.csv.gz cannot be read" in rows[-1]["error"]
        assert [row["id"] for row in rows[:sound]] == [str(i) for i in range(sound)]
    assert sound > 2000 if damage is not false_sum else sound >= 2990
    some = rows[: sound : sound // 20]
    assert [row["label"] for row in some] == labels(scripted_bundle, [row["text"] for row in some])


def plan_of(found: Input, rows: int) -> BulkPlan:
    return BulkPlan(
        version=1,
        bundle="x",
        sources=found.sources,
        input_format=found.extension,
        text_column="text",
        schema=schema_text(found.columns("text").schema),
        answers={},
        output_format=".csv",
        packing="",
        dataset=False,
        on_error="record",
        shard_rows=rows,
        shard_bytes=1 << 25,
        first_rows=rows,
    )


def shown(shard: Shard, rows: Rows) -> tuple[Any, ...]:
    errors = {index: error.message for index, error in rows.errors.items()}
    return shard, rows.end, list(rows.numbers), errors, list(rows.column("text"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_whoever_goes_on_in_a_damaged_file_reads_what_the_first_would_have(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Cut anywhere, any bit flipped, in one or several packed stretches: always the same rows."""
    dice = random.Random(seed)
    body = "id,text\n" + "".join(
        f"{i},{text} {dice.random()}\n"
        for i, text in enumerate(tiny_texts(dice.choice([60, 1500]), seed))
    )
    packing = dice.choice([".gz", ".zst"])
    middle = len(body) // dice.choice([1, 2])
    stretches = (body[:middle], body[middle:])
    raw = bytearray(b"".join(formats.packed(part.encode(), packing) for part in stretches))
    if dice.random() < 0.5:
        del raw[dice.randrange(len(raw) // 3, len(raw)) :]
    else:
        raw[dice.randrange(len(raw) // 3, len(raw))] ^= 1 << dice.randrange(8)
    path = tmp_path_factory.mktemp("damaged") / f"in.csv{packing}"
    path.write_bytes(raw)
    try:
        plan = plan_of(Input(str(path)), dice.choice([7, 50, 300]))
    except InputError:
        return  # not even the header can be read
    most = 1000
    whole = [shown(*pair) for pair in islice(Input(str(path)).shards(plan, {}), most)]
    assert len(whole) < most  # it ends
    for begin in {1, len(whole) // 2, len(whole) - 1} & set(range(1, len(whole))):
        done = {one[0].number: Receipt(one[0], one[1], Tally(), "", 0, "") for one in whole[:begin]}
        assert [shown(*pair) for pair in Input(str(path)).shards(plan, done)] == whole[begin:]


# --- broken records ---------------------------------------------------------------------------


BROKEN: dict[str, tuple[bytes, int, dict[int, str], list[int]]] = {
    # the file, its rows, what is wrong with which, and which texts the others have
    "quotes.csv": (
        b'id,text\n1,ba ke\n2,"li "mo" nu"\n3,po ba\n4,"ke ""li"" mo"\n',
        4,
        {1: "line 3: the quoting of the record that starts here is wrong"},
        [],
    ),
    "open.csv": (
        b'id,text\n1,ba ke\n2,"li mo\n3,po ba\n',
        2,
        {1: "line 3: the quoting of the record that starts here is wrong"},
        [],
    ),
    "fields.csv": (
        b"id,text\n1,ba ke\n2,li,mo\n3\n4,po ba\n",
        4,
        {1: "line 3: 3 fields, but the header has 2", 2: "line 4: 1 fields"},
        [],
    ),
    "bytes.csv": (
        b"id,text\n1,ba ke\n2,li \xe9 mo\n3,po ba\n",
        3,
        {1: "line 3: the byte 0xe9 at byte offset 21 is not valid UTF-8"},
        [],
    ),
    "bytes.txt": (
        b"ba ke\nli \xff\nno\n",
        3,
        {1: "line 2: the byte 0xff at byte offset 9 is not valid UTF-8"},
        [],
    ),
    "broken.jsonl": (
        b'{"text": "ba ke"}\n{"text": "li\n[1]\n{"text": 7}\n{"text": null}\n{"id": 1}\n'
        b'{"text": "po ba"}\n{"text": ' + b"[" * 100_000 + b"\n",
        8,
        {
            1: "line 2: broken JSON",
            2: "line 3: a JSON list, not an object",
            3: "line 4: the text column 'text' holds 7, which is not text",
            7: "line 8: JSON beyond what can be read",
        },
        [],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_one_row_with_an_error(
    scripted_bundle: Path, tmp_path: Path, name: str
) -> None:
    content, count_, errors, _ = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    first = errors[min(errors)]
    with pytest.raises(InputError) as caught:
        predict(scripted_bundle, path, tmp_path / "stopped.jsonl", text_column="text")
    assert f"{path}, {first}" in caught.value.message
    assert "--on-error record" in (caught.value.fix or "")
    rows = recorded(scripted_bundle, path, tmp_path / "out.jsonl", text_column="text", shard_rows=2)
    assert len(rows) == count_
    for index, row in enumerate(rows):
        if index in errors:
            assert f"{path}, {errors[index]}" in row["error"]
            assert row["label"] is None
        else:
            assert row["error"] is None
            assert row["label"] == labels(scripted_bundle, [row.get("text") or ""])[0]


def test_a_key_that_an_answer_would_replace_is_not_replaced(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    """The first thousand rows are looked at for such keys; this one comes later."""
    lines = ['{"text": "ba ke"}\n'] * 1200 + ['{"text": "li", "label": "mine", "more": 1}\n']
    path = tmp_path / "in.jsonl"
    path.write_text("".join(lines))
    with pytest.raises(InputError, match=r"line 1201: there is a 'label' already"):
        predict(scripted_bundle, path, tmp_path / "out.jsonl", shard_rows=500)
    with pytest.raises(InputError, match=r"line 1201: there is a '(label|more)', which the first"):
        predict(scripted_bundle, path, tmp_path / "out.csv", shard_rows=500)
    predict(
        scripted_bundle, path, tmp_path / "named.jsonl", columns=["label=topic"], shard_rows=500
    )
    last = answers(tmp_path / "named.jsonl")[-1]
    assert last["label"] == "mine"
    assert last["topic"] == labels(scripted_bundle, ["li"])[0]


# --- strange texts ----------------------------------------------------------------------------


STRANGE = [
    "ba ke",
    "",
    "   ",
    None,
    "NUL \0 in it",
    "\ufeffba ke",
    "half \ud83d of a character",
    "whole \U0001f600 one",
    "a\rb\r\nc\nd",
    'say "ba", ke; li\tmo',
    "\u202eright to left\u202c \u0301\u0301\u0301",
    "li mo " * 1_700_000,
    "x" * 1_000_000,
    "po ba",
]


def fit(value: str | None) -> str:
    """A text that a UTF-8 file can hold."""
    return "" if value is None else value.encode("utf-8", "replace").decode().replace("?", "?")


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".csv", pytest.param(".parquet", marks=pytest.mark.faults)]
)
def test_strange_texts_have_answers_and_harm_no_neighbour(
    scripted_bundle: Path, tmp_path: Path, suffix: str
) -> None:
    path, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    items: list[dict[str, Any]] = [{"n": n, "text": text} for n, text in enumerate(STRANGE)]
    if suffix == ".jsonl":
        wanted = items
        path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    else:
        wanted = [{"n": item["n"], "text": replaced(item["text"])} for item in items]
        if suffix == ".csv":
            wanted = [{"n": str(item["n"]), "text": item["text"] or ""} for item in wanted]
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("n", "text"), *(item.values() for item in wanted)])
        else:
            parquet.write_table(pa.Table.from_pylist(wanted), path)
    summary = predict(scripted_bundle, path, output, shard_rows=4, text_column="text")
    assert summary.total.rows == len(STRANGE)
    csv.field_size_limit(1 << 26)
    rows = answers(output)
    assert [{"n": row["n"], "text": row["text"]} for row in rows] == wanted
    texts = [replaced(text) or "" for text in STRANGE]
    assert [row["label"] for row in rows] == labels(scripted_bundle, texts)


def replaced(text: str | None) -> str | None:
    return (
        None
        if text is None
        else "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    )


def test_a_byte_order_mark_belongs_to_no_column(scripted_bundle: Path, tmp_path: Path) -> None:
    for suffix, body in (
        (".csv", "text\nba ke\n"),
        (".txt", "ba ke\n"),
        (".jsonl", '{"text": "ba ke"}\n'),
    ):
        path = tmp_path / f"in{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + body.encode())
        predict(scripted_bundle, path, tmp_path / f"{suffix[1:]}.jsonl")
        (row,) = answers(tmp_path / f"{suffix[1:]}.jsonl")
        assert row["text"] == "ba ke"


VALUES = st.one_of(
    st.none(),
    st.sampled_from(
        ["ba ke li", "", " ", "\0", "\ufeff", "\r", "a\r\nb", '"', "'", ",", "é", "😀"]
    ),
    st.text(max_size=30),
    st.text(alphabet=st.characters(categories=["Lu", "Ll", "Zs", "Cc"]), max_size=30),
)
SURROGATES = st.one_of(VALUES, st.text(alphabet=st.characters(), max_size=10))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_rows_are_each_has_its_row_and_its_own_answer(
    scripted_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    data: st.DataObject,
) -> None:
    kind = SURROGATES if suffix == ".jsonl" else VALUES
    rows = data.draw(st.lists(st.tuples(kind, kind), min_size=1, max_size=20))
    folder = tmp_path_factory.mktemp("any")
    path = folder / f"in{suffix}"
    output = folder / ("out.jsonl" if suffix == ".txt" else f"out{suffix}")
    items: list[dict[str, Any]] = [
        {"n": n, "text": text, "own": own} for n, (text, own) in enumerate(rows)
    ]
    if suffix in {".csv", ".tsv"}:
        items = [{key: "" if v is None else str(v) for key, v in item.items()} for item in items]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(
                file, delimiter="," if suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL
            )
            writer.writerows([("n", "text", "own"), *(item.values() for item in items)])
    elif suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    elif suffix == ".parquet":
        schema = pa.schema({"n": pa.int64(), "text": pa.string(), "own": pa.string()})
        parquet.write_table(pa.Table.from_pylist(items, schema), path)
    else:
        lines = [(text or "").replace("\n", " ").rstrip("\r") for text, _ in rows]
        lines[0] = lines[0].lstrip("\ufeff")
        items = [{"text": line} for line in lines]
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    predict(scripted_bundle, path, output, text_column="text", shard_rows=3)
    if suffix == ".tsv":
        with output.open(newline="", encoding="utf-8") as file:
            made: list[Any] = list(csv.DictReader(file, delimiter="\t"))
    else:
        made = answers(output)
    assert [{key: row[key] for key in items[0]} for row in made] == items
    texts = [replaced(item["text"]) or "" for item in items]
    assert [row["label"] for row in made] == labels(scripted_bundle, texts)
    shutil.rmtree(folder)


# --- poison -----------------------------------------------------------------------------------


def write_poison(path: Path) -> tuple[list[str], set[int]]:
    texts = list(TEXTS[:200])
    bad = {17, 18, 63, 190}
    for index in bad:
        texts[index] += " z"
    path.write_text("".join(f"{text}\n" for text in texts))
    return texts, bad


def test_a_poisonous_text_fails_alone(poisoned_bundle: Path, tmp_path: Path) -> None:
    texts, bad = write_poison(tmp_path / "in.txt")
    rows = recorded(poisoned_bundle, tmp_path / "in.txt", tmp_path / "out.csv")
    assert [row["text"] for row in rows] == texts
    assert {i for i, row in enumerate(rows) if row["error"]} == bad
    where = f"{tmp_path / 'in.txt'}, line 18: "
    assert rows[17]["error"] == f"{where}fake: scripted poison in a batch"
    assert rows[17]["label"] == ""
    sound = [i for i in range(200) if i not in bad]
    assert [rows[i]["label"] for i in sound] == labels(poisoned_bundle, [texts[i] for i in sound])


def test_a_poisonous_text_stops_the_run_by_default(poisoned_bundle: Path, tmp_path: Path) -> None:
    write_poison(tmp_path / "in.txt")
    with pytest.raises(EngineError, match=r"in\.txt, line 18: fake: scripted poison") as caught:
        predict(poisoned_bundle, tmp_path / "in.txt", tmp_path / "out.csv")
    assert "--on-error record" in (caught.value.fix or "")
    assert not (tmp_path / "out.csv").exists()


def test_an_output_that_is_no_number_is_no_answer(poisoned_bundle: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hasten import cli

    texts = ["ba ke", "li q mo", "po ba", "li q mo"]
    given, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    given.write_text("".join(f"{text}\n" for text in texts))
    stopped = ["predict", str(poisoned_bundle), str(given), "-o", str(tmp_path / "stopped.csv")]
    result = CliRunner().invoke(cli.app, stopped)
    assert result.exit_code == 1
    assert f"{given}, line 2: non_finite" in result.stderr
    rows = recorded(poisoned_bundle, given, output)
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert "line 4: non_finite" in rows[3]["error"]
    assert rows[1]["score"] is None
    assert [rows[i]["label"] for i in (0, 2)] == labels(poisoned_bundle, ["ba ke", "po ba"])
    assert "NaN" not in output.read_text()
