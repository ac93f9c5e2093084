"""A candidate in the contest: its worker, its measurements and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError
from hasten.judging.cascade import read
from hasten.judging.parity import compare_batchings
from hasten.plain import from_json
from hasten.records import (
    Candidate,
    CostTable,
    EndToEnd,
    FurtherStage,
    Interval,
    Measurement,
    Parity,
    Probes,
    Reading,
    Row,
    Settings,
    StartUp,
    Status,
    Strategy,
)
from hasten.runtime import probes
from hasten.runtime.batching import CostModel
from hasten.runtime.pipeline import PipelineRun
from hasten.tasks import Outputs
from hasten.tuning import artifacts
from hasten.tuning.context import Context
from hasten.tuning.process import Connection
from hasten.tuning.worker import Load, LoadCascade, Message, RunTexts, TimeShape

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batching:
    """One way to batch some texts: the messages that run each of them once.

    ``name`` is that of a :class:`hasten.records.BatchingParity`; ``expected_s`` is how long all
    messages together should take.
    """

    name: str
    messages: tuple[RunTexts, ...]
    expected_s: float = 0.0


class Trial:
    """Measures one candidate through its worker, each thing once.

    The worker is started at the first measurement that the journal does not hold yet; a resumed
    run starts no process for what it knows already. A failure ends the candidate, not the run:
    it becomes the candidate's status, and every later request is answered with None.
    """

    def __init__(self, candidate: Candidate, context: Context) -> None:
        self.candidate = candidate
        self.status: Status | None = None
        self.reason: str | None = None
        self.out_of_time = False
        self.parity: Parity | None = None
        self.start_up: StartUp | None = None
        self.export_s: float | None = None
        self.cells: dict[Shape, list[float]] = {}
        self.runs: dict[Strategy, list[dict[str, Any]]] = {}
        self.screen_tokens_per_s: float | None = None
        self.ratio_to_baseline: Interval | None = None
        self.ceiling_share: float | None = None
        self.probes: Probes | None = None
        self.further: tuple[FurtherStage, ...] = ()
        self._visits = set[str]()
        self._context = context
        self._worker: Connection | None = None
        self._cost: CostModel | None = None

    @property
    def label(self) -> str:
        return self.candidate.label

    @property
    def settings(self) -> Settings:
        """What the tune was asked for."""
        return self._context.settings

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens that the candidate reads of every judged text, int64 [texts]."""
        return self._context.lengths_for(self.candidate)

    @property
    def later_s(self) -> float:
        """Seconds that its later stages are predicted to take for all judged texts."""
        return 0.0

    @property
    def artifact(self) -> Path:
        """The folder of the exported artifact; several candidates may share it."""
        return self._context.artifact(self.candidate)

    @property
    def has_started(self) -> bool:
        """Whether the journal knows how its start went."""
        return f"start:{self.label}" in self._context.journal

    @property
    def in_play(self) -> bool:
        """Whether it can still win: neither failed nor refused nor dropped."""
        return self.status is None

    def end(self, status: Status, reason: str | None, *, for_time: bool = False) -> None:
        """Settle the candidate's outcome and let its worker go.

        ``for_time``: it was left out for lack of time or memory, and may come back later.
        """
        self.status, self.reason, self.out_of_time = status, reason, for_time
        self.close()

    def refuse(self, reason: str) -> None:
        """End the candidate because its answers are not the original's."""
        tokens = self.candidate.max_tokens
        self.end("refused", f"reads at most {tokens} tokens: {reason}" if tokens else reason)

    def add_reason(self, more: str) -> None:
        """Say more of why the outcome is what it is."""
        self.reason = f"{self.reason}; {more}"

    def revive(self) -> None:
        """Take a dropped candidate back into the contest."""
        self.status = self.reason = None
        self.out_of_time = False

    def predict(self, seconds: float) -> None:
        """Note how long all judged texts should take it, as its speed in tokens of whole texts."""
        self.screen_tokens_per_s = float(self._context.lengths.sum()) / seconds

    def conclude(self, ratio_to_baseline: Interval | None, ceiling_share: float | None) -> None:
        """Note what its rounds show: its speed-up, and what part of the machine's ceiling it is."""
        self.ratio_to_baseline, self.ceiling_share = ratio_to_baseline, ceiling_share

    def forget_rounds(self) -> None:
        """Leave the rounds so far, and what was concluded from them, to those who have them."""
        self.runs.clear()
        self.ratio_to_baseline = self.ceiling_share = None
        if self.status in ("dropped", "refused"):
            self.revive()

    def close(self) -> None:
        """End the worker process, if one is running."""
        if self._worker:
            self._worker.close()
            self._worker = None

    # --- what can be measured -------------------------------------------------------------

    def prepare(self) -> None:
        """Export the artifact and load it, with the times of both."""
        base = self._context.engines[self.candidate.engine].base(self.candidate)
        for candidate in filter(None, (base, self.candidate)):
            export = partial(artifacts.export, self._context, candidate)
            export_s = self._once(f"export:{self._context.artifact_name(candidate)}", export)
        if export_s is not None:
            self.export_s = export_s
            start_up = self._once(f"start:{self.label}", self._start)
            self.start_up = from_json(StartUp, start_up) if start_up else None

    def has_timed(self, shape: Shape, visit: int) -> bool:
        """Whether the journal holds this visit already."""
        return self._shape_key(shape, visit) in self._context.journal

    def time_shape(self, shape: Shape, visit: int, expected_s: float = 0.0) -> None:
        """Add one visit's samples for a batch shape, unless they were added before."""
        key = self._shape_key(shape, visit)
        samples_s = self._once(key, lambda: self._ask(TimeShape(*shape), expected_s))
        if samples_s and key not in self._visits:  # it may have been dropped and revived
            self._visits.add(key)
            self.cells.setdefault(shape, []).extend(samples_s)
            self._cost = None

    def attempt(self, message: RunTexts, expected_s: float) -> dict[str, Any]:
        """One timed end-to-end run, or the error that ended the candidate; for :meth:`take`."""
        tokens = int(self._context.lengths[list(message.indices)].sum())
        try:
            run: PipelineRun = self._ask(message, expected_s)
            return {**run.timings, "tokens": tokens}
        except EngineError as error:
            self._fail(error)
            return {"error": error.message}

    def take(self, strategy: Strategy, run: dict[str, Any], number: int, process: int) -> None:
        """Add what :meth:`attempt` gave in a round, now or before an interruption."""
        if "error" in run:
            self.end("failed", run["error"])
            return
        run = {**run, "round": number, "process": process}
        self.runs.setdefault(strategy, []).append(run)

    def outputs(self, message: RunTexts, expected_s: float) -> Outputs:
        """The outputs for some texts; not kept in the journal.

        Raises:
            EngineError: the engine failed.
        """
        run: PipelineRun = self._ask(message, expected_s)
        return run.outputs

    def has_proved(self, what: str) -> bool:
        """Whether the journal holds this comparison already."""
        return f"{what}:{self.label}" in self._context.journal

    def prove(
        self,
        what: str,
        batchings: Sequence[Batching],
        truth: Outputs,
        *,
        tries: int = 1,
        refusal: Callable[[Parity], str | None] = lambda _: None,
    ) -> Parity | None:
        """Compare the answers to some texts with the original's.

        Args:
            what: names the comparison in the journal.
            batchings: the ways to run the texts; a text counts as it fares in the worst of them.
            truth: the original's outputs for all texts.
            tries: among how many candidates the bound must hold; see :class:`Parity`.
            refusal: what one batching alone refuses does not run in the next.

        Returns:
            The comparison, which becomes the candidate's; None where it failed.
        """

        def measure() -> Parity:
            answers: dict[str, Outputs] = {}
            for batching in batchings:
                indices, outputs = self._answers(batching)
                answers[batching.name] = outputs
                self._keep_reading(what, batching.name, indices, truth, outputs)
                parity = self._compare(truth, indices, answers, tries)
                if refusal(parity):
                    break
            return parity if len(batchings) > 1 else replace(parity, batchings=())

        stored = self._once(f"{what}:{self.label}", measure)
        if stored is not None:
            self.parity = from_json(Parity, stored)
        return self.parity if self.in_play else None

    def look(self, key: str, measure: Callable[[], int]) -> int | None:
        """Measure a number once; None where the candidate failed at it."""
        found: int | None = self._once(key, measure)
        return found

    def has_read(self, what: str, batching: str) -> bool:
        """Whether the journal holds this reading already."""
        return self._reading_key(what, batching) in self._context.journal

    def reading(
        self, what: str, batching: Batching, truth: Callable[[], Outputs]
    ) -> Reading | None:
        """How sure it is of some texts, and which of them it flips; None if it fails.

        Args:
            what: as for :meth:`prove`, which keeps this as well.
            batching: how to run the texts, where they have not been run.
            truth: gives the original's outputs for all texts.
        """

        def measure() -> Reading:
            indices, outputs = self._answers(batching)
            return self._read(indices, truth(), outputs)

        stored = self._once(self._reading_key(what, batching.name), measure)
        return from_json(Reading, stored) if stored else None

    def keep_probes(self, message: RunTexts) -> None:
        """Remember the answers to a few texts, by which another machine can check its own."""

        def measure() -> Probes:
            texts = [self._context.texts[index] for index in message.indices]
            return probes.keep(texts, self.outputs(message, 0.0))

        stored = self._once(f"probes:{self.label}", measure)
        self.probes = from_json(Probes, stored) if stored else None

    def _keep_reading(
        self, what: str, batching: str, indices: list[int], truth: Outputs, outputs: Outputs
    ) -> None:
        """Leave in the journal what a cascade must know of outputs that are not kept."""
        if self._context.task.decides and outputs.width == truth.width:
            key = self._reading_key(what, batching)
            self._context.journal.once(key, lambda: self._read(indices, truth, outputs))

    def _read(self, indices: list[int], truth: Outputs, outputs: Outputs) -> Reading:
        context = self._context
        limit = self.candidate.token_limit(context.info.max_length)
        cut = np.flatnonzero(context.all_lengths[indices] > limit).tolist()
        return read(truth.select(indices), outputs, context.task, cut)

    def _reading_key(self, what: str, batching: str) -> str:
        return f"reading:{what}:{self.label}:{batching}"

    def _answers(self, batching: Batching) -> tuple[list[int], Outputs]:
        """The texts of all messages, ascending, and the outputs for them."""
        parts = [self.outputs(message, batching.expected_s) for message in batching.messages]
        indices = np.concatenate([message.indices for message in batching.messages])
        order = np.argsort(indices)
        return indices[order].tolist(), Outputs.concatenate(parts).select(order)

    def _compare(
        self,
        truth: Outputs,
        indices: list[int],
        answers: dict[str, Outputs],
        tries: int,
    ) -> Parity:
        context = self._context
        # Texts of the first look have no labels here, and need none.
        known = context.gold if context.gold and indices[-1] < len(context.gold) else None

        def compare(places: Sequence[int]) -> Parity:
            chosen = [indices[place] for place in places]
            return compare_batchings(
                truth.select(chosen),
                {name: outputs.select(places) for name, outputs in answers.items()},
                task=context.task,
                labels=context.info.labels,
                texts=[context.all_texts[index] for index in chosen],
                gold=known and [known[index] for index in chosen],
                tries=tries,
            )

        parity = compare(range(len(indices)))
        limit = self.candidate.max_tokens
        if limit is None:
            return parity
        uncut = np.flatnonzero(context.all_lengths[indices] <= limit).tolist()
        return replace(parity, uncut=compare(uncut) if uncut else None)

    # --- what follows from it -------------------------------------------------------------

    def inherit(self, other: Trial) -> None:
        """Take over the timed shapes of another candidate that runs the same artifact alike."""
        self.cells = {shape: list(samples_s) for shape, samples_s in other.cells.items()}

    def cost_table(self) -> CostTable | None:
        """The cells measured so far as a table; None before the first."""
        if not self.cells:
            return None
        batch_sizes = tuple(sorted({batch_size for batch_size, _ in self.cells}))
        lengths = tuple(sorted({length for _, length in self.cells}))
        return CostTable(
            batch_sizes,
            lengths,
            tuple(tuple(self._median((b, n)) for n in lengths) for b in batch_sizes),
        )

    def cost_model(self) -> CostModel | None:
        """The cost table as a function of any batch shape."""
        if self._cost is None and (table := self.cost_table()):
            self._cost = CostModel(table, self.candidate.streams)
        return self._cost

    def row(self) -> Row:
        """Everything known, as a record."""
        return Row(
            candidate=self.candidate,
            status=self.status or "finalist",
            reason=self.reason,
            export_s=self.export_s,
            start_up=self.start_up,
            screen_tokens_per_s=self.screen_tokens_per_s,
            cost_table=self.cost_table(),
            parity=self.parity,
            runs=tuple(self.end_to_end(strategy) for strategy in self.runs),
            ratio_to_baseline=self.ratio_to_baseline,
            ceiling_share=self.ceiling_share,
        )

    def end_to_end(self, strategy: Strategy) -> EndToEnd:
        """All rounds with one strategy as a record."""
        rounds = self.runs[strategy]
        first = rounds[0]
        return EndToEnd(
            strategy=strategy,
            texts=first["texts"],
            tokens=first["tokens"],
            padding_share=first["padding_share"],
            predicted_s=first["predicted_s"],
            total=Measurement(tuple(run["total_s"] for run in rounds)),
            tokenize=Measurement(tuple(max(run["tokenize_s"], 1e-9) for run in rounds)),
            batch_latency_s=tuple(s for run in rounds for s in run["batch_latency_s"]),
            rounds=tuple(run["round"] for run in rounds),
            processes=tuple(run["process"] for run in rounds),
        )

    # --- the worker -----------------------------------------------------------------------

    def _shape_key(self, shape: Shape, visit: int) -> str:
        return f"shape:{self.label}:{shape[0]}x{shape[1]}:{visit}"

    def _once(self, key: str, measure: Callable[[], Any]) -> Any:
        if self.status in ("failed", "unavailable"):
            return None
        try:
            return self._context.journal.once(key, measure)
        except EngineError as error:
            self._fail(error)
            return None

    def _fail(self, error: EngineError) -> None:
        self.end("failed", error.message)

    def _start(self) -> StartUp:
        worker = self._context.spawn(self.label)
        self._worker = worker
        start_up: StartUp = worker.call(self.load_message(), self._context.patience_s)
        return start_up

    def load_message(self) -> Load | LoadCascade:
        """What tells a worker to load the candidate; its artifact is there afterwards."""
        if not self.artifact.exists():  # removed since the run that is being resumed
            artifacts.export(self._context, self.candidate)
        subject = self._context.subject(self.candidate)
        return Load(
            self.artifact, self.candidate, subject.tokenizer, subject.info, self._context.all_texts
        )

    def _ask(self, message: Message, expected_s: float = 0.0) -> Any:
        if self._worker is None:
            self._start()
        assert self._worker
        return self._worker.call(message, self._context.patience_s + 10 * expected_s)

    def _median(self, shape: Shape) -> float | None:
        return Measurement(tuple(self.cells[shape])).median_s if shape in self.cells else None
