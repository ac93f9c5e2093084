"""The decision, from rows whose rounds are made up."""

from __future__ import annotations

from hasten.engines.base import Engine
from hasten.engines.fake import Fake
from hasten.records import Candidate, EndToEnd, Measurement, Row, Settings, Strategy
from hasten.tuning.choose import choose

ENGINES: dict[str, Engine] = {"fake": Fake()}
QUIET = (1.0, 1.01, 0.99, 1.0, 1.0)
UNEASY = (1.04, 0.97, 1.02, 0.96, 1.01)
NOISY = (2.0, 0.5, 1.5, 0.7, 1.0)


def row(
    precision: str,
    mean_s: float,
    rounds: tuple[float, ...] = QUIET,
    recipe: str = "",
    model: str = "original",
) -> Row:
    total = Measurement(tuple(mean_s * factor for factor in rounds))
    run = EndToEnd(Strategy("optimal", 8), 100, 3000, 0.1, None, total, total, (0.1,))
    candidate = Candidate("fake", precision, "cpu", 1, recipe=recipe, model=model)
    return Row(candidate, "finalist", runs=(run,))


def test_a_lossy_one_that_is_clearly_faster_wins() -> None:
    choice = choose([row("fp32", 1.2), row("int8", 1.0)], ENGINES, Settings())
    assert choice.winner.candidate.precision == "int8"
    assert not choice.tie


def test_a_lossy_one_that_may_gain_nothing_does_not_win() -> None:
    choice = choose([row("fp32", 1.26), row("int8", 1.0, NOISY)], ENGINES, Settings())
    assert choice.winner.candidate.precision == "fp32"
    assert choice.runner_up is not None
    assert choice.runner_up.candidate.precision == "int8"
    assert choice.ratio_to_runner_up is not None
    assert choice.ratio_to_runner_up.estimate < 0.9
    assert not choice.tie


def test_a_lossy_one_about_as_fast_is_tied_with_the_exact_one() -> None:
    choice = choose([row("fp32", 1.02), row("int8", 1.0, NOISY)], ENGINES, Settings())
    assert choice.winner.candidate.precision == "fp32"
    assert choice.tie


def test_another_lossy_one_may_win_where_the_fastest_is_unsure() -> None:
    rows = [row("fp32", 1.5), row("int8", 1.0, NOISY, "a"), row("int8", 1.2, QUIET, "b")]
    assert choose(rows, ENGINES, Settings()).winner.candidate.recipe == "b"


def test_without_an_exact_one_the_fastest_wins() -> None:
    rows = [row("bf16", 1.26), row("int8", 1.0, NOISY)]
    assert choose(rows, ENGINES, Settings()).winner.candidate.precision == "int8"


def test_a_student_in_fp32_is_lossy() -> None:
    rows = [row("fp32", 1.26), row("fp32", 1.0, NOISY, model="student")]
    assert choose(rows, ENGINES, Settings()).winner.candidate.model == "original"
    rows = [row("fp32", 1.26), row("fp32", 1.0, model="student")]
    assert choose(rows, ENGINES, Settings()).winner.candidate.model == "student"


def test_of_a_tie_the_original_in_any_precision_comes_before_a_student() -> None:
    rows = [row("fp32", 2.0), row("int8", 1.01), row("fp32", 1.0, UNEASY, model="student")]
    choice = choose(rows, ENGINES, Settings())
    assert choice.tie
    assert choice.winner.candidate.variant == "int8"
