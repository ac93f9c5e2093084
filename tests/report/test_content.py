"""What the report says about a scripted result."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from hasten.records import Candidate, Flip, Interval, Parity, Quality, Row, Tuning
from hasten.report import (
    command,
    compose,
    conditions,
    content,
    content_ladder,
    headline,
    terminal,
)
from hasten.report.media import markdown
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}


def tuned(folder: Any, **settings: Any) -> Tuning:
    script = {
        "*": SLOW,
        "fake-bf16-cpu-2x1": FAST,
        "fake-bf16-cpu-1x2": {**FAST, "shift": 5.0},
    }
    return Lab(folder, script, **settings).tune()


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return tuned(tmp_path_factory.mktemp("lab"))


def test_estimates_are_in_the_terms_of_what_was_measured(tuning: Tuning) -> None:
    shown = content.comparable(tuning)
    main = tuning.chosen.main
    assert main is not None
    assert shown.chosen.screen_tokens_per_s == pytest.approx(main.tokens_per_s)
    ratios = {
        after.screen_tokens_per_s / before.screen_tokens_per_s
        for before, after in zip(tuning.rows, shown.rows, strict=True)
        if before.screen_tokens_per_s and after.screen_tokens_per_s
    }
    assert max(ratios) == pytest.approx(min(ratios))


def test_a_narrow_terminal_cuts_nothing_off(tuning: Tuning) -> None:
    def characters(width: int) -> Counter[str]:
        file = io.StringIO()
        Console(file=file, width=width).print(terminal.render(compose.of(tuning, drawn=False)))
        return Counter(file.getvalue().replace(" ", "").replace("\n", ""))

    assert characters(50) == characters(300)


def test_the_answer_comes_first(tuning: Tuning) -> None:
    first, *others = headline.of(tuning)
    ratio = tuning.chosen.ratio_to_baseline
    assert ratio is not None
    assert first == (
        "Fastest: Fake bf16 (2 streams x 1 thread, batches planned by length). "
        f"{content.number(ratio.estimate)}x faster than Fake one text at a time "
        f"(95 % interval {content.number(ratio.low)}-{content.number(ratio.high)})."
    )
    told = " ".join(others)
    assert "x faster than Fake's own best, " in told
    bound = 100 * (1 - 0.025 ** (1 / 60))  # two candidates might have been chosen
    assert f"0 of 60 labels flipped: at most {bound:.2f} % with 95 % confidence" in told


def test_every_candidate_that_was_tried_has_a_line_and_the_baseline_the_last(
    tuning: Tuning,
) -> None:
    table = content.candidates(tuning)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    outcomes = [row[1] for row in table.rows]
    assert outcomes[0] == "chosen"
    assert "refused" in outcomes
    assert table.rows[-1][1] == "baseline"
    assert len(table.rows) == 1 + sum(row.status != "unavailable" for row in tuning.rows)


def test_refused_candidates_show_their_reason(tuning: Tuning) -> None:
    row = next(row for row in content.candidates(tuning).rows if row[1] == "refused")
    assert "of 32" in row[-1]


def test_unavailable_candidates_with_one_reason_share_a_line(tuning: Tuning) -> None:
    lines = content.unavailable(tuning.rows)
    assert lines == ("Fake (fp32, bf16, fp16 on cuda): fake runs on the CPU only",)


def test_strategies_are_compared_with_their_padding(tuning: Tuning) -> None:
    table = content.batching(tuning)
    assert table is not None
    names = {row[0].split()[0] for row in table.rows}
    assert names == {"optimal", "sorted", "budget", "arrival"}


def test_changed_answers_are_shown_with_both_labels() -> None:
    flip = Flip(3, "a " * 100, "no", "yes", 0.5, 0.25)
    parity = Parity(100, 0.5, 0.1, 1, 0, 0.0466, 0, decisions=True, examples=(flip,))
    assert content.agreement(parity) == (
        "Against the original, 1 of 100 labels flipped: at most 4.66 % with 95 % confidence."
    )
    found = Quality(0.91, 0.92, 0.90, 0.93, 2, 3, 1.0)
    judged = replace(
        parity,
        ties=1,
        quality=found,
        flip_margins=(0.5,),
        margin_quantiles=(0.1, 1.0, 3.0, 5.0, 6.0),
    )
    told = content.agreement(judged)
    assert "1 of them are ties in the original itself" in told
    assert "preferred its own label by 0.5 logits in the median; over all texts by 3." in told
    assert "Accuracy 91 %, the original's 92 %; macro-F1 0.900 and 0.930." in told
    assert (
        "Only the candidate is right on 2 texts, only the original on 3 (McNemar's test, p = 1)"
        in told
    )


def test_reasons_call_candidates_as_tables_do(tuning: Tuning) -> None:
    reason = "1.50x slower than fake-bf16-cpu-2x1"
    rows = tuple(
        replace(row, reason=reason) if row.status == "refused" else row for row in tuning.rows
    )
    table = content.candidates(replace(tuning, rows=rows))
    (note,) = {row[-1] for row in table.rows if row[1] == "refused"}
    assert note == "1.50x slower than Fake bf16 2x1"


def test_which_texts_judged_and_which_calibrated_add_up(tuning: Tuning) -> None:
    lines = conditions.of(replace(tuning, judged_texts=50, calibration_texts=10))
    assert any("; 50 for evaluation, 10 for int8 calibration" in line for line in lines)
    lines = conditions.of(replace(tuning, judged_texts=100))
    assert any("; 100 for evaluation (60 different)" in line for line in lines)
    assert not any("for evaluation" in line for line in conditions.of(tuning))


def test_a_share_above_the_ceiling_is_shown_and_explained(tuning: Tuning) -> None:
    def told(share: float) -> tuple[str, str]:
        chosen = replace(tuning.chosen, ceiling_share=share)
        rows = tuple(chosen if row.status == "chosen" else row for row in tuning.rows)
        shown = replace(tuning, rows=rows)
        return " ".join(headline.of(shown)), str(list(content.facts(shown)))

    sentence, tiles = told(1.19)
    assert "119 % of the fastest" in sentence
    assert "it was measured too low" in sentence
    assert "119 %" in tiles
    sentence, tiles = told(0.6)
    assert "too low" not in sentence
    assert "It reaches 60 % of the fastest" in sentence
    assert "60 %" in tiles


def test_a_faster_lossy_runner_up_is_explained(tuning: Tuning) -> None:
    runner_up = next(r for r in tuning.rows if r.runs and r.status != "chosen")
    ratio = Interval(0.44, 0.79, 1.39)
    shown = replace(
        tuning, runner_up=runner_up.candidate.label, ratio_to_runner_up=ratio, tie=False
    )
    assert any("wins only where it is clearly faster" in s for s in headline.of(shown))


def test_each_step_down_tells_what_it_gains_and_costs(tmp_path: Any) -> None:
    script = {"*": SLOW, "fake-bf16-cpu-2x1": FAST, "fake-bf16-cpu-1x2": FAST}
    (step,) = content_ladder.steps(Lab(tmp_path, script).tune())
    assert step.startswith("Fake bf16 1x2 is ")
    assert "times as fast as Fake fp32" in step
    assert step.endswith("and flips 0 of 60 labels (at most 5.96 %).")
    assert (
        content_ladder.steps(Lab(tmp_path / "one", {"*": FAST}, precisions=("fp32",)).tune()) == ()
    )


def test_a_recipe_and_what_it_spares_are_part_of_the_name() -> None:
    candidate = Candidate("fake", "int8", "cpu", 1, 2, "static", ("a", "b"))
    assert content.title(candidate) == ("Fake int8 static, 2 layers in fp32, 2 streams x 1 thread")


def test_a_command_that_is_known_is_shown_and_else_one_that_asks_for_the_same(
    tuning: Tuning,
) -> None:
    assert command.repeat(replace(tuning, command="hasten tune ./m")) == "hasten tune ./m"
    assert (command.repeat(tuning) or "").startswith("hasten tune MODEL --data FILE")


def test_tensors_are_not_called_answers() -> None:
    parity = Parity(100, 0.5, 0.1, 0, 0, 1.0, 0, decisions=False)
    assert "compared as tensors" in content.agreement(parity)
    assert "answers differ" not in content.agreement(parity)


def test_a_tie_is_called_a_tie(tmp_path: Any) -> None:
    tuning = Lab(tmp_path, {"*": FAST}).tune()
    assert any("Tied with" in sentence for sentence in headline.of(tuning))


def test_latency_is_told_in_milliseconds(tmp_path: Any) -> None:
    tuning = tuned(tmp_path, objective="latency")
    first, speed, *_ = headline.of(tuning)
    assert "one text at a time" in first
    assert "ms a text instead of" in speed
    assert "p50 ms" in content.candidates(tuning).columns


def test_markdown_tables_are_whole_and_cells_cannot_break_out(tuning: Tuning) -> None:
    nasty = replace(tuning.chosen, reason="pipe | and\nnewline")
    rows = tuple(nasty if row.status == "chosen" else row for row in tuning.rows)
    text = markdown.render(compose.of(replace(tuning, rows=rows), drawn=False))
    assert "pipe \\| and newline" in text
    lines = [line for line in text.splitlines() if line.startswith("| Fake bf16 2x1 | chosen")]
    assert lines[0].count(" | ") == len(content.candidates(tuning).columns) - 1
    assert "## Conditions" in text
    assert "Scripted CPU" in text


def test_the_terminal_shows_the_answer_and_no_markup_of_the_users(tuning: Tuning) -> None:
    nasty: Row = replace(tuning.chosen, reason="[bold]not markup[/]")
    rows = tuple(nasty if row.status == "chosen" else row for row in tuning.rows)
    out = io.StringIO()
    document = compose.of(replace(tuning, rows=rows), drawn=False)
    Console(file=out, width=200).print(terminal.render(document))
    assert "Fastest: Fake bf16 (2 streams x 1 thread" in out.getvalue()
    assert "[bold]not markup[/]" in out.getvalue()
    assert "\x1b[" not in out.getvalue()
