"""The machine's fastest matrix product in every precision that is measured."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hasten.errors import EngineError
from hasten.records import Candidate, Ceiling, EndToEnd
from hasten.tuning.context import Context
from hasten.tuning.process import Connection
from hasten.tuning.trial import Trial
from hasten.tuning.worker import MeasureCeiling

log = logging.getLogger(__name__)

Found = Mapping[str, float]
"""FLOP/s by precision and device, as in ``fp32:cpu``."""


class Gauge:
    """Measures the fastest matrix products, in processes of its own, whenever it is asked."""

    def __init__(self, context: Context, baseline: Candidate, trials: Sequence[Trial]) -> None:
        """Prepare for the precisions and devices of ``trials``; no process starts yet."""
        self._context = context
        candidates = [baseline, *(trial.candidate for trial in trials)]
        # No engine multiplies plain matrices of 8-bit integers, so int8 has no ceiling.
        self._probes = {
            f"{c.precision}:{c.device}": replace(baseline, precision=c.precision, device=c.device)
            for c in candidates
            if c.precision != "int8"
        }
        self._workers: dict[str, Connection] = {}

    def measure(self) -> Found:
        """One measurement of each; a product that fails is left out from then on.

        The share of it is then left out of the report; the choice does not need it.
        """
        found: dict[str, float] = {}
        for kind, probe in list(self._probes.items()):
            self._context.budget.tell("ceiling", f"the fastest matrix product in {probe.precision}")
            try:
                flops_per_s = self._ask(kind, probe)
            except EngineError as error:
                log.warning("no ceiling for %s: %s", kind, error)
                flops_per_s = None
            if flops_per_s:
                found[kind] = flops_per_s
            else:
                del self._probes[kind]
        return found

    def close(self) -> None:
        """End the processes."""
        while self._workers:
            self._workers.popitem()[1].close()

    def _ask(self, kind: str, probe: Candidate) -> float | None:
        if kind not in self._workers:
            self._workers[kind] = self._context.spawn(f"ceiling-{kind.replace(':', '-')}")
        answer: float | None = self._workers[kind].call(
            MeasureCeiling(probe), self._context.patience_s
        )
        return answer


def ceilings(found: Mapping[int, Found]) -> tuple[Ceiling, ...]:
    """What was measured on several occasions, as records."""
    samples: dict[str, list[float]] = {}
    for occasion in found.values():
        for kind, flops_per_s in occasion.items():
            samples.setdefault(kind, []).append(flops_per_s)
    records = []
    for kind, values in sorted(samples.items()):
        precision, device = kind.split(":")
        records.append(Ceiling(precision, device, statistics.geometric_mean(values), tuple(values)))
    return tuple(records)


def share(
    found: Mapping[int, Found],
    candidate: Candidate,
    run: EndToEnd,
    occasions: Sequence[int],
    flops: float,
) -> float | None:
    """What part of its ceiling a candidate reaches; None where there is no ceiling, or no work.

    The geometric mean, as in speed-ups, of each round's speed over the ceiling that was measured
    on the same occasion.

    Args:
        found: ceilings by occasion.
        candidate: whose precision and device are looked up.
        run: its rounds, of ``flops`` floating-point operations each.
        occasions: the occasion of each of the run's samples.
        flops: of the texts of one round, padding left out.
    """
    if flops == 0:
        return None  # a module whose products are not known
    kind = f"{candidate.precision}:{candidate.device}"
    shares = [
        flops / sample_s / found[occasion][kind]
        for occasion, sample_s in zip(occasions, run.total.samples_s, strict=True)
        if kind in found.get(occasion, {})
    ]
    return statistics.geometric_mean(shares) if shares else None
