"""A cascade in the contest, and what a bundle keeps of the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hasten.records import Cascade, FurtherStage, Row, Tuning
from hasten.runtime.saving import NewStage
from hasten.tuning.context import Context
from hasten.tuning.trial import Trial
from hasten.tuning.worker import Load, LoadCascade, RunTexts


class CascadeTrial(Trial):
    """A cascade in the contest: its stages, and what its test says."""

    def __init__(
        self,
        context: Context,
        stages: Sequence[Trial],
        cascade: Cascade,
        further: Sequence[FurtherStage],
    ) -> None:
        first, *others = stages
        candidate = replace(first.candidate, then=tuple(each.candidate for each in others))
        super().__init__(candidate, context)
        self.cells = first.cells
        self.cascade = cascade
        self.further = tuple(further)
        self._stages = tuple(stages)
        if cascade.predicted_s:
            self.predict(cascade.predicted_s)

    @property
    def later_s(self) -> float:
        """What the stages after the first are predicted to take for all judged texts."""
        cascade = self.cascade
        return cascade.predicted_s - cascade.alone_s[0] if cascade.predicted_s else 0.0

    def load_message(self) -> LoadCascade:
        """The message that makes a worker load all stages."""
        loads = [stage.load_message() for stage in self._stages]
        return LoadCascade(
            tuple(load for load in loads if isinstance(load, Load)),
            tuple(stage.plan for stage in self.further),
            tuple(stage.takes for stage in self.further),
        )

    def keep_probes(self, message: RunTexts) -> None:
        """Remember what each stage by itself answers to a few texts."""
        for stage in self._stages:
            stage.keep_probes(message)
        self.probes = self._stages[0].probes
        probes = [stage.probes for stage in self._stages[1:]]
        pairs = zip(self.further, probes, strict=True)
        self.further = tuple(replace(stage, probes=kept) for stage, kept in pairs)

    def bound(self, flip_upper_bound: float) -> None:
        """State the share of flips of all texts with the confidence that its test leaves it."""
        assert self.parity
        self.parity = replace(self.parity, flip_upper_bound=flip_upper_bound)

    def row(self) -> Row:
        """Everything known; costs per shape are those of its stages and stand in their rows."""
        return replace(super().row(), cascade=self.cascade, cost_table=None)


def stages_of(tuning: Tuning, context: Context) -> list[NewStage]:
    """What a bundle runs, in order: the chosen candidate, or the stages of a cascade."""
    plans = [tuning.plan, *(stage.plan for stage in tuning.further)]
    probes = [tuning.probes, *(stage.probes for stage in tuning.further)]
    rules = [*(stage.takes for stage in tuning.further), None]
    stages = zip(tuning.plan.candidate.stages, plans, probes, rules, strict=True)
    return [
        NewStage(
            artifact=context.artifact(candidate),
            reference=context.subject(candidate).reference,
            model=context.subject(candidate).info,
            plan=replace(plan, candidate=candidate),
            probes=known,
            hands_on=rule,
        )
        for candidate, plan, known, rule in stages
    ]
