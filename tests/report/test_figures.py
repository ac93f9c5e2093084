"""From records to the marks of charts, without a charting library."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from hasten.judging.stats import ratio_interval, speed_up
from hasten.records import (
    Candidate,
    Ceiling,
    EndToEnd,
    Measurement,
    Parity,
    Row,
    ShapeTime,
    StartUp,
    Strategy,
)
from hasten.report import compose, content, figures, figures_cells
from hasten.report.document import Figure
from tests.report.results import benched, tuned

OPENVINO = Candidate("openvino", "fp32", "cpu", 1, streams=2)
EAGER = Candidate("torch_eager", "fp32", "cpu", 2)
FORMATS = ("OpenVINO fp32", "PyTorch eager fp32")


def run(
    *seconds: float, batch_size: int = 8, calls: tuple[float, ...] = (0.1,), name: str = "arrival"
) -> EndToEnd:
    strategy = Strategy(name, batch_size)  # type: ignore[arg-type]
    total, tokenize = Measurement(seconds), Measurement((0.01,))
    return EndToEnd(strategy, 100, 3000, 0.25, None, total, tokenize, calls)


def test_a_mean_has_bounds_and_a_single_sample_has_none() -> None:
    mean = figures.per_text_s(run(1.0, 1.1, 1.2), 0)
    assert mean.estimate == pytest.approx(statistics.geometric_mean((1.0, 1.1, 1.2)) / 100)
    assert figures.bounded("y", mean, 1000).keys() == {"y", "y_low", "y_high"}
    assert figures.bounded("y", figures.per_text_s(run(1.0), 0), 1000) == {"y": 10.0}


def test_speed_ups_are_paired_by_round_as_far_as_both_have_come() -> None:
    baseline, now = run(4.0, 6.0, 8.0, batch_size=1), run(2.0, 3.0)
    found = speed_up(baseline, now, seed=7)
    assert found == ratio_interval((4.0, 6.0), (2.0, 3.0), seed=7)
    assert speed_up(baseline, run(2.0), seed=7) is None
    assert speed_up(None, now, seed=7) is None
    assert speed_up(replace(baseline, texts=5), now, seed=7) is None


def test_speeds_have_the_speed_up_as_their_quotient() -> None:
    baseline, now = run(4.0, 6.0, 9.0), run(1.0, 2.0, 2.0)
    found = speed_up(baseline, now, seed=0)
    assert found is not None
    assert now.texts_per_s / baseline.texts_per_s == pytest.approx(found.estimate)
    assert now.tokens_per_s / baseline.tokens_per_s == pytest.approx(found.estimate)


def test_hover_says_what_a_run_was() -> None:
    row = Row(OPENVINO, "finalist")
    words = figures.run_words(row, run(1.0, 1.0), figures.per_text_s(run(1.0, 1.0), 0), None)
    assert words == {
        "Format": "OpenVINO fp32 2x1",
        "Order": "arrival",
        "Batch size": "8",
        "Time per text": "10.0 ms",
        "Throughput": "100 texts/s",
        "Padding": "25 % of the tokens",
        "Runs": "2",
    }


def test_cells_with_samples_come_before_the_cost_table(tmp_path: Path) -> None:
    shape = ShapeTime(4, 16, Measurement((0.4, 0.4)))
    (cell,) = figures_cells.cells(Row(OPENVINO, "finalist"), (shape,), 0)
    assert (cell.batch_size, cell.length, cell.samples) == (4, 16, 2)
    assert cell.per_text_s.estimate == pytest.approx(0.1)
    assert cell.words["Tokens"] == "160 tokens/s"
    tuning = tuned(tmp_path)
    table = tuning.chosen.cost_table
    assert table is not None
    known = [cell for times in table.latency_s for cell in times if cell is not None]
    assert len(figures_cells.cells(tuning.chosen, (), 0)) == len(known)


def test_two_layouts_of_a_format_are_told_apart() -> None:
    cells = figures_cells.cells(
        Row(OPENVINO, "finalist"), (ShapeTime(4, 16, Measurement((0.4, 0.4))),), 0
    )
    other = replace(OPENVINO, intra_op_num_threads=2, streams=1)
    _, formats = figures_cells.over_length({OPENVINO: cells, EAGER: cells}, FORMATS)
    assert (formats.legend, formats.present) == ("format", FORMATS)
    within, layouts = figures_cells.over_length({OPENVINO: cells, other: cells}, FORMATS)
    assert layouts.legend == "candidate"
    assert layouts.present == ("OpenVINO fp32 2x1", "OpenVINO fp32 1x2")
    assert [panel.about for panel in within.panels] == ["OpenVINO fp32"] * 2
    assert len(figures_cells.over_length({OPENVINO: cells, other: []}, FORMATS)) == 1


def test_a_distribution_rises_and_has_a_p99_only_from_enough_calls() -> None:
    for count, marks in ((458, 2), (459, 3)):
        calls = tuple(0.001 * (1 + index) for index in range(count))
        row = Row(EAGER, "finalist", runs=(run(1.0, calls=calls),))
        figure = figures.latency([row], FORMATS)
        assert figure is not None
        points = list(figure.points)
        assert len(points) <= 204
        assert [p["x"] for p in points] == sorted(p["x"] for p in points)
        marked = [point for point in points if not point.get("bare")]
        assert [point["Percentile"] for point in marked] == ["p50", "p90", "p99"][:marks]
        assert marked[0]["x"] == pytest.approx(0.5 * (1 + count))
        assert marked[0]["x_low"] < marked[0]["x"] < marked[0]["x_high"]  # type: ignore[operator]


def test_agreement_is_seen_and_bounded() -> None:
    parity = Parity(1000, 0.2, 0.01, 2, 0, 0.0063, 0, decisions=True)
    baseline = Row(EAGER, "finalist", runs=(run(2.0, 2.0),))
    speed = ratio_interval((2.0, 2.2), (1.0, 1.0), seed=0)
    proved = Row(OPENVINO, "chosen", parity=parity, ratio_to_baseline=speed)
    screened = Row(EAGER, "dropped", parity=parity, screen_tokens_per_s=3000.0)
    never_timed = Row(EAGER, "failed", parity=parity)
    figure = figures.frontier([proved, screened, never_timed], baseline, FORMATS, 0.01)
    assert figure is not None
    first, second = figure.points
    assert (first["x"], first["x_high"], first["y"]) == (0.002, 0.0063, speed.estimate)
    assert first["Flipped labels"] == "2 of 1,000 (at most 0.63 %)"
    assert second["y"] == 2.0
    assert "y_low" not in second
    assert figure.x_rule == 0.01
    tensors = replace(parity, decisions=False)
    figure = figures.frontier([replace(proved, parity=tensors)], baseline, FORMATS, 0.01)
    assert figure is not None
    assert (figure.x.kind, figure.x_rule) == ("log", None)
    assert figures.frontier([never_timed], baseline, FORMATS, 0.01) is None


def test_ceilings_and_start_up_are_bars() -> None:
    row = Row(OPENVINO, "chosen", start_up=StartUp(1.5, 0.5, 2**30), ceiling_share=0.76)
    bar = figures.ceiling([row], [Ceiling("fp32", "cpu", 2e11)], FORMATS)
    beyond = figures.ceiling(
        [replace(row, ceiling_share=1.19)], [Ceiling("fp32", "cpu", 2e11)], FORMATS
    )
    assert beyond is not None
    assert [point["x"] for point in beyond.points] == [1.19]
    assert bar is not None
    (point,) = bar.points
    assert point["Fastest matrix product"] == "200 GFLOP/s in fp32"
    load, memory = figures.memory([row], FORMATS)
    assert [next(f.points)["x"] for f in (load, memory)] == [2.0, 1024.0]
    assert figures.memory([Row(EAGER, "failed")], FORMATS) == ()


def test_a_bench_fills_every_chart(tmp_path: Path) -> None:
    bench = benched(tmp_path)
    drawn = {figure.name: figure for figure in compose.of(bench).figures}
    formats = len(bench.formats)
    sizes, lengths = 3, 2
    assert marks(drawn["batch-size-time"]) == formats * sizes
    assert marks(drawn["batch-size-speed-up"]) == formats * sizes
    assert marks(drawn["length-by-format"]) == formats * sizes * lengths
    assert [len(p.points) for p in drawn["length-by-batch-size"].panels] == [formats * lengths] * 3
    orders = sizes + 2 * (sizes - 1)
    assert [len(panel.points) for panel in drawn["order-time"].panels] == [orders]
    assert drawn["order-padding"].present == ("arrival", "sorted", "optimal")
    assert marks(drawn["latency"]) == formats * 2
    assert {"frontier", "start-up", "memory"} <= set(drawn)
    by_size = {p["Batch size"]: p for p in drawn["batch-size-time"].points}
    fastest = min(bench.formats[0].row.runs, key=lambda run: run.strategy.batch_size)
    expected = figures.per_text_s(fastest, 0).estimate * 1000
    first = next(iter(drawn["batch-size-time"].points))
    assert first["y"] == pytest.approx(expected)
    assert set(by_size) == {"1", "4", "8"}


def test_a_tuning_has_the_charts_that_its_runs_allow(tmp_path: Path) -> None:
    tuning = tuned(tmp_path)
    drawn = {figure.name: figure for figure in compose.of(tuning).figures}
    assert {"frontier", "batching", "length-by-format", "ceiling", "memory"} <= set(drawn)
    assert "latency" not in drawn
    assert marks(drawn["batching"]) == len(tuning.chosen.runs)
    for figure in drawn.values():
        assert {point["series"] for point in figure.points} <= set(figure.series)


def test_nothing_is_computed_for_charts_that_are_not_drawn(tmp_path: Path) -> None:
    assert not list(compose.of(tuned(tmp_path), drawn=False).figures)


def marks(figure: Figure) -> int:
    return sum(not point.get("bare") for point in figure.points)


def test_margins_show_every_flip_of_what_was_judged_on_all_texts(tmp_path: Path) -> None:
    tuning = tuned(tmp_path)
    parity = tuning.chosen.parity
    assert parity is not None
    known = replace(parity, flip_margins=(0.1, 0.4), margin_quantiles=(0.1, 1.0, 2.0, 3.0, 4.0))
    few = replace(known, compared=32, flip_margins=(9.0,))
    rows = [replace(tuning.chosen, parity=known), replace(tuning.chosen, parity=few)]
    figure = figures.margins(rows, (content.family(tuning.chosen.candidate),))
    assert figure is not None
    assert [point["x"] for point in figure.points] == [0.1, 0.4]
    assert figure.x_rule == 2.0
    assert figures.margins([replace(tuning.chosen, parity=None)], ()) is None
