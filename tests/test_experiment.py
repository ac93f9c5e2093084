"""The experiment with scripted engines, in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import NoCandidate
from hasten.experiment import grid
from hasten.experiment.run import Experiment, Wanted
from hasten.records import EXPERIMENTS, Bench, Event, Forecast
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
    for format_ in result.formats:
        runs = {(r.strategy.name, r.strategy.batch_size): r for r in format_.row.runs}
        assert {size for name, size in runs if name == "arrival"} == {1, 4, 8}
        assert {size for name, size in runs if name == "sorted"} == {4, 8}
        assert {size for name, size in runs if name == "optimal"} == {4, 8}
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


def test_the_tuner_measures_the_same(tmp_path: Path) -> None:
    script = {"*": SLOW, "fake-bf16-cpu-2x1": FAST}
    tuning = Lab(tmp_path / "tune", script, batch_sizes=(1, 4, 8)).tune()
    result = run(lab(tmp_path / "bench", script))
    tuned = {row.candidate: row.cost_table for row in tuning.rows if row.cost_table}
    for format_ in result.formats:
        table = tuned[format_.row.candidate]
        other = format_.row.cost_table
        assert other is not None
        for i, size in enumerate(table.batch_sizes):
            for j, length in enumerate(table.lengths):
                if size in other.batch_sizes and length in other.lengths:
                    cell = other.latency_s[other.batch_sizes.index(size)]
                    found = cell[other.lengths.index(length)]
                    if found is not None and table.latency_s[i][j] is not None:
                        assert found == pytest.approx(table.latency_s[i][j])


def test_single_texts_run_on_one_stream(tmp_path: Path) -> None:
    result = run(lab(tmp_path, texts=60), "latency")
    for format_ in result.formats:
        assert format_.single is not None
        assert format_.single.candidate.streams == 1
        assert format_.single.candidate.intra_op_num_threads == 2
        assert format_.single.main is not None
        assert len(format_.single.main.batch_latency_s) == 3 * 60
        assert format_.row.runs == ()


def test_enough_single_texts_for_a_p99_where_there_are_that_many() -> None:
    assert 5 * grid.calls_in_a_round(5, 1000) >= grid.SINGLE_CALLS
    assert 0.99**grid.SINGLE_CALLS < 0.01


def test_the_time_it_takes_is_told_before_and_about_right(tmp_path: Path) -> None:
    subject = lab(tmp_path)
    told: list[tuple[float, Event]] = []
    context = replace(
        subject.context(), report=lambda event: told.append((subject.engine.clock(), event))
    )
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
