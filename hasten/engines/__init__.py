"""Engines, found by the files that are here.

A file whose name starts with an underscore, ``base`` and ``fake`` are not engines of their own;
``fake`` can be asked for by name, in tests.
"""

from __future__ import annotations

import importlib
import pkgutil

from hasten.engines.base import Engine
from hasten.errors import ChoiceError

_NOT_LISTED = {"base", "fake"}


def names() -> tuple[str, ...]:
    """Names of the engines there are, installed or not, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(n for n in found if n not in _NOT_LISTED and not n.startswith("_")))


def get(name: str) -> Engine:
    """The engine of that name. Imports its file, which imports no framework.

    Raises:
        ChoiceError: unknown engine.
    """
    if name != "fake" and name not in names():
        raise ChoiceError(
            f"unknown engine {name!r}",
            fix=f"Engines: {', '.join(names())}. `hasten doctor` shows which can run here.",
        )
    engine = importlib.import_module(f"{__name__}.{name}").ENGINE
    if not isinstance(engine, Engine):
        raise TypeError(f"{name}.ENGINE is {engine!r}, not an Engine")
    return engine


def discover() -> dict[str, Engine]:
    """Every engine by name, whether or not its framework is installed."""
    return {name: get(name) for name in names()}
