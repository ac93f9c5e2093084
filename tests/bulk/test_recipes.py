"""The recipes of docs/predict.md for other engines of data work: they run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hasten
from tests.tiny import tiny_texts

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"
TEXTS = tiny_texts(20)


def recipe(engine: str) -> str:
    """The code below the heading that names the engine."""
    section = PAGE.read_text(encoding="utf-8").partition(f"### {engine}\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, engine
    return found[1]


@pytest.mark.parametrize("engine", ["Polars", "pandas", "DuckDB"])
def test_a_recipe_answers_every_row(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    (tmp_path / "reviews.csv").write_text(
        "id,text\n" + "".join(f"{number},{text}\n" for number, text in enumerate(TEXTS))
    )
    (tmp_path / "bundle").symlink_to(scripted_bundle)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(recipe(engine), scope)
    rows = scope["answered"]
    with hasten.load("bundle") as classify:
        expected = [answer["label"] for answer in classify(TEXTS)]
    got = rows.fetchall() if engine == "DuckDB" else rows["label"].to_list()
    labels = [row[1]["label"] for row in got] if engine == "DuckDB" else got
    assert labels == expected
