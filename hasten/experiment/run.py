"""Runs the experiment with the tuner's own candidates, workers and journal.

Every candidate is loaded and screened once, the fastest layout of each format stays, and then
all that was asked for is timed, interleaved over the formats. What is there after each round is
handed to ``save``, so that an interruption leaves a result that can be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hasten.corpus import stratified_sample
from hasten.experiment import grid
from hasten.parity import verdict
from hasten.records import (
    Bench,
    Candidate,
    Ceiling,
    Forecast,
    Format,
    Measurement,
    Row,
    ShapeTime,
    Strategy,
)
from hasten.tuning import candidates, ceiling, choose, original, screening
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant
from hasten.tuning.finals import ARRIVAL, message_for, table_lengths
from hasten.tuning.worker import RunTexts

_FIRST_SHAPE_VISIT = 10  # the tuner's, so that what it has measured is not measured again
_ORDERED = 2
"""How many formats show the orders: the fastest, and the original's."""

Save = Callable[[Bench], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure; ``lengths`` empty means doubling up to the model's maximum."""

    experiments: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    command: str | None = None


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
    ceilings: tuple[Ceiling, ...] = ()
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
        possible, unavailable = candidates.enumerate_rows(hardware, settings, context.engines)
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
            ceilings=self.ceilings,
            elapsed_s=context.budget.spent_s,
            complete=self.complete,
            command=self.wanted.command,
        )

    # --- the steps ------------------------------------------------------------------------

    def _keep_fastest_layouts(self) -> None:
        """Of each engine, precision and device, the streams and threads that suit the texts."""
        best: dict[tuple[str, str, str], tuple[float, Entrant]] = {}
        for entrant in self.entrants:
            plan = screening.best_plan(self.context, entrant) if entrant.in_play else None
            if plan and plan[1] < best.get(_format_of(entrant.candidate), (math.inf,))[0]:
                best[_format_of(entrant.candidate)] = (plan[1], entrant)
        self.formats = [entrant for _, entrant in sorted(best.values(), key=lambda pair: pair[0])]
        if not self.formats:
            raise choose.no_candidate([entrant.row() for entrant in self.entrants])
        for entrant in self.entrants:
            if entrant.in_play and entrant not in self.formats:
                layout = best[_format_of(entrant.candidate)][1].candidate.layout
                entrant.end("dropped", f"slower on these texts than its layout {layout}")

    def _measure_all(self, truth: NDArray[np.float32]) -> None:
        self._prove(truth)
        rest = self._forecast()
        self.context.report(Forecast(rest))
        steps: dict[str, Callable[[], None]] = {
            "length": self._measure_shapes,
            "batch-size": self._measure_rounds,
            "latency": self._measure_singles,
        }
        for name, step in steps.items():
            self.context.budget.expect(sum(rest.values()))
            step()
            self.save(self.bench())
            rest = {other: seconds for other, seconds in rest.items() if other != name}
            if name == "batch-size":
                rest.pop("order", None)
        self.ceilings = ceiling.measure(self.context, self.baseline.candidate, self.formats)
        self._judge()

    def _measure_shapes(self) -> None:
        """Batch sizes against lengths: an experiment, and what the optimal batches need."""
        visits = range(_FIRST_SHAPE_VISIT, _FIRST_SHAPE_VISIT + grid.SHAPE_VISITS)
        screening.sweep(
            self.context, self.formats, self._shapes(), visits, math.inf, stage="length"
        )

    def _measure_rounds(self) -> None:
        """The user's texts end to end; all orders and batch sizes in the same rounds."""
        indices = tuple(range(len(self.context.texts)))
        heats = self._heats()
        for number in range(self.context.settings.rounds):
            turn = number % max(len(heats), 1)
            for entrant, strategy in heats[turn:] + heats[:turn]:
                run = f"run {number + 1} of {self.context.settings.rounds}"
                self.context.tell("texts", f"{run}: {entrant.label}, {strategy.label}")
                message = message_for(self.context, entrant, indices, strategy=strategy)
                expected_s = screening.predicted_s(self.context, entrant, strategy)
                entrant.run_texts(message, number, expected_s)
            self.save(self.bench())

    def _measure_singles(self) -> None:
        """One text at a time, as somebody who waits for each answer."""
        if "latency" not in self.wanted.experiments:
            return
        for entrant in (self.baseline, *self.formats):
            entrant.close()  # a process that waits still holds its memory
        running = [entrant for entrant in self.formats if entrant.in_play]
        self.singles = {entrant: self._single(entrant) for entrant in running}
        runs = self.context.settings.rounds
        count = grid.calls_in_a_round(runs, len(self.context.texts))
        for number in range(runs):
            sample = stratified_sample(self.context.lengths, count, number)
            message = RunTexts(tuple(map(int, sample)), ARRIVAL, one_by_one=True)
            for format_, single in self.singles.items():
                self.context.tell("latency", f"run {number + 1} of {runs}: {single.label}")
                expected_s = screening.predicted_s(self.context, format_, ARRIVAL)
                single.run_texts(message, number, expected_s)

    def _prove(self, truth: NDArray[np.float32]) -> None:
        """Compare the answers to all texts; a format that is refused stays, with the reason."""
        indices, settings = tuple(range(len(self.context.texts))), self.context.settings
        for entrant in self.formats:
            self.context.tell("proof", f"{entrant.label}: {len(indices)} texts")
            message = message_for(self.context, entrant, indices, outputs=True)
            expected_s = screening.predicted_s(self.context, entrant, message.strategy)
            parity = entrant.prove("parity", message, truth, expected_s)
            if parity:
                entrant.reason = verdict(
                    parity,
                    entrant.candidate.precision,
                    max_flips=settings.max_flips,
                    strict=settings.strict,
                )

    def _judge(self) -> None:
        """Each format's best run against the baseline's, and against the machine."""
        flops = sum(self.context.info.flops(int(length)) for length in self.context.lengths)
        reference = self.baseline.row().main
        for entrant in self.formats:
            runs = [run for run in entrant.row().runs if run.strategy.name == "arrival"]
            if not runs or reference is None or not entrant.in_play:
                continue
            best = min(runs, key=lambda run: run.total.median_s)
            entrant.ratio_to_baseline = choose.speedup(reference, best, self.context.settings)
            speed = flops / best.total.median_s
            entrant.ceiling_share = ceiling.share(self.ceilings, entrant.candidate, speed)

    # --- what they need -------------------------------------------------------------------

    def _wants(self, *names: str) -> bool:
        return any(name in self.wanted.experiments for name in names)

    def _lengths(self) -> tuple[int, ...]:
        if not self._wants("length"):
            return ()
        return grid.lengths(self.context.info.max_length, self.wanted.lengths)

    def _shapes(self) -> list[grid.Shape]:
        lengths: Sequence[int] = self._lengths()
        if not lengths and self._wants("order"):
            lengths = table_lengths(self.context)
        return [(size, length) for size in self.context.settings.batch_sizes for length in lengths]

    def _heats(self) -> list[tuple[Entrant, Strategy]]:
        sizes = self.context.settings.batch_sizes
        heats: list[tuple[Entrant, Strategy]] = []
        if self._wants("batch-size", "order"):
            heats.append((self.baseline, ARRIVAL))
        if self._wants("batch-size"):
            heats += [(entrant, s) for entrant in self.formats for s in grid.arrival(sizes)]
        if self._wants("order"):
            for entrant in self._ordered():
                heats += [(entrant, strategy) for strategy in grid.arrival(sizes)]
                heats += [(entrant, strategy) for strategy in grid.orders(sizes)]
        return [heat for heat in dict.fromkeys(heats) if heat[0].in_play]

    def _ordered(self) -> list[Entrant]:
        """The formats that show the orders: the fastest, and the original's."""
        engine = self.baseline.candidate.engine
        others = [e for e in self.formats if e.candidate.engine == engine]
        return list(dict.fromkeys([self.formats[0], *others]))[:_ORDERED]

    def _single(self, entrant: Entrant) -> Entrant:
        """The same format with one stream on all its threads, which is best for one text."""
        candidate = entrant.candidate
        threads = candidate.intra_op_num_threads * candidate.streams
        single = Entrant(replace(candidate, intra_op_num_threads=threads, streams=1), self.context)
        single.prepare()
        return single

    def _forecast(self) -> Mapping[str, float]:
        """Seconds that each wanted experiment will take, from the first measurements."""
        runs, lengths = self.context.settings.rounds, self.context.lengths
        costs = {entrant: _cost(entrant) for entrant in (self.baseline, *self.formats)}
        found = {"length": sum(grid.shapes_s(self._shapes(), costs[e]) for e in self.formats)}
        for entrant, strategy in self._heats():
            name = "batch-size" if strategy.name == "arrival" else "order"
            seconds = runs * grid.texts_s(lengths, strategy, costs[entrant])
            found[name] = found.get(name, 0.0) + seconds
        if self._wants("latency"):
            calls = runs * grid.calls_in_a_round(runs, len(lengths))
            found["latency"] = sum(
                calls * costs[e].model.cost_s(1, self.context.profile.p50)
                + (e.start_up.load_s if e.start_up else 0.0)
                for e in self.formats
            )
        return {name: seconds for name, seconds in found.items() if seconds}

    def _format(self, entrant: Entrant) -> Format:
        shapes = tuple(
            ShapeTime(size, length, Measurement(tuple(entrant.cells[size, length])))
            for size, length in self._shapes()
            if self._wants("length") and (size, length) in entrant.cells
        )
        single = self.singles.get(entrant)
        return Format(entrant.row(), shapes, single.row() if single else None)


def _any_time(context: Context, pass_s: float) -> None:
    """There is no budget that one pass of the original could exceed."""
    del context, pass_s


def _format_of(candidate: Candidate) -> tuple[str, str, str]:
    return candidate.engine, candidate.precision, candidate.device


def _cost(entrant: Entrant) -> grid.Cost:
    model = entrant.cost_model()
    assert model, f"{entrant.label} has not been timed"
    return grid.Cost(model, entrant.candidate.streams)
