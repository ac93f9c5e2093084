"""Cascades in the contest, with scripted engines in virtual time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten import tasks
from hasten.engines.fake import Fake
from hasten.plain import from_json, to_json
from hasten.records import Row, Tuning
from hasten.report import compose, content_cascade, headline
from hasten.runtime import bundle
from hasten.runtime.saving import save
from hasten.runtime.stages import Stages
from hasten.tasks import Outputs
from hasten.tuning import cascades, proof
from hasten.tuning.cascade_trial import stages_of
from hasten.tuning.worker import LoadCascade
from tests.scripted import Lab
from tests.tiny import tiny_texts

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
UNSURE = {**FAST, "shift": 0.15}
"""Flips one text in thirteen, and only those of which it is less sure than 0.15."""


def lab_of(folder: Path, first: dict[str, Any], texts: int = 320, **settings: Any) -> Lab:
    """One layout, and shares that so few texts can prove, so that a tune takes a second."""
    usual = {"max_flips": 0.02, "batch_sizes": (1, 8), "budget_s": 60.0, "threads": 1}
    lab = Lab(folder, {"*": first, "fake-fp32-cpu-1x1": SLOW}, texts, **{**usual, **settings})
    lab.texts = tuple(dict.fromkeys(f"{text} {n}" for n, text in enumerate(lab.texts)))
    lab.first_look = tuple(tiny_texts(32, seed=5))
    return lab


def cascade_rows(tuning: Tuning) -> list[Row]:
    return [row for row in tuning.rows if row.candidate.then]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Tuning]:
    lab = lab_of(tmp_path_factory.mktemp("cascade"), UNSURE)
    return lab, lab.tune()


class TestARefusedCandidateAsTheFirstStage:
    def test_the_cascade_wins(self, found: tuple[Lab, Tuning]) -> None:
        lab, tuning = found
        first, second = tuning.plan.candidate.stages
        assert (first.precision, second.precision) == ("bf16", "fp32")
        assert lab.rows(tuning)[first.label].status == "refused"
        assert tuning.no_cascade is None

    def test_its_flips_are_proved_to_be_few(self, found: tuple[Lab, Tuning]) -> None:
        _, tuning = found
        cascade, parity = tuning.chosen.cascade, tuning.chosen.parity
        assert cascade is not None
        assert cascade.proof.chosen is not None
        assert cascade.proof.flip_upper_bound <= 0.02
        assert parity is not None
        assert parity.flips == cascade.proof.chosen.flips
        assert 0.02 < cascade.proof.chosen.deferred[0] < 0.3

    def test_stage_two_answers_the_deferred_texts(self, found: tuple[Lab, Tuning]) -> None:
        _, tuning = found
        (stage,) = tuning.further
        cascade = tuning.chosen.cascade
        assert cascade is not None
        assert cascade.proof.chosen is not None
        assert stage.plan.candidate == tuning.plan.candidate.then[0]
        assert stage.takes.below == cascade.proof.chosen.thresholds[0]
        share = cascade.proof.chosen.deferred[0]
        assert stage.takes.handed == round(share * stage.takes.texts)
        assert stage.plan.cost_table is not None
        assert stage.probes is not None
        assert tuning.probes is not None
        assert len(cascade.examples) == min(20, stage.takes.handed)

    def test_its_time_was_predicted(self, found: tuple[Lab, Tuning]) -> None:
        _, tuning = found
        run, cascade = tuning.chosen.main, tuning.chosen.cascade
        assert run is not None
        assert cascade is not None
        assert cascade.predicted_s is not None
        per_text_s = cascade.predicted_s / len(found[0].texts)
        assert run.total.mean_s / run.texts == pytest.approx(per_text_s, rel=0.1)
        assert run.predicted_s == pytest.approx(run.total.mean_s, rel=0.1)
        exact = next(r for r in tuning.rows if r.candidate.exact and r.main)
        assert exact.main is not None
        assert exact.main.total.mean_s / exact.main.texts > 2 * per_text_s

    def test_its_bundle_answers_as_was_proved(
        self, found: tuple[Lab, Tuning], tmp_path: Path
    ) -> None:
        lab, tuning = found
        context = lab.context()
        save(
            tmp_path / "bundle",
            tuning,
            stages=stages_of(tuning, context),
            extra={},
            results=context.journal.path,
        )
        stages = Stages(bundle.load(tmp_path / "bundle", here=lab.hardware))
        answered = stages.run(lab.texts)
        stages.close()
        with np.load(lab.folder / "truth.npz") as arrays:
            truth = arrays["values"][: len(lab.texts)]
        flips = (truth.argmax(axis=1) != answered.outputs.values.argmax(axis=1)).sum()
        assert tuning.chosen.parity is not None
        assert flips == tuning.chosen.parity.flips
        assert answered.counts[1] == tuning.further[0].takes.handed

    def test_one_worker_holds_both_stages(self, found: tuple[Lab, Tuning]) -> None:
        lab, tuning = found
        loads = [message for _, message in lab.messages if isinstance(message, LoadCascade)]
        assert loads
        candidates = tuple(stage.candidate for stage in loads[0].stages)
        assert candidates == tuning.plan.candidate.stages


class TestItsReport:
    def test_the_answer_says_who_answers_what(self, found: tuple[Lab, Tuning]) -> None:
        _, tuning = found
        first = headline.first(tuning)
        assert first.startswith("Fastest: Fake bf16 (")
        share = 100 * tuning.further[0].share
        assert f", and the original for {share:.3g} % of the texts." in first
        promised = " ".join(headline.of(tuning))
        assert "with 95 % confidence at most" in promised

    def test_all_tested_cascades_stand_in_a_table(self, found: tuple[Lab, Tuning]) -> None:
        _, tuning = found
        document = compose.of(tuning, drawn=False)
        section = next(section for section in document.sections if section.title == "Cascades")
        (table,) = section.tables
        assert len(table.rows) == len(cascade_rows(tuning))
        assert table.rows[0][0].startswith("Fake bf16 1x1 + fp32 1x1")
        assert any("least sure" in line for line in section.lines)

    def test_the_curve_runs_from_the_exact_to_the_lossy(self, found: tuple[Lab, Tuning]) -> None:
        figure = content_cascade.curve(found[1].rows)
        assert figure is not None
        points = figure.panels[0].points
        assert points[0]["y"] == 0.0
        assert float(points[-1]["x"]) > float(points[0]["x"])
        assert float(points[-1]["y"]) > 0.01
        assert sum("bare" not in point for point in points) == len(
            [row for row in cascade_rows(found[1]) if row.cascade and row.cascade.proof.chosen]
        )

    def test_a_stored_result_reads_back(self, found: tuple[Lab, Tuning]) -> None:
        stored = json.loads(json.dumps(to_json(found[1])))
        assert from_json(Tuning, stored) == found[1]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Tuning]:
    """A first stage that is often wrong, and a middle one that is so only where it is unsure."""
    lab = lab_of(tmp_path_factory.mktemp("three"), UNSURE, stages=3, texts=700)
    script = {
        "recipes": {"bf16": ("quick", "careful")},
        "fake-bf16-quick-cpu-1x1": {"call_s": 1e-4, "token_s": 2e-6, "shift": 0.2},
        "fake-bf16-careful-cpu-1x1": {"call_s": 1.5e-3, "token_s": 3e-5, "shift": 0.05},
        "*": SLOW,
    }
    lab.engine = Fake(script)
    return lab, lab.tune()


class TestThreeStages:
    def test_each_answers_what_it_is_sure_of(self, three: tuple[Lab, Tuning]) -> None:
        _, tuning = three
        first, second, last = tuning.plan.candidate.stages
        assert (first.recipe, second.recipe) == ("quick", "careful")
        assert last.exact
        cascade = tuning.chosen.cascade
        assert cascade is not None
        assert cascade.proof.chosen is not None
        one, two = cascade.proof.chosen.deferred
        assert 0.9 > one > two > 0.0
        assert cascade.proof.flip_upper_bound <= 0.02
        assert len(cascade.alone_s) == 3

    def test_a_stage_is_held_to_the_texts_that_came_to_it(self, three: tuple[Lab, Tuning]) -> None:
        _, tuning = three
        second, last = tuning.further
        assert second.takes.texts == len(three[0].texts)
        assert last.takes.texts == second.takes.handed > last.takes.handed > 0

    def test_its_time_was_predicted(self, three: tuple[Lab, Tuning]) -> None:
        run = three[1].chosen.main
        assert run is not None
        assert run.predicted_s == pytest.approx(run.total.mean_s, rel=0.1)

    def test_the_answer_names_all_of_them(self, three: tuple[Lab, Tuning]) -> None:
        _, tuning = three
        cascade = tuning.chosen.cascade
        assert cascade is not None
        assert cascade.proof.chosen is not None
        one, two = cascade.proof.chosen.deferred
        told = headline.first(tuning)
        assert f"Fake bf16 careful for {100 * (one - two):.3g} % of the texts" in told
        assert f"the original for {100 * two:.3g} % of the texts" in told

    def test_two_are_the_default(self, found: tuple[Lab, Tuning]) -> None:
        assert all(len(row.candidate.stages) < 3 for row in found[1].rows)


def test_an_interrupted_search_ends_alike(tmp_path: Path, found: tuple[Lab, Tuning]) -> None:
    messages = [message for _, message in found[0].messages]
    begun = next(n for n, message in enumerate(messages) if isinstance(message, LoadCascade))
    lab = lab_of(tmp_path, UNSURE)
    lab.stop_after = begun
    with pytest.raises(KeyboardInterrupt):
        lab.tune()
    lab.stop_after = None
    again = lab.tune()
    assert again.plan == found[1].plan
    assert again.further == found[1].further
    lab.messages.clear()
    assert lab.tune().plan == again.plan
    assert lab.messages == []  # what is stored is not measured again


def test_too_few_texts_say_how_many_are_missing(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, UNSURE, texts=100)
    tuning = lab.tune()
    assert not cascade_rows(tuning)
    assert tuning.no_cascade is not None
    assert "it takes 149, 49 more" in tuning.no_cascade
    assert any("49 more" in line for line in content_cascade.lines(tuning))
    assert tuning.plan.candidate.exact


def test_no_calibration_texts_fix_no_thresholds(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, UNSURE)
    lab.first_look = ()
    tuning = lab.tune()
    assert not cascade_rows(tuning)
    assert "calibration" in (tuning.no_cascade or "")


def test_cascades_can_be_left_out(tmp_path: Path) -> None:
    tuning = lab_of(tmp_path, UNSURE, cascade=False).tune()
    assert not cascade_rows(tuning)
    assert tuning.no_cascade == "--no-cascade"


def test_a_first_stage_that_is_sure_of_its_mistakes_is_refused(tmp_path: Path) -> None:
    # The sign of a column that nearly always loses: it wins by far where it is wrong.
    tuning = lab_of(tmp_path, {**FAST, "shift": 0.9}).tune()
    rows = cascade_rows(tuning)
    assert all(row.status in ("refused", "dropped") for row in rows)
    assert tuning.plan.candidate.exact


def test_a_cascade_that_defers_too_much_is_dropped_with_its_share(tmp_path: Path) -> None:
    first = {"call_s": 4.5e-3, "token_s": 9e-5, "shift": 0.15}  # hardly faster than the original
    tuning = lab_of(tmp_path, first).tune()
    rows = [row for row in cascade_rows(tuning) if row.reason]
    assert all("it defers" in (row.reason or "") for row in rows)
    assert tuning.plan.candidate.exact


def test_with_cascade_only_no_lossy_candidate_runs_alone(tmp_path: Path) -> None:
    slightly = {**FAST, "shift": 0.005}
    free = lab_of(tmp_path / "free", slightly).tune()
    assert (free.plan.candidate.precision, free.plan.candidate.then) == ("bf16", ())
    bound = lab_of(tmp_path / "bound", slightly, cascade_only=True).tune()
    assert bound.plan.candidate.then
    alone = [row for row in bound.rows if not row.candidate.exact and not row.candidate.then]
    assert {row.status for row in alone} <= {"dropped", "refused", "unavailable"}


def test_every_batching_counts(tmp_path: Path) -> None:
    def deferred(folder: str, **script: float) -> float:
        tuning = lab_of(tmp_path / folder, {**FAST, "shift": 0.02, **script}).tune()
        proofs = [row.cascade.proof.chosen for row in cascade_rows(tuning) if row.cascade]
        return max(step.deferred[0] for step in proofs if step)

    # One text at a time it is much less sure, and that is not how the plan would run it.
    assert deferred("both", alone=0.2) > 2 * deferred("plan")


def test_one_text_at_a_time(tmp_path: Path) -> None:
    tuning = lab_of(tmp_path, UNSURE, objective="latency").tune()
    run = tuning.chosen.main
    assert tuning.plan.candidate.then
    assert run is not None
    # Most answers come from the first stage, and some wait for both.
    p50, p99 = np.percentile(run.batch_latency_s, [50, 99])
    assert p99 > 3 * p50


def test_a_task_without_decisions_has_no_cascade(tmp_path: Path) -> None:
    context = replace(lab_of(tmp_path, UNSURE).context(), task=tasks.get("regression"))
    nothing = cascades.find(context, [], Outputs.of_rows([[0.0]]), proof.Tries(1))
    assert nothing.trials == ()
    assert "no decision" in (nothing.reason or "")
