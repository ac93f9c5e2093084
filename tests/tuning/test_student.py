"""A student and its original in one contest, with scripted engines in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten import api, engines
from hasten.records import Candidate, Row, Tuning
from hasten.runtime import bundle
from hasten.runtime.predictor import Predictor
from hasten.tuning.worker import Export, Load, RankLayers
from tests.scripted import INFO, Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
CLOSE = {**FAST, "shift": 0.1}  # one of the sixty answers
WRONG = {**FAST, "shift": 5.0}
SMALL = replace(
    INFO, name="small", parameter_count=400, flops_per_token=900.0, flops_per_token_squared=0.5
)
FP32, INT8 = "student-fake-fp32-cpu", "student-fake-int8-static-cpu"


def both(label: str, script: dict[str, Any]) -> dict[str, Any]:
    """The same script for both layouts."""
    return {f"{label}-1x2": script, f"{label}-2x1": script}


def lab(folder: Path, script: dict[str, Any], texts: int = 60, **settings: Any) -> Lab:
    usual: dict[str, Any] = {"precisions": ("fp32",), "batch_sizes": (1, 8)}
    return Lab(folder, {"*": SLOW, **script}, texts, student=SMALL, **{**usual, **settings})


def of_student(tuning: Tuning) -> list[Row]:
    rows = (row for row in tuning.rows if row.candidate.model == "student")
    return [row for row in rows if row.status != "unavailable"]


def test_a_student_that_is_clearly_faster_and_answers_alike_wins(tmp_path: Path) -> None:
    tuning = lab(tmp_path, both(FP32, FAST)).tune()
    assert tuning.plan.candidate.model == "student"
    assert (tuning.model.name, tuning.chosen_model.name) == ("scripted", "small")
    assert tuning.baseline.candidate.model == "original"
    assert tuning.chosen.ratio_to_baseline is not None
    assert tuning.chosen.ratio_to_baseline.low > 4


def test_without_a_reference_there_is_no_student(tmp_path: Path) -> None:
    tuning = Lab(tmp_path, {"*": SLOW}).tune()
    assert {row.candidate.model for row in tuning.rows} == {"original"}
    assert tuning.student is None
    assert tuning.chosen_model == tuning.model


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [({}, False), ({"max_flips": 0.02}, True), ({"max_flips": 0.06, "strict": True}, False)],
)
def test_max_flips_and_strict_judge_a_student_in_fp32(
    tmp_path: Path, settings: dict[str, Any], accepted: bool
) -> None:
    tuning = lab(tmp_path, both(FP32, CLOSE), **settings).tune()
    assert (tuning.plan.candidate.model == "student") is accepted
    if accepted:
        assert tuning.chosen.parity is not None
        assert tuning.chosen.parity.flips == 1
    else:
        (reason,) = {row.reason for row in of_student(tuning) if row.status == "refused"}
        assert "1 of 60 labels (1.67 %) flipped" in (reason or "")
        assert "--max-flips allows" in (reason or "")


def test_a_student_that_answers_otherwise_is_refused_at_the_first_look(tmp_path: Path) -> None:
    tuning = lab(tmp_path, both(FP32, WRONG)).tune()
    assert tuning.plan.candidate.model == "original"
    assert "16 of 32 labels flipped" in (of_student(tuning)[0].reason or "")


def test_few_texts_prove_nothing_of_a_student(tmp_path: Path) -> None:
    tried = lab(tmp_path, both(FP32, FAST), texts=25)
    tuning = tried.tune()
    assert tuning.plan.candidate.model == "original"
    assert all("at least 30" in (row.reason or "") for row in of_student(tuning))
    assert not any("student" in name for name, _ in tried.messages)


def test_a_student_that_gains_nothing_yields_to_the_original(tmp_path: Path) -> None:
    tuning = lab(tmp_path, {}).tune()
    assert tuning.tie
    assert tuning.plan.candidate.exact


def test_each_precision_of_both_models_is_run_to_the_end(tmp_path: Path) -> None:
    quick = {"call_s": 0.5e-3, "token_s": 1e-5}
    script = {"*": SLOW, **both(FP32, FAST), **both("student-fake-bf16-cpu", quick)}
    script |= both("fake-bf16-cpu", {"call_s": 4e-3, "token_s": 9e-5})
    tuning = lab(tmp_path, script, precisions=("fp32", "bf16")).tune()
    run = {row.candidate.variant for row in tuning.rows if row.runs}
    assert run == {"fp32", "bf16", "student fp32", "student bf16"}


def test_what_is_hopeless_for_the_original_is_not_started_for_its_student(tmp_path: Path) -> None:
    slow = {"call_s": 0.1, "token_s": 1e-3}
    recipes = {"recipes": {"fp32": ["", "odd"]}}
    tried = lab(tmp_path, {**recipes, **both("fake-fp32-odd-cpu", slow), **both(FP32, FAST)})
    rows = tried.rows(tried.tune())
    for layout in ("1x2", "2x1"):
        reason = rows[f"student-fake-fp32-odd-cpu-{layout}"].reason or ""
        assert reason.startswith("not started, as with the original: ")
    assert not any("student-fake-fp32-odd" in name for name, _ in tried.messages)


def test_workers_get_the_model_that_their_candidate_runs(tmp_path: Path) -> None:
    tried = lab(tmp_path, both(FP32, FAST))
    tried.tune()
    own = {"original": tmp_path / "reference", "student": tmp_path / "student"}
    seen = Counter[str]()
    for _, message in tried.messages:
        if isinstance(message, Export | Load):
            candidate = message.candidate
            seen[f"{type(message).__name__} {candidate.model}"] += 1
            if isinstance(message, Export):
                assert message.reference == own[candidate.model]
            else:
                assert message.tokenizer.parent == own[candidate.model]
                assert message.info.name == ("small" if candidate.model == "student" else INFO.name)
                assert ("student" in message.artifact.parts) is (candidate.model == "student")
    assert (seen["Export original"], seen["Export student"]) == (1, 1)
    # More than once each: finalists start anew between rounds.
    assert set(seen) == {"Export original", "Export student", "Load original", "Load student"}


@pytest.mark.parametrize("engine", ["fake", "onnx_runtime", "openvino", "torch_eager"])
def test_names_of_both_models_are_never_the_same(tmp_path: Path, engine: str) -> None:
    # Most engines call an artifact after themselves alone, whoever's it is.
    context = replace(lab(tmp_path, {}).context(), engines={engine: engines.get(engine)})
    ours = Candidate(engine, "fp32", "cpu", 1)
    theirs = replace(ours, model="student")
    assert ours.label != theirs.label
    assert ours.format != theirs.format
    assert context.artifact(ours) != context.artifact(theirs)
    for separator in "/-":
        names = {context.artifact_name(candidate, separator) for candidate in (ours, theirs)}
        assert len(names) == 2


def test_the_share_of_the_ceiling_counts_the_students_own_arithmetic(tmp_path: Path) -> None:
    tried = lab(tmp_path, both(FP32, FAST))
    chosen = tried.tune().chosen
    run = chosen.main
    assert run is not None
    assert run.texts == len(tried.texts)
    flops = sum(map(SMALL.flops, map(int, tried.context().lengths)))
    assert chosen.ceiling_share == pytest.approx(flops / run.total.mean_s / 1e12)


# --- repair -----------------------------------------------------------------------------------


def test_a_students_int8_is_repaired_by_its_own_layers(tmp_path: Path) -> None:
    quick = {"call_s": 0.5e-3, "token_s": 1e-5}
    script = {
        "recipes": {"int8": ["static"]},
        **both(FP32, FAST),
        **both(INT8, {**quick, "shift": 0.1}),
        **both("student-fake-int8-static-spare2-cpu", quick),
    }
    tried = lab(tmp_path, script, precisions=("fp32", "int8"))
    tried.calibration = np.arange(40)
    tried.layers = tuple(f"layer.{n}" for n in range(16))
    tuning = tried.tune()
    assert tuning.plan.candidate.label.startswith("student-fake-int8-static-spare2-cpu")
    (ranked,) = [message for _, message in tried.messages if isinstance(message, RankLayers)]
    assert ranked.reference == tmp_path / "student"


def test_a_student_that_is_refused_in_fp32_is_not_repaired(tmp_path: Path) -> None:
    script = {"recipes": {"int8": ["static"]}, **both(FP32, CLOSE), **both(INT8, CLOSE)}
    tried = lab(tmp_path, script, precisions=("fp32", "int8"))
    tried.calibration = np.arange(40)
    tried.layers = tuple(f"layer.{n}" for n in range(16))
    assert tried.tune().plan.candidate.model == "original"
    assert not [message for _, message in tried.messages if isinstance(message, RankLayers)]


# --- resume and bundle ------------------------------------------------------------------------


def test_wherever_it_is_interrupted_it_ends_the_same(tmp_path: Path) -> None:
    script = both(FP32, FAST)
    whole = lab(tmp_path / "whole", script)
    expected = [_course(row) for row in whole.tune().rows]
    for stop in range(5, len(whole.messages), len(whole.messages) // 5):
        first = lab(tmp_path / str(stop), script)
        first.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            first.tune()
        again = lab(tmp_path / str(stop), script)
        assert [_course(row) for row in again.tune().rows] == expected, stop
        lines = (tmp_path / str(stop) / "results.jsonl").read_text().splitlines()[1:]
        keys = [json.loads(line)["key"] for line in lines]
        assert len(keys) == len(set(keys))


def _course(row: Row) -> tuple[object, ...]:
    run = row.main
    return row.candidate.label, row.status, row.reason, run and (run.strategy, run.texts)


@pytest.mark.parametrize("winner", ["student", "original"])
def test_a_bundle_holds_the_winners_own_model(
    tmp_path: Path, winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = {"student": FP32, "original": "fake-fp32-cpu"}[winner]
    slow = {"student": "fake-fp32-cpu", "original": FP32}[winner]
    # What distinguishes the student is too little to change one of these answers.
    told = {"student": {"shift": 1e-2}, "original": {}}
    script = {
        **both(quick, {**FAST, **told[winner]}),
        **both(slow, SLOW),
    }
    tried = lab(tmp_path / "lab", script)
    (tmp_path / "lab" / "student" / "config.json").write_text('{"small": true}')
    tuning = tried.tune()
    assert tuning.plan.candidate.model == winner
    api._save(tmp_path / "bundle", tuning, tried.context())
    saved = bundle.load(tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert saved.model.name == ("small" if winner == "student" else "scripted")
    assert config == ({"small": True} if winner == "student" else {})
    assert bundle.read_tuning(tmp_path / "bundle") == tuning
    with Predictor(saved) as classify:
        truth = np.load(tmp_path / "lab" / "truth.npz")["values"]
        shift = classify.outputs(tried.texts).values - truth
    np.testing.assert_allclose(shift[:, 0], told[winner].get("shift", 0.0), atol=1e-6)
    np.testing.assert_allclose(shift[:, 1:], 0.0, atol=1e-6)
