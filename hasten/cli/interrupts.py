"""Ctrl-C while a tune runs: once a choice stands, a second one accepts it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hasten.cli.display import Display, err
from hasten.errors import EndedEarly


@contextmanager
def accepting(display: Display) -> Iterator[None]:
    """Within the block, the first Ctrl-C says what a second one does, where a choice stands.

    The second raises :class:`hasten.errors.EndedEarly`, or does nothing where the search has ended
    meanwhile and its result is being saved. Without a choice, the first interrupts.
    """
    asked = False

    def interrupt(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if display.standing is None:
            if not asked:
                raise KeyboardInterrupt
            asked = False
            err.print("\nThe search has ended; its result is being saved.")
            return
        if asked:
            raise EndedEarly
        asked = True
        name = display.standing.plan.candidate.label
        err.print(f"\nPress Ctrl-C again to end the search and save {name}; it goes on until then.")

    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
