"""The first answer: a proved and timed choice stands early, and is what an ended search gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import EndedEarly
from hasten.records import Candidate, Decided, Standing, Tuning
from hasten.storage.journal import Journal
from hasten.tuning import contest
from hasten.tuning.process import Connection
from hasten.tuning.trial import Trial
from hasten.tuning.worker import Load, Message, RunTexts
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
MIDDLE = {"call_s": 3e-3, "token_s": 6e-5}
# The best exact layout, and a lossy candidate that beats it.
SCRIPT = {"*": SLOW, "fake-fp32-cpu-2x1": MIDDLE, "fake-bf16-cpu-2x1": FAST}


def lab(folder: Path, **settings: Any) -> Lab:
    return Lab(folder, SCRIPT, **settings)


def standing(lab: Lab) -> Tuning:
    (event,) = (event for event in lab.events if isinstance(event, Standing))
    return event.tuning


def ended_at(lab: Lab, stop: int) -> Tuning:
    """The lab's tune, ended by its user before the message number ``stop``."""

    class Impatient:
        def __init__(self, name: str) -> None:
            self._inner = lab.spawn(name)

        def call(self, message: Message, timeout_s: float) -> Any:
            if len(lab.messages) >= stop:
                raise EndedEarly
            return self._inner.call(message, timeout_s)

        def close(self) -> None:
            self._inner.close()

    def spawn(name: str) -> Connection:
        return Impatient(name)

    return contest.run(replace(lab.context(), spawn=spawn), baseline_engine="fake")


def test_a_proved_and_timed_exact_choice_stands_after_two_fifths_of_the_budget(
    tmp_path: Path,
) -> None:
    final = (tried := lab(tmp_path, budget_s=60.0)).tune()
    first = standing(tried)
    assert first.plan.candidate.label == "fake-fp32-cpu-2x1"
    assert first.elapsed_s <= 0.4 * 60.0
    assert first.chosen.parity is not None
    assert first.chosen.parity.compared == len(tried.texts)
    assert first.chosen.ratio_to_baseline is not None
    assert first.probes is not None
    # The rest of the budget found a better one, and says by how much.
    assert final.plan.candidate.label == "fake-bf16-cpu-2x1"
    assert final.first_answer is not None
    assert final.first_answer.candidate == first.plan.candidate
    assert final.first_answer.behind is not None
    assert final.first_answer.behind.estimate > 2


def test_no_lossy_candidate_is_started_before_a_choice_stands(tmp_path: Path) -> None:
    tried = lab(tmp_path, budget_s=60.0)
    tried.tune()
    names = [name for name, message in tried.messages if isinstance(message, Load)]
    rounds = [
        place
        for place, (name, message) in enumerate(tried.messages)
        if isinstance(message, RunTexts) and not message.outputs
    ]
    before = {name for name, _ in tried.messages[: rounds[0]]}
    assert not any("bf16" in name for name in before)
    assert any("bf16" in name for name in names)


def test_engines_that_start_slowly_do_not_hold_the_first_answer_up(tmp_path: Path) -> None:
    tried = lab(tmp_path)
    tried.engine.starts_slowly = True
    tuning = tried.tune()
    assert not [event for event in tried.events if isinstance(event, Standing)]
    assert tuning.first_answer is None
    assert tuning.plan.candidate.precision == "bf16"


def test_exact_candidates_are_tried_first_where_no_choice_stands(tmp_path: Path) -> None:
    tried = lab(tmp_path)
    tried.engine.starts_slowly = True
    tried.tune()
    loads = [name for name, message in tried.messages if isinstance(message, Load)]
    precisions = [name.split("-")[1] for name in loads]
    assert precisions.index("bf16") > precisions.index("fp32", 1)


def test_the_layout_that_is_best_for_an_engine_is_tried_first_in_other_precisions(
    tmp_path: Path,
) -> None:
    tried = lab(tmp_path)
    tried.tune()
    loads = [name for name, message in tried.messages if isinstance(message, Load)]
    lossy = [name for name in loads if "bf16" in name]
    assert lossy[0] == "fake-bf16-cpu-2x1"


def test_the_end_of_the_search_is_told_before_its_result_is_saved(tmp_path: Path) -> None:
    tried = lab(tmp_path / "whole")
    tuning = tried.tune()
    assert tried.events[-1] == Decided(tuning)
    ended = lab(tmp_path / "ended")
    early = ended_at(ended, len(tried.messages) - 1)
    assert early.ended_early
    assert ended.events[-1] == Decided(early)


def test_a_visit_counts_once_for_a_candidate_that_was_dropped_and_revived(tmp_path: Path) -> None:
    trial = Trial(Candidate("fake", "fp32", "cpu", 2, 1), lab(tmp_path).context())
    trial.prepare()
    trial.time_shape((8, 16), 0)
    samples_s = list(trial.cells[8, 16])
    trial.end("dropped", "no time", for_time=True)
    trial.revive()
    trial.time_shape((8, 16), 0)
    assert trial.cells[8, 16] == samples_s
    trial.time_shape((8, 16), 1)
    assert len(trial.cells[8, 16]) > len(samples_s)
    trial.close()


def test_a_search_that_is_ended_gives_the_choice_that_stands(tmp_path: Path) -> None:
    whole = lab(tmp_path / "whole")
    whole.tune()
    tuning = ended_at(lab(tmp_path / "ended"), len(whole.messages) // 2)
    assert tuning.ended_early
    assert tuning.plan.candidate.label == "fake-fp32-cpu-2x1"
    assert "ended early" in tuning.warnings[0]
    assert "2 candidates had not been compared" in tuning.warnings[0]
    reasons = {row.candidate.label: row.reason for row in tuning.rows}
    assert "before the search ended" in (reasons["fake-bf16-cpu-2x1"] or "")
    # The same command goes on with the search.
    resumed = lab(tmp_path / "ended").tune()
    assert not resumed.ended_early
    assert resumed.plan.candidate.label == "fake-bf16-cpu-2x1"


def test_nothing_stands_at_first(tmp_path: Path) -> None:
    with pytest.raises(EndedEarly):
        ended_at(lab(tmp_path), 3)


def test_what_an_interrupted_run_stored_is_enough_to_end_it(tmp_path: Path) -> None:
    whole = lab(tmp_path / "whole")
    whole.tune()
    first = lab(tmp_path / "cut")
    first.stop_after = len(whole.messages) // 2
    with pytest.raises(KeyboardInterrupt):
        first.tune()
    later = lab(tmp_path / "cut")
    later.stop_after = 0  # nothing is measured
    path = tmp_path / "cut" / "results.jsonl"
    context = later.context()
    context = replace(
        context, journal=Journal(path, {"of": "test"}, later.engine.clock, complete=True)
    )
    context.budget.journal = context.journal
    before = path.read_bytes()
    tuning = contest.run(context, baseline_engine="fake")
    assert tuning.ended_early
    assert tuning.plan == standing(first).plan
    assert tuning.probes == standing(first).probes
    assert later.messages == []
    assert path.read_bytes() == before


def test_rounds_of_the_first_answer_are_not_compared_with_the_final_ones(tmp_path: Path) -> None:
    final = (tried := lab(tmp_path)).tune()
    keys = [json.loads(line)["key"] for line in _journal(tmp_path)]
    assert sum(key.startswith("round:early finals") for key in keys) == 3
    in_finals = sum(key.startswith("round:finals") for key in keys)
    assert final.baseline.main is not None
    assert len(final.baseline.main.total.samples_s) == in_finals
    assert len(standing(tried).chosen.runs) == 1


def test_without_time_for_the_final_rounds_the_first_answer_is_given(tmp_path: Path) -> None:
    tried = lab(tmp_path, budget_s=60.0, rounds=80)

    class Late:
        """The lossy candidate's proof takes all of the budget that is left."""

        def __init__(self, name: str) -> None:
            self._name, self._inner = name, tried.spawn(name)

        def call(self, message: Message, timeout_s: float) -> Any:
            if "bf16" in self._name and isinstance(message, RunTexts):
                tried.engine.virtual_clock.advance(60.0)
            return self._inner.call(message, timeout_s)

        def close(self) -> None:
            self._inner.close()

    context = replace(tried.context(), spawn=Late)
    tuning = contest.run(context, baseline_engine="fake")
    assert tuning.plan.candidate.label == "fake-fp32-cpu-2x1"
    assert "No time was left for the final rounds" in tuning.warnings[0]
    assert not tuning.ended_early


def _journal(folder: Path) -> list[str]:
    return (folder / "results.jsonl").read_text().splitlines()[1:]
