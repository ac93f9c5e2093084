"""Texts through the stages of a cascade, timed as the pipeline times one stage.

Stage 1 answers all texts. Those of which it is not sure are planned again, over the cost table of
stage 2, and so on; the last stage answers what reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hasten.records import HandsOn, Plan, Strategy, Text
from hasten.runtime.batching import CostModel
from hasten.runtime.pipeline import Clock, Pipeline, PipelineRun
from hasten.runtime.stages import Passed, handed_on, pass_on
from hasten.tasks import Task


@dataclass(frozen=True, eq=False)
class NextStage:
    """A further stage, and which texts of the stage before reach it."""

    pipeline: Pipeline
    plan: Plan
    takes: HandsOn


class CascadePipeline(Pipeline):
    """Several models that are ready for texts; the first one's tokenizer and streams are its own.

    The stages take turns, each on all the cores that it was given.
    """

    def __init__(
        self,
        first: Pipeline,
        further: Sequence[NextStage],
        *,
        clock: Clock = time.perf_counter,
    ) -> None:
        super().__init__(first.tokenizer, first.streams, clock=clock)
        self._further = [(stage, CostModel.of(stage.plan)) for stage in further]

    def run(
        self,
        texts: Sequence[Text],
        strategy: Strategy,
        cost: CostModel | None = None,
        max_batch_latency_s: float | None = None,
        task: Task | None = None,
    ) -> PipelineRun:
        """Answer all texts, stage 1 by ``strategy``; the others have plans of their own."""
        first = partial(
            super().run,
            strategy=strategy,
            cost=cost,
            max_batch_latency_s=max_batch_latency_s,
            task=task,
        )
        chosen_s = 0.0

        def hand_on(stage: NextStage, run: PipelineRun) -> NDArray[np.int64]:
            nonlocal chosen_s
            begin = self._clock()
            cut = run.encoded.truncated
            unsure = handed_on(self.streams.task, run.outputs, cut, stage.takes)
            chosen_s += self._clock() - begin
            return unsure

        further = [
            (partial(hand_on, stage), partial(_run, stage, cost, task))
            for stage, cost in self._further
        ]
        passed = pass_on(texts, first, further)
        return _joined(passed, chosen_s)

    def close(self) -> None:
        """Release all models and their threads."""
        super().close()
        for stage, _ in self._further:
            stage.pipeline.close()


def _run(
    stage: NextStage, cost: CostModel | None, task: Task | None, texts: Sequence[Text]
) -> PipelineRun:
    return stage.pipeline.run(
        texts,
        stage.plan.strategy,
        cost,
        max_batch_latency_s=stage.plan.max_batch_latency_s,
        task=task,
    )


def _joined(passed: Passed, between_s: float) -> PipelineRun:
    """All runs' times; texts, tokens and padding are those of stage 1, which had all texts."""
    runs = passed.runs
    predicted_s = [run.predicted_s for run in runs if run.predicted_s is not None]
    return replace(
        runs[0],
        outputs=passed.outputs,
        total_s=sum(run.total_s for run in runs) + between_s,
        tokenize_s=sum(run.tokenize_s for run in runs),
        plan_s=sum(run.plan_s for run in runs),
        batch_latency_s=tuple(chain.from_iterable(run.batch_latency_s for run in runs)),
        predicted_s=sum(predicted_s) if len(predicted_s) == len(runs) else None,
    )
