"""The media that a report is written in, found by the files that are here.

A file has ``MEDIA``, one or several :class:`Medium`. A file whose name starts with an underscore,
and ``base``, are none.
"""

from __future__ import annotations

import importlib
import pkgutil

from hasten.report.media.base import Medium

__all__ = ["Medium", "discover"]

_NOT_MEDIA = {"base"}


def discover() -> dict[str, Medium]:
    """Every medium by its name, in alphabetical order."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    files = (name for name in files if name not in _NOT_MEDIA and not name.startswith("_"))
    found = [each for name in files for each in _media(name)]
    return {medium.name: medium for medium in sorted(found, key=lambda medium: medium.name)}


def _media(file: str) -> tuple[Medium, ...]:
    found: tuple[Medium, ...] = importlib.import_module(f"{__name__}.{file}").MEDIA
    return found
