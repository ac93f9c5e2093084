"""What the thresholds of a cascade were tested on, and what they promise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """What a candidate answered to some texts under one batching, as far as cascades need it.

    ``sureness`` is the task's, at least 0; -1 where an output is NaN or infinite. ``flips`` are the
    places of the texts whose answer is not the original's, ascending. ``moved`` is how far any
    output of each text is from the original's, at most; empty where it was not kept. ``cut`` are
    the places of the texts whose end it did not read, ascending.
    """

    sureness: tuple[float, ...]
    flips: tuple[int, ...]
    moved: tuple[float, ...] = ()
    cut: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One choice of thresholds on the way down, and what the evaluation texts say about it.

    Every stage but the last has a threshold; a text of which the stage is less sure goes to the
    next. ``deferred`` holds, for each of these stages, the share of all texts that go further than
    it. ``flips`` counts the texts whose final answer is not the original's, under the worst of the
    tested batchings, and ``p_value`` is the probability of so few of them if the true share were
    the largest that is allowed.
    """

    thresholds: tuple[float, ...]
    deferred: tuple[float, ...]
    flips: int
    p_value: float


@dataclass(frozen=True, slots=True)
class CascadeProof:
    """The test of a cascade's thresholds; see :mod:`hasten.judging.cascade`.

    ``steps`` is the whole path, fixed before the evaluation texts were looked at, and the first
    ``passed`` steps passed in a row. ``compared`` counts the different evaluation texts. The
    promise may be broken with a probability of ``delta``, this cascade's share of the 5 % that all
    ``tries`` tested ones have together. ``flip_upper_bound`` is the exact (Clopper-Pearson) bound
    at the chosen thresholds, with the confidence that this leaves; it is 1 where none passed.
    """

    steps: tuple[Step, ...]
    passed: int
    compared: int
    max_flips: float
    tries: int = 1
    delta: float = 0.05
    flip_upper_bound: float = 1.0

    @property
    def chosen(self) -> Step | None:
        """The last step that passed; None where not even the first did."""
        return self.steps[self.passed - 1] if self.passed else None


@dataclass(frozen=True, slots=True)
class Cascade:
    """How the stages of a cascade share the evaluation texts out.

    ``predicted_s`` is what the stages' cost tables predict for all of them, at the thresholds that
    were chosen; None where none were. ``alone_s`` is what each stage would take for all of them,
    and ``texts`` how many there are, copies included. ``examples`` are some of the texts that the
    first stage defers, those first of which it is least sure.
    """

    proof: CascadeProof
    predicted_s: float | None = None
    alone_s: tuple[float, ...] = ()
    texts: int = 0
    examples: tuple[str, ...] = ()

    def speed(self, step: Step) -> float:
        """Texts per second with the thresholds of a step, if deferred texts are like the others."""
        first_s, *later_s = self.alone_s
        shares = zip(step.deferred, later_s, strict=True)
        return self.texts / (first_s + sum(share * time_s for share, time_s in shares))
