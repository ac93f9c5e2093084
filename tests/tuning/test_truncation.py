"""Candidates that read less of long texts: at which lengths, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pytest

from hasten.bulk.stream import predict
from hasten.cli.display import Display
from hasten.errors import InputError
from hasten.records import Candidate, Row, Standing, Tuning
from hasten.report import headline
from hasten.runtime import bundle
from hasten.runtime.predictor import Predictor
from hasten.tuning.proof import fix_tries
from hasten.tuning.trial import Trial
from hasten.tuning.truncation import GAINS, lengths_worth_trying
from hasten.tuning.worker import Export, Message, RunTexts
from tests.scripted import Lab, save_bundle
from tests.tiny import tiny_texts

BY_TOKEN = {"call_s": 1e-5, "token_s": 1e-4}
EARLY_ALONE = {**BY_TOKEN, "reads": 8}


def lab(folder: Path, script: dict[str, Any], **settings: Any) -> Lab:
    made = Lab(folder, script, 100, **{"batch_sizes": (1, 8), **settings})
    held = sorted(set(tiny_texts(400, seed=9)) - set(made.texts), key=len)
    made.first_look = tuple(held[::10])
    made.long_look = tuple(text for text in held[-60:] if text not in made.first_look)
    return made


def cut(tuning: Tuning) -> list[Row]:
    return [row for row in tuning.rows if row.candidate.max_tokens]


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Tuning]:
    """A search for a model that needs no more than the beginning of a text."""
    tried = lab(tmp_path_factory.mktemp("early"), {"*": EARLY_ALONE})
    return tried, tried.tune()


def test_a_model_that_needs_the_beginning_alone_reads_less_and_wins(
    early: tuple[Lab, Tuning],
) -> None:
    winner = early[1].chosen
    assert winner.candidate.max_tokens
    assert winner.candidate.precision == "fp32"
    assert winner.ratio_to_baseline
    assert winner.ratio_to_baseline.low > GAINS[0]
    assert winner.parity
    assert winner.parity.flips == 0
    assert 0 < winner.parity.cut < winner.parity.compared
    told = headline.of(early[1])
    cut_texts = f"{winner.parity.cut} of {winner.parity.compared} are cut."
    tokens = winner.candidate.max_tokens
    assert f"Fake fp32, {tokens} tokens" in told[0]
    assert f"It reads at most {tokens} tokens of a text: {cut_texts}" in told


def test_a_model_whose_answers_depend_on_late_tokens_is_refused(tmp_path: Path) -> None:
    tuning = lab(tmp_path, {"*": BY_TOKEN}).tune()
    (row,) = cut(tuning)  # the longest length says it all
    assert row.status == "refused"
    assert row.reason
    assert row.reason.startswith(f"reads at most {row.candidate.max_tokens} tokens: ")
    assert "flipped" in row.reason
    assert tuning.chosen.candidate.max_tokens is None


def test_what_flips_on_long_texts_alone_is_refused_before_it_is_proved(tmp_path: Path) -> None:
    tried = lab(tmp_path, {"*": BY_TOKEN})
    tried.first_look = tuple(text for text in tried.first_look if len(text.split()) < 13)
    (row,) = cut(tried.tune())
    assert row.status == "refused"
    assert "cut calibration texts flipped, and" in (row.reason or "")
    judged = {len(m.indices) for name, m in tried.messages if "tokens" in name and is_run(m)}
    assert len(tried.texts) not in judged


def test_the_lengths_are_the_longest_that_gain_what_is_asked(tmp_path: Path) -> None:
    context = lab(tmp_path, {"*": EARLY_ALONE}).context()
    whole = Trial(Candidate("fake", "fp32", "cpu", 2), context)
    whole.cells = {(1, n): [1e-4 * n] for n in (4, 64)}  # a text costs its tokens
    lengths = lengths_worth_trying(context, whole)
    tokens = context.lengths
    assert lengths
    assert lengths == sorted(lengths, reverse=True)
    for gain, length in zip(GAINS, lengths, strict=False):
        assert tokens.sum() / np.minimum(tokens, length).sum() >= gain
        assert tokens.sum() / np.minimum(tokens, length + 8).sum() < gain


def test_short_texts_leave_nothing_to_gain(tmp_path: Path) -> None:
    tried = lab(tmp_path, {"*": EARLY_ALONE})
    tried.texts = tuple(text for text in tried.texts if len(text.split()) <= 14)
    assert not cut(tried.tune())


@pytest.mark.parametrize("asked", [{"precisions": ("fp32",)}, {"whole_texts": True}])
def test_fp32_alone_and_whole_texts_cut_nothing(tmp_path: Path, asked: dict[str, Any]) -> None:
    assert not cut(lab(tmp_path, {"*": EARLY_ALONE}, **asked).tune())


def test_texts_that_are_not_cut_must_be_answered_exactly(tmp_path: Path) -> None:
    off = {**EARLY_ALONE, "shift": 0.01}  # changes few decisions, and is no exact fp32
    names = [f"fake-fp32-{n}tokens-cpu-{layout}" for n in range(16, 64, 8) for layout in LAYOUTS]
    tuning = lab(tmp_path, {"*": EARLY_ALONE} | dict.fromkeys(names, off)).tune()
    (row,) = (row for row in cut(tuning) if row.candidate.precision == "fp32")
    assert row.status == "refused"
    assert "on the texts that are not cut, outputs differ by up to 0.01" in (row.reason or "")


LAYOUTS = ("1x2", "2x1")


def test_it_shares_the_artifact_and_its_cost_table(early: tuple[Lab, Tuning]) -> None:
    tried, tuning = early
    exported = [m.candidate for _, m in tried.messages if isinstance(m, Export)]
    assert all(candidate.max_tokens is None for candidate in exported)
    rows = tried.rows(tuning)
    for row in cut(tuning):
        assert row.cost_table == rows[row.candidate.untruncated.label].cost_table


def test_a_resumed_search_measures_nothing_again(early: tuple[Lab, Tuning]) -> None:
    again = lab(early[0].folder, {"*": EARLY_ALONE})
    assert again.tune().plan == early[1].plan
    assert not again.messages


def test_an_interrupted_search_comes_to_the_same_lengths(
    early: tuple[Lab, Tuning], tmp_path: Path
) -> None:
    whole, tuning = early
    first = next(n for n, (name, _) in enumerate(whole.messages) if "tokens" in name)
    stopped = lab(tmp_path, {"*": EARLY_ALONE})
    stopped.stop_after = first + 4
    with pytest.raises(KeyboardInterrupt):
        stopped.tune()
    again = lab(tmp_path, {"*": EARLY_ALONE}).tune()
    assert {row.candidate for row in cut(again)} == {row.candidate for row in cut(tuning)}


def test_the_first_answer_reads_less_already(early: tuple[Lab, Tuning]) -> None:
    tried, tuning = early
    (event,) = (event for event in tried.events if isinstance(event, Standing))
    standing = event.tuning
    assert standing.plan.candidate == tuning.plan.candidate
    assert tuning.first_answer
    assert tuning.first_answer.behind
    assert tuning.first_answer.behind.estimate == pytest.approx(1.0)
    # It ran beside the exact one that it has to beat.
    assert {row.candidate.max_tokens is None for row in standing.rows if row.runs} == {True, False}
    original = next(m for _, m in tried.messages if is_run(m))
    assert len(original.indices) == len(tried.texts) + len(tried.first_look)


def test_the_first_answer_says_what_it_flips(
    early: tuple[Lab, Tuning], capsys: pytest.CaptureFixture[str]
) -> None:
    (event,) = (event for event in early[0].events if isinstance(event, Standing))
    Display()(event)
    shown = capsys.readouterr().err
    assert "tokens" in shown
    assert "0 of 100 labels flipped: at most" in shown


def test_bounds_of_early_and_later_candidates_hold_together(early: tuple[Lab, Tuning]) -> None:
    """What is judged for the first answer has a part of the 5 %, and the others have the rest."""
    tried, tuning = early
    lossy = [row.parity for row in tuning.rows if row.parity and not row.candidate.exact]
    judged = [parity for parity in lossy if parity.compared == len(tried.texts)]
    assert tuning.chosen.parity
    assert tuning.chosen.parity.tries == 8
    assert {parity.tries for parity in judged} > {8}
    assert sum(1 / parity.tries for parity in judged) <= 1.0


@pytest.mark.parametrize(("judged_early", "tries"), [((), 3), ((48,), 4), ((48, 32), 4)])
def test_what_was_judged_early_leaves_the_others_three_quarters(
    tmp_path: Path, judged_early: tuple[int, ...], tries: int
) -> None:
    context = lab(tmp_path, {"*": EARLY_ALONE}).context()
    whole = Candidate("fake", "fp32", "cpu", 2)
    early = [Trial(replace(whole, max_tokens=tokens), context) for tokens in judged_early]
    for trial in early:
        context.journal.once(f"parity:{trial.label}", lambda: None)
    later = [Trial(replace(whole, max_tokens=tokens), context) for tokens in (16, 24, 40)]
    assert fix_tries(context, [*early, *later]).lossy == tries


@pytest.mark.parametrize("budget_s", [12.0, 20.0, 40.0])
def test_a_budget_that_is_short_is_kept(tmp_path: Path, budget_s: float) -> None:
    tried = lab(tmp_path, {"*": EARLY_ALONE}, budget_s=budget_s)
    tuning = tried.tune()
    assert tuning.elapsed_s <= 1.2 * budget_s
    standing = [event.tuning for event in tried.events if isinstance(event, Standing)]
    assert all(each.elapsed_s <= 0.48 * budget_s for each in standing)


def test_with_cascade_only_the_first_answer_is_exact(tmp_path: Path) -> None:
    tried = lab(tmp_path, {"*": EARLY_ALONE}, cascade_only=True)
    tried.tune()
    for event in tried.events:
        if isinstance(event, Standing):
            assert event.tuning.plan.candidate.exact


def test_late_flips_refuse_it_and_leave_the_exact_one_to_stand(tmp_path: Path) -> None:
    tried = lab(tmp_path, {"*": BY_TOKEN})
    tried.tune()
    (event,) = (event for event in tried.events if isinstance(event, Standing))
    assert event.tuning.plan.candidate.exact


def is_run(message: Message) -> TypeGuard[RunTexts]:
    return isinstance(message, RunTexts) and message.outputs


def test_the_bundle_says_how_much_is_read(early: tuple[Lab, Tuning], tmp_path: Path) -> None:
    tried, tuning = early
    save_bundle(tmp_path / "bundle", tried, tuning)
    loaded = bundle.load(tmp_path / "bundle", here=tried.hardware)
    tokens = tuning.plan.candidate.max_tokens
    assert tokens
    assert loaded.stages[0].max_length == tokens < loaded.model.max_length
    cut, longer = "bab " * (tokens - 2), "bab " * (tokens - 2) + "keb"
    with Predictor(loaded) as predictor:
        assert predictor.outputs([longer])[0].tolist() == predictor.outputs([cut])[0].tolist()
        assert predictor([longer], max_length=60) == predictor([longer])
        with pytest.raises(InputError, match=f"longer than {tokens} tokens"):
            predictor([longer], truncation=False)
        first, second = pa.Table.from_batches(predict(predictor, [longer, cut])).to_pylist()
        assert first["score"] == second["score"]
