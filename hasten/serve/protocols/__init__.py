"""The protocols that the server speaks: one file each, found by being there."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from hasten.serve.calls import Protocol


def discover() -> tuple[Protocol, ...]:
    """All protocols, by their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [import_module(f"{__name__}.{name}").PROTOCOL for name in names]
    return tuple(found)
