"""What runs inside a worker process: one candidate, measured on request.

A worker answers one message at a time. It imports a framework only when told to export or load,
so that its peak memory and its start-up time are those of a deployment.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hasten import engines, tasks
from hasten.engines.base import Engine, Session
from hasten.errors import EngineError, HastenError
from hasten.inputs.tokenization import TextTokenizer
from hasten.models import ModelFolder, rank_layers
from hasten.records import Candidate, CostTable, HandsOn, ModelInfo, Plan, StartUp, Strategy, Text
from hasten.runtime.batching import CostModel
from hasten.runtime.cascade import CascadePipeline, NextStage
from hasten.runtime.pipeline import Pipeline, PipelineRun, Streams

log = logging.getLogger(__name__)

GetEngine = Callable[[str], Engine]


@dataclass(frozen=True, slots=True)
class Export:
    """Write the candidate's artifact into ``folder``; answers with the seconds it took.

    ``base`` is the artifact that it is made from, where there is one.
    """

    reference: Path
    candidate: Candidate
    folder: Path
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Load an artifact and run it once; answers with a :class:`hasten.records.StartUp`."""

    artifact: Path
    candidate: Candidate
    tokenizer: Path
    info: ModelInfo
    texts: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class LoadCascade:
    """Load the stages of a cascade; answers with a :class:`hasten.records.StartUp`.

    ``plans`` are those of the stages after the first, and ``takes`` which texts reach each of them.
    """

    stages: tuple[Load, ...]
    plans: tuple[Plan, ...]
    takes: tuple[HandsOn, ...]


@dataclass(frozen=True, slots=True)
class TimeShape:
    """Time one batch shape; answers with a tuple of seconds, one per repetition.

    Repeats until ``at_least_s`` have been measured, at most ``repeats`` times. A shape that this
    process has not run before is run once beforehand, untimed: the first call at a shape
    allocates, and with some engines compiles.
    """

    batch_size: int
    length: int
    at_least_s: float = 0.03
    repeats: int = 10


@dataclass(frozen=True, slots=True)
class RunTexts:
    """Run the texts with these indices end to end; answers with a ``PipelineRun``.

    Outputs travel back only on request: they are large, and only the proof needs them. A run
    without outputs is timed: batch shapes that this process has not run before are run once
    beforehand, as for :class:`TimeShape`.
    """

    indices: tuple[int, ...]
    strategy: Strategy
    cost_table: CostTable | None = None
    max_batch_latency_s: float | None = None
    one_by_one: bool = False
    outputs: bool = False


@dataclass(frozen=True, slots=True)
class MeasureCeiling:
    """Measure the fastest matrix product; answers with FLOP/s, or None."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class RankLayers:
    """Find the layers that suffer most from int8; answers with their names, the worst first."""

    reference: Path
    threads: int


Message = Export | Load | LoadCascade | TimeShape | RunTexts | MeasureCeiling | RankLayers


@dataclass
class Worker:
    """Answers messages; the same object serves in a process of its own and, in tests, in ours."""

    get_engine: GetEngine = engines.get
    _pipeline: Pipeline | None = None
    _clock: Callable[[], float] = time.perf_counter
    _texts: tuple[Text, ...] = ()
    _seen_shapes: set[tuple[int, int]] = field(default_factory=set)
    _warm: set[RunTexts] = field(default_factory=set)

    def answer(self, message: Message) -> Any:
        """Carry out one message.

        Raises:
            EngineError: the framework failed.
        """
        match message:
            case Export():
                return self._export(message)
            case Load():
                return self._load((message,))
            case LoadCascade():
                return self._load(message.stages, message)
            case TimeShape():
                return self._time_shape(message)
            case RunTexts():
                return self._run_texts(message)
            case MeasureCeiling():
                engine = self.get_engine(message.candidate.engine)
                return engine.ceiling_flops_per_s(message.candidate)
            case RankLayers():
                return rank_layers(ModelFolder.open(message.reference), message.threads)

    def close(self) -> None:
        """Release the model."""
        if self._pipeline:
            self._pipeline.close()
            self._pipeline = None

    def _export(self, message: Export) -> float:
        engine = self.get_engine(message.candidate.engine)
        begin = engine.clock()
        reference = ModelFolder.open(message.reference)
        message.folder.mkdir(parents=True)
        if message.base:
            engine.derive(message.base, reference, message.candidate, message.folder)
        else:
            engine.export(reference, message.candidate, message.folder)
        return engine.clock() - begin

    def _load(self, stages: tuple[Load, ...], cascade: LoadCascade | None = None) -> StartUp:
        self._clock = self.get_engine(stages[0].candidate.engine).clock
        self._texts = stages[0].texts
        pipelines, load_s = [], 0.0
        for stage in stages:
            begin = self._clock()
            session = self.get_engine(stage.candidate.engine).load(stage.artifact, stage.candidate)
            load_s += self._clock() - begin
            pipelines.append(self._pipeline_of(stage, session))
        self._pipeline = pipelines[0]
        if cascade:
            further = zip(pipelines[1:], cascade.plans, cascade.takes, strict=True)
            self._pipeline = CascadePipeline(
                pipelines[0],
                [NextStage(*stage) for stage in further],
                clock=self._clock,
            )
        first = self._clock()
        for pipeline in pipelines:
            pipeline.streams.time_shape(1, 8)
        return StartUp(
            load_s=load_s,
            first_call_s=self._clock() - first,
            peak_bytes=peak_memory_bytes(),
        )

    def _pipeline_of(self, stage: Load, session: Session) -> Pipeline:
        streams = Streams(session, stage.candidate.streams, stage.info, self._clock)
        max_length = stage.candidate.token_limit(stage.info.max_length)
        tokenizer = TextTokenizer.load(stage.tokenizer, max_length, stage.candidate.threads)
        return Pipeline(tokenizer, streams, clock=self._clock)

    def _time_shape(self, message: TimeShape) -> tuple[float, ...]:
        streams, shape = self._ready().streams, (message.batch_size, message.length)
        self._warm_up([shape])
        samples_s: list[float] = []
        with _no_garbage_collection():
            while len(samples_s) < message.repeats and sum(samples_s) < message.at_least_s:
                samples_s.append(streams.time_shape(*shape))
        return tuple(samples_s)

    def _run_texts(self, message: RunTexts) -> PipelineRun:
        texts = [self._texts[index] for index in message.indices]
        if not message.outputs and message not in self._warm:
            self._warm_up(self._ready().shapes(texts, *self._batching(message)))
            if isinstance(self._pipeline, CascadePipeline):
                self._pass(message, texts)  # only a run tells which shapes the later stages have
            self._warm.add(message)
        with _no_garbage_collection():
            run = self._pass(message, texts)
        return run.without_texts(outputs=message.outputs)

    def _pass(self, message: RunTexts, texts: list[Text]) -> PipelineRun:
        if message.one_by_one:
            return self._ready().run_one_by_one(texts)
        return self._ready().run(texts, *self._batching(message))

    def _batching(self, message: RunTexts) -> tuple[Strategy, CostModel | None, float | None]:
        """Strategy, costs and latency limit, as the methods of ``Pipeline`` take them."""
        table = message.cost_table
        cost = CostModel(table, self._ready().streams.count) if table else None
        return message.strategy, cost, message.max_batch_latency_s

    def _warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Run each shape that this process has not run yet once on every stream."""
        for shape in sorted(set(shapes) - self._seen_shapes):
            self._ready().streams.time_shape(*shape)
            self._seen_shapes.add(shape)

    def _ready(self) -> Pipeline:
        if self._pipeline is None:
            raise EngineError("the worker was asked to measure before it had loaded a model")
        return self._pipeline


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: what it reports as a child's peak includes the parent's size at the fork.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _no_garbage_collection:  # noqa: N801 - reads as the statement that it is
    """Keeps a collection from falling into one sample and not into its neighbour."""

    def __enter__(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *exception: object) -> None:
        if self._was_enabled:
            gc.enable()


def serve(requests: BinaryIO, replies: BinaryIO, worker: Worker) -> None:
    """Answer pickled messages until ``requests`` ends.

    A reply is ``(True, answer)`` or ``(False, error)``. Errors that are not ours are wrapped:
    a foreign exception may not unpickle in a process without its framework.
    """
    while True:
        try:
            message = pickle.load(requests)  # noqa: S301 - from our own parent process
        except EOFError:
            return
        try:
            reply = (True, worker.answer(message))
        except HastenError as error:
            log.warning("%s", error, exc_info=True)
            reply = (False, error)
        except Exception as error:
            log.exception("unexpected failure at %s", type(message).__name__)
            wrapped = EngineError(f"{type(error).__name__}: {_first_line(error)}")
            reply = (False, wrapped)
        pickle.dump(reply, replies)
        replies.flush()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def main(engine_path: list[str], task_path: list[str]) -> None:
    """Entry point of a worker process; see :mod:`hasten.tuning.process` for the other end."""
    # Ctrl-C reaches the whole process group; the parent decides what becomes of a worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    engines.__path__[:] = engine_path
    tasks.__path__[:] = task_path
    # Replies get standard output to themselves: whatever a framework prints goes to the log.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker()
    serve(sys.stdin.buffer, replies, worker)
    worker.close()
