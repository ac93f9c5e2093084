"""The proof: several batchings where answers depend on them, and one bound over all that is tried.

The simulated contests hold a winner's bound against its true rate, which only a simulation knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hasten import tasks
from hasten.judging import parity
from hasten.judging.parity import compare, compare_batchings, verdict
from hasten.judging.stats import clopper_pearson_upper
from hasten.records import Candidate, Parity, Row, Tuning
from hasten.tasks import Outputs
from hasten.tuning import proof
from hasten.tuning.proof import Tries
from hasten.tuning.trial import Trial
from hasten.tuning.worker import Load, RunTexts
from tests.scripted import Lab
from tests.tiny import tiny_texts

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
WRONG = {**FAST, "shift": 0.1}  # one of the sixty answers
INT8 = "fake-int8-dynamic-cpu"


def lab(folder: Path, script: dict[str, Any], **settings: Any) -> Lab:
    """One int8 recipe in one layout, and fp32."""
    return Lab(
        folder,
        {"*": SLOW, "recipes": {"int8": ["dynamic"]}, **script},
        **{"precisions": ("fp32", "int8"), "batch_sizes": (1, 8), "threads": 1, **settings},
    )


def int8(tuning: Tuning) -> Row:
    return next(r for r in tuning.rows if r.candidate.label == f"{INT8}-1x1")


def proofs(tried: Lab) -> list[RunTexts]:
    """The messages of the proof of the int8 candidate: all that are not of the first look."""
    messages = [m for name, m in tried.messages if name == f"{INT8}-1x1"]
    outputs = [m for m in messages if isinstance(m, RunTexts) and m.outputs]
    return [m for m in outputs if m.strategy.label != "sorted 8"]


# Several batchings


def test_one_whose_answers_do_not_depend_on_the_batch_is_proved_as_shipped(tmp_path: Path) -> None:
    tried = lab(tmp_path, {f"{INT8}-1x1": FAST})
    tuning = tried.tune()
    assert int8(tuning).status == "chosen"
    assert int8(tuning).parity.batchings == ()  # type: ignore[union-attr]
    assert len(proofs(tried)) == 1


def test_no_time_goes_into_what_strict_could_not_accept(tmp_path: Path) -> None:
    tried = lab(tmp_path, {f"{INT8}-1x1": FAST}, strict=True)  # 60 texts, and 1 % takes 299
    row = int8(tried.tune())
    assert row.status == "refused"
    assert "at least 299" in (row.reason or "")
    assert not any(name.startswith(INT8) for name, _ in tried.messages)


WORDS = sorted({word for text in tiny_texts(100) for word in text.split()})
EVEN = tuple(
    " ".join(WORDS[(7 * row + place) % len(WORDS)] for place in range(2 + row // 4))
    for row in range(60)
)
"""Four different texts of each length, so that full batches of four are of one length each."""


@pytest.mark.parametrize(("fault", "batching"), [("alone", "single"), ("mixed", "random")])
def test_one_that_answers_otherwise_in_other_batches_is_refused(
    tmp_path: Path, fault: str, batching: str
) -> None:
    tried = lab(tmp_path, {f"{INT8}-1x1": {**FAST, fault: 0.3}}, batch_sizes=(4,))
    tried.texts = EVEN
    row = int8(tried.tune())
    assert row.status == "refused"
    assert row.parity is not None
    flips = {found.name: found.flips for found in row.parity.batchings}
    assert flips["plan"] == 0
    assert flips[batching] > 0
    assert row.parity.flips == flips[batching]


def test_a_text_that_any_batching_flips_is_flipped(tmp_path: Path) -> None:
    reference = np.tile(np.array([2.0, 0.0], np.float32), (40, 1))
    answers = {name: reference.copy() for name in ("plan", "single", "random")}
    answers["single"][[3, 5]] = answers["random"][[5, 7]] = (0.0, 2.0)
    found = compare_batchings(
        Outputs.of_rows(reference),
        {name: Outputs.of_rows(rows) for name, rows in answers.items()},
        task=tasks.get("single_label"),
        labels=("no", "yes"),
        texts=[f"text {n}" for n in range(40)],
        tries=4,
    )
    assert (found.compared, found.flips) == (40, 3)
    assert sorted(flip.index for flip in found.examples) == [3, 5, 7]
    assert [(b.name, b.flips) for b in found.batchings] == [
        ("plan", 0),
        ("single", 2),
        ("random", 2),
    ]
    assert found.flip_upper_bound == pytest.approx(clopper_pearson_upper(3, 40, 1 - 0.05 / 4))


def test_what_the_shipped_plan_refuses_does_not_run_in_other_batches(tmp_path: Path) -> None:
    tried = lab(tmp_path, {f"{INT8}-1x1": {**WRONG, "shift": 0.3, "alone": 0.1}}, batch_sizes=(4,))
    tried.texts = EVEN
    row = int8(tried.tune())
    assert row.status == "refused"
    assert [found.name for found in row.parity.batchings] == ["plan"]  # type: ignore[union-attr]


def test_the_time_of_every_batching_is_expected(tmp_path: Path) -> None:
    """A batch costs the same whatever its size, so that single texts take eight times as long."""
    expected: list[float] = []
    for fault in ({}, {"alone": 0.1}):
        tried = lab(tmp_path / str(len(fault)), {f"{INT8}-1x1": fault})
        trial = Trial(Candidate("fake", "int8", "cpu", 1, recipe="dynamic"), tried.context())
        trial.cells = {(size, length): [0.01] for size in (1, 8) for length in (5, 60)}
        expected.append(proof.expected_s(tried.context(), trial))
    assert expected[1] > 9 * expected[0] > 0


# One bound over all that is tried


def test_every_lossy_bound_holds_for_all_that_may_be_tried(tmp_path: Path) -> None:
    """Two recipes, and both may be repaired three times; texts too short to cut any."""
    tried = lab(tmp_path, {"*": FAST, "recipes": {"int8": ["dynamic", "static"]}})
    short = (text for text in tiny_texts(600) if 3 <= len(text.split()) <= 13)
    tried.texts = tuple(dict.fromkeys(short))[:100]
    tried.calibration = np.arange(40)
    tried.first_look = tuple(tiny_texts(32, seed=9))
    tuning = tried.tune()
    parity = int8(tuning).parity
    assert parity is not None
    assert (parity.flips, parity.tries) == (0, 8)
    assert parity.flip_upper_bound == pytest.approx(clopper_pearson_upper(0, 100, 1 - 0.05 / 8))
    exact = next(r for r in tuning.rows if r.candidate.exact and r.runs)
    assert exact.parity is not None
    assert exact.parity.flip_upper_bound == pytest.approx(clopper_pearson_upper(0, 100))


def test_the_first_look_is_at_texts_that_judge_nothing(tmp_path: Path) -> None:
    tried = lab(tmp_path, {f"{INT8}-1x1": FAST})
    tried.calibration = np.arange(40)
    tried.first_look = tuple(tiny_texts(32, seed=9))
    tried.tune()
    worker = [message for name, message in tried.messages if name == f"{INT8}-1x1"]
    (held,) = {message.texts for message in worker if isinstance(message, Load)}
    looked = next(message for message in worker if isinstance(message, RunTexts))
    assert {held[index] for index in looked.indices} == set(tried.first_look)
    assert not set(tried.first_look) & set(tried.texts)


def test_without_such_texts_every_candidate_that_was_looked_at_counts(tmp_path: Path) -> None:
    """One of the two is refused at the first look, by texts that judge."""
    script = {
        "recipes": {"int8": ["dynamic", "static"]},
        f"{INT8}-1x1": FAST,
        "fake-int8-static-cpu-1x1": {**FAST, "shift": 5.0},
    }
    tried = lab(tmp_path, script)
    tried.engine.calibrates = lambda candidate: False  # type: ignore[method-assign]
    parity = int8(tried.tune()).parity
    assert parity is not None
    assert parity.tries == 2


CONTESTS, TEXTS = 1000, 500
LABELS = ("no", "yes")
NAMES = [f"text {number}" for number in range(TEXTS)]
REFERENCE = np.tile(np.array([2.0, 0.0], np.float32), (TEXTS, 1))


def flips(rates: NDArray[np.float64], dependent: bool) -> Iterator[NDArray[np.bool_]]:
    """Which texts each candidate flips, contest by contest; rows of bool [candidates, texts].

    Dependent ones flip the same texts: the easiest first, each as many as its rate says.
    """
    rng = np.random.default_rng(0)
    for _ in range(CONTESTS):
        if dependent:
            # Each differs from what all share in one text of five.
            own = rng.random((len(rates), TEXTS))
            shared = rng.random(TEXTS)
            drawn = np.where(rng.random((len(rates), TEXTS)) < 0.2, own, shared)
        else:
            drawn = rng.random((len(rates), TEXTS))
        yield drawn < rates[:, np.newaxis]


def judged(flips: int, tries: int) -> Parity:
    outputs = REFERENCE.copy()
    outputs[:flips] = outputs[:flips, ::-1]
    task = tasks.get("single_label")
    both = Outputs.of_rows(REFERENCE), Outputs.of_rows(outputs)
    return compare(*both, task=task, labels=LABELS, texts=NAMES, tries=tries)


def failing(rates: NDArray[np.float64], *, strict: bool, dependent: bool) -> float:
    """Share of contests whose winner, the fastest accepted, flips more than its bound says.

    Candidates are as different in speed as in rate: the fastest flips most.
    """
    # What is compared depends on nothing but the number of flips.
    compared = cache(partial(judged, tries=Tries(len(rates)).lossy))
    failed = 0
    for each in flips(rates, dependent):
        for rate, flipped in zip(rates, each, strict=True):
            found = compared(int(flipped.sum()))
            if verdict(found, exact=False, max_flips=0.01, strict=strict) is None:
                failed += rate > found.flip_upper_bound
                break
    return failed / CONTESTS


TWELVE = np.linspace(0.016, 0.0101, 12)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_a_winner_flips_more_than_its_bound_in_one_contest_of_twenty_at_most(
    strict: bool, dependent: bool
) -> None:
    assert failing(TWELVE, strict=strict, dependent=dependent) <= 0.05


def test_a_bound_for_one_try_would_fail_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        parity, "_upper_bound", lambda flips, texts, tries: clopper_pearson_upper(flips, texts)
    )
    assert failing(TWELVE, strict=True, dependent=False) > 0.1
