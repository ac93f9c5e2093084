"""The final rounds: processes, interruptions, the ceiling beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.engines.fake import FakeSession
from hasten.errors import BudgetError
from hasten.records import EndToEnd, Progress, Tuning
from hasten.report import headline
from hasten.tuning import contest
from hasten.tuning.process import Connection
from hasten.tuning.worker import Load, MeasureCeiling, Message, RunTexts
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
SCRIPT = {"*": SLOW, "fake-bf16-cpu-2x1": FAST}


def main_run(tuning: Tuning) -> EndToEnd:
    run = tuning.chosen.main
    assert run
    return run


def rounds_in(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "results.jsonl").read_text().splitlines()[1:])
    return [line["value"] for line in lines if line["key"].startswith("round:finals")]


def heard(lab: Lab, change: Callable[[str, Message, Any], Any]) -> Tuning:
    """The lab's tune, with what every worker answers passed through ``change``."""

    class Changing:
        def __init__(self, name: str) -> None:
            self._name, self._inner = name, lab.spawn(name)

        def call(self, message: Message, timeout_s: float) -> Any:
            return change(self._name, message, self._inner.call(message, timeout_s))

        def close(self) -> None:
            self._inner.close()

    def spawn(name: str) -> Connection:
        return Changing(name)

    return contest.run(replace(lab.context(), spawn=spawn), baseline_engine="fake")


def test_rounds_come_from_several_processes_of_every_finalist(tmp_path: Path) -> None:
    tuning = (lab := Lab(tmp_path, SCRIPT)).tune()
    run, before = main_run(tuning), tuning.baseline.main
    assert run.process_count == 5
    assert before is not None
    assert before.processes[: len(run.processes)] == run.processes
    starts = [name for name, message in lab.messages if isinstance(message, Load)]
    assert starts.count(tuning.plan.candidate.label) == 5
    assert "within this run" not in " ".join(headline.of(tuning))


def test_engines_that_load_slowly_are_not_started_again_and_it_is_told(tmp_path: Path) -> None:
    script = {"*": {**SLOW, "load_s": 20.0}}
    tuning = Lab(tmp_path, script, texts=30, budget_s=300.0).tune()
    assert main_run(tuning).process_count == 1
    assert "within this run" in " ".join(headline.of(tuning))
    assert tuning.elapsed_s < 300.0


def test_the_interval_covers_what_differs_between_processes(tmp_path: Path) -> None:
    lab = Lab(tmp_path, SCRIPT)
    speeds, starts = (1.0, 1.2, 0.9, 1.1, 0.8), dict[str, int]()

    def moody(name: str, message: Message, answer: Any) -> Any:
        if isinstance(message, Load):
            starts[name] = starts.get(name, -1) + 1
        if isinstance(message, RunTexts) and not message.outputs and "bf16" in name:
            return replace(answer, total_s=answer.total_s * speeds[starts[name]])
        return answer

    ratio = heard(lab, moody).chosen.ratio_to_baseline
    assert ratio is not None
    # Rounds within a process are all alike; resampling fifteen of them as if they were
    # independent would give plus or minus 8 %.
    assert ratio.high / ratio.estimate > 1.15


def test_an_interrupted_round_is_run_again_as_a_whole(tmp_path: Path) -> None:
    whole = Lab(tmp_path / "whole", SCRIPT)
    whole.tune()
    messages = enumerate(message for _, message in whole.messages)
    timed = [n for n, m in messages if isinstance(m, RunTexts) and not m.outputs]
    heats = [len(found["runs"]) for found in rounds_in(tmp_path / "whole")]
    # In the middle of the third round.
    first = Lab(tmp_path / "cut", SCRIPT)
    first.stop_after = timed[-sum(heats[2:]) + 1]
    with pytest.raises(KeyboardInterrupt):
        first.tune()
    assert len(rounds_in(tmp_path / "cut")) == 2
    resumed = Lab(tmp_path / "cut", SCRIPT)
    after = heard(resumed, lambda _, m, a: _slower(m, a))
    before = after.baseline.main
    assert before is not None
    # Half of a round from before the interruption would pair a slow run with a fast one.
    ratios = [
        b / r for b, r in zip(before.total.samples_s, main_run(after).total.samples_s, strict=True)
    ]
    assert max(ratios) == pytest.approx(min(ratios))


def _slower(message: Message, answer: Any) -> Any:
    """The machine of another hour takes twice as long."""
    if isinstance(message, RunTexts) and not message.outputs:
        return replace(answer, total_s=2 * answer.total_s)
    return answer


def test_rounds_after_an_interruption_are_of_another_process(tmp_path: Path) -> None:
    whole = Lab(tmp_path / "whole", SCRIPT)
    whole.tune()
    first = Lab(tmp_path / "cut", SCRIPT)
    first.stop_after = len(whole.messages) - 12
    with pytest.raises(KeyboardInterrupt):
        first.tune()
    done = rounds_in(tmp_path / "cut")
    Lab(tmp_path / "cut", SCRIPT).tune()
    assert rounds_in(tmp_path / "cut")[len(done)]["process"] == done[-1]["process"] + 1


def test_the_ceiling_is_measured_with_every_process_and_paired_with_its_rounds(
    tmp_path: Path,
) -> None:
    lab, drift = Lab(tmp_path, SCRIPT), {"factor": 1.0}

    def drifting(name: str, message: Message, answer: Any) -> Any:
        """A machine that slows down after each measurement of the ceiling."""
        if isinstance(message, MeasureCeiling):
            drift["factor"] *= 1.25
            return answer / drift["factor"]
        if isinstance(message, RunTexts) and not message.outputs:
            return replace(answer, total_s=answer.total_s * drift["factor"])
        return answer

    tuning = heard(lab, drifting)
    steady = Lab(tmp_path / "steady", SCRIPT).tune()
    (fp32,) = [c for c in tuning.ceilings if c.precision == "fp32"]
    assert len(fp32.samples_flops_per_s) == main_run(tuning).process_count == 5
    assert steady.chosen.ceiling_share is not None
    # Both slowed down together, so the share is what it is on a steady machine.
    assert tuning.chosen.ceiling_share == pytest.approx(steady.chosen.ceiling_share, rel=0.01)


def test_a_lossy_favourite_never_runs_without_the_exact_one_that_it_has_to_beat(
    tmp_path: Path,
) -> None:
    script = {**SCRIPT, "fake-fp32-cpu-2x1": {"call_s": 3e-3, "token_s": 6e-5}}
    for budget_s in (3.0, 3.5):
        with contextlib.suppress(BudgetError):
            tuning = Lab(tmp_path / f"{budget_s}", script, budget_s=budget_s).tune()
            assert any(row.runs and row.candidate.exact for row in tuning.rows)


def test_no_timed_run_is_the_first_at_a_batch_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, SCRIPT, texts=130, precisions=("fp32",))
    run, seen = FakeSession.run, set[tuple[FakeSession, tuple[int, ...]]]()

    def slower_at_first(session: FakeSession, inputs: Any) -> Any:
        """An engine with caches: the first call of a session at a shape takes longer."""
        ids = inputs["input_ids"]
        if (session, ids.shape) not in seen:
            lab.engine.virtual_clock.advance(5e-3)
            seen.add((session, ids.shape))
        return run(session, inputs)

    monkeypatch.setattr(FakeSession, "run", slower_at_first)
    timed = main_run(lab.tune())
    assert timed.process_count == 5
    assert max(timed.total.samples_s) == pytest.approx(min(timed.total.samples_s))


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_the_rounds_take_as_long_as_predicted(tmp_path: Path, objective: str) -> None:
    # Long calls, so that what starting real processes would take does not matter.
    slow, fast = {"call_s": 0.5, "token_s": 0.01}, {"call_s": 0.1, "token_s": 0.002}
    script = {"*": slow, "fake-bf16-cpu-2x1": fast}
    lab = Lab(tmp_path, script, budget_s=20_000.0, objective=objective)
    told: list[tuple[float, Progress]] = []

    def report(event: object) -> None:
        if isinstance(event, Progress) and event.stage == "finals":
            told.append((lab.engine.clock(), event))

    context = lab.context()
    context.budget.report = report
    contest.run(context, baseline_engine="fake")
    begin_s, first = told[0]
    assert "round 1 of" in first.message
    assert first.left_s == pytest.approx(lab.engine.clock() - begin_s, rel=0.1)
