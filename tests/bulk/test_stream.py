"""Texts and Arrow data in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import hasten
from hasten.errors import ChoiceError, InputError
from tests.tiny import tiny_texts

TEXTS = tiny_texts(3000)


def test_texts_of_any_iterable(scripted_bundle: Path) -> None:
    with hasten.load(scripted_bundle) as classify:
        labels = [answer["label"] for answer in classify(TEXTS)]
        batches = list(hasten.predict(classify, iter(TEXTS)))
    table = pa.Table.from_batches(batches)
    assert table.column_names == ["text", "label", "score"]
    assert table["text"].to_pylist() == TEXTS
    assert table["label"].to_pylist() == labels


def test_arrow_data_keeps_its_columns(scripted_bundle: Path) -> None:
    table = pa.table({"id": range(3000), "body": TEXTS})
    expected = pa.Table.from_batches(list(hasten.predict(scripted_bundle, TEXTS)))["label"]
    for data in (table, table.to_reader(max_chunksize=100), table.combine_chunks().to_batches()[0]):
        answered = pa.Table.from_batches(list(hasten.predict(scripted_bundle, data)))
        assert answered.column_names == ["id", "body", "label", "score"]
        assert answered.select(["id", "body"]).equals(table)
        assert answered["label"].to_pylist() == expected.to_pylist()


def test_it_begins_before_the_data_has_ended(scripted_bundle: Path) -> None:
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        while True:
            drawn += 1
            yield TEXTS[drawn % 3000]

    answered = hasten.predict(scripted_bundle, endless())
    assert isinstance(answered, Generator)
    assert len(next(answered)) == 8192
    answered.close()
    assert drawn < 10 * 8192


def test_nothing_gives_nothing(scripted_bundle: Path) -> None:
    assert list(hasten.predict(scripted_bundle, [])) == []


@pytest.mark.parametrize("data", ["a text", b"bytes", {"text": "a"}, [1], ["a", None]])
def test_what_is_no_text(scripted_bundle: Path, data: object) -> None:
    with pytest.raises(InputError, match="must be"):
        list(hasten.predict(scripted_bundle, data))


def test_columns_are_named_as_for_files(scripted_bundle: Path) -> None:
    table = pa.table({"text": ["ba"], "label": ["x"]})
    with pytest.raises(ChoiceError, match="'label'"):
        list(hasten.predict(scripted_bundle, table, text_column="text"))
    named = hasten.predict(scripted_bundle, table, text_column="text", columns=["label=topic"])
    assert next(named).schema.names == ["text", "label", "topic"]
