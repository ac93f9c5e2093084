"""Which recipe ``hasten export`` takes, with the fake engine in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.engines.fake import Fake
from hasten.errors import ChoiceError, EngineError, NoCandidate
from hasten.records import Settings
from hasten.tuning import candidates, recipes
from hasten.tuning.recipes import Accepted
from tests.scripted import MACHINE, Lab

WRONG, WORSE = {"shift": 0.3}, {"shift": 3.0}
TWO = {"recipes": {"int8": ["first", "second"]}}
FIRST, SECOND = "fake-int8-first-cpu-1x2", "fake-int8-second-cpu-1x2"


def accept(lab: Lab, *, force: bool = False) -> Accepted:
    return recipes.first_accepted(lab.context(), force=force, baseline_engine="fake")


def lab(folder: Path, script: dict[str, Any], precision: str = "int8", **settings: Any) -> Lab:
    return Lab(folder, script, precisions=(precision,), **settings)


def test_the_first_recipe_that_keeps_the_answers_is_taken(tmp_path: Path) -> None:
    right = accept(lab(tmp_path / "right", TWO))
    assert (right.candidate.recipe, right.parity.flips, right.tried) == ("first", 0, ())
    accepted = accept(lab(tmp_path / "wrong", {**TWO, FIRST: WRONG}))
    assert accepted.candidate.recipe == "second"
    assert accepted.refusal is None
    (row,) = accepted.tried
    assert row.candidate.recipe == "first"
    assert row.reason
    assert "flipped" in row.reason


SLOW = {**TWO, "not_worth_trying": {"int8": {"third": "it is slower here"}}}


def asked(folder: Path, script: dict[str, Any], **settings: Any) -> tuple[set[str], dict[str, Any]]:
    """Recipes that are tried, and the reasons of the others."""
    made = Lab(folder, script, device="cpu", **settings)
    possible, unavailable = candidates.enumerate_rows(
        MACHINE, made.settings, {"fake": made.engine}, calibration=100
    )
    reasons = {row.candidate.recipe: row.reason for row in unavailable}
    assert len(reasons) == len(unavailable)
    return {each.recipe for each in possible if each.precision == "int8"}, reasons


def test_why_a_recipe_is_not_tried_shows_where_engine_and_precision_are_named(
    tmp_path: Path,
) -> None:
    named = {"engines": ("fake",), "precisions": ("int8",)}
    tried = {"first", "second"}
    assert asked(tmp_path, SLOW, **named) == (tried, {"third": "it is slower here"})
    assert asked(tmp_path, SLOW, **{**named, "engines": ()}) == (tried, {})
    assert asked(tmp_path, SLOW, engines=("fake",), integers=True) == (tried, {})


def test_an_engine_without_a_recipe_worth_trying_tries_the_others_where_named(
    tmp_path: Path,
) -> None:
    script = {**SLOW, "recipes": {"int8": []}}
    assert asked(tmp_path, script, engines=("fake",), precisions=("int8",)) == ({"third"}, {})
    assert asked(tmp_path, script, precisions=("int8",), engines=()) == (set(), {})
    assert asked(tmp_path, script, engines=("fake",), integers=True) == (set(), {})


def test_a_wrong_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoCandidate, match="nothing was written") as caught:
        accept(lab(tmp_path, {"fake-int8-cpu-1x2": WRONG}))
    assert "fake-int8-cpu: " in caught.value.message
    assert "--max-flips 0." in str(caught.value.fix)
    assert "--force" in str(caught.value.fix)


def test_what_it_flips_may_be_allowed_or_forced(tmp_path: Path) -> None:
    script = {**TWO, FIRST: WORSE, SECOND: WRONG}
    allowed = accept(lab(tmp_path / "allowed", {**TWO, FIRST: WRONG}, max_flips=0.9))
    assert (allowed.candidate.recipe, allowed.refusal) == ("first", None)
    forced = accept(lab(tmp_path / "forced", script), force=True)
    assert forced.candidate.recipe == "second"
    assert "--max-flips" in str(forced.refusal)
    assert [row.candidate.recipe for row in forced.tried] == ["first"]


def test_nothing_can_be_forced_that_does_not_run(tmp_path: Path) -> None:
    broken = lab(
        tmp_path, {FIRST: {"fail": "raise", "when": "export"}, "recipes": {"int8": ["first"]}}
    )
    with pytest.raises(NoCandidate, match="scripted failure at export") as caught:
        accept(broken, force=True)
    assert "--force" not in str(caught.value.fix)


def test_no_further_recipe_is_started_after_the_budget(tmp_path: Path) -> None:
    slow = lab(tmp_path, {**TWO, FIRST: {**WRONG, "export_s": 20.0}}, budget_s=10.0)
    with pytest.raises(NoCandidate, match="1 more recipe") as caught:
        accept(slow)
    assert "--budget" in str(caught.value.fix)


def test_answers_that_depend_on_batch_mates_are_checked_in_several_batchings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert accept(lab(tmp_path / "alike", {})).parity.batchings == ()
    monkeypatch.setattr(Fake, "depends_on_batch", lambda self, candidate: True)
    several = accept(lab(tmp_path / "depends", {})).parity
    assert [batching.name for batching in several.batchings] == ["plan", "single", "random"]


def test_the_bound_holds_for_all_recipes_that_may_be_tried(tmp_path: Path) -> None:
    assert accept(lab(tmp_path, TWO)).parity.tries == 2


def test_a_lossy_recipe_needs_texts_that_prove_something(tmp_path: Path) -> None:
    with pytest.raises(NoCandidate, match="at least 30 different texts"):
        accept(Lab(tmp_path, {}, texts=20, precisions=("int8",)))


def test_recipes_that_calibrate_wait_for_texts(tmp_path: Path) -> None:
    script = {"recipes": {"int8": ["static", "plain"]}}
    without = lab(tmp_path / "without", script)
    assert accept(without).candidate.recipe == "plain"
    within = lab(tmp_path / "with", script)
    within.calibration = np.full(40, 8)
    assert accept(within).candidate.recipe == "static"
    only = lab(tmp_path / "only", {"recipes": {"int8": ["static"]}})
    with pytest.raises(NoCandidate, match="calibration holds"):
        accept(only)


def test_an_original_that_does_not_run_is_said_as_such(tmp_path: Path) -> None:
    broken = lab(tmp_path, {"*": {"fail": "raise", "when": "load"}})
    with pytest.raises(EngineError, match="the original model does not run"):
        accept(broken)


def test_what_cannot_run_here_names_what_can(tmp_path: Path) -> None:
    cannot = {"unsupported": "fake has no integers"}
    script = {"fake-int8-cpu-1x2": cannot, "fake-int8-cpu-2x1": cannot}
    settings = Settings(engines=("fake",), precisions=("int8",), device="cpu")
    with pytest.raises(ChoiceError, match="fake has no integers") as caught:
        recipes.require_runnable(MACHINE, settings, {"fake": Fake(script)})
    assert "fp32, bf16" in str(caught.value.fix)
