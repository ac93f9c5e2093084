"""The recipes of docs/predict.md for other engines of data work: they run as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hasten
from tests.tiny import tiny_texts

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"
TEXTS = [*tiny_texts(20), ""]  # a missing text is an empty one


def recipe(engine: str) -> str:
    """The code below the heading that names the engine."""
    section = PAGE.read_text(encoding="utf-8").partition(f"### {engine}\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, engine
    return found[1]


# What each leaves in `answered`, as a list of labels.
LABELS = {
    "Polars": "answered['label'].to_list()",
    "pandas": "answered['label'].to_list()",
    "DuckDB": "[row[1]['label'] for row in answered.fetchall()]",
}


@pytest.mark.parametrize("engine", LABELS)
def test_a_recipe_answers_every_row(scripted_bundle: Path, tmp_path: Path, engine: str) -> None:
    rows = "".join(f"{number},{text}\n" for number, text in enumerate(TEXTS))
    (tmp_path / "reviews.csv").write_text("id,text\n" + rows)
    (tmp_path / "bundle").symlink_to(scripted_bundle)
    # In a process of its own: some of these libraries complain at the end of one that is tested.
    program = f"{recipe(engine)}\nimport json\nprint(json.dumps({LABELS[engine]}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with hasten.load(scripted_bundle) as classify:
        assert json.loads(done.stdout) == [answer["label"] for answer in classify(TEXTS)]
