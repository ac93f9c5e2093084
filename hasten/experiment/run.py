"""Runs the experiment with the tuner's own candidates, workers and journal.

Every candidate is loaded and screened once, the fastest layout of each format stays, and then
all that was asked for is timed, interleaved over the formats. What is there after each round is
handed to ``save``, so that an interruption leaves a result that can be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from hasten.experiment import grid
from hasten.experiment.series import Heat, Series
from hasten.inputs.corpus import stratified_sample
from hasten.judging.parity import verdict
from hasten.judging.stats import speed_up
from hasten.records import (
    EXPERIMENTS,
    Bench,
    Forecast,
    Format,
    Measurement,
    Row,
    ShapeTime,
    Strategy,
)
from hasten.runtime.batching import CostModel
from hasten.tasks import Outputs
from hasten.tuning import candidates, ceiling, choose, original, proof, screening, timing
from hasten.tuning.context import Context
from hasten.tuning.plans import ARRIVAL, best_plan, message_for, predicted_s
from hasten.tuning.trial import Trial
from hasten.tuning.worker import RunTexts

Save = Callable[[Bench], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure; ``lengths`` empty means doubling up to the model's maximum."""

    experiments: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    command: str | None = None

    def with_all_of(self, earlier: Bench) -> Wanted:
        """What is wanted now, and what an earlier result in the same folder has already."""
        names = {*self.experiments, *earlier.experiments}
        lengths = {*self.lengths, *earlier.lengths} if self.lengths else ()
        experiments = tuple(name for name in EXPERIMENTS if name in names)
        return Wanted(experiments, tuple(sorted(lengths)), self.command)


@dataclass
class Experiment:
    """One experiment over one model and its texts."""

    context: Context
    wanted: Wanted
    save: Save
    baseline: Trial
    trials: list[Trial]
    unavailable: list[Row]
    formats: list[Trial] = field(default_factory=list)
    singles: dict[Trial, Trial] = field(default_factory=dict)
    refusals: dict[Trial, str] = field(default_factory=dict)
    ceilings: dict[int, ceiling.Found] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def plan(
        cls, context: Context, wanted: Wanted, save: Save, *, baseline_engine: str = "torch_eager"
    ) -> Experiment:
        """Line up every candidate there is.

        Raises:
            NoCandidate: nothing can run here.
        """
        settings, hardware = context.settings, context.hardware
        possible, unavailable = candidates.enumerate_rows(
            hardware,
            settings,
            context.engines,
            len(context.calibration_lengths),
            trained=context.trained,
        )
        if not possible:
            raise choose.no_candidate(unavailable)
        baseline = Trial(candidates.baseline(hardware, settings, baseline_engine), context)
        trials = [Trial(candidate, context) for candidate in possible]
        return cls(context, wanted, save, baseline, trials, unavailable)

    def run(self) -> Bench:
        """Measure everything that the journal does not hold yet.

        Raises:
            NoCandidate: nothing that can run here gives the original's answers.
            EngineError: the original itself does not run.
        """
        try:
            truth = original.answers(self.context, self.baseline, _any_time)
            screening.prepare_all(self.context, self.trials, truth)
            screening.time_shapes(self.context, [self.baseline, *self.trials])
            self._keep_fastest_layouts()
            self.save(self.bench())
            self._measure_all(truth)
        finally:
            for trial in (self.baseline, *self.trials, *self.singles.values()):
                trial.close()
        self.complete = True
        bench = self.bench()
        self.save(bench)
        return bench

    def bench(self) -> Bench:
        """All that is known so far."""
        context = self.context
        others = [e.row() for e in self.trials if e not in self.formats]
        return Bench(
            model=context.info,
            profile=context.profile,
            hardware=context.hardware,
            settings=context.settings,
            experiments=self.wanted.experiments,
            lengths=self._lengths(),
            versions=context.versions,
            baseline=self.baseline.row(),
            formats=tuple(self._format(trial) for trial in self.formats),
            others=(*others, *self.unavailable),
            ceilings=ceiling.ceilings(self.ceilings),
            elapsed_s=context.budget.spent_s,
            complete=self.complete,
            command=self.wanted.command,
        )

    # --- the steps ------------------------------------------------------------------------

    def _keep_fastest_layouts(self) -> None:
        """Of each format, the streams and threads that suit the texts."""
        best: dict[str, tuple[float, Trial]] = {}
        for trial in self.trials:
            plan = best_plan(trial) if trial.in_play else None
            if plan and plan[1] < best.get(trial.candidate.format, (math.inf,))[0]:
                best[trial.candidate.format] = (plan[1], trial)
        self.formats = [trial for _, trial in sorted(best.values(), key=lambda pair: pair[0])]
        if not self.formats:
            raise choose.no_candidate([trial.row() for trial in self.trials])
        for trial in self.trials:
            if trial.in_play and trial not in self.formats:
                layout = best[trial.candidate.format][1].candidate.layout
                trial.end("dropped", f"slower on these texts than its layout {layout}")

    def _measure_all(self, truth: Outputs) -> None:
        self._prove(truth)
        rest = self._forecast()
        self.context.report(Forecast(rest))
        # What optimal batches need comes first; long texts in large batches, which can break a
        # format, come when it has been timed otherwise.
        steps: list[tuple[tuple[str, ...], Callable[[], None]]] = [
            ((), partial(self._measure_shapes, self._shapes_of_texts())),
            (("batch-size", "order"), self._measure_rounds),
            (("latency",), self._measure_singles),
            (("length",), partial(self._measure_shapes, self._other_shapes())),
        ]
        for names, step in steps:
            self.context.budget.expect(sum(rest.values()))
            step()
            self.save(self.bench())
            rest = {name: seconds for name, seconds in rest.items() if name not in names}
        self._judge()

    def _measure_shapes(self, shapes: Sequence[grid.Shape]) -> None:
        running, visits = self._running(), timing.EXPERIMENT_VISITS
        timing.sweep(self.context.budget, running, shapes, visits, stage="length")

    def _measure_rounds(self) -> None:
        """The user's texts end to end; all orders and batch sizes in the same rounds."""
        gauge = ceiling.Gauge(self.context, self.baseline.candidate, self.formats)
        try:
            for number, found in self._texts(gauge.measure).run():
                self.ceilings[number] = found
                self.save(self.bench())
        finally:
            gauge.close()

    def _texts(self, ceilings: Callable[[], ceiling.Found] = dict) -> Series:
        heats = [self._heat(trial, strategy) for trial, strategy in self._entries()]
        return Series(self.context, "texts", heats, self.context.settings.rounds, ceilings)

    def _heat(self, trial: Trial, strategy: Strategy) -> Heat:
        message = self._message(trial, strategy)
        expected_s = predicted_s(trial, strategy)
        return Heat(trial, lambda _: message, expected_s)

    def _measure_singles(self) -> None:
        """One text at a time, as somebody who waits for each answer."""
        if not self._wants("latency"):
            return
        for trial in (self.baseline, *self.formats):
            trial.close()  # a process that waits still holds its memory
        self.singles = {e: single for e in self.formats if (single := self._single(e))}
        heats = [
            Heat(single, self._single_texts, predicted_s(trial, ARRIVAL))
            for trial, single in self.singles.items()
        ]
        for _ in Series(self.context, "latency", heats, self.context.settings.rounds).run():
            self.save(self.bench())

    def _prove(self, truth: Outputs) -> None:
        """Compare the answers to all texts, padded; a format that is refused is still measured."""
        settings = self.context.settings
        strategy = Strategy("sorted", max(settings.batch_sizes))
        tries = proof.fix_tries(self.context, self.trials)
        for trial in self.formats:
            self.context.budget.tell("proof", f"{trial.label}: {len(self.context.texts)} texts")
            ways = proof.batchings(self.context, trial, strategy)
            what = f"parity-{strategy.batch_size}"
            parity = trial.prove(what, ways, truth, tries=tries.of(trial))
            reason = parity and verdict(
                parity,
                exact=trial.candidate.exact,
                max_flips=settings.max_flips,
                strict=settings.strict,
            )
            if reason:
                self.refusals[trial] = reason

    def _judge(self) -> None:
        """Each format's best run against the baseline's, and against the machine."""
        flops = sum(self.context.info.flops(int(length)) for length in self.context.lengths)
        reference = self.baseline.row().main
        for trial in self.formats:
            runs = [run for run in trial.row().runs if run.strategy.name == "arrival"]
            if not runs or not trial.in_play:
                continue
            best = min(runs, key=lambda run: run.total.median_s)
            trial.conclude(
                speed_up(reference, best, seed=self.context.settings.seed),
                ceiling.share(self.ceilings, trial.candidate, best, best.rounds, flops),
            )

    # --- what they need -------------------------------------------------------------------

    def _wants(self, *names: str) -> bool:
        return any(name in self.wanted.experiments for name in names)

    def _lengths(self) -> tuple[int, ...]:
        if not self._wants("length"):
            return ()
        return grid.lengths(self.context.info.max_length, self.wanted.lengths)

    def _shapes(self) -> list[grid.Shape]:
        sizes = self.context.settings.batch_sizes
        return [(size, length) for size in sizes for length in self._lengths()]

    def _shapes_of_texts(self) -> list[grid.Shape]:
        """What the cost tables of optimal batches rest on: the shapes that texts come in."""
        if not self._wants("order"):
            return []
        longest, sizes = self.context.profile.longest, self.context.settings.batch_sizes
        lengths = [n for n in self._lengths() if n <= 2 * longest] or timing.table_lengths(
            self.context.profile
        )
        return [(size, length) for size in sizes for length in lengths]

    def _other_shapes(self) -> list[grid.Shape]:
        """The rest of the shapes of ``length``; none is visited twice."""
        first = self._shapes_of_texts()
        return [shape for shape in self._shapes() if shape not in first]

    def _message(self, trial: Trial, strategy: Strategy) -> RunTexts:
        indices = tuple(range(len(self.context.texts)))
        return message_for(trial, indices, strategy=strategy)

    def _single_texts(self, number: int) -> RunTexts:
        count = min(grid.SINGLE_CALLS_A_RUN, len(self.context.texts))
        seed = self.context.settings.seed + number
        sample = stratified_sample(self.context.lengths, count, seed)
        return RunTexts(tuple(map(int, sample)), ARRIVAL, one_by_one=True)

    def _entries(self) -> list[tuple[Trial, Strategy]]:
        sizes = self.context.settings.batch_sizes
        heats: list[tuple[Trial, Strategy]] = []
        if self._wants("batch-size", "order"):
            heats.append((self.baseline, ARRIVAL))
        if self._wants("batch-size"):
            heats += [(trial, s) for trial in self.formats for s in grid.arrival(sizes)]
        if self._wants("order"):
            for trial in self._running()[:1]:  # the fastest format alone: each takes as long
                heats += [(trial, strategy) for strategy in grid.arrival(sizes)]
                heats += [(trial, strategy) for strategy in grid.orders(sizes)]
        return [heat for heat in dict.fromkeys(heats) if heat[0].in_play]

    def _running(self) -> list[Trial]:
        """The formats that have not failed, the fastest first."""
        return [trial for trial in self.formats if trial.in_play]

    def _single(self, trial: Trial) -> Trial | None:
        """The same format with one stream on all its threads, which is best for one text."""
        layout = (1, trial.candidate.intra_op_num_threads * trial.candidate.streams)
        for known in self.trials:
            candidate = known.candidate
            if (
                candidate.format == trial.candidate.format
                and (candidate.streams, candidate.intra_op_num_threads) == layout
                and known.status not in ("failed", "refused")
            ):
                single = Trial(candidate, self.context)
                single.prepare()
                return single
        return None

    def _forecast(self) -> dict[str, float]:
        """Seconds that each wanted experiment will still take, from the first measurements."""
        running = self._running()
        found = dict.fromkeys(self.wanted.experiments, 0.0)
        for name, shapes in (("order", self._shapes_of_texts()), ("length", self._other_shapes())):
            for trial in running:
                new = [s for s in shapes if not trial.has_timed(s, timing.EXPERIMENT_VISITS[0])]
                if new:
                    found[name] += grid.shapes_s(new, _cost(trial))
        texts = self._texts()
        missing = texts.missing()
        for heat in texts.heats:
            arrives = heat.message(0).strategy.name == "arrival" and self._wants("batch-size")
            runs = missing[heat.key] and missing[heat.key] + 1  # one more to warm up
            found["batch-size" if arrives else "order"] += runs * heat.expected_s
        if self._wants("latency"):
            calls = self.context.settings.rounds * grid.SINGLE_CALLS_A_RUN
            for trial in running:
                one_s = _cost(trial).cost_s(1, self.context.profile.p50)
                load_s = trial.start_up.load_s if trial.start_up else 0.0
                found["latency"] += calls * one_s + load_s
        return {name: seconds for name, seconds in found.items() if seconds}

    def _format(self, trial: Trial) -> Format:
        shapes = tuple(
            ShapeTime(size, length, Measurement(tuple(trial.cells[size, length])))
            for size, length in self._shapes()
            if (size, length) in trial.cells
        )
        single = self.singles.get(trial)
        return Format(
            trial.row(), shapes, single.row() if single else None, self.refusals.get(trial)
        )


def _any_time(context: Context, pass_s: float) -> None:
    """There is no budget that one pass of the original could exceed."""
    del context, pass_s


def _cost(trial: Trial) -> CostModel:
    model = trial.cost_model()
    assert model, f"{trial.label} has not been timed"
    return model
