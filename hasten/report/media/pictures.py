"""Figures as PNG and SVG files, drawn without a browser."""

from __future__ import annotations

from functools import partial
from typing import Literal

from hasten.report import charts
from hasten.report.document import Figure
from hasten.report.media.base import Medium

Kind = Literal["png", "svg"]

_SCALE = 2.0
"""Pixels to a point: sharp on the screens of today, and in print at half a page's width."""


def draw(figure: Figure, kind: Kind) -> bytes:
    """A figure with its title, caption and legend.

    Raises:
        Unavailable: the extra ``report`` is not installed.
    """
    altair, converter = charts.library("altair"), charts.library("vl_convert")
    version = "_".join(altair.SCHEMA_VERSION.split(".")[:2])
    spec = charts.for_picture(figure)
    if kind == "svg":
        drawn: str = converter.vegalite_to_svg(spec, vl_version=version)
        return drawn.encode()
    pixels: bytes = converter.vegalite_to_png(spec, vl_version=version, scale=_SCALE)
    return pixels


MEDIA = (
    Medium("png", draw=partial(draw, kind="png")),
    Medium("svg", draw=partial(draw, kind="svg")),
)
