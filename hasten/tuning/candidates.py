"""Which ways of running the model there are on this machine, and which of them cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hasten.engines.base import Engine
from hasten.errors import ChoiceError
from hasten.records import (
    DEVICES,
    OBJECTIVES,
    PRECISIONS,
    WORTH_TRYING,
    Candidate,
    Hardware,
    Row,
    Settings,
)


def baseline(hardware: Hardware, settings: Settings, engine: str = "torch_eager") -> Candidate:
    """What everything is compared with: fp32 PyTorch on the CPU, all threads on one batch."""
    return Candidate(engine, "fp32", "cpu", _threads(hardware, settings))


def enumerate_rows(
    hardware: Hardware, settings: Settings, engines: Mapping[str, Engine]
) -> tuple[list[Candidate], list[Row]]:
    """All candidates that can run here, the simplest to deploy first; a row for the others."""
    possible: list[Candidate] = []
    unavailable: list[Row] = []
    chosen = [engines[name] for name in settings.engines or engines]
    for engine in sorted(chosen, key=lambda engine: engine.simplicity):
        for candidate in _candidates_of(engine, hardware, settings):
            missing = engine.missing() or engine.missing_to_export()
            if missing:
                unavailable.append(Row(candidate, "unavailable", str(missing)))
            elif reason := engine.supports(candidate, hardware):
                unavailable.append(Row(candidate, "unavailable", reason))
            else:
                possible.append(candidate)
    return possible, unavailable


def check(settings: Settings, engines: Iterable[str]) -> None:
    """Refuse engines, precisions and devices that do not exist.

    Raises:
        ChoiceError: which one, and which there are.
    """
    _check("engine", settings.engines, tuple(engines))
    _check("precision", settings.precisions, PRECISIONS)
    _check("device", (settings.device,), ("auto", *DEVICES))
    _check("objective", (settings.objective,), OBJECTIVES)


def layouts(threads: int, objective: str) -> list[tuple[int, int]]:
    """Ways to share ``threads`` threads out, as (streams, threads of each).

    >>> layouts(2, "throughput"), layouts(16, "throughput"), layouts(16, "latency")
    ([(1, 2), (2, 1)], [(1, 16), (2, 8), (4, 4), (16, 1)], [(1, 16)])
    """
    # Who waits for one answer at a time has nothing for a second stream to do.
    if objective == "latency":
        return [(1, threads)]
    streams = sorted({1, 2, max(threads // 4, 1), threads})
    # Only shares without a rest: every candidate gets the same number of threads.
    return [(count, threads // count) for count in streams if threads % count == 0]


def _threads(hardware: Hardware, settings: Settings) -> int:
    return settings.threads or hardware.usable_cores


def _candidates_of(engine: Engine, hardware: Hardware, settings: Settings) -> list[Candidate]:
    devices = DEVICES if settings.device == "auto" else (settings.device,)
    found = []
    for device in devices:
        # A precision that was asked for by name gets its row, be it only to say why not.
        for precision in settings.precisions or WORTH_TRYING[device]:
            shares = layouts(_threads(hardware, settings), settings.objective)
            for streams, threads in shares if device == "cpu" else [(1, 1)]:
                found.append(Candidate(engine.name, precision, device, threads, streams))
    return found


def _check(what: str, asked: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for name in asked:
        if name not in allowed:
            raise ChoiceError(
                f"there is no {what} {name!r}", fix=f"Choose from: {', '.join(allowed)}."
            )
