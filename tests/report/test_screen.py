"""What a person sees first: the answer's figures, what it beat, and what was refused."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hasten.records import Bench, Candidate, Parity, Row, Tuning
from hasten.report import comparison, compose, headline, notebook, screen, terminal
from hasten.report.document import Document
from hasten.report.media import markdown, page
from tests.report.results import SLOW, benched, tuned

QUICK = {"call_s": 1.37e-4, "token_s": 1.9e-6}
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?(?=x\b| texts/s| texts a second| ms\b)")


def tuning_of(folder: Path, **settings: str) -> Tuning:
    """The winner is about a hundred times as fast as the baseline, at thousands of texts/s."""
    return tuned(folder, {"*": SLOW, "fake-bf16-cpu-2x1": QUICK}, **settings)


def significant(figure: str) -> int:
    """How many digits a number shows, without zeros that only stand for its size."""
    whole, _, decimals = figure.replace(",", "").partition(".")
    digits = (whole + decimals).lstrip("0")
    return len(digits if decimals else digits.rstrip("0"))


def shown(document: Document) -> Iterator[str]:
    """The answer of a report in each medium."""
    file = io.StringIO()
    Console(file=file, width=300).print(terminal.render(document))
    yield file.getvalue()
    yield markdown.render(document)
    yield re.sub(r"<(style|script).*?</\1>", "", page.render(document), flags=re.DOTALL)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_no_figure_of_a_fast_model_has_more_than_three_digits(
    objective: str, tmp_path: Path
) -> None:
    tuning = tuning_of(tmp_path, objective=objective)
    side = comparison.Side("a", tuning)
    documents = (
        screen.of(tuning),
        compose.of(tuning, drawn=False),
        comparison.of(side, side, drawn=False),
    )
    texts = [text for document in documents for text in shown(document)]
    texts += [notebook.result_text(tuning), notebook.result_html(tuning)]
    for text in texts:
        figures = FIGURE.findall(text)
        assert figures, text
        assert [figure for figure in figures if significant(figure) > 3] == [], text


def test_no_figure_of_a_fast_bench_has_more_than_three_digits(tmp_path: Path) -> None:
    bench: Bench = benched(tmp_path, script={"*": SLOW, "fake-bf16-cpu-2x1": QUICK})
    for document in (screen.of(bench), compose.of(bench, drawn=False)):
        for text in shown(document):
            figures = FIGURE.findall(text)
            assert figures
            assert [figure for figure in figures if significant(figure) > 3] == []


def own_wins(folder: Path, *others: Row) -> str:
    """What is said where the baseline's own engine won, beside rows of other engines."""
    tuning = tuned(folder, precisions=("fp32",))
    return " ".join(headline.speeds(replace(tuning, rows=(*tuning.rows, *others))))


def other(status: str, tokens_per_s: float | None) -> Row:
    candidate = Candidate("other", "fp32", "cpu", 2)
    return Row(candidate, status, screen_tokens_per_s=tokens_per_s)  # type: ignore[arg-type]


def test_engines_that_were_not_tried_are_not_called_slower(tmp_path: Path) -> None:
    assert "No other engine was measured." in own_wins(tmp_path)
    absent = other("unavailable", None)
    assert "No other engine was measured." in own_wins(tmp_path, absent)
    assert "is clearly faster than Fake itself" in own_wins(tmp_path, other("dropped", 1.0))
    told = own_wins(tmp_path, other("dropped", 1.0), other("refused", 1e9))
    assert "Faster candidates of other engines were refused, or not proved in time." in told


def refused(recipe: str, streams: int, flips: int, tokens_per_s: float) -> Row:
    parity = Parity(700, 0.5, 0.1, flips, 0, 0.0848, 0, decisions=True)
    reason = f"{flips} of 700 labels flipped; --max-flips allows 0.01"
    candidate = Candidate("fake", "int8", "cpu", 2 // streams, streams, recipe)
    return Row(candidate, "refused", reason, screen_tokens_per_s=tokens_per_s, parity=parity)


def refusals(tuning: Tuning, *rows: Row) -> str:
    (section,) = screen.of(replace(tuning, rows=(*tuning.rows, *rows))).sections
    return next(line for line in section.lines if line.startswith("Refused"))


def test_every_refused_recipe_is_named_with_its_reason(tmp_path: Path) -> None:
    tuning = tuned(tmp_path, precisions=("fp32",))
    static, token = refused("static", 1, 16, 5e5), refused("token", 2, 9, 4e5)
    assert refusals(tuning, token, static) == (
        "Refused: Fake int8 static 1x2: 16 of 700 labels flipped; --max-flips allows 0.01. "
        "Also refused: Fake int8 token 2x1, 9 of 700 labels flipped."
    )
    again = refused("static", 2, 16, 3e5)
    assert refusals(tuning, static, again).endswith(" Also refused: 1 other layout.")
    assert refusals(tuning, static, again, token).endswith("9 of 700 labels flipped; 1 more.")
    far = refused("dynamic", 2, 47, 4.5e5)
    assert "Also refused: Fake int8 token" in refusals(tuning, static, far, token)
