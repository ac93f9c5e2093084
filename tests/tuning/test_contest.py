"""The contest as a whole, with scripted engines in virtual time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import BudgetError, EngineError, ModelError, NoCandidate
from hasten.records import Row, Tuning
from hasten.storage.journal import Journal
from hasten.tuning import contest
from hasten.tuning.process import Connection
from hasten.tuning.worker import Export, Message, RunTexts
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}


def test_the_fastest_right_candidate_wins(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW, "fake-bf16-cpu-2x1": FAST})
    tuning = lab.tune()
    assert tuning.plan.candidate.label == "fake-bf16-cpu-2x1"
    assert tuning.chosen.ratio_to_baseline is not None
    assert tuning.chosen.ratio_to_baseline.low > 4
    assert tuning.chosen.parity is not None
    assert tuning.chosen.parity.flips == 0


def test_a_fast_but_wrong_candidate_loses_and_keeps_its_row(tmp_path: Path) -> None:
    wrong = {**FAST, "shift": 5.0}
    lab = Lab(tmp_path, {"*": SLOW, "fake-bf16-cpu-2x1": wrong, "fake-bf16-cpu-1x2": wrong})
    tuning = lab.tune()
    assert tuning.plan.candidate.precision == "fp32"
    refused = lab.rows(tuning)["fake-bf16-cpu-2x1"]
    assert refused.status == "refused"
    assert refused.reason == "16 of 32 labels flipped; the first look stops at 25 %"


def test_nan_disqualifies(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW, "fake-fp32-cpu-2x1": {**FAST, "fail": "nan"}})
    rows = lab.rows(lab.tune())
    assert rows["fake-fp32-cpu-2x1"].status == "refused"
    assert "NaN" in (rows["fake-fp32-cpu-2x1"].reason or "")


@pytest.mark.parametrize("step", ["export", "load", "run"])
def test_a_candidate_that_raises_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, step: str
) -> None:
    broken: dict[str, Any] = {**FAST, "fail": "raise", "when": step}
    # Export fails for the artifact that both layouts share.
    script = {"*": SLOW, "fake-bf16-cpu-1x2": broken, "fake-bf16-cpu-2x1": broken}
    tuning = (lab := Lab(tmp_path, script)).tune()
    rows = lab.rows(tuning)
    assert tuning.plan.candidate.precision == "fp32"
    assert rows["fake-bf16-cpu-2x1"].status == "failed"
    assert f"scripted failure at {step}" in (rows["fake-bf16-cpu-2x1"].reason or "")


def test_unsupported_candidates_keep_their_reason(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW, "fake-bf16-cpu-1x2": {"unsupported": "no bf16 in the script"}})
    row = lab.rows(lab.tune())["fake-bf16-cpu-1x2"]
    assert (row.status, row.reason) == ("unavailable", "no bf16 in the script")


def test_equal_candidates_are_a_tie_and_the_simpler_wins(tmp_path: Path) -> None:
    tuning = Lab(tmp_path, {"*": SLOW}).tune()
    # All run at the same scripted speed: exact before lossy, one stream before two.
    assert tuning.tie
    assert tuning.plan.candidate.label == "fake-fp32-cpu-1x2"


def test_clearly_slower_candidates_are_dropped_with_their_numbers(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": FAST, "fake-bf16-cpu-1x2": {"call_s": 0.1, "token_s": 1e-3}})
    row = lab.rows(lab.tune())["fake-bf16-cpu-1x2"]
    assert row.status == "dropped"
    assert "slower" in (row.reason or "")
    assert row.screen_tokens_per_s is not None
    assert row.cost_table is not None


def test_when_nothing_may_be_used_the_reasons_are_told(tmp_path: Path) -> None:
    script = {"*": {**FAST, "shift": 5.0}, "fake-fp32-cpu-1x2": SLOW}
    lab = Lab(tmp_path, script, precisions=("bf16",))
    with pytest.raises(NoCandidate, match="fake-bf16-cpu-1x2: refused"):
        lab.tune()


def test_when_nothing_can_run_here_nothing_is_measured(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW}, device="cuda")
    with pytest.raises(NoCandidate, match="fake runs on the CPU only"):
        lab.tune()
    assert lab.messages == []


def test_latency_runs_one_text_at_a_time_on_one_stream(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW, "fake-bf16-cpu-1x2": FAST}, objective="latency")
    tuning = lab.tune()
    best = tuning.chosen.main
    assert best is not None
    assert tuning.plan.candidate.label == "fake-bf16-cpu-1x2"
    assert {row.candidate.streams for row in tuning.rows if row.candidate.device == "cpu"} == {1}
    assert len(best.batch_latency_s) == best.texts * len(best.total.samples_s)


def test_no_batch_is_longer_than_the_latency_limit(tmp_path: Path) -> None:
    limit_ms = 12.0
    tuning = Lab(tmp_path, {"*": SLOW}, max_latency_ms=limit_ms, precisions=("fp32",)).tune()
    best = tuning.chosen.main
    assert best is not None
    assert max(best.batch_latency_s) <= limit_ms / 1000


def test_the_limit_goes_into_the_plan(tmp_path: Path) -> None:
    tuning = Lab(tmp_path, {"*": SLOW}, max_latency_ms=12.0, precisions=("fp32",)).tune()
    limit_s = tuning.plan.max_batch_latency_s
    assert limit_s == pytest.approx(0.8 * 0.012 / tuning.plan.candidate.streams)


def test_cost_tables_span_all_batch_sizes_and_the_texts_lengths(tmp_path: Path) -> None:
    tuning = Lab(tmp_path, {"*": FAST}).tune()
    table = tuning.plan.cost_table
    assert table is not None
    assert table.batch_sizes == (1, 2, 4, 8, 16, 32, 64)
    assert table.lengths[-1] == tuning.profile.longest
    assert len(table.lengths) >= 4


def test_what_was_proved_is_what_is_shipped(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": FAST})
    tuning = lab.tune()
    label = tuning.plan.candidate.label
    proofs = [
        message.strategy
        for name, message in lab.messages
        if isinstance(message, RunTexts) and message.outputs and name == label
        if len(message.indices) == len(lab.texts)
    ]
    assert proofs[-1] == tuning.plan.strategy
    assert tuning.chosen.main is not None
    assert tuning.chosen.main.strategy == tuning.plan.strategy


def test_an_impossible_latency_limit_refuses_every_candidate(tmp_path: Path) -> None:
    with pytest.raises(NoCandidate, match="more than the 1 ms allowed"):
        Lab(tmp_path, {"*": SLOW}, max_latency_ms=1.0).tune()


def test_a_hopeless_budget_is_refused_with_one_that_would_do(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot hold the baseline") as caught:
        Lab(tmp_path, {"*": {"call_s": 1.0, "token_s": 0.1}}, budget_s=20.0).tune()
    assert "--budget" in (caught.value.fix or "")
    # The corrected command may ask about other texts: nothing worth keeping was measured.
    assert not Journal(tmp_path / "results.jsonl", {"of": "fewer texts"}).resumed


def test_a_machine_that_was_busy_is_looked_at_again(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot hold the baseline"):
        Lab(tmp_path, {"*": {"call_s": 1.0, "token_s": 0.1}}, budget_s=200.0).tune()
    # The same run again, a hundred times as fast: what was seen before does not count.
    shutil.rmtree(tmp_path / "artifacts")  # they hold the fake engine's script
    assert Lab(tmp_path, {"*": SLOW}, budget_s=200.0).tune().chosen.main is not None


def test_a_failure_of_the_original_in_the_last_round_is_told(tmp_path: Path) -> None:
    subject = Lab(tmp_path, {"*": SLOW})
    rounds = 0

    class Failing:
        def __init__(self, inner: Connection) -> None:
            self._inner = inner

        def call(self, message: Message, timeout_s: float) -> Any:
            nonlocal rounds
            rounds += (
                isinstance(message, RunTexts)
                and message.strategy.label == "arrival 1"
                and not message.outputs
            )
            if rounds == 15:
                raise EngineError("as scripted")
            return self._inner.call(message, timeout_s)

        def close(self) -> None:
            self._inner.close()

    context = replace(subject.context(), spawn=lambda name: Failing(subject.spawn(name)))
    with pytest.raises(EngineError, match="the original model failed in the timed rounds"):
        contest.run(context, baseline_engine="fake")


def test_copies_prove_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW, "fake-bf16-cpu-2x1": FAST})
    lab.texts = lab.texts[:1] * 60
    tuning = lab.tune()
    assert tuning.plan.candidate.precision == "fp32"
    assert tuning.chosen.parity is not None
    assert tuning.chosen.parity.compared == 1
    reason = lab.rows(tuning)["fake-bf16-cpu-2x1"].reason or ""
    assert "at least 30 different texts, and there is 1" in reason
    assert "Only 1 different text was judged (60 with their copies)" in tuning.warnings[0]
    assert not any("bf16" in name for name, _ in lab.messages)


def test_copies_among_enough_texts_are_told_and_count_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW, "fake-bf16-cpu-2x1": FAST}, texts=110)
    lab.texts = lab.texts * 2
    tuning = lab.tune()
    assert tuning.plan.candidate.precision == "bf16"
    assert tuning.chosen.parity is not None
    assert tuning.chosen.parity.compared == 110
    assert tuning.judged_texts == 220
    assert any("Of 220 judged texts 110 are different" in note for note in tuning.warnings)


def test_an_original_that_answers_all_texts_alike_proves_nothing(tmp_path: Path) -> None:
    stuck = {"fail": "constant"}
    lab = Lab(tmp_path, {"*": {**SLOW, **stuck}, "fake-bf16-cpu-2x1": {**FAST, **stuck}})
    tuning = lab.tune()
    assert tuning.plan.candidate.precision == "fp32"
    assert "the same outputs for all 60 different texts" in tuning.warnings[0]
    row = lab.rows(tuning)["fake-bf16-cpu-2x1"]
    assert (row.status, "proves nothing" in (row.reason or "")) == ("refused", True)


def test_a_broken_original_stops_all_before_anything_else_is_exported(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": {**SLOW, "fail": "nan"}}, precisions=("bf16",))
    with pytest.raises(ModelError, match="the original model itself gives NaN"):
        lab.tune()
    assert sum(isinstance(message, Export) for _, message in lab.messages) == 1


class Slowing:
    """Runs texts more slowly than shapes, as a machine does that something else begins to use."""

    def __init__(self, lab: Lab, inner: Connection, factor: float) -> None:
        self._lab, self._inner, self._factor = lab, inner, factor

    def call(self, message: Message, timeout_s: float) -> Any:
        found = self._inner.call(message, timeout_s)
        if isinstance(message, RunTexts) and not message.outputs:
            self._lab.engine.virtual_clock.advance((self._factor - 1) * found.total_s)
            return replace(found, total_s=self._factor * found.total_s)
        return found

    def close(self) -> None:
        self._inner.close()


def slowed(lab: Lab, factor: float) -> Tuning:
    context = lab.context()
    spawn = lab.spawn
    slow = replace(context, spawn=lambda name: Slowing(lab, spawn(name), factor))
    return contest.run(slow, baseline_engine="fake")


def test_rounds_that_take_longer_than_predicted_become_fewer(tmp_path: Path) -> None:
    script = {"*": {"call_s": 0.02, "token_s": 4e-4}}

    def lab() -> Lab:
        return Lab(tmp_path, script, texts=200, budget_s=60.0)

    tuning = slowed(first := lab(), 2.0)
    assert tuning.chosen.main is not None
    assert len(tuning.chosen.main.total.samples_s) == 3
    assert any("3 were run instead of 5" in note for note in tuning.warnings)
    assert '"key": "rounds:finals", "value": 3' in (tmp_path / "results.jsonl").read_text()
    assert first.messages
    assert tuning.elapsed_s < 1.15 * 60.0
    again = slowed(resumed := lab(), 2.0)
    assert [_course(row) for row in again.rows] == [_course(row) for row in tuning.rows]
    assert resumed.messages == []


def test_comparisons_of_batching_are_given_up_before_rounds(tmp_path: Path) -> None:
    script = {"*": {"call_s": 0.02, "token_s": 4e-4}}
    tuning = slowed(Lab(tmp_path, script, texts=200, budget_s=270.0), 1.6)
    main, *aside = tuning.chosen.runs
    assert len(main.total.samples_s) == 5
    assert [len(run.total.samples_s) for run in aside] == [1]
    assert tuning.elapsed_s < 270.0


def test_an_exact_one_is_in_the_finals_whatever_lossy_ones_there_are(tmp_path: Path) -> None:
    recipes = ("a", "b", "c", "d")
    lossy = {
        f"fake-int8-{name}-cpu-{layout}": FAST for name in recipes for layout in ("1x2", "2x1")
    }
    exact = {"call_s": 1.1e-3, "token_s": 2.2e-5}
    lab = Lab(
        tmp_path,
        {"*": exact, "recipes": {"int8": list(recipes)}, **lossy},
        precisions=("fp32", "int8"),
    )
    tuning = lab.tune()
    assert [row for row in tuning.rows if row.candidate.precision == "fp32" and row.runs]
    assert len([row for row in tuning.rows if row.runs]) == 3
    assert tuning.plan.candidate.precision == "int8"  # its lead is beyond doubt


def test_what_the_first_answers_speak_against_comes_after_the_others(tmp_path: Path) -> None:
    quick, right = {"call_s": 0.9e-3, "token_s": 1.8e-5, "shift": 0.3}, FAST
    scripts = {"a": quick, "b": quick, "c": quick, "d": right}
    lossy = {f"fake-int8-{name}-cpu-1x2": script for name, script in scripts.items()}
    lab = Lab(
        tmp_path,
        {"*": SLOW, "recipes": {"int8": list(scripts)}, **lossy},
        precisions=("fp32", "int8"),
        objective="latency",
    )
    tuning = lab.tune()
    assert tuning.plan.candidate.recipe == "d"
    crowded = [row for row in tuning.rows if "most promising" in (row.reason or "")]
    (reason,) = {row.reason for row in crowded}
    assert reason == (
        "only the 3 most promising int8 candidates go on, and it flipped more labels on the "
        "first texts"
    )


@pytest.mark.parametrize("budget_s", [30.0, 60.0, 300.0])
def test_the_budget_is_kept(tmp_path: Path, budget_s: float) -> None:
    lab = Lab(tmp_path, {"*": {"call_s": 0.02, "token_s": 4e-4}}, texts=200, budget_s=budget_s)
    assert lab.tune().elapsed_s <= 1.2 * budget_s


def test_rounds_are_interleaved(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"*": SLOW})
    lab.tune()
    timed = [
        name
        for name, message in lab.messages
        if isinstance(message, RunTexts) and not message.outputs
    ]
    # Between two rounds of one candidate every other finalist has its turn.
    turns = [place for place, name in enumerate(timed) if name == timed[1]]
    others = set(timed) - {timed[1]}
    assert others
    assert others <= set(timed[turns[0] : turns[-1]])


def test_an_interrupted_run_measures_nothing_twice(tmp_path: Path) -> None:
    script = {"*": SLOW, "fake-bf16-cpu-2x1": FAST}
    sent: Counter[str] = Counter()
    for stop in (3, 17, 40, None):
        lab = Lab(tmp_path, script)
        lab.stop_after = stop
        if stop is None:
            lab.tune()
        else:
            with pytest.raises(KeyboardInterrupt):
                lab.tune()
        sent.update(_kind(message) for _, message in lab.messages)
    keys = [json.loads(line)["key"] for line in _journal(tmp_path)]
    assert len(keys) == len(set(keys))
    stored = Counter(key.partition(":")[0] for key in keys)
    # Every timing that was taken has its line, and no line was taken twice.
    assert sent["TimeShape"] == stored["shape"]
    assert sent["timed RunTexts"] == _runs(tmp_path) > 10
    proofs = stored["probe"] + stored["parity"] + stored["probes"]
    assert sent["proving RunTexts"] == proofs + 1  # the original's
    assert sent["Export"] == stored["export"]


def test_wherever_a_run_is_interrupted_it_ends_the_same(tmp_path: Path) -> None:
    # A budget that leaves cells of the cost table and finalists out: what is left out must not
    # depend on the interruption.
    script = {"*": SLOW, "fake-bf16-cpu-2x1": FAST, "fake-fp32-cpu-2x1": {**SLOW, "call_s": 4e-3}}
    undisturbed = Lab(tmp_path / "whole", script, texts=30, budget_s=20.0)
    expected = [_course(row) for row in undisturbed.tune().rows]
    assert any(status == "dropped" for status, *_ in expected)
    for stop in range(0, len(undisturbed.messages), 26):
        lab = Lab(tmp_path / str(stop), script, texts=30, budget_s=20.0)
        lab.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            lab.tune()
        resumed = Lab(tmp_path / str(stop), script, texts=30, budget_s=20.0).tune()
        assert [_course(row) for row in resumed.rows] == expected, stop


def test_time_for_export_and_loading_comes_out_of_the_budget(tmp_path: Path) -> None:
    script = {"*": {**SLOW, "export_s": 10.0, "load_s": 50.0}}
    lab = Lab(tmp_path, script, texts=30, budget_s=300.0)
    tuning = lab.tune()
    assert tuning.baseline.start_up is not None
    assert tuning.baseline.start_up.load_s == pytest.approx(50.0)
    assert tuning.elapsed_s < 300.0
    reasons = [row.reason for row in tuning.rows if row.status == "dropped"]
    assert "the budget left no time to try it; raise --budget" in reasons


def test_a_finished_run_is_told_again_from_its_journal(tmp_path: Path) -> None:
    first = Lab(tmp_path, {"*": SLOW})
    again = Lab(tmp_path, {"*": SLOW})
    assert first.tune().rows == again.tune().rows
    assert again.messages == []


def _course(row: Row) -> tuple[object, ...]:
    """What was decided about a candidate, and what was measured of it; not the figures.

    Comparisons of strategies are left out: they fill what time is left, and a resume takes some.
    """
    table, run = row.cost_table, row.main
    cells = table and [[cell is None for cell in cells] for cells in table.latency_s]
    rounds = run and (run.strategy, run.texts, len(run.total.samples_s))
    return row.status, row.reason, cells, rounds


def _kind(message: object) -> str:
    if isinstance(message, RunTexts):
        return "proving RunTexts" if message.outputs else "timed RunTexts"
    return type(message).__name__


def _runs(folder: Path) -> int:
    """How many timed runs the journal holds."""
    lines = map(json.loads, _journal(folder))
    return sum(len(line["value"]["runs"]) for line in lines if line["key"].startswith("round:"))


def _journal(folder: Path) -> list[str]:
    return (folder / "results.jsonl").read_text().splitlines()[1:]
