"""The machine's fastest matrix product in every precision that was measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from hasten.errors import EngineError
from hasten.records import Candidate, Ceiling
from hasten.tuning.context import Context
from hasten.tuning.entrant import Entrant
from hasten.tuning.worker import MeasureCeiling

log = logging.getLogger(__name__)


def measure(
    context: Context, baseline: Candidate, entrants: Sequence[Entrant]
) -> tuple[Ceiling, ...]:
    """The machine's fastest matrix product in every precision that was measured."""
    kinds = {(e.candidate.precision, e.candidate.device) for e in entrants if e.runs}
    # Nothing here multiplies plain matrices of 8-bit integers: a process to be told so is saved.
    kinds = {kind for kind in kinds if kind[0] != "int8"}
    found = []
    for precision, device in sorted(kinds):
        probe = replace(baseline, precision=precision, device=device)
        context.tell("ceiling", f"the fastest matrix product in {precision}")
        ask = partial(_ask, context, probe)
        try:
            flops_per_s = context.journal.once(f"ceiling:{precision}:{device}", ask)
        except EngineError as error:
            # The share of it is then left out of the report; the choice does not need it.
            log.warning("no ceiling for %s on %s: %s", precision, device, error)
            continue
        if flops_per_s:
            found.append(Ceiling(precision, device, flops_per_s))
    return tuple(found)


def share(ceilings: Sequence[Ceiling], candidate: Candidate, flops_per_s: float) -> float | None:
    """What part of the candidate's ceiling it reaches; None where there is no ceiling."""
    kind = (candidate.precision, candidate.device)
    found = (c.flops_per_s for c in ceilings if (c.precision, c.device) == kind)
    ceiling = next(found, None)
    return flops_per_s / ceiling if ceiling else None


def _ask(context: Context, probe: Candidate) -> float | None:
    worker = context.spawn(f"ceiling-{probe.precision}-{probe.device}")
    try:
        flops_per_s: float | None = worker.call(MeasureCeiling(probe), context.patience_s)
    finally:
        worker.close()
    return flops_per_s
