"""What this machine is and which engines can run on it, for ``hasten doctor``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hasten.engines.base import Engine
from hasten.plain import to_json
from hasten.records import DEVICES, WORTH_TRYING, Candidate, Hardware


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an engine cannot do something here, and the command that fixes it, if any.

    ``run`` obstacles concern ``precisions`` on ``device``, or everything where ``device`` is None;
    ``export`` obstacles leave artifacts that were made elsewhere usable.
    """

    step: Literal["run", "export"]
    device: str | None
    precisions: tuple[str, ...]
    reason: str
    fix: str | None

    @property
    def scope(self) -> str:
        """What it concerns, as shown to people.

        >>> Obstacle("run", "cpu", ("bf16", "fp16"), "no such instructions", None).scope
        'bf16, fp16 on cpu'
        """
        if self.step == "export":
            return "export"
        return f"{', '.join(self.precisions)} on {self.device}" if self.device else "all"


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """One engine: ``version`` is None where it is not installed; ``runs`` is by device."""

    name: str
    title: str
    version: str | None
    runs: Mapping[str, tuple[str, ...]]
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The machine and every engine, the simplest to deploy first."""

    hardware: Hardware
    engines: tuple[EngineCheck, ...]


def diagnose(hardware: Hardware, engines: Mapping[str, Engine]) -> Diagnosis:
    """Ask every engine what it can run on ``hardware``; nothing is imported for it.

    Args:
        hardware: the machine. GPUs are asked about only where it has any.
        engines: engines by name, installed or not.
    """
    ordered = sorted(engines.values(), key=lambda engine: (engine.simplicity, engine.name))
    return Diagnosis(hardware, tuple(_check(engine, hardware) for engine in ordered))


def to_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain JSON values."""
    plain: dict[str, Any] = to_json(diagnosis)
    return plain


def render(diagnosis: Diagnosis) -> RenderableType:
    """The machine, a table of engines, and why the others cannot run."""
    here = diagnosis.hardware
    table = Table(box=None, header_style="bold")
    for name in ("engine", "installed", *_devices(here)):
        table.add_column(name, overflow="fold")
    for engine in diagnosis.engines:
        cells = [" ".join(engine.runs.get(device, ())) or "-" for device in _devices(here)]
        style = None if any(engine.runs.values()) else "dim"
        version = "no" if engine.version is None else engine.version
        table.add_row(*map(Text, (engine.title, version, *cells)), style=style)
    parts: list[RenderableType] = [*map(Text, _machine(here)), "", table]
    affected: dict[Obstacle, list[str]] = defaultdict(list)
    for engine in diagnosis.engines:
        for obstacle in engine.obstacles:
            affected[obstacle].append(engine.title)
    if affected:
        parts += ["", Text("What cannot run here", style="italic")]
    for obstacle, titles in affected.items():
        scope = "" if obstacle.scope == "all" else f" ({obstacle.scope})"
        line = f"{', '.join(titles)}{scope}: {obstacle.reason}"
        parts.append(Padding(Text(line), (0, 0, 0, 2)))
        if obstacle.fix:
            parts.append(Padding(Text(obstacle.fix, style="bold"), (0, 0, 0, 4)))
    return Group(*parts)


def _check(engine: Engine, hardware: Hardware) -> EngineCheck:
    missing = engine.missing()
    if missing:
        obstacle = Obstacle("run", None, (), missing.message, missing.fix)
        return EngineCheck(engine.name, engine.title, None, {}, (obstacle,))
    runs: dict[str, tuple[str, ...]] = {}
    obstacles: list[Obstacle] = []
    for device in _devices(hardware):
        tried = WORTH_TRYING[device]
        reasons = {p: _reason(engine, p, device, hardware) for p in tried}
        runs[device] = tuple(p for p, reason in reasons.items() if reason is None)
        # Precisions that fail for one reason share its line; dict keeps the order, once each.
        for reason in dict.fromkeys(reasons.values()):
            if reason is not None:
                affected = tuple(p for p in tried if reasons[p] == reason)
                obstacles.append(Obstacle("run", device, affected, reason, None))
    obstacles += _export_obstacles(engine, hardware)
    return EngineCheck(engine.name, engine.title, _version(engine), runs, tuple(obstacles))


def _reason(engine: Engine, precision: str, device: str, hardware: Hardware) -> str | None:
    """Why no way to reach the precision runs here; None if one does."""
    threads = hardware.usable_cores if device == "cpu" else 1
    reasons = [
        engine.supports(Candidate(engine.name, precision, device, threads, recipe=name), hardware)
        for name in _recipes(engine, precision, hardware)
    ]
    return None if None in reasons else reasons[0]


def _export_obstacles(engine: Engine, hardware: Hardware) -> list[Obstacle]:
    if missing := engine.missing_to_export():
        return [Obstacle("export", None, (), missing.message, missing.fix)]
    recipes = _recipes(engine, "int8", hardware)
    reasons = {(m.message, m.fix) for name in recipes if (m := engine.missing_to_export(name))}
    return [Obstacle("export", "cpu", ("int8",), *reason) for reason in sorted(reasons)]


def _recipes(engine: Engine, precision: str, hardware: Hardware) -> Sequence[str]:
    """What is tried; where that is nothing, what can be asked for by name."""
    worth_trying = engine.recipes(precision, hardware)
    return worth_trying or tuple(engine.not_worth_trying(precision, hardware))


def _version(engine: Engine) -> str:
    return ", ".join(f"{name} {version}" for name, version in engine.versions().items())


def _devices(hardware: Hardware) -> tuple[str, ...]:
    return DEVICES if hardware.gpus else ("cpu",)


def _machine(here: Hardware) -> tuple[str, ...]:
    cores = f"{here.usable_cores} usable core{'' if here.usable_cores == 1 else 's'}"
    gpus = [f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in here.gpus]
    return (
        f"CPU     {here.cpu_model}, {cores}",
        f"        {' '.join(here.instruction_sets) or 'no vector instructions known'}",
        f"Memory  {here.memory_bytes / 2**30:.0f} GiB",
        f"GPU     {'; '.join(gpus) or 'none found (asked nvidia-smi)'}",
    )
