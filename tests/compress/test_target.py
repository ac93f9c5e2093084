"""A speed instead of sizes, and a share of flipped labels instead of a speed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten import api, tasks
from hasten.compress import distil, target
from hasten.compress.search import RUNGS
from hasten.compress.sizes import Wanted
from hasten.errors import BudgetError, ChoiceError
from hasten.judging.parity import compare
from hasten.records import Student
from hasten.tasks import Outputs
from tests.tiny import save_tiny, tiny_texts

WANTED = Wanted(None, None, 1000.0, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def scripted_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block takes a part in proportion to its width, and nothing else takes any time."""

    def seconds(model: Any, batch_size: int, length: int) -> float:
        config = model.config
        block_s = 16 + config.intermediate_size
        return float(1e-6 * batch_size * length * config.num_hidden_layers * block_s)

    monkeypatch.setattr(target, "_seconds", seconds)
    monkeypatch.setattr(distil, "time_steps", lambda lesson, count: 100.0)


def test_a_speed_decides_the_sizes(model: Path, tmp_path: Path) -> None:
    student = api.compress(
        model, tiny_texts(400), output=tmp_path / "student", budget=7000.0, target="1.6x"
    )
    sizes = len(student.layers), student.ffn_width
    # Of two blocks of 64 units: one whole block is twice as fast, and two of 32 are 1.67 times.
    assert sizes in {(1, 64), (2, 32)}
    assert student.predicted_speed == pytest.approx({(1, 64): 2.0, (2, 32): 80 / 48}[sizes])


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        ({"target": "9x"}, "9 times as fast", "At most --target 5x"),
        ({"target": "fast"}, "'fast'", "2x, 3x"),
        ({"target": 0.5}, "0.5", "2x, 3x"),
        ({"target": 2, "layers": 1}, "--layers", "Leave one"),
        ({"target": 2, "target_flips": 0.1}, "--target-flips", "Leave one"),
        ({"target_flips": 2.0}, "--target-flips is 2", "0.02"),
    ],
)
def test_targets_that_cannot_be(
    model: Path, tmp_path: Path, options: dict[str, Any], message: str, fix: str
) -> None:
    with pytest.raises(ChoiceError, match=message) as caught:
        api.compress(model, tiny_texts(400), output=tmp_path / "s", budget=7000.0, **options)
    assert fix in str(caught.value.fix)


def student_of(agreement: float) -> Student:
    parity = compare(
        Outputs.of_rows(np.eye(3)),
        Outputs.of_rows(np.eye(3)),
        task=tasks.get("single_label"),
        labels="abc",
        texts="xyz",
    )
    return Student((0,), 2, 8, 8, 1, 2, 9, 9, (), parity, parity, 1.0, agreement=agreement)


class Maker:
    """Makes students whose agreement falls with the speed."""

    def __init__(self, agreements: list[float]) -> None:
        self.students = {
            speed: student_of(agreement)
            for speed, agreement in zip(RUNGS, agreements, strict=False)
        }
        self.made: list[Wanted] = []

    def __call__(self, wanted: Wanted, *, work: Path) -> Any:
        self.made.append(wanted)
        (work / "student").mkdir(exist_ok=True)
        (work / "student" / "speed").write_text(str(wanted.target))
        assert wanted.target is not None
        return self.students[wanted.target]


def test_the_strongest_that_still_agrees_stays(tmp_path: Path) -> None:
    maker = Maker([0.99, 0.98, 0.97, 0.9])
    student = target.fastest_within(0.03, WANTED, maker, work=tmp_path, begin_s=time.monotonic())
    assert [wanted.target for wanted in maker.made] == list(RUNGS[:4])
    assert (tmp_path / "student" / "speed").read_text() == str(RUNGS[2])
    assert student.agreement == 0.97
    shares = [wanted.budget_s for wanted in maker.made]
    assert shares[0] == pytest.approx(1000.0 / len(RUNGS), rel=0.01)
    assert sum(shares) <= 4 * 1000.0


def test_integers_are_learnt_for_the_one_that_stays_alone(tmp_path: Path) -> None:
    maker, wanted = Maker([0.99, 0.98, 0.9]), replace(WANTED, int8=True)
    (tmp_path / "student").mkdir()  # an earlier run got as far as this
    (tmp_path / "student" / "old").touch()
    target.fastest_within(0.03, wanted, maker, work=tmp_path, begin_s=time.monotonic())
    asked = [(one.target, one.int8) for one in maker.made]
    assert asked == [*((speed, False) for speed in RUNGS[:3]), (RUNGS[1], True)]
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["speed"]
    assert maker.made[0].budget_s < 0.81 * WANTED.budget_s / len(RUNGS)


def test_a_model_without_decisions_has_no_flips_to_count() -> None:
    with pytest.raises(ChoiceError, match="a regression model are numbers"):
        target.require_decisions(tasks.get("regression"))
    target.require_decisions(tasks.get("multi_label"))


def test_where_even_the_mildest_changes_too_much(tmp_path: Path) -> None:
    maker = Maker([0.9])
    with pytest.raises(BudgetError, match=r"changes 10 % .* allows 3 %"):
        target.fastest_within(0.03, WANTED, maker, work=tmp_path, begin_s=time.monotonic())


def test_a_budget_that_holds_only_the_first_gives_the_first(tmp_path: Path) -> None:
    first = Maker([0.99])

    def make(wanted: Wanted, *, work: Path) -> Any:
        if first.made:
            raise BudgetError("too short", fix="--budget 2m.")
        return first(wanted, work=work)

    target.fastest_within(0.03, WANTED, make, work=tmp_path, begin_s=time.monotonic())
    assert (tmp_path / "student" / "speed").read_text() == str(RUNGS[0])
