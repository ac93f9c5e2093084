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
from hasten.tuning import candidates, ceiling, choose, original, proof, screening
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant
from hasten.tuning.finals import table_lengths
from hasten.tuning.rounds import ARRIVAL
from hasten.tuning.screening import message_for
from hasten.tuning.worker import RunTexts

_FIRST_SHAPE_VISIT = 10  # those before are the screen's

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
    baseline: Entrant
    entrants: list[Entrant]
    unavailable: list[Row]
    formats: list[Entrant] = field(default_factory=list)
    singles: dict[Entrant, Entrant] = field(default_factory=dict)
    refusals: dict[Entrant, str] = field(default_factory=dict)
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
        baseline = Entrant(candidates.baseline(hardware, settings, baseline_engine), context)
        entrants = [Entrant(candidate, context) for candidate in possible]
        return cls(context, wanted, save, baseline, entrants, unavailable)

    def run(self) -> Bench:
        """Measure everything that the journal does not hold yet.

        Raises:
            NoCandidate: nothing that can run here gives the original's answers.
            EngineError: the original itself does not run.
        """
        try:
            truth = original.answers(self.context, self.baseline, _any_time)
            screening.prepare_all(self.context, self.entrants, truth)
            screening.time_shapes(self.context, [self.baseline, *self.entrants])
            self._keep_fastest_layouts()
            self.save(self.bench())
            self._measure_all(truth)
        finally:
            for entrant in (self.baseline, *self.entrants, *self.singles.values()):
                entrant.close()
        self.complete = True
        bench = self.bench()
        self.save(bench)
        return bench

    def bench(self) -> Bench:
        """All that is known so far."""
        context = self.context
        others = [e.row() for e in self.entrants if e not in self.formats]
        return Bench(
            model=context.info,
            profile=context.profile,
            hardware=context.hardware,
            settings=context.settings,
            experiments=self.wanted.experiments,
            lengths=self._lengths(),
            versions=context.versions,
            baseline=self.baseline.row(),
            formats=tuple(self._format(entrant) for entrant in self.formats),
            others=(*others, *self.unavailable),
            ceilings=ceiling.ceilings(self.ceilings),
            elapsed_s=context.budget.spent_s,
            complete=self.complete,
            command=self.wanted.command,
        )

    # --- the steps ------------------------------------------------------------------------

    def _keep_fastest_layouts(self) -> None:
        """Of each format, the streams and threads that suit the texts."""
        best: dict[str, tuple[float, Entrant]] = {}
        for entrant in self.entrants:
            plan = screening.best_plan(self.context, entrant) if entrant.in_play else None
            if plan and plan[1] < best.get(entrant.candidate.format, (math.inf,))[0]:
                best[entrant.candidate.format] = (plan[1], entrant)
        self.formats = [entrant for _, entrant in sorted(best.values(), key=lambda pair: pair[0])]
        if not self.formats:
            raise choose.no_candidate([entrant.row() for entrant in self.entrants])
        for entrant in self.entrants:
            if entrant.in_play and entrant not in self.formats:
                layout = best[entrant.candidate.format][1].candidate.layout
                entrant.end("dropped", f"slower on these texts than its layout {layout}")

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
        visits = range(_FIRST_SHAPE_VISIT, _FIRST_SHAPE_VISIT + grid.SHAPE_VISITS)
        screening.sweep(self.context, self._running(), shapes, visits, math.inf, stage="length")

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
        heats = [self._heat(entrant, strategy) for entrant, strategy in self._entries()]
        return Series(self.context, "texts", heats, self.context.settings.rounds, ceilings)

    def _heat(self, entrant: Entrant, strategy: Strategy) -> Heat:
        message = self._message(entrant, strategy)
        expected_s = screening.predicted_s(self.context, entrant, strategy)
        return Heat(entrant, lambda _: message, expected_s)

    def _measure_singles(self) -> None:
        """One text at a time, as somebody who waits for each answer."""
        if not self._wants("latency"):
            return
        for entrant in (self.baseline, *self.formats):
            entrant.close()  # a process that waits still holds its memory
        self.singles = {e: single for e in self.formats if (single := self._single(e))}
        heats = [
            Heat(single, self._single_texts, screening.predicted_s(self.context, entrant, ARRIVAL))
            for entrant, single in self.singles.items()
        ]
        for _ in Series(self.context, "latency", heats, self.context.settings.rounds).run():
            self.save(self.bench())

    def _prove(self, truth: Outputs) -> None:
        """Compare the answers to all texts, padded; a format that is refused is still measured."""
        settings = self.context.settings
        strategy = Strategy("sorted", max(settings.batch_sizes))
        tries = proof.fix_tries(self.context, self.entrants)
        for entrant in self.formats:
            self.context.tell("proof", f"{entrant.label}: {len(self.context.texts)} texts")
            ways = proof.batchings(self.context, entrant, strategy)
            what = f"parity-{strategy.batch_size}"
            parity = entrant.prove(what, ways, truth, tries=tries.of(entrant))
            reason = parity and verdict(
                parity,
                exact=entrant.candidate.exact,
                max_flips=settings.max_flips,
                strict=settings.strict,
            )
            if reason:
                self.refusals[entrant] = reason

    def _judge(self) -> None:
        """Each format's best run against the baseline's, and against the machine."""
        flops = sum(self.context.info.flops(int(length)) for length in self.context.lengths)
        reference = self.baseline.row().main
        for entrant in self.formats:
            runs = [run for run in entrant.row().runs if run.strategy.name == "arrival"]
            if not runs or not entrant.in_play:
                continue
            best = min(runs, key=lambda run: run.total.median_s)
            entrant.ratio_to_baseline = speed_up(reference, best, seed=self.context.settings.seed)
            entrant.ceiling_share = ceiling.share(
                self.ceilings, entrant.candidate, best, best.rounds, flops
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
        lengths = [n for n in self._lengths() if n <= 2 * longest] or table_lengths(self.context)
        return [(size, length) for size in sizes for length in lengths]

    def _other_shapes(self) -> list[grid.Shape]:
        """The rest of the shapes of ``length``; none is visited twice."""
        first = self._shapes_of_texts()
        return [shape for shape in self._shapes() if shape not in first]

    def _message(self, entrant: Entrant, strategy: Strategy) -> RunTexts:
        indices = tuple(range(len(self.context.texts)))
        return message_for(self.context, entrant, indices, strategy=strategy)

    def _single_texts(self, number: int) -> RunTexts:
        count = min(grid.SINGLE_CALLS_A_RUN, len(self.context.texts))
        seed = self.context.settings.seed + number
        sample = stratified_sample(self.context.lengths, count, seed)
        return RunTexts(tuple(map(int, sample)), ARRIVAL, one_by_one=True)

    def _entries(self) -> list[tuple[Entrant, Strategy]]:
        sizes = self.context.settings.batch_sizes
        heats: list[tuple[Entrant, Strategy]] = []
        if self._wants("batch-size", "order"):
            heats.append((self.baseline, ARRIVAL))
        if self._wants("batch-size"):
            heats += [(entrant, s) for entrant in self.formats for s in grid.arrival(sizes)]
        if self._wants("order"):
            for entrant in self._running()[:1]:  # the fastest format alone: each takes as long
                heats += [(entrant, strategy) for strategy in grid.arrival(sizes)]
                heats += [(entrant, strategy) for strategy in grid.orders(sizes)]
        return [heat for heat in dict.fromkeys(heats) if heat[0].in_play]

    def _running(self) -> list[Entrant]:
        """The formats that have not failed, the fastest first."""
        return [entrant for entrant in self.formats if entrant.in_play]

    def _single(self, entrant: Entrant) -> Entrant | None:
        """The same format with one stream on all its threads, which is best for one text."""
        layout = (1, entrant.candidate.intra_op_num_threads * entrant.candidate.streams)
        for known in self.entrants:
            candidate = known.candidate
            if (
                candidate.format == entrant.candidate.format
                and (candidate.streams, candidate.intra_op_num_threads) == layout
                and known.status not in ("failed", "refused")
            ):
                single = Entrant(candidate, self.context)
                single.prepare()
                return single
        return None

    def _forecast(self) -> dict[str, float]:
        """Seconds that each wanted experiment will still take, from the first measurements."""
        running = self._running()
        found = dict.fromkeys(self.wanted.experiments, 0.0)
        for name, shapes in (("order", self._shapes_of_texts()), ("length", self._other_shapes())):
            for entrant in running:
                new = [s for s in shapes if not entrant.has_timed(s, _FIRST_SHAPE_VISIT)]
                if new:
                    found[name] += grid.shapes_s(new, _cost(entrant))
        texts = self._texts()
        missing = texts.missing()
        for heat in texts.heats:
            arrives = heat.message(0).strategy.name == "arrival" and self._wants("batch-size")
            runs = missing[heat.key] and missing[heat.key] + 1  # one more to warm up
            found["batch-size" if arrives else "order"] += runs * heat.expected_s
        if self._wants("latency"):
            calls = self.context.settings.rounds * grid.SINGLE_CALLS_A_RUN
            for entrant in running:
                one_s = _cost(entrant).cost_s(1, self.context.profile.p50)
                load_s = entrant.start_up.load_s if entrant.start_up else 0.0
                found["latency"] += calls * one_s + load_s
        return {name: seconds for name, seconds in found.items() if seconds}

    def _format(self, entrant: Entrant) -> Format:
        shapes = tuple(
            ShapeTime(size, length, Measurement(tuple(entrant.cells[size, length])))
            for size, length in self._shapes()
            if (size, length) in entrant.cells
        )
        single = self.singles.get(entrant)
        return Format(
            entrant.row(), shapes, single.row() if single else None, self.refusals.get(entrant)
        )


def _any_time(context: Context, pass_s: float) -> None:
    """There is no budget that one pass of the original could exceed."""
    del context, pass_s


def _cost(entrant: Entrant) -> CostModel:
    model = entrant.cost_model()
    assert model, f"{entrant.label} has not been timed"
    return model
