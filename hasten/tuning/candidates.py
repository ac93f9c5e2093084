"""Which ways of running the model there are on this machine, and which of them cannot run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from hasten.engines.base import Engine
from hasten.options.choices import FEWEST_CALIBRATION
from hasten.percent import percent
from hasten.records import (
    DEVICES,
    MODELS,
    PRECISIONS,
    WORTH_TRYING,
    Candidate,
    Hardware,
    Row,
    Settings,
)

CALIBRATION_SHARE = 0.3
"""At most this part of the texts is held apart; ranges found on fewer texts say little."""

_FEWEST_TEXTS = math.ceil(FEWEST_CALIBRATION / CALIBRATION_SHARE)
_TOO_FEW = (
    f"calibration holds {percent(CALIBRATION_SHARE)} of the texts apart and needs "
    f"{FEWEST_CALIBRATION}: give at least {_FEWEST_TEXTS} different texts"
)


_NOT_WANTED = "it needs texts to calibrate with, and --calibration 0 holds none apart"


def tries_int8(settings: Settings) -> bool:
    """Whether int8 is among what is tried on the CPU."""
    if settings.device == "cuda":
        return False
    return "int8" in settings.precisions or (not settings.precisions and settings.integers)


def baseline(hardware: Hardware, settings: Settings, engine: str = "torch_eager") -> Candidate:
    """What everything is compared with: fp32 PyTorch, all threads on one batch.

    On the GPU where nothing else is measured: a speed-up over the CPU would say more about the
    machines than about the ways to run the model. Otherwise on the CPU.
    """
    if settings.device == "cuda":
        return Candidate(engine, "fp32", "cuda", 1)
    return Candidate(engine, "fp32", "cpu", _threads(hardware, settings))


def enumerate_rows(
    hardware: Hardware,
    settings: Settings,
    engines: Mapping[str, Engine],
    calibration: int = 0,
    models: Sequence[str] = MODELS[:1],
    *,
    trained: Collection[str] = (),
) -> tuple[list[Candidate], list[Row]]:
    """All candidates that can run here, and a row for the others.

    The most exact come first, and of those the simplest to deploy: where time runs out, it is
    the other ones that are left out.

    ``calibration`` is how many texts there are to calibrate with. ``models`` says whose candidates
    are wanted, and ``trained`` which of these bring int8 ranges from training; for the others,
    what needs them gets no row.
    """
    possible: list[Candidate] = []
    unavailable: list[Row] = []
    chosen = [engines[name] for name in settings.engines or engines]
    for engine in sorted(chosen, key=lambda engine: engine.simplicity):
        for candidate in (
            replace(each, model=model)
            for model in models
            for each in _candidates_of(engine, hardware, settings, model in trained)
        ):
            missing = engine.missing() or engine.missing_to_export(candidate.recipe)
            if missing:
                unavailable.append(Row(candidate, "unavailable", str(missing)))
            elif reason := engine.supports(candidate, hardware):
                unavailable.append(Row(candidate, "unavailable", reason))
            elif not calibration and engine.calibrates(candidate):
                reason = _TOO_FEW if settings.calibration else _NOT_WANTED
                unavailable.append(Row(candidate, "unavailable", reason))
            else:
                possible.append(candidate)
        unavailable += _not_worth_trying(engine, hardware, settings)
    # A student's fp32 right after the original's: it is there to show what each precision gains.
    possible.sort(key=lambda c: (PRECISIONS.index(c.precision), MODELS.index(c.model)))
    return possible, unavailable


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


def _candidates_of(
    engine: Engine, hardware: Hardware, settings: Settings, trained: bool
) -> list[Candidate]:
    devices = DEVICES if settings.device == "auto" else (settings.device,)
    shares = layouts(_threads(hardware, settings), settings.objective)
    return [
        Candidate(engine.name, precision, device, threads, streams, recipe, spinning=spinning)
        for device in devices
        # A precision that was asked for by name gets its row, be it only to say why not.
        for precision in settings.precisions or _worth_trying(device, settings)
        for recipe in (
            *_recipes(engine, precision, hardware, settings),
            *(engine.trained_recipes if trained and precision == "int8" else ()),
        )
        for streams, threads in (shares if device == "cpu" else [(1, 1)])
        for spinning in (_waiting(engine, settings, threads) if device == "cpu" else (False,))
    ]


def _recipes(
    engine: Engine, precision: str, hardware: Hardware, settings: Settings
) -> Sequence[str]:
    """Those worth trying; where none is, all of them if engine and precision were named."""
    worth_trying = engine.recipes(precision, hardware)
    if worth_trying or not (settings.engines and precision in settings.precisions):
        return worth_trying
    return tuple(engine.not_worth_trying(precision, hardware))


def _not_worth_trying(engine: Engine, hardware: Hardware, settings: Settings) -> Iterator[Row]:
    """Why recipes are not tried, where engine and precision were named and others are."""
    if not settings.engines or settings.device == "cuda":
        return
    for precision in settings.precisions:
        if not engine.recipes(precision, hardware):
            continue
        for recipe, reason in engine.not_worth_trying(precision, hardware).items():
            threads = _threads(hardware, settings)
            candidate = Candidate(engine.name, precision, "cpu", threads, recipe=recipe)
            yield Row(candidate, "unavailable", reason)


def _waiting(engine: Engine, settings: Settings, threads: int) -> tuple[bool, ...]:
    """Whether waiting threads spin: tried only for latency, since a full machine has none."""
    can_gain = settings.objective == "latency" and threads > 1
    return (False, True) if engine.can_spin and can_gain else (False,)


def _worth_trying(device: str, settings: Settings) -> list[str]:
    return [p for p in WORTH_TRYING[device] if p != "int8" or settings.integers]
