"""Which candidates stand before the exact one in a cascade, and with which thresholds.

Everything that the test of a cascade needs to be fixed beforehand is fixed here, on calibration
texts: the stages, how sure each must be of texts that it cuts, the path of thresholds, and the rank
among all cascades.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hasten.judging.cascade import cut_factor, expected, path, worst
from hasten.records import Reading
from hasten.runtime import probes
from hasten.tasks import Outputs
from hasten.tuning import screening
from hasten.tuning.budget import Deadline
from hasten.tuning.context import Context
from hasten.tuning.plans import best_s
from hasten.tuning.trial import Batching, Trial
from hasten.tuning.worker import RunTexts

MOST_CALIBRATED = 5
"""Candidates that answer all calibration texts, of those that may be first."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A cascade, all of which was fixed on calibration texts.

    ``stages`` are all but the last, which is exact. ``factors`` says of each how many times as sure
    it must be of a text that it cuts, and ``thresholds`` is the path, float64 [steps, stages], in
    terms of texts that it does not cut. ``expected_s`` is seconds a text.
    """

    stages: tuple[Trial, ...]
    factors: tuple[float, ...]
    thresholds: NDArray[np.float64]
    expected_s: float

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(stage.label for stage in self.stages)


@dataclass(frozen=True, eq=False)
class Chains:
    """Finds the chains that end in ``exact``; ``truth`` has the original's outputs."""

    context: Context
    exact: Trial
    truth: Outputs

    def most_promising(self, trials: Sequence[Trial], most: int) -> list[Chain]:
        """At most ``most`` chains that are expected to be faster than the exact candidate.

        The fastest come first. Kept in the journal: a resumed run must test the same.
        """
        alone_s = float(self._each_s(self.exact).mean())
        deadline = self.context.budget.deadline("cascade thresholds")

        def find() -> list[list[str]]:
            known = [t for t in self._firsts(trials) if self._calibrated(t, deadline)]
            chains = [self.chain(stages) for stages in self._lined_up(known)]
            chains.sort(key=lambda chain: chain.expected_s)
            return [list(c.labels) for c in chains if c.expected_s < alone_s][:most]

        chosen = self.context.journal.once("cascades", find)
        named = {trial.label: trial for trial in trials}
        return [self.chain(tuple(named[label] for label in labels)) for labels in chosen]

    def chain(self, stages: tuple[Trial, ...]) -> Chain:
        """The chain of these stages, each of which has answered the calibration texts."""
        readings = [self._reading(stage) for stage in stages]
        factors = tuple(map(cut_factor, readings))
        texts = [self.context.all_texts[index] for index in self._message.indices]
        answers = [
            worst([reading], texts, factor)
            for reading, factor in zip(readings, factors, strict=True)
        ]
        costs_s = np.stack([self._each_s(stage) for stage in (*stages, self.exact)])
        thresholds = path(answers, costs_s)
        return Chain(stages, factors, thresholds, expected(answers, thresholds, costs_s))

    def _firsts(self, trials: Sequence[Trial]) -> list[Trial]:
        """Lossy candidates that may be worth a cascade, by what the first look says of them."""
        exact_s = best_s(self.exact)
        able = [trial for trial in trials if _can_be_first(trial)]
        fastest: dict[str, Trial] = {}
        for trial in sorted(able, key=best_s):
            fastest.setdefault(trial.candidate.format, trial)
        expected_s = {
            trial: best_s(trial) + deferred * exact_s
            for trial in fastest.values()
            if (deferred := self._first_share(trial)) is not None
        }
        ranked = sorted(expected_s, key=lambda trial: expected_s[trial])
        return [trial for trial in ranked if expected_s[trial] < exact_s][:MOST_CALIBRATED]

    def _first_share(self, trial: Trial) -> float | None:
        """The share to defer so that no text of the first look flips, counting one more than seen.

        None where the candidate fails on them.
        """
        look = screening.first_look(self.context)
        reading = trial.reading("probe", Batching("probe", (look,)), lambda: self.truth)
        if reading is None:
            return None
        sureness = np.array(reading.sureness)
        surest = sureness[list(reading.flips)].max(initial=-np.inf)
        return (1 + int((sureness <= surest).sum())) / (1 + len(sureness))

    def _lined_up(self, known: Sequence[Trial]) -> Iterator[tuple[Trial, ...]]:
        """Everything that may stand before the exact stage, cheap ones before dear ones."""
        ranked = sorted(known, key=lambda trial: float(self._each_s(trial).mean()))
        for count in range(1, self.context.settings.stages):
            yield from combinations(ranked, count)

    # --- on the calibration texts ---------------------------------------------------------

    @cached_property
    def _message(self) -> RunTexts:
        context = self.context
        indices = range(len(context.texts), len(context.all_texts))
        return RunTexts(tuple(indices), probes.STRATEGY, outputs=True)

    @cached_property
    def _kept(self) -> list[int]:
        """The first copy of each calibration text, as an index into these."""
        first: dict[object, int] = {}
        for place, index in enumerate(self._message.indices):
            first.setdefault(self.context.all_texts[index], place)
        return list(first.values())

    @cached_property
    def _right(self) -> Outputs:
        """The original's outputs, and the exact candidate's where it was not asked."""
        context = self.context
        more = tuple(range(context.answered_texts, len(context.all_texts)))
        if not more:
            return self.truth
        outputs = self.exact.outputs(RunTexts(more, probes.STRATEGY, outputs=True), 0.0)
        return Outputs.concatenate([self.truth, outputs])

    def _calibrated(self, trial: Trial, deadline: Deadline) -> Reading | None:
        """How it answers the calibration texts; None where it fails, or where no time is left."""
        context = self.context
        share = len(self._message.indices) / len(context.texts)
        expected_s = share * best_s(trial)
        if not deadline.allows(expected_s) and not trial.has_read(*self._named):
            return None
        context.budget.tell(
            "cascades", f"{trial.label}: {len(self._message.indices)} calibration texts"
        )
        return self._read(trial)

    def _read(self, trial: Trial) -> Reading | None:
        what, name = self._named
        return trial.reading(what, Batching(name, (self._message,)), lambda: self._right)

    @property
    def _named(self) -> tuple[str, str]:
        """What the journal calls them: the first look, where that was at all of them."""
        context = self.context
        alone = context.answered_texts == len(context.all_texts)
        return ("probe", "probe") if alone else ("calibration", "calibration")

    def _reading(self, trial: Trial) -> Reading:
        reading = self._read(trial)
        assert reading, f"{trial.label} was chosen by its answers to the calibration texts"
        return reading

    def _each_s(self, trial: Trial) -> NDArray[np.float64]:
        """Seconds for each calibration text in a full batch of its kind, float64 [texts]."""
        context, cost = self.context, trial.cost_model()
        assert cost, f"{trial.label} has not been timed"
        limit = trial.candidate.token_limit(context.info.max_length)
        lengths = np.minimum(context.all_lengths[list(self._message.indices)], limit)[self._kept]
        sizes = context.settings.batch_sizes
        if context.settings.objective == "latency":
            sizes = (1,)
        different, places = np.unique(np.maximum(lengths, 1), return_inverse=True)
        each_s = [min(cost.cost_s(size, n) / size for size in sizes) for n in different.tolist()]
        return np.array(each_s)[places]


def _can_be_first(trial: Trial) -> bool:
    """Whether it is lossy, runs, has been timed, and has been compared with the original."""
    able = trial.status not in ("failed", "unavailable") and not trial.out_of_time
    return able and not trial.candidate.exact and bool(trial.cells and trial.parity)
