"""Interleaved end-to-end rounds of a few candidates and the baseline."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import BudgetError, EngineError
from hasten.inputs.corpus import stratified_sample
from hasten.plain import from_json
from hasten.records import Strategy
from hasten.runtime.batching import TOKEN_BUDGETS, best_fixed, predict_s, warm_up_s
from hasten.tuning import shares
from hasten.tuning.ceiling import Found, Gauge
from hasten.tuning.context import Context
from hasten.tuning.plans import ARRIVAL, batch_limit_s, batches, best_plan, message_for
from hasten.tuning.trial import Trial

FEWEST_TEXTS = 20

_PLENTY_OF_TEXTS = 200
# With as many texts, time left is better spent on more rounds: drift from round to round, and not
# the choice of texts, is what makes intervals wide.
_ENOUGH_TEXTS = 500
_MOST_ROUNDS = 15
_FEWEST_ROUNDS = 3  # fewer give no interval
_MOST_PROCESSES = 5
_FEWEST_PROCESSES = 3  # Student's t of two means is 12.7
_SPAWN_S = 0.5  # a process that has imported hasten and nothing else


@dataclass(frozen=True)
class Heat:
    """One entry of the rounds: a candidate with a strategy, and the time it should take."""

    trial: Trial
    strategy: Strategy
    per_text_s: float
    all_shapes_s: float
    """Each batch shape once on every stream, for all texts."""
    aside: bool = False
    """Whether it only compares another batching strategy of the favourite."""

    @property
    def name(self) -> str:
        """Unique among the heats; the journal knows them by it."""
        return f"{self.trial.label} {self.strategy.label}"

    def expected_s(self, texts: int) -> float:
        """Seconds for the texts of a round: as seen in earlier ones, or else as predicted."""
        runs = self.trial.runs.get(self.strategy, [])
        if not runs:
            return self.per_text_s * texts
        return fmean(run["total_s"] / run["texts"] for run in runs) * texts

    def warm_up_s(self, texts: int) -> float:
        """Seconds, at most, for each batch shape of a round's texts once on every stream."""
        return min(self.trial.candidate.streams * self.per_text_s * texts, self.all_shapes_s)


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits into the time: the first ``heats`` of those wanted, rounds, and texts a round.

    The rounds are divided among ``processes`` starts of every worker.
    """

    heats: int
    rounds: int
    texts: int
    processes: int


@dataclass
class Rounds:
    """The planned rounds, and what has been measured of them.

    A round is one line of the journal. An interrupted one is run again as a whole, so that all
    candidates of a round are measured within minutes of each other.
    """

    context: Context
    baseline: Trial
    heats: list[Heat]
    fit: Fit
    gauge: Gauge | None = None
    stage: str = "finals"
    ceilings: dict[int, Found] = field(default_factory=dict)
    """What the machine's fastest matrix product reached, by process."""

    @property
    def sample(self) -> NDArray[np.int64]:
        """The texts that every heat runs, int64 indices, with lengths like those of the whole."""
        context = self.context
        return stratified_sample(context.lengths, self.fit.texts, context.settings.seed)

    def run(self) -> None:
        """Run the rounds that the journal does not hold yet.

        Workers are started again between groups of rounds, since a process has a speed of its own
        that all of its rounds share.

        Raises:
            EngineError: the baseline failed.
        """
        try:
            self._run()
        finally:
            if self.gauge:
                self.gauge.close()

    def _run(self) -> None:
        journal, process, running = self.context.journal, -1, False
        number, rounds = 0, self.fit.rounds
        while number < rounds:
            key = f"round:{self.stage}:{number}"
            if key not in journal:
                if self._begins_process(number, rounds) or not running:
                    process, running = process + 1, True
                    self._restart_workers(number)
                self._drop_what_does_not_fit(number, rounds)
            found = journal.once(key, lambda: self._measure(number, rounds, process))  # noqa: B023
            process = found["process"]
            self._take(number, found)
            number += 1
            if number == 1:
                rounds = self._rounds_left(rounds)

    def _begins_process(self, number: int, rounds: int) -> bool:
        processes = min(self.fit.processes, rounds)
        return number == 0 or number * processes // rounds > (number - 1) * processes // rounds

    def _restart_workers(self, number: int) -> None:
        """End all workers; a first round keeps those that the proof has just started."""
        for heat in self.heats if number else ():
            heat.trial.close()

    def _measure(self, number: int, rounds: int, process: int) -> dict[str, Any]:
        """One round, as the journal keeps it: every heat's run or error."""
        new = self.gauge and process not in self.ceilings
        ceilings = self.gauge.measure() if self.gauge and new else {}
        indices, runs = tuple(map(int, self.sample)), {}
        turn = number % len(self.heats)
        for heat in self.heats[turn:] + self.heats[:turn]:
            if not heat.trial.in_play:
                continue
            what = f"{heat.trial.label} {heat.strategy.label}, {len(indices)} texts"
            self.context.budget.tell(self.stage, f"round {number + 1} of {rounds}: {what}")
            message = message_for(heat.trial, indices, strategy=heat.strategy)
            expected_s = heat.warm_up_s(len(indices)) + heat.expected_s(len(indices))
            runs[heat.name] = heat.trial.attempt(message, expected_s)
            if not self.baseline.in_play:
                raise EngineError(
                    f"the original model failed in the timed rounds: {self.baseline.reason}"
                )
        return {"process": process, "ceilings": ceilings, "runs": runs}

    def _take(self, number: int, found: dict[str, Any]) -> None:
        """Hand a round's runs to the candidates, and drop the heats that it did not run."""
        if found["ceilings"]:
            self.ceilings[found["process"]] = found["ceilings"]
        self.heats = [heat for heat in self.heats if heat.name in found["runs"]]
        for heat in self.heats:
            heat.trial.take(heat.strategy, found["runs"][heat.name], number, found["process"])

    def _rounds_left(self, rounds: int) -> int:
        """How many rounds fit, now that the first one has shown how long a round takes.

        Kept in the journal, since a resumed run has a different time left.
        """
        contest = [heat for heat in self.heats if not heat.aside and heat.trial.in_play]
        round_s = sum(heat.expected_s(self.fit.texts) for heat in contest)
        restart_s = starts_s(contest) + warm_ups_s(contest, self.fit.texts)

        def fit() -> int:
            left_s = self.context.budget.left_s * shares.GRACE
            for number in range(rounds, _FEWEST_ROUNDS, -1):
                restarts = min(self.fit.processes, number) - 1
                if (number - 1) * round_s + restarts * restart_s <= left_s:
                    return number
            return min(rounds, _FEWEST_ROUNDS)

        return int(self.context.journal.once(f"rounds:{self.stage}", fit))

    def _drop_what_does_not_fit(self, number: int, rounds: int) -> None:
        """Drop the comparisons of strategies when the remaining time is too short for them."""
        budget, texts = self.context.budget, self.fit.texts
        begun = [later for later in range(number, rounds) if self._begins_process(later, rounds)]
        full_s = sum(heat.expected_s(texts) for heat in self.heats) * (rounds - number)
        full_s += len(begun) * warm_ups_s(self.heats, texts)
        full_s += sum(later > 0 for later in begun) * starts_s(self.heats)
        budget.expect(full_s)
        if full_s > budget.left_s * shares.GRACE:
            self.heats = [heat for heat in self.heats if not heat.aside]


def plan(context: Context, finalists: Sequence[Trial], baseline: Trial) -> Rounds:
    """The final rounds, as many as the budget holds, over texts chosen by their lengths.

    Raises:
        BudgetError: the time left does not hold the rounds over even a few texts.
    """
    entries = _entries(finalists, baseline)
    # Kept in the journal: what fits depends on the time left, which differs in a resumed run.
    fit = from_json(Fit, context.journal.once("finals", lambda: _fit(context, entries)))
    gauge = Gauge(context, baseline.candidate, finalists)
    return Rounds(context, baseline, entries[: fit.heats], fit, gauge)


def plan_early(context: Context, accepted: Sequence[Trial], baseline: Trial) -> Rounds | None:
    """A few rounds of the accepted candidates and the baseline; None where none fit.

    One process each, and no ceiling: the final rounds take care of both.
    """
    if not accepted:
        return None
    entries = _entries(accepted, baseline, aside=False)

    def fit() -> Fit | None:
        time_s, fewest = shares.ROUNDS * context.budget.left_s, min(FEWEST_TEXTS, most)
        for heats in range(len(entries), _must_run(entries) - 1, -1):
            texts = _most_texts(entries[:heats], most, time_s, _FEWEST_ROUNDS, processes=1)
            if texts >= fewest:
                return Fit(heats, _FEWEST_ROUNDS, texts, processes=1)
        return None

    most = min(_ENOUGH_TEXTS, len(context.texts))
    stored = context.journal.once("early finals", fit)
    if stored is None:
        return None
    found = from_json(Fit, stored)
    return Rounds(context, baseline, entries[: found.heats], found, stage="early finals")


def starts_s(heats: Sequence[Heat]) -> float:
    """Seconds for starting the workers of all heats once, warm-up aside."""
    start_ups = [trial.start_up for trial in {heat.trial for heat in heats}]
    return sum(_SPAWN_S + s.load_s + s.first_call_s for s in start_ups if s)


def warm_ups_s(heats: Sequence[Heat], texts: int) -> float:
    """Seconds for warming up a process of each heat, for rounds of as many texts."""
    return sum(heat.warm_up_s(texts) for heat in heats)


def _entries(finalists: Sequence[Trial], baseline: Trial, *, aside: bool = True) -> list[Heat]:
    """All heats that are wanted, the most wanted first; comparisons of strategies go ``aside``."""
    heats = [_heat(baseline, ARRIVAL)]
    for trial in finalists:
        best = best_plan(trial)
        assert best, f"{trial.label} is a finalist without having been timed"
        heats.append(_heat(trial, best[0]))
    for strategy in _strategies(finalists[0]) if finalists and aside else ():
        if strategy != heats[1].strategy:
            heats.append(replace(_heat(finalists[0], strategy), aside=True))
    return heats


def _strategies(leader: Trial) -> list[Strategy]:
    """The ways of batching that are shown side by side for the fastest candidate."""
    cost = leader.cost_model()
    if leader.settings.objective == "latency" or cost is None:
        return []
    sizes = leader.settings.batch_sizes
    limit_s = batch_limit_s(leader.settings, leader.candidate)
    fixed = best_fixed(leader.lengths, cost, sizes, max_batch_latency_s=limit_s)
    budgets = [Strategy("token_budget", max(sizes), budget) for budget in TOKEN_BUDGETS]
    return [
        Strategy("optimal", max(sizes)),
        fixed,
        min(budgets, key=lambda strategy: _heat(leader, strategy).per_text_s),
        Strategy("arrival", fixed.batch_size),
    ]


def _heat(trial: Trial, strategy: Strategy) -> Heat:
    planned, cost = batches(trial, strategy)
    whole_s = predict_s(trial.lengths, planned, cost) + trial.later_s
    warm_s = warm_up_s(trial.lengths, planned, cost)
    return Heat(trial, strategy, whole_s / len(trial.lengths), warm_s)


def _processes(heats: Sequence[Heat], time_s: float, rounds: int) -> int:
    """How often the workers are started for the rounds: at least three times, or once."""
    most = 1 + int(shares.RESTARTS * time_s / starts_s(heats))
    processes = min(most, _MOST_PROCESSES, rounds)
    return processes if processes >= _FEWEST_PROCESSES else 1


def _needed_s(heats: Sequence[Heat], texts: int, rounds: int, processes: int) -> float:
    """Seconds for the rounds, with the warm-up of every process and the starts of all but one."""
    running_s = rounds * texts * sum(heat.per_text_s for heat in heats)
    return running_s + processes * warm_ups_s(heats, texts) + (processes - 1) * starts_s(heats)


def _most_texts(
    heats: Sequence[Heat], most: int, time_s: float, rounds: int, processes: int
) -> int:
    """How many texts a round can have in ``time_s``, at most ``most``."""
    return bisect_right(
        range(1, most + 1),
        time_s,
        key=lambda texts: _needed_s(heats, texts, rounds, processes),
    )


def _shared_out(heats: Sequence[Heat], most: int, time_s: float, rounds: int) -> Fit:
    """The most rounds that leave enough texts for each, or ``rounds`` with as many as fit."""
    processes = _processes(heats, time_s, rounds)
    for number in range(max(rounds, _MOST_ROUNDS), rounds - 1, -1):
        texts = _most_texts(heats, most, time_s, number, processes)
        if texts >= min(_ENOUGH_TEXTS, most):
            break
    return Fit(len(heats), number, texts, processes)


def _must_run(entries: Sequence[Heat]) -> int:
    """How many heats there are at least: the baseline and the favourite.

    A lossy favourite runs beside an exact finalist where there is one, since it has to beat it.
    """
    favourite, *others = [heat.trial.candidate.exact for heat in entries[1:3]]
    return 2 if favourite or not any(others) else 3


def _fit(context: Context, entries: Sequence[Heat]) -> Fit:
    """How many heats, over how many texts and rounds, the time left holds.

    Comparisons of strategies are dropped to have plenty of texts, finalists only to have the
    fewest that are allowed. There are at least as many rounds as the settings say.
    """
    budget, rounds, most = context.budget, context.settings.rounds, len(context.texts)
    fewest, plenty = min(FEWEST_TEXTS, most), min(_PLENTY_OF_TEXTS, most)
    time_s = shares.ROUNDS * budget.left_s
    for heats in range(len(entries), 0, -1):
        wanted = entries[:heats]
        fit = _shared_out(wanted, most, time_s, rounds)
        if fit.texts >= (plenty if wanted[-1].aside else fewest):
            return fit
        if heats <= _must_run(entries):
            break
    fewest_s = _needed_s(wanted, fewest, rounds, processes=1)
    if fewest_s <= budget.left_s + shares.OVERRUN * budget.total_s:
        return Fit(heats, rounds, fewest, processes=1)
    needed_s = budget.spent_s + fewest_s / shares.ROUNDS
    needed_s += sum(h.trial.start_up.load_s for h in wanted if h.trial.start_up)
    raise BudgetError(
        f"the budget of {context.settings.budget_s:.0f} s leaves {budget.left_s:.0f} s for "
        f"the final rounds, and even {fewest} texts, {rounds} times each, take {fewest_s:.0f} s",
        fix=f"Try --budget {needed_s * 1.1:.0f}s; what was measured is kept. Or narrow the "
        "search with --engines, --precisions or --max-texts.",
    )
