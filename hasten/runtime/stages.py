"""The loaded stages of a bundle: each text is answered by the first stage that is sure of it.

Stage 1 runs over all texts. Those whose score lies below its threshold are planned again, over the
cost table of stage 2, and so on; the last stage answers whatever reaches it. A bundle of one stage
is the case without a threshold. The stages take turns, each on all the cores that it was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hasten import engines
from hasten.errors import Unavailable
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import HandsOn, Text
from hasten.runtime import bundle as bundles
from hasten.runtime import probes
from hasten.runtime.batching import Batches, CostModel, plan
from hasten.runtime.pipeline import Pipeline, PipelineRun, Streams
from hasten.tasks import Outputs, Task


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """The outputs of n texts; ``stages`` says which stage answered each: int64 [n], from 0.

    ``encoded`` are their tokens as stage 1 reads them. A task whose answers point into the text has
    stages that all read alike.
    ``counts`` are how many each stage answered.
    """

    outputs: Outputs
    encoded: Tokens
    stages: NDArray[np.int64]
    counts: tuple[int, ...]


def handed_on(
    task: Task, outputs: Outputs, cut: NDArray[np.bool_], rule: HandsOn | None
) -> NDArray[np.int64]:
    """Which texts a stage hands on, in their order: int64, indices into ``outputs``.

    A text whose score is NaN is handed on: nothing is known of how sure the stage is.

    Args:
        task: how outputs are read.
        outputs: the stage's, of n texts.
        cut: bool [n], whether the stage did not read the text's end.
        rule: which texts go on; None in the last stage.
    """
    if rule is None or not len(outputs):
        return np.empty(0, np.int64)
    below_cut = rule.below if rule.below_cut is None else rule.below_cut
    sure: NDArray[np.bool_] = task.sureness(outputs) >= np.where(cut, below_cut, rule.below)
    return np.flatnonzero(~sure)


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """Texts that went from stage to stage: their outputs, which stage answered, and each run.

    ``stages`` is int64 [n], from 0. ``runs`` ends where no text was handed on.
    """

    outputs: Outputs
    stages: NDArray[np.int64]
    runs: tuple[PipelineRun, ...]


Run = Callable[[Sequence[Text]], PipelineRun]
HandOn = Callable[[PipelineRun], NDArray[np.int64]]


def pass_on(texts: Sequence[Text], first: Run, further: Sequence[tuple[HandOn, Run]]) -> Passed:
    """Run all texts through the first stage, and what each hands on through the next.

    Args:
        texts: at least one.
        first: runs stage 1.
        further: for each later stage, which texts the one before hands on, and what runs them.
    """
    runs = [first(texts)]
    outputs = runs[0].outputs
    stages, left = np.zeros(len(texts), np.int64), np.arange(len(texts))
    for hand_on, run in further:
        unsure = hand_on(runs[-1])
        if not len(unsure):
            break
        left = left[unsure]
        runs.append(run([texts[index] for index in left.tolist()]))
        outputs = _replaced(outputs, left, runs[-1].outputs)
        stages[left] += 1
    return Passed(outputs, stages, tuple(runs))


def _replaced(outputs: Outputs, places: NDArray[np.int64], later: Outputs) -> Outputs:
    """``outputs`` with those of ``later`` at ``places``, in that order."""
    order = np.arange(len(outputs))
    order[places] = len(outputs) + np.arange(len(later))
    return Outputs.concatenate([outputs, later]).select(order)


class LoadedStage:
    """One stage, ready for texts."""

    def __init__(self, stage: bundles.Stage, streams: Streams) -> None:
        self.stage = stage
        self.streams = streams
        self.task = streams.task
        self.cost = CostModel.of(stage.plan)
        self._pipelines: dict[int, Pipeline] = {}

    def tokenizer(self, max_length: int | None = None) -> TextTokenizer:
        """A tokenizer of its own for the thread that asks, which cuts texts as the stage does."""
        longest = self.stage.max_length
        length = longest if max_length is None else min(max_length, longest)
        return TextTokenizer.load(self.stage.tokenizer, length, self.stage.plan.candidate.threads)

    def pipeline(self, max_length: int | None = None) -> Pipeline:
        """What runs texts, cut at ``max_length`` tokens where the stage does not cut earlier."""
        length = min(max_length or self.stage.max_length, self.stage.max_length)
        if length not in self._pipelines:
            # Callers use one length or two: the stage's own, which stays, and the last other.
            self._pipelines = {
                kept: pipeline
                for kept, pipeline in self._pipelines.items()
                if kept == self.stage.max_length
            }
            self._pipelines[length] = Pipeline(self.tokenizer(length), self.streams)
        return self._pipelines[length]

    def plan(self, windows: Tokens) -> Batches:
        """Windows of texts in batches, by the plan that was measured."""
        chosen = self.stage.plan
        limit_s = chosen.max_batch_latency_s
        return plan(windows.columns, chosen.strategy, self.cost, max_batch_latency_s=limit_s)

    def encode(
        self, texts: Sequence[Text], max_length: int | None = None, task: Task | None = None
    ) -> Tokens:
        """Tokens of ``texts``, as :meth:`run` makes them."""
        return (task or self.task).encode(self.pipeline(max_length).tokenizer, texts)

    def run(
        self, texts: Sequence[Text], max_length: int | None = None, task: Task | None = None
    ) -> PipelineRun:
        """The stage's outputs for ``texts``, of which there must be at least one.

        ``task`` is the model's own with other settings, where the caller changed any.
        """
        chosen = self.stage.plan
        limit_s = chosen.max_batch_latency_s
        pipeline = self.pipeline(max_length)
        return pipeline.run(
            texts, chosen.strategy, self.cost, max_batch_latency_s=limit_s, task=task
        )

    def hands_on(self, outputs: Outputs, cut: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Which texts go on to the next stage; see :func:`handed_on`."""
        return handed_on(self.task, outputs, cut, self.stage.hands_on)

    def unsure_of(self, run: PipelineRun) -> NDArray[np.int64]:
        """Which texts of a run go on to the next stage."""
        return self.hands_on(run.outputs, run.encoded.truncated)


class Stages:
    """All stages of a bundle, loaded and checked.

    Not to be called from several threads at once.

    Raises:
        Unavailable: the engine of one of them is not installed.
        EngineError: an engine cannot load its artifact.
        BundleError: this machine does not compute what a stage was proved to compute.
    """

    def __init__(self, bundle: bundles.Bundle) -> None:
        for stage in bundle.stages:
            missing = engines.get(stage.plan.candidate.engine).missing()
            if missing:
                raise _with_stage(missing, bundle, stage)
        self._close = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            sessions: dict[str, Streams] = {}
            self.loaded = tuple(self._load(stage, sessions) for stage in bundle.stages)
            self._check(bundle)
            undo.pop_all()

    def _load(self, stage: bundles.Stage, sessions: dict[str, Streams]) -> LoadedStage:
        candidate = stage.plan.candidate
        # Stages that differ in the plan alone, or in how many tokens they read, share a session.
        # Threads are among the options.
        alike = replace(candidate.untruncated, intra_op_num_threads=1)
        key = json.dumps([str(stage.folder), alike.label, alike.spared, dict(stage.session)])
        if key not in sessions:
            engine = engines.get(candidate.engine)
            session = engine.load(stage.folder, candidate, stage.session)
            sessions[key] = Streams(session, candidate.streams, stage.model)
            self._close.callback(sessions[key].close)
        return LoadedStage(stage, sessions[key])

    def _check(self, bundle: bundles.Bundle) -> None:
        """Once on every machine, see that it computes what was proved; see `probes`."""
        versions: dict[str, str] = {}
        for stage in bundle.stages:
            versions |= engines.get(stage.plan.candidate.engine).versions()
        memory = probes.Memory(bundle.digest, bundle.here, versions)
        if not any(stage.probes for stage in bundle.stages) or memory.holds:
            return
        for one in self.loaded:
            known, precision = one.stage.probes, one.stage.plan.candidate.precision
            if known:
                model = one.stage.model
                probes.check(known, one.pipeline(), model, precision, where=bundle.folder)
        memory.keep()

    @property
    def first(self) -> LoadedStage:
        """The stage to which all texts go."""
        return self.loaded[0]

    def run(
        self, texts: Sequence[Text], max_length: int | None = None, task: Task | None = None
    ) -> Answered:
        """Answer ``texts``, of which there must be at least one.

        Args:
            texts: in any order.
            max_length: the most tokens of a text, where a stage does not read fewer anyway.
            task: the model's own with other settings, where the caller changed any.

        Raises:
            InputError: a text cannot be encoded.
            EngineError: an engine failed.
        """
        runs = [partial(stage.run, max_length=max_length, task=task) for stage in self.loaded]
        hand_on = [stage.unsure_of for stage in self.loaded[:-1]]
        passed = pass_on(texts, runs[0], list(zip(hand_on, runs[1:], strict=True)))
        counts = np.bincount(passed.stages, minlength=len(self.loaded))
        encoded = passed.runs[0].encoded
        return Answered(passed.outputs, encoded, passed.stages, tuple(counts.tolist()))

    def close(self) -> None:
        """Release all models and their threads. It may be called more than once."""
        self._close.close()


def _with_stage(missing: Unavailable, bundle: bundles.Bundle, stage: bundles.Stage) -> Unavailable:
    """Say which stage needs the missing engine, where there are several."""
    if len(bundle.stages) == 1:
        return missing
    number = bundle.stages.index(stage) + 1
    message = f"stage {number} of {bundle.folder} cannot run here: {missing.message}"
    return Unavailable(message, fix=missing.fix)
