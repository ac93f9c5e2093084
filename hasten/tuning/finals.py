"""Cost tables for the survivors, and the timed rounds of the finalists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from hasten.batching import TOKEN_BUDGETS, best_fixed
from hasten.corpus import stratified_sample
from hasten.errors import BudgetError, EngineError
from hasten.records import Strategy
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant
from hasten.tuning.screening import batch_limit_s, best_plan, predicted_s, sweep
from hasten.tuning.worker import RunTexts

ARRIVAL = Strategy("arrival", 1)

_TABLE_SHARE = 0.25
_TABLE_VISITS = 3
_MOST_LENGTHS = 7
MOST_FINALISTS = 3
# Leave a little for choosing, saving and a slow last round.
_ROUNDS_SHARE = 0.92
FEWEST_TEXTS = 20
_PLENTY_OF_TEXTS = 200
# With as many texts, time left is better spent on more rounds: drift from round to round, and not
# the choice of texts, is what makes intervals wide.
_ENOUGH_TEXTS = 500
_MOST_ROUNDS = 15
# Rounds are predicted to about 10 %; the budget is kept within 20 %.
_GRACE = 1.1
_MUST_RUN = 2  # the baseline and the favourite
_FEWEST_ROUNDS = 3  # of which there still is an interval
# Rather a little over the budget than all of it spent for nothing; it is kept within 20 %.
_OVERRUN = 0.15


def measure_tables(
    context: Context,
    survivors: Sequence[Entrant],
    *,
    name: str = "cost table",
    part: float = _TABLE_SHARE,
) -> None:
    """Fill the survivors' cost tables, small shapes first, in a ``part`` of the time left.

    ``name`` is what the journal calls the moment at which that will have been used.
    """
    if context.settings.objective == "latency":
        shapes = [(1, length) for length in table_lengths(context)]
    else:
        lengths = table_lengths(context)
        shapes = [(size, length) for size in context.settings.batch_sizes for length in lengths]
    deadline_s = context.budget.deadline(name, part)
    visits = range(10, 10 + _TABLE_VISITS)
    sweep(context, survivors, shapes, visits, deadline_s, stage="cost table")


def table_lengths(context: Context) -> list[int]:
    """Lengths that span the user's texts: doubling steps between the shortest and the longest.

    Costs are close to linear between neighbours at a factor of two; quantiles would put all
    lengths where the texts are and leave the long end, which costs most, to extrapolation.
    """
    profile = context.profile
    low, high = max(profile.p5, 4), max(profile.longest, 4)
    steps = min(_MOST_LENGTHS, 1 + max(1, round(np.log2(high / low))))
    return sorted({round(n) for n in np.geomspace(low, high, steps)} | {profile.p50})


def line_up(context: Context, accepted: Sequence[Entrant]) -> list[Entrant]:
    """Those still in play, no more of them than rounds are run for.

    The fastest comes first, and an exact one second at the latest: where the time does not hold
    all of them, the last ones are left out. Who was repaired was accepted last and is, as a rule,
    the fastest.
    """
    running = {e: plan[1] for e in accepted if e.in_play and (plan := best_plan(context, e))}
    kept: list[Entrant] = []
    for entrant in sorted(running, key=lambda entrant: running[entrant]):
        variants = {other.candidate.variant for other in kept}
        if len(kept) < MOST_FINALISTS or entrant.candidate.variant not in variants:
            kept.append(entrant)
        else:
            entrant.end("dropped", f"accepted, but {len(kept)} faster ones were as well")
    return exact_early(kept)


def exact_early(ranked: list[Entrant]) -> list[Entrant]:
    """The same with the first exact one no later than second: a lossy one has to beat it."""
    exact = next((entrant for entrant in ranked if entrant.candidate.exact), None)
    if exact is None or exact is ranked[0]:
        return ranked
    return [ranked[0], exact, *(entrant for entrant in ranked[1:] if entrant is not exact)]


def message_for(
    context: Context,
    entrant: Entrant,
    indices: tuple[int, ...],
    *,
    strategy: Strategy | None = None,
    outputs: bool = False,
) -> RunTexts:
    """What to ask the candidate's worker; without a ``strategy``, for its own best plan."""
    if strategy is None:
        best = best_plan(context, entrant)
        strategy = best[0] if best else ARRIVAL
    return RunTexts(
        indices,
        strategy,
        cost_table=entrant.cost_table(),
        max_batch_latency_s=batch_limit_s(context.settings, entrant.candidate),
        one_by_one=context.settings.objective == "latency",
        outputs=outputs,
    )


@dataclass(frozen=True)
class _Heat:
    """One entry of the finals: a candidate with a strategy, and the time it should take."""

    entrant: Entrant
    strategy: Strategy
    per_text_s: float
    aside: bool = False
    """Whether it only shows what another way of batching makes of the favourite."""

    def expected_s(self, texts: int) -> float:
        """Seconds for the texts of a round: as seen in earlier ones, or else as predicted."""
        runs = self.entrant.runs.get(self.strategy, [])
        if not runs:
            return self.per_text_s * texts
        return fmean(run["total_s"] / run["texts"] for run in runs) * texts


def run_rounds(
    context: Context, finalists: Sequence[Entrant], baseline: Entrant
) -> NDArray[np.int64]:
    """Time the finalists and the baseline on the user's texts, interleaved, round by round.

    All of them run the same texts: as many as the budget holds, chosen so that their lengths are
    distributed like those of the whole.

    Returns:
        The texts that were run, int64 indices.

    Raises:
        BudgetError: the time left does not hold the rounds over even a few texts.
    """
    entries = _entries(context, finalists, baseline)
    # Kept in the journal: what fits depends on the time left, which a resume does not repeat.
    fits = context.journal.once("finals", lambda: _fit(context, entries))
    heats = entries[: fits["heats"]]
    sample = stratified_sample(context.lengths, fits["texts"], context.settings.seed)
    indices = tuple(map(int, sample))
    number, rounds = 0, int(fits["rounds"])
    while number < rounds:
        heats = _still_fitting(context, heats, len(indices), rounds - number)
        turn = number % len(heats)
        for heat in heats[turn:] + heats[:turn]:
            what = f"{heat.entrant.label} {heat.strategy.label}, {len(indices)} texts"
            context.tell("finals", f"round {number + 1} of {rounds}: {what}")
            message = message_for(context, heat.entrant, indices, strategy=heat.strategy)
            heat.entrant.run_texts(message, number, heat.expected_s(len(indices)))
            if not baseline.in_play:
                raise EngineError(
                    f"the original model failed in the final rounds: {baseline.reason}"
                )
        number += 1
        if number == 1:
            rounds = _rounds_left(context, heats, len(indices), rounds)
    return sample


def _rounds_left(context: Context, heats: Sequence[_Heat], texts: int, rounds: int) -> int:
    """How many rounds there can be after all, now that one has shown what a round takes.

    Kept in the journal, since a resume has other time left.
    """
    round_s = sum(h.expected_s(texts) for h in heats if not h.aside and h.entrant.in_play)

    def fit() -> int:
        left_s = min(context.budget.left_s * _GRACE, rounds * round_s)  # finite, whatever is left
        return min(rounds, max(_FEWEST_ROUNDS, 1 + int(left_s / round_s)))

    return context.journal.once("rounds", fit)


def _still_fitting(context: Context, heats: list[_Heat], texts: int, rounds: int) -> list[_Heat]:
    """The heats of the next round: comparisons of strategies go first when time runs short."""
    contest = [heat for heat in heats if not heat.aside]
    full_s = sum(heat.expected_s(texts) for heat in heats) * rounds
    context.budget.expect(full_s)
    return heats if full_s <= context.budget.left_s * _GRACE else contest


def _entries(context: Context, finalists: Sequence[Entrant], baseline: Entrant) -> list[_Heat]:
    """All heats that are wanted, the most wanted first."""
    heats = [_heat(context, baseline, ARRIVAL)]
    for entrant in finalists:
        best = best_plan(context, entrant)
        assert best, f"{entrant.label} is a finalist without having been timed"
        heats.append(_heat(context, entrant, best[0]))
    for strategy in _strategies(context, finalists[0]) if finalists else ():
        if strategy != heats[1].strategy:
            heats.append(replace(_heat(context, finalists[0], strategy), aside=True))
    return heats


def _strategies(context: Context, leader: Entrant) -> list[Strategy]:
    """The ways of batching that are shown side by side for the fastest candidate."""
    cost = leader.cost_model()
    if context.settings.objective == "latency" or cost is None:
        return []
    sizes = context.settings.batch_sizes
    limit_s = batch_limit_s(context.settings, leader.candidate)
    fixed = best_fixed(context.lengths, cost, sizes, max_batch_latency_s=limit_s)
    budgets = [Strategy("token_budget", max(sizes), budget) for budget in TOKEN_BUDGETS]
    return [
        Strategy("optimal", max(sizes)),
        fixed,
        min(budgets, key=lambda strategy: _heat(context, leader, strategy).per_text_s),
        Strategy("arrival", fixed.batch_size),
    ]


def _heat(context: Context, entrant: Entrant, strategy: Strategy) -> _Heat:
    return _Heat(entrant, strategy, predicted_s(context, entrant, strategy) / len(context.texts))


def _shared_out(runs: int, rounds: int, texts: int) -> dict[str, int]:
    """Texts and rounds for ``runs`` runs of one text each, out of ``texts`` that there are.

    >>> _shared_out(1000, 5, 1000), _shared_out(4500, 5, 1000), _shared_out(90_000, 5, 1000)
    ({'rounds': 5, 'texts': 200}, {'rounds': 9, 'texts': 500}, {'rounds': 15, 'texts': 1000})
    """
    more = min(_MOST_ROUNDS, runs // min(_ENOUGH_TEXTS, texts))
    rounds = max(rounds, more)
    return {"rounds": rounds, "texts": min(runs // rounds, texts)}


def _fit(context: Context, entries: Sequence[_Heat]) -> dict[str, int]:
    """How many heats, over how many texts and rounds, the time left holds.

    Comparisons of strategies are given up for more texts, finalists only for the fewest. There
    are at least as many rounds as the settings say.
    """
    fewest = min(FEWEST_TEXTS, len(context.texts))
    plenty = min(_PLENTY_OF_TEXTS, len(context.texts))
    rounds = context.settings.rounds
    for heats in range(len(entries), 0, -1):
        per_text_s = sum(heat.per_text_s for heat in entries[:heats]) * rounds
        texts = int(_ROUNDS_SHARE * context.budget.left_s / per_text_s)
        if texts >= (plenty if entries[heats - 1].aside else fewest):
            return {"heats": heats, **_shared_out(texts * rounds, rounds, len(context.texts))}
        if heats <= _MUST_RUN:
            break
    if fewest * per_text_s <= context.budget.left_s + _OVERRUN * context.budget.total_s:
        return {"heats": heats, "rounds": rounds, "texts": fewest}
    needed_s = context.budget.spent_s + fewest * per_text_s / _ROUNDS_SHARE
    needed_s += sum(h.entrant.start_up.load_s for h in entries[:heats] if h.entrant.start_up)
    raise BudgetError(
        f"the budget of {context.settings.budget_s:.0f} s leaves {context.budget.left_s:.0f} s for "
        f"the final rounds, and even {fewest} texts, {rounds} times each, take "
        f"{fewest * per_text_s:.0f} s",
        fix=f"Try --budget {needed_s * 1.1:.0f}s; what was measured is kept. Or narrow the "
        "search with --engines, --precisions or --texts.",
    )
