"""int8 in the contest: calibration, refusals, and layers that are spared until it fits."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Tuning
from hasten.report import headline
from hasten.tuning.worker import RankLayers
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
WRONG = {**FAST, "shift": 0.1}  # one of the sixty answers
HOPELESS = {**FAST, "shift": 5.0}
LAYERS = tuple(f"layer.{n}" for n in range(16))

INT8 = "fake-int8-static-cpu"
SPARE2, SPARE4, SPARE8 = (f"fake-int8-static-spare{n}-cpu" for n in (2, 4, 8))


def both(label: str, script: dict[str, Any]) -> dict[str, Any]:
    """The same script for both layouts."""
    return {f"{label}-1x2": script, f"{label}-2x1": script}


def lab(folder: Path, script: dict[str, Any], **settings: Any) -> Lab:
    made = Lab(
        folder,
        {"*": SLOW, "recipes": {"int8": ["static"]}, **script},
        **{"precisions": ("fp32", "int8"), "batch_sizes": (1, 8), **settings},
    )
    made.calibration = np.arange(40)
    made.layers = LAYERS
    return made


def statuses(tuning: Tuning) -> dict[str, str]:
    return {row.candidate.format: row.status for row in tuning.rows}


def test_an_int8_candidate_whose_answers_hold_wins(tmp_path: Path) -> None:
    tuning = lab(tmp_path, both(INT8, FAST)).tune()
    assert tuning.plan.candidate.recipe == "static"
    assert tuning.calibration_texts == 40
    assert tuning.probes is not None
    assert len(tuning.probes.texts) == len(tuning.probes.outputs) == 32


def test_a_refused_one_is_repaired_with_as_few_layers_as_it_takes(tmp_path: Path) -> None:
    script = {**both(INT8, WRONG), **both(SPARE2, WRONG), **both(SPARE4, FAST)}
    tried = lab(tmp_path, script)
    tuning = tried.tune()
    assert tuning.plan.candidate.spared == LAYERS[:4]
    found = statuses(tuning)
    assert found[INT8] == found[SPARE2] == "refused"
    assert SPARE8 not in found
    ranked = [message for _, message in tried.messages if isinstance(message, RankLayers)]
    assert len(ranked) == 1


def test_many_changed_answers_take_many_layers(tmp_path: Path) -> None:
    script = {**both(INT8, {**FAST, "shift": 0.2}), **both(SPARE4, FAST)}
    found = statuses(lab(tmp_path, script).tune())
    assert found[SPARE4] == "chosen"
    assert SPARE2 not in found


def test_of_equally_fast_ones_that_with_the_fewest_changes_is_repaired(tmp_path: Path) -> None:
    recipes = {"recipes": {"int8": ["static", "other"]}}
    other = "fake-int8-other-cpu"
    worse = {"call_s": 0.95e-3, "token_s": 2e-5, "shift": 0.2}
    spared = {**both(SPARE2, FAST), **both("fake-int8-other-spare4-cpu", FAST)}
    tried = lab(tmp_path, {**recipes, **both(INT8, WRONG), **both(other, worse), **spared})
    assert tried.tune().plan.candidate.recipe == "static"


def test_one_that_cannot_be_repaired_leaves_the_exact_one_and_all_attempts(tmp_path: Path) -> None:
    script = {label: WRONG for name in (INT8, SPARE2, SPARE4, SPARE8) for label in both(name, {})}
    tuning = lab(tmp_path, script).tune()
    assert tuning.plan.candidate.precision == "fp32"
    found = statuses(tuning)
    assert {found[name] for name in (INT8, SPARE2, SPARE4, SPARE8)} == {"refused"}


def test_one_that_a_few_texts_refuse_is_repaired_as_well(tmp_path: Path) -> None:
    script = {**both(INT8, HOPELESS), **both(SPARE4, FAST)}
    assert lab(tmp_path, script).tune().plan.candidate.spared == LAYERS[:4]


def test_a_repair_that_would_be_slower_is_not_proved(tmp_path: Path) -> None:
    script = {**both(INT8, WRONG), **both(SPARE2, {**SLOW, "call_s": 6e-3})}
    tuning = lab(tmp_path, script).tune()
    row = next(row for row in tuning.rows if row.candidate.spared)
    assert row.status == "dropped"
    assert "the time of the best" in (row.reason or "")


def test_nothing_is_repaired_that_is_slower_than_what_was_accepted(tmp_path: Path) -> None:
    tried = lab(tmp_path, {"*": FAST, **both(INT8, {**SLOW, "shift": 0.2})})
    tried.tune()
    assert not [message for _, message in tried.messages if isinstance(message, RankLayers)]


def test_without_calibration_texts_the_row_says_how_many_are_needed(tmp_path: Path) -> None:
    tried = lab(tmp_path, both(INT8, FAST))
    tried.calibration = np.empty(0, np.int64)
    tuning = tried.tune()
    rows = [row for row in tuning.rows if row.candidate.device == "cpu"]
    reasons = {row.reason for row in rows if row.candidate.precision == "int8"}
    (reason,) = reasons
    assert "at least 107 different texts" in (reason or "")


def test_who_wants_no_calibration_reads_that_and_not_how_many_texts_it_takes(
    tmp_path: Path,
) -> None:
    tried = lab(tmp_path, both(INT8, FAST), calibration=0)
    tried.calibration = np.empty(0, np.int64)
    reasons = {row.reason for row in tried.tune().rows if row.candidate.recipe == "static"}
    assert any("--calibration 0 holds none apart" in (reason or "") for reason in reasons)


def test_no_ceiling_is_asked_for_in_int8(tmp_path: Path) -> None:
    tried = lab(tmp_path, both(INT8, FAST))
    tuning = tried.tune()
    assert {ceiling.precision for ceiling in tuning.ceilings} == {"fp32"}
    assert tuning.chosen.ceiling_share is None
    assert any("No int8 matrix product" in line for line in headline.of(tuning))


def test_calibration_texts_of_one_length_are_warned_about(tmp_path: Path) -> None:
    tried = lab(tmp_path, both(INT8, FAST))
    tried.calibration = np.full(40, 12)
    assert any("12 tokens" in warning for warning in tried.tune().warnings)


def test_constant_outputs_are_refused_and_named(tmp_path: Path) -> None:
    script = both(INT8, {**FAST, "fail": "constant"})
    row = next(r for r in lab(tmp_path, script).tune().rows if r.candidate.precision == "int8")
    assert row.status == "refused"
    assert "the same for all" in (row.reason or "")


def test_only_one_layout_of_a_hopeless_format_is_started(tmp_path: Path) -> None:
    slow = {"call_s": 0.1, "token_s": 1e-3}
    tried = lab(
        tmp_path, {"*": FAST, "recipes": {"int8": ["dynamic", "static"]}, **both(INT8, slow)}
    )
    rows = tried.rows(tried.tune())
    assert "not started, as with the layout 1x2" in (rows[f"{INT8}-2x1"].reason or "")
    assert f"{INT8}-2x1" not in {name for name, _ in tried.messages}


def test_wherever_a_repair_is_interrupted_it_ends_the_same(tmp_path: Path) -> None:
    script = {**both(INT8, WRONG), **both(SPARE2, WRONG), **both(SPARE4, FAST)}
    whole = lab(tmp_path / "whole", script)
    expected = whole.tune().plan.candidate
    total = len(whole.messages)
    for stop in range(total // 2, total, total // 6):
        first = lab(tmp_path / str(stop), script)
        first.stop_after = stop
        with contextlib.suppress(KeyboardInterrupt):
            first.tune()
        assert lab(tmp_path / str(stop), script).tune().plan.candidate == expected
