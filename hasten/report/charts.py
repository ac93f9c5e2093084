"""Figures -> Vega-Lite, by way of Altair, for a page and for pictures."""

from __future__ import annotations

import importlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hasten.errors import Unavailable
from hasten.report.document import Axis, Figure, Panel, Point

Spec = dict[str, Any]

# Okabe and Ito, "Color Universal Design" (2008), told apart with every kind of colour blindness.
# Those that white swallows are darkened, and those that black does brightened, to a contrast of
# 3 to 1 (WCAG 2.2, 1.4.11); their black comes last, as a grey. Shapes tell them apart as well.
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#c38700",
    "#499ac8",
    "#a39500",
    "#5f6670",
)
DARK_PALETTE = (
    "#4aa8e0",
    "#f0803c",
    "#2cc295",
    "#dd9cc0",
    "#f0b13c",
    "#8accf2",
    "#f0e442",
    "#b4bac4",
)
# Viridis (Smith and van der Walt, 2015), without the ends that vanish on paper or on black.
ORDERED = (
    "#46337e",
    "#3b528b",
    "#2c728e",
    "#21918c",
    "#25a67b",
    "#4da450",
    "#76a119",
    "#9b9708",
)
DARK_ORDERED = (
    "#8f7bd6",
    "#7a93dc",
    "#55b0d0",
    "#2fb8b0",
    "#37c391",
    "#6fd873",
    "#aadc32",
    "#f3e51e",
)
# One fewer than the colours, so that a colour that comes again has another shape.
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")

_NUMBERS = {"plain": ",~f", "percent": "~%", "powers": "~e"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_PICTURE_WIDTH, _PANEL_WIDTH, _HEIGHT, _PANEL_HEIGHT = 640, 300, 340, 220
_STEP = 28
"""Pixels for a named row."""
_TALL = 24
_CAPTION_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Look:
    """How a chart is coloured: by style sheet on a page, for good in a picture."""

    on_page: bool

    @property
    def text(self) -> str:
        return "currentColor" if self.on_page else "#222222"

    def colour(self, figure: Figure, series: str) -> str:
        """The colour of a series; the page's style sheet knows it in a light and a dark shade."""
        index, palette = figure.series.index(series), PALETTE
        if figure.ordered:  # from one end to the other, however many there are
            palette = ORDERED
            index = index * (len(palette) - 1) // max(len(figure.series) - 1, 1)
        if self.on_page:
            return f"var(--{'step' if figure.ordered else 'series'}-{index % len(palette)})"
        return palette[index % len(palette)]


def shape(figure: Figure, series: str) -> str:
    """The symbol of a series."""
    return SHAPES[figure.series.index(series) % len(SHAPES)]


def for_page(figure: Figure) -> Spec:
    """A panel without its points, as wide as what holds it; the page draws legend and title.

    The parameter ``hidden`` is the list of series that are switched off.

    Raises:
        Unavailable: Altair is not installed.
    """
    alt = library("altair")
    look = Look(on_page=True)
    chart = _layers(figure, look, "points").properties(width="container", height=_height(figure))
    spec: Spec = chart.add_params(alt.param(name="hidden", value=[])).to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return {**spec, "background": None, "config": _config(look)}


def with_points(spec: Spec, figure: Figure, panel: Panel) -> Spec:
    """What :func:`for_page` made, with the points of one of the figure's panels."""
    return {**spec, "datasets": {**spec.get("datasets", {}), "points": _data(figure, panel)}}


def for_picture(figure: Figure) -> Spec:
    """All panels of a figure side by side, with title, caption and legend.

    Raises:
        Unavailable: Altair is not installed.
    """
    alt = library("altair")
    look = Look(on_page=False)
    several = len(figure.panels) > 1
    width = _PANEL_WIDTH if several else _PICTURE_WIDTH
    panels = [
        _layers(figure, look, f"points{number}").properties(
            width=width, height=_height(figure), **({"title": panel.title} if several else {})
        )
        for number, panel in enumerate(figure.panels)
    ]
    caption = textwrap.wrap(figure.caption, _CAPTION_WIDTH)
    title = alt.TitleParams(figure.title, subtitle=caption, anchor="start", offset=12)
    chart = alt.concat(*panels, columns=2) if several else panels[0]
    spec: Spec = chart.properties(title=title).to_dict()
    points = {f"points{number}": _data(figure, panel) for number, panel in enumerate(figure.panels)}
    spec["datasets"] = {**spec.get("datasets", {}), **points}
    return {**spec, "background": "white", "padding": 16, "config": _config(look)}


def library(name: str) -> Any:
    """A module of the extra ``report``.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(
            f"charts need {name}, which is not installed", fix="pip install 'hasten[report]'"
        ) from error


# --- layers -----------------------------------------------------------------------------------


def _layers(figure: Figure, look: Look, data: str) -> Any:
    alt = library("altair")
    base = alt.Chart(alt.NamedData(name=data))
    if look.on_page:
        base = base.transform_filter("indexof(hidden, datum.series) < 0")
    draw = _bar_layers if figure.mark == "bar" else _point_layers
    layers = [*_rules(figure, look), *draw(figure, look, base)]
    return alt.layer(*layers)


def _point_layers(figure: Figure, look: Look, base: Any) -> list[Any]:
    alt = library("altair")
    colour = _colour(figure, look)
    x, y = _position(figure, "x", "x"), _position(figure, "y", "y")
    layers = []
    if figure.mark == "line":
        layers.append(base.mark_line(strokeWidth=1.8).encode(x, y, colour))
    layers += _bounds(figure, base, colour)
    symbols = base.transform_filter("!datum.bare").mark_point(filled=True, size=64, opacity=1)
    shapes = alt.Shape(
        "series:N",
        scale=alt.Scale(domain=figure.present, range=[shape(figure, s) for s in figure.present]),
        legend=_legend(figure, look),
    )
    layers.append(symbols.encode(x, y, colour, shapes, tooltip=_hover(figure)))
    return layers


def _bar_layers(figure: Figure, look: Look, base: Any) -> list[Any]:
    alt = library("altair")
    y = _position(figure, "y", "y")
    bars = base.mark_bar(height={"band": 0.72}).encode(
        _position(figure, "x", "x"), y, _colour(figure, look), tooltip=_hover(figure)
    )
    if not any("x_low" in point for point in figure.points):
        return [bars]
    bounds = base.transform_filter("isValid(datum.x_low)").mark_rule(color=look.text)
    return [bars, bounds.encode(_position(figure, "x", "x_low"), alt.X2("x_high"), y)]


def _bounds(figure: Figure, base: Any, colour: Any) -> list[Any]:
    """The intervals of the points, along either axis."""
    alt = library("altair")
    layers = []
    if any("y_low" in point for point in figure.points):
        rule = base.transform_filter("isValid(datum.y_low)").mark_rule(strokeWidth=1.4)
        place = (_position(figure, "x", "x"), _position(figure, "y", "y_low"), alt.Y2("y_high"))
        layers.append(rule.encode(*place, colour))
    if any("x_low" in point for point in figure.points):
        rule = base.transform_filter("isValid(datum.x_low)").mark_rule(strokeWidth=1.2, opacity=0.4)
        place = (_position(figure, "x", "x_low"), _position(figure, "y", "y"), alt.X2("x_high"))
        layers.append(rule.encode(*place, colour))
    return layers


def _rules(figure: Figure, look: Look) -> list[Any]:
    alt = library("altair")
    layers = []
    for channel, value in (("x", figure.x_rule), ("y", figure.y_rule)):
        if value is not None:
            line = alt.Chart(alt.InlineData(values=[{channel: value}]))
            line = line.mark_rule(strokeDash=[5, 4], color=look.text, opacity=0.6)
            layers.append(line.encode(_position(figure, channel, channel)))
    return layers


# --- channels ---------------------------------------------------------------------------------


def _position(figure: Figure, channel: str, field: str) -> Any:
    """The place along an axis; every layer says the same, so that they share scale and title."""
    alt = library("altair")
    axis: Axis = figure.x if channel == "x" else figure.y
    channel_of = alt.X if channel == "x" else alt.Y
    if axis.kind == "name":
        names = alt.Axis(labelLimit=260, ticks=False)
        return channel_of(f"{field}:N", sort=None, title=None, axis=names)
    options: dict[str, Any] = {"format": _NUMBERS[axis.numbers], "labelOverlap": "greedy"}
    if axis.ticks:
        options["values"] = list(axis.ticks)
    else:
        options["tickCount"] = 6
    if figure.y.kind == "name" and len({point["y"] for point in figure.points}) > _TALL:
        options["orient"] = "top"  # the other end may be a screen away
    scale: dict[str, Any] = {"type": axis.kind}
    if len(figure.panels) > 1 or axis.kind == "log":
        rule = figure.x_rule if channel == "x" else figure.y_rule
        scale |= {"domain": _span(axis, channel, list(figure.points), rule), "nice": False}
    elif figure.mark == "dot":
        scale |= {"padding": 12, "nice": False}  # nothing may lie on the frame
    if axis.kind == "log" and axis.ticks:
        scale["base"] = 2
    return channel_of(
        f"{field}:Q", title=axis.title, scale=alt.Scale(**scale), axis=alt.Axis(**options)
    )


def _span(axis: Axis, channel: str, points: Sequence[Point], rule: float | None) -> list[float]:
    """From the least to the greatest value, bounds and the rule included, with some air."""
    keys = (channel, f"{channel}_low", f"{channel}_high")
    values = [float(point[key]) for point in points for key in keys if key in point]
    values += [] if rule is None else [rule]
    low, high = min(values), max(values)
    if axis.numbers == "powers":
        return [10.0 ** math.floor(math.log10(low)), 10.0 ** (math.floor(math.log10(high)) + 1)]
    if axis.kind == "log":
        air = 1.12
        return [low / air, high * air]
    return [min(low, 0.0), high * 1.06 or 1.0]


def _colour(figure: Figure, look: Look) -> Any:
    alt = library("altair")
    colours = [look.colour(figure, series) for series in figure.present]
    return alt.Color(
        "series:N",
        scale=alt.Scale(domain=figure.present, range=colours),
        legend=_legend(figure, look),
    )


def _legend(figure: Figure, look: Look) -> Any:
    if look.on_page or len(figure.present) < 2 or figure.mark == "bar":
        return None
    return library("altair").Legend(title=figure.legend)


def _hover(figure: Figure) -> list[Any]:
    alt = library("altair")
    return [alt.Tooltip(field=name, type="nominal") for name in figure.words]


def _data(figure: Figure, panel: Panel) -> list[Point]:
    """The points, each with every line of hover text that any of them has."""
    unknown = dict.fromkeys(figure.words, "-")
    return [dict(p) if p.get("bare") else {**unknown, **p} for p in panel.points]


def _height(figure: Figure) -> int:
    if figure.y.kind == "name":
        return _STEP * len({point["y"] for point in figure.points})
    return _PANEL_HEIGHT if len(figure.panels) > 1 else _HEIGHT


def _config(look: Look) -> Mapping[str, Any]:
    faint = {"gridOpacity": 0.14, "domainOpacity": 0.5, "tickOpacity": 0.5}
    names = ("labelColor", "titleColor", "gridColor", "domainColor", "tickColor")
    axis = {**dict.fromkeys(names, look.text), **faint, "titleFontWeight": "normal"}
    sizes: dict[str, Literal[12, 13]] = {"labelFontSize": 12, "titleFontSize": 13}
    words = {"labelColor": look.text, "titleColor": look.text, **sizes}
    heading = {"color": look.text, "subtitleColor": look.text, "fontSize": 15}
    return {
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {**axis, **sizes, "titlePadding": 8},
        "legend": {**words, "labelLimit": 260},
        "title": {**heading, "subtitleFontSize": 12, "subtitlePadding": 6},
        "concat": {"spacing": 24},
    }
