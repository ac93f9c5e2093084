"""In a Jupyter notebook: one progress bar, and results that show themselves as the report does.

Nothing here imports IPython: where it is not loaded already, there is no notebook.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hasten.records import Bench, Event, Progress, Tuning
from hasten.report import compose, screen
from hasten.report.media import page

Report = Callable[[Event], None]

_HEIGHT_PX = 560
_EVERY_S = 0.3


@contextmanager
def progress(on_event: Report | None, otherwise: Report) -> Iterator[Report]:
    """What to report events to: ``on_event``, or a bar in a notebook, or else ``otherwise``.

    The bar is removed at the end of the block. In a notebook, results show themselves from then on.
    """
    shell = _shell()
    if shell is not None:
        _register(shell)
    if on_event is not None or not hasattr(shell, "kernel"):
        yield on_event or otherwise
        return
    bar = Bar(_display())
    try:
        yield bar
    finally:
        bar.close()


class Bar:
    """One bar, redrawn in place. ``display`` is ``IPython.display`` or what stands in for it."""

    def __init__(self, display: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._display, self._clock = display, clock
        self._handle: Any = None
        self._drawn_s = 0.0

    def __call__(self, event: Event) -> None:
        """Show progress; other events are for a terminal, and the result has what they say."""
        if not isinstance(event, Progress):
            return
        if self._handle is not None and self._clock() - self._drawn_s < _EVERY_S:
            return
        shown = self._display.HTML(bar(event))
        if self._handle is None:
            self._handle = self._display.display(shown, display_id=True)
        else:
            self._handle.update(shown)
        self._drawn_s = self._clock()

    def close(self) -> None:
        """Remove the bar."""
        if self._handle is not None:
            self._handle.update(self._display.HTML(""))


def bar(event: Progress) -> str:
    """One event as HTML."""
    left = ""
    if event.left_s is not None:
        minutes, seconds = divmod(round(event.left_s), 60)
        left = f", {minutes}:{seconds:02d} left"
    value = "" if event.left_s is None else f' value="{event.done:.3f}"'
    label = html.escape(f"{event.stage}: {event.message}{left}")
    return f'<progress max="1"{value} style="width: 12rem"></progress> <span>{label}</span>'


def result_html(result: Tuning | Bench) -> str:
    """The report's page without its charts, in a frame that keeps its style to itself."""
    document = page.render(compose.of(result, drawn=False))
    return (
        f'<iframe srcdoc="{html.escape(document)}" sandbox="" title="hasten report" '
        f'style="width: 100%; height: {_HEIGHT_PX}px; border: 0"></iframe>'
    )


def result_text(result: Tuning | Bench) -> str:
    """The answer alone, for where no HTML is shown."""
    return " ".join(screen.of(result).headline)


def _register(shell: Any) -> None:
    """Let the shell show results so; repeating it changes nothing."""

    def plain(result: Tuning | Bench, printer: Any, cycle: bool) -> None:  # noqa: ARG001
        printer.text(result_text(result))

    formatters = shell.display_formatter.formatters
    for kind in (Tuning, Bench):
        formatters["text/html"].for_type(kind, result_html)
        formatters["text/plain"].for_type(kind, plain)


def _shell() -> Any:
    """The running IPython shell; None where there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _display() -> Any:
    return sys.modules["IPython.display"]
