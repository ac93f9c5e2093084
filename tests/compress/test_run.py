"""hasten.compress on a tiny model: it agrees more when it was taught, and resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hasten import api
from hasten.compress import distil
from hasten.errors import BudgetError, ChoiceError, InputError, ResumeError, StorageError
from tests.tiny import save_tiny, tiny_texts

TEXTS = tiny_texts(400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps everywhere, however fast the machine is."""
    monkeypatch.setattr(distil, "time_steps", lambda lesson, count: 1.0)


def compress(model: Path, output: Path, **options: Any) -> Any:
    given = {"texts": TEXTS, "layers": 1, "budget": 70.0, **options}
    return api.compress(model, output=output, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = AutoModelForSequenceClassification.from_pretrained(folder)
    return dict(found.state_dict())


def test_a_student_is_an_ordinary_folder_and_is_compared(model: Path, tmp_path: Path) -> None:
    student = compress(model, tmp_path / "student", ffn_width=40)
    assert (student.of_layers, len(student.layers)) == (2, 1)
    assert (student.ffn_width, student.of_ffn_width) == (32, 64)
    assert student.parameter_count < student.of_parameter_count
    assert student.before.compared == student.after.compared == len(set(TEXTS)) // 5
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert loaded.config.num_hidden_layers == 1
    assert loaded.config.intermediate_size == 32
    stored = json.loads((tmp_path / "student" / "student.json").read_text())
    assert stored["steps"] == student.steps
    assert not (tmp_path / "student.training").exists()
    assert len(student.agreements) >= 1


def test_an_interrupted_run_ends_with_the_same_weights(model: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "whole")

    def stop(event: Any) -> None:
        if event.stage == "teach" and "step 33 " in event.message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "student", on_event=stop)
    with pytest.raises(ResumeError, match="ffn_width"):
        compress(model, tmp_path / "student", ffn_width=32)
    compress(model, tmp_path / "student")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "student")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"layers": 3}, ChoiceError, "has 2"),
        ({"layers": 0}, ChoiceError, "has 2"),
        ({"layers": None}, ChoiceError, "nothing"),
        ({"ffn_width": 65}, ChoiceError, "is 64"),
        ({"texts": TEXTS[:150]}, InputError, "at least 200"),
        ({"budget": 5.0}, BudgetError, "one pass"),
    ],
)
def test_what_cannot_be(
    model: Path, tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        compress(model, tmp_path / "student", **options)


def test_a_folder_that_is_there_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is there already"):
        compress(model, tmp_path)
