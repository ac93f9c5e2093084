"""The experiment with scripted engines, in virtual time."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import EngineError, NoCandidate
from hasten.experiment import grid
from hasten.experiment.run import Experiment, Wanted
from hasten.judging.stats import FEWEST_FOR_P99, speed_up
from hasten.records import EXPERIMENTS, Bench, CostTable, Event, Forecast
from hasten.tuning.process import Connection
from hasten.tuning.worker import Message, RunTexts, TimeShape
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
SETTINGS: dict[str, Any] = {"batch_sizes": (1, 4, 8), "budget_s": math.inf, "rounds": 3}


def lab(folder: Path, script: dict[str, Any] | None = None, **settings: Any) -> Lab:
    return Lab(folder, script or {"*": SLOW, "fake-bf16-cpu-2x1": FAST}, **{**SETTINGS, **settings})


def run(lab: Lab, *experiments: str, lengths: tuple[int, ...] = ()) -> Bench:
    wanted = Wanted(experiments or EXPERIMENTS, lengths)
    saved: list[Bench] = []
    result = Experiment.plan(lab.context(), wanted, saved.append, baseline_engine="fake").run()
    assert saved[-1] == result
    assert not any(bench.complete for bench in saved[:-1])
    return result


def test_every_format_is_measured_in_its_fastest_layout(tmp_path: Path) -> None:
    result = run(lab(tmp_path))
    formats = {f.row.candidate.precision: f for f in result.formats}
    assert formats["bf16"].row.candidate.label == "fake-bf16-cpu-2x1"
    assert result.formats[0] is formats["bf16"]  # the fastest first
    dropped = {row.candidate.label: row for row in result.others}["fake-bf16-cpu-1x2"]
    assert (dropped.status, dropped.reason) == (
        "dropped",
        "slower on these texts than its layout 2x1",
    )
    assert result.complete


def test_all_orders_at_all_batch_sizes_are_run_as_often_as_asked(tmp_path: Path) -> None:
    result = run(lab(tmp_path), "batch-size", "order")
    for place, format_ in enumerate(result.formats):
        runs = {(r.strategy.name, r.strategy.batch_size): r for r in format_.row.runs}
        assert {size for name, size in runs if name == "arrival"} == {1, 4, 8}
        others = {4, 8} if place == 0 else set()
        assert {size for name, size in runs if name == "sorted"} == others
        assert {size for name, size in runs if name == "optimal"} == others
        assert {len(r.total.samples_s) for r in runs.values()} == {3}
    assert result.baseline.main is not None
    assert not any(format_.single for format_ in result.formats)


def test_times_are_those_of_the_script(tmp_path: Path) -> None:
    result = run(lab(tmp_path), "length", lengths=(16, 64))
    assert result.lengths == (16, 64)
    for format_ in result.formats:
        script = FAST if format_.row.candidate.precision == "bf16" else SLOW
        cells = {(s.batch_size, s.length): s.cost for s in format_.shapes}
        assert set(cells) == {(b, n) for b in (1, 4, 8) for n in (16, 64)}
        for (size, length), cost in cells.items():
            expected_s = script["call_s"] + script["token_s"] * size * length
            assert cost.median_s == pytest.approx(expected_s)


def test_no_sample_counts_twice(tmp_path: Path) -> None:
    result = run(lab(tmp_path))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()[1:]
    stored: Counter[tuple[str, str]] = Counter()
    for line in map(json.loads, lines):
        kind, label, *rest = line["key"].split(":")
        if kind == "shape":
            stored[label, rest[0]] += len(line["value"])
    for format_ in result.formats:
        for shape in format_.shapes:
            key = (format_.row.candidate.label, f"{shape.batch_size}x{shape.length}")
            assert len(shape.cost.samples_s) == stored[key]


def test_the_tuner_measures_the_same(tmp_path: Path) -> None:
    script = {"*": SLOW, "fake-bf16-cpu-2x1": FAST}
    tuning = Lab(tmp_path / "tune", script, batch_sizes=(1, 4, 8)).tune()
    result = run(lab(tmp_path / "bench", script))
    tuned = {row.candidate: row.cost_table for row in tuning.rows if row.cost_table}
    compared = 0
    for format_ in result.formats:
        cells = _cells(tuned[format_.row.candidate])
        for shape, found_s in _cells(format_.row.cost_table).items():
            if shape in cells:
                assert found_s == pytest.approx(cells[shape])
                compared += 1
    assert compared > 10


def _cells(table: CostTable | None) -> dict[tuple[int, int], float]:
    assert table is not None
    return {
        (size, length): cell
        for size, row in zip(table.batch_sizes, table.latency_s, strict=True)
        for length, cell in zip(table.lengths, row, strict=True)
        if cell is not None
    }


def test_single_texts_run_on_one_stream(tmp_path: Path) -> None:
    result = run(lab(tmp_path, texts=60), "latency")
    for format_ in result.formats:
        assert format_.single is not None
        assert format_.single.candidate.streams == 1
        assert format_.single.candidate.intra_op_num_threads == 2
        assert format_.single.main is not None
        assert len(format_.single.main.batch_latency_s) == 3 * 60
        assert format_.row.runs == ()


def test_five_runs_make_enough_single_calls_for_a_p99() -> None:
    assert 5 * grid.SINGLE_CALLS_A_RUN >= FEWEST_FOR_P99


def test_the_time_it_takes_is_told_before_and_about_right(tmp_path: Path) -> None:
    subject = lab(tmp_path)
    told: list[tuple[float, Event]] = []
    context = subject.context()
    context.budget.report = lambda event: told.append((subject.engine.clock(), event))
    Experiment.plan(context, Wanted(EXPERIMENTS), lambda _: None, baseline_engine="fake").run()
    ((then_s, forecast),) = ((s, event) for s, event in told if isinstance(event, Forecast))
    assert set(forecast.seconds) == {"length", "batch-size", "order", "latency"}
    took_s = subject.engine.clock() - then_s
    assert sum(forecast.seconds.values()) == pytest.approx(took_s, rel=0.2)


def test_a_second_start_measures_only_what_is_new(tmp_path: Path) -> None:
    first = run(lab(tmp_path), "batch-size")
    again = lab(tmp_path)
    assert run(again, "batch-size").formats == first.formats
    assert again.messages == []
    more = lab(tmp_path)
    result = run(more, "batch-size", "length", lengths=(16,))
    kinds = {type(message).__name__ for _, message in more.messages}
    assert kinds == {"Load", "TimeShape"}
    assert all(format_.shapes for format_ in result.formats)


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    whole = lab(tmp_path / "whole")
    run(whole)
    subject = lab(tmp_path / "stopped")
    subject.stop_after = len(whole.messages) - 30
    saved: list[Bench] = []
    with pytest.raises(KeyboardInterrupt):
        Experiment.plan(
            subject.context(), Wanted(EXPERIMENTS), saved.append, baseline_engine="fake"
        ).run()
    assert saved
    assert not saved[-1].complete
    assert any(format_.row.runs for format_ in saved[-1].formats)


def test_a_format_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    broken = {**FAST, "fail": "raise"}
    script = {"*": SLOW, "fake-bf16-cpu-2x1": broken, "fake-bf16-cpu-1x2": broken}
    result = run(lab(tmp_path, script))
    assert [f.row.candidate.precision for f in result.formats] == ["fp32"]
    failed = [row for row in result.others if row.status == "failed"]
    assert {row.candidate.precision for row in failed} == {"bf16"}


def test_nothing_that_answers_right_is_an_error(tmp_path: Path) -> None:
    script = {"*": {**SLOW, "fail": "raise", "when": "load"}, "fake-fp32-cpu-1x2": SLOW}
    subject = lab(tmp_path, {**script, "fake-fp32-cpu-1x2": {**SLOW, "unsupported": "not here"}})
    with pytest.raises(NoCandidate):
        Experiment.plan(
            subject.context(), Wanted(EXPERIMENTS), lambda _: None, baseline_engine="fake"
        ).run()


def test_what_breaks_in_the_middle_keeps_what_was_measured(tmp_path: Path) -> None:
    subject = lab(tmp_path, texts=30)
    broken = "fake-bf16-cpu-2x1"

    class Breaking:
        """Lets the format's worker fail at long texts, as one that runs out of memory."""

        def __init__(self, inner: Connection, name: str) -> None:
            self._inner, self._name = inner, name

        def call(self, message: Message, timeout_s: float) -> Any:
            if self._name == broken and isinstance(message, TimeShape) and message.length > 100:
                raise EngineError("out of memory, as scripted")
            return self._inner.call(message, timeout_s)

        def close(self) -> None:
            self._inner.close()

    context = replace(subject.context(), spawn=lambda name: Breaking(subject.spawn(name), name))
    result = Experiment.plan(
        context, Wanted(EXPERIMENTS), lambda _: None, baseline_engine="fake"
    ).run()
    (row,) = (f.row for f in result.formats if f.row.candidate.label == broken)
    assert (row.status, row.reason) == ("failed", "out of memory, as scripted")
    assert {len(run.total.samples_s) for run in row.runs} == {3}
    (exact,) = (f for f in result.formats if f.row.candidate.precision == "fp32")
    assert max(shape.length for shape in exact.shapes) == 128


def test_a_refused_format_is_measured_and_told(tmp_path: Path) -> None:
    # Wrong in one of the 32 texts of the first look, and in a few of all.
    script = {"*": SLOW, "fake-bf16-cpu-2x1": {**FAST, "shift": 0.4}}
    result = run(lab(tmp_path, script, max_flips=0.0), "batch-size")
    (lossy,) = (f for f in result.formats if f.row.candidate.label == "fake-bf16-cpu-2x1")
    assert "--max-flips allows 0" in (lossy.refusal or "")
    assert lossy.row.status == "finalist"
    assert lossy.row.runs


def test_the_orders_are_shown_for_the_fastest(tmp_path: Path) -> None:
    result = run(lab(tmp_path), "order")
    ordered = [
        f.row.candidate.precision
        for f in result.formats
        if any(r.strategy.name == "sorted" for r in f.row.runs)
    ]
    assert ordered == ["bf16"]


def test_an_interrupted_round_is_run_again_as_a_whole(tmp_path: Path) -> None:
    whole = lab(tmp_path / "whole")
    run(whole, "batch-size")
    timed = [n for n, (_, m) in enumerate(whole.messages) if _is_timed(m)]
    first = lab(tmp_path / "cut")
    first.stop_after = timed[-3]
    with pytest.raises(KeyboardInterrupt):
        run(first, "batch-size")
    resumed = lab(tmp_path / "cut")
    result = run(_twice_as_slow(resumed), "batch-size")
    # Half of a round from before the interruption would pair a fast run with a slow one.
    for format_ in result.formats:
        ratio = format_.row.ratio_to_baseline
        assert ratio is not None
        assert ratio.high == pytest.approx(ratio.low)


def test_what_a_later_start_adds_is_compared_with_the_baseline_of_its_own_rounds(
    tmp_path: Path,
) -> None:
    run(lab(tmp_path / "two", batch_sizes=(1, 8)), "batch-size")
    result = run(_twice_as_slow(lab(tmp_path / "two", batch_sizes=(1, 4, 8))), "batch-size")
    assert result.baseline.main is not None
    assert result.baseline.main.rounds == (0, 1, 2, 3, 4, 5)
    (lossy,) = (f for f in result.formats if f.row.candidate.precision == "bf16")
    rounds = {r.strategy.batch_size: r.rounds for r in lossy.row.runs}
    assert rounds == {1: (0, 1, 2), 8: (0, 1, 2), 4: (3, 4, 5)}
    (added,) = (r for r in lossy.row.runs if r.strategy.batch_size == 4)
    ratio = speed_up(result.baseline.main, added, seed=0)
    (undisturbed,) = (
        speed_up(whole.baseline.main, r, seed=0)
        for whole in [run(lab(tmp_path / "whole", batch_sizes=(1, 4, 8)), "batch-size")]
        for f in whole.formats
        for r in f.row.runs
        if f.row.candidate.precision == "bf16" and r.strategy.batch_size == 4
    )
    assert ratio is not None
    assert undisturbed is not None
    assert ratio.estimate == pytest.approx(undisturbed.estimate)


def _is_timed(message: Message) -> bool:
    return isinstance(message, RunTexts) and not message.outputs


def _twice_as_slow(subject: Lab) -> Lab:
    """The machine of another hour takes twice as long."""
    spawn = subject.spawn

    class Slow:
        def __init__(self, name: str) -> None:
            self._inner = spawn(name)

        def call(self, message: Message, timeout_s: float) -> Any:
            answer = self._inner.call(message, timeout_s)
            if _is_timed(message):
                return replace(answer, total_s=2 * answer.total_s)
            return answer

        def close(self) -> None:
            self._inner.close()

    subject.spawn = Slow  # type: ignore[method-assign]
    return subject
