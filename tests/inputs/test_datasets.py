"""``datasets.Dataset`` wherever texts are taken; the library itself is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from hasten.bulk.stream import _tables
from hasten.errors import InputError
from hasten.inputs.datasets import texts_of


class Rows:
    """As much of ``datasets.Dataset`` as is used."""

    def __init__(self, **columns: list[Any]) -> None:
        self._table = pa.table(columns)
        self.column_names = self._table.column_names

    def __getitem__(self, name: str) -> list[Any]:
        values: list[Any] = self._table[name].to_pylist()
        return values

    def with_format(self, kind: str) -> Rows:
        assert kind == "arrow"
        return self

    def iter(self, batch_size: int) -> Iterator[pa.Table]:
        yield from (pa.Table.from_batches([b]) for b in self._table.to_batches(batch_size))


def test_columns_with_the_usual_names_are_taken() -> None:
    assert texts_of(Rows(text=["a", "b"], label=[0, 1])) == ["a", "b"]
    assert texts_of(Rows(text=["a"], text_pair=["b"])) == [("a", "b")]
    assert texts_of(Rows(question=["a"], context=["b"], text=["c"])) == [("a", "b")]
    assert texts_of(["a"]) == ["a"]
    with pytest.raises(InputError, match=r"columns review, label[^\n]*\n.*dataset\['NAME'\]"):
        texts_of(Rows(review=["a"], label=[1]))


def test_a_dataset_is_read_in_tables() -> None:
    tables = list(_tables(Rows(text=[str(number) for number in range(1500)])))
    assert [len(table) for table in tables] == [1024, 476]
    assert tables[1]["text"][-1].as_py() == "1499"
