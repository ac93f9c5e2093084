"""Texts through the stages of a cascade, timed as the pipeline times one stage.

Stage 1 answers all texts. Those of which it is not sure are planned again, over the cost table of
stage 2, and so on; the last stage answers what reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.records import HandsOn, Plan, Strategy, Text
from hasten.runtime.batching import CostModel
from hasten.runtime.pipeline import Clock, Pipeline, PipelineRun
from hasten.runtime.stages import handed_on, replaced


@dataclass(frozen=True, eq=False)
class NextStage:
    """A further stage, and which texts of the stage before reach it."""

    pipeline: Pipeline
    plan: Plan
    takes: HandsOn

    @property
    def cost(self) -> CostModel | None:
        """The measured costs that its batches are planned by."""
        table = self.plan.cost_table
        return CostModel(table, self.plan.candidate.streams) if table else None


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
        self._further = [(stage, stage.cost) for stage in further]

    def run(
        self,
        texts: Sequence[Text],
        strategy: Strategy,
        cost: CostModel | None = None,
        max_batch_latency_s: float | None = None,
    ) -> PipelineRun:
        """Answer all texts, stage 1 by ``strategy``; the others have plans of their own."""
        part = whole = super().run(texts, strategy, cost, max_batch_latency_s)
        outputs, left = whole.outputs, np.arange(len(texts))
        for stage, stage_cost in self._further:
            begin = self._clock()
            unsure = handed_on(self.streams.task, part.outputs, stage.takes)
            chosen_s = self._clock() - begin
            if len(unsure) == 0:
                return replace(whole, outputs=outputs, total_s=whole.total_s + chosen_s)
            left = left[unsure]
            part = stage.pipeline.run(
                [texts[index] for index in left.tolist()],
                stage.plan.strategy,
                stage_cost,
                max_batch_latency_s=stage.plan.max_batch_latency_s,
            )
            outputs = replaced(outputs, left, part.outputs)
            whole = _joined(whole, part, chosen_s)
        return replace(whole, outputs=outputs)

    def close(self) -> None:
        """Release all models and their threads."""
        super().close()
        for stage, _ in self._further:
            stage.pipeline.close()


def _joined(before: PipelineRun, after: PipelineRun, between_s: float) -> PipelineRun:
    """Both runs' times; texts, tokens and padding are those of stage 1, which had all texts."""
    predicted_s = None
    if before.predicted_s is not None and after.predicted_s is not None:
        predicted_s = before.predicted_s + after.predicted_s
    return replace(
        before,
        total_s=before.total_s + between_s + after.total_s,
        tokenize_s=before.tokenize_s + after.tokenize_s,
        plan_s=before.plan_s + after.plan_s,
        batch_latency_s=before.batch_latency_s + after.batch_latency_s,
        predicted_s=predicted_s,
    )
