"""Files in, files out: what hasten predict makes of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.records import Summary
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
