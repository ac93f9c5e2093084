"""Connections that are closed where the client is too slow, and a server that ends in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_S = 8.0
"""How often connections are checked: a slow one is closed at the second check, at the latest."""

_FEWEST_BYTES = 8 * 1024
"""How much of an unfinished request must arrive between two checks."""


class Connection(HttpToolsProtocol):
    """A connection that is closed where the client sends or reads too slowly.

    A connection on which no request has begun, or on which less than 8 KiB of one came in 8 s,
    ties up memory and a socket; so does a client that does not read its response. A connection
    that waits for its answer, or for its next request, stays open.
    """

    _timer: asyncio.TimerHandle | None = None
    _received = 0
    _receiving = True
    _stuck = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(PATIENCE_S, self.check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # where a request begins, it counts from 0 again
        self._received += len(data)

    def on_message_begin(self) -> None:
        self._receiving, self._received = True, 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._receiving = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = False

    def check(self) -> None:
        """Close the connection if too little has happened since the last check."""
        writing = self.transport.get_write_buffer_size()
        paused = self.flow.write_paused
        slow = self._receiving and self._received < _FEWEST_BYTES
        if slow or (paused and self._stuck and writing):
            self.transport.abort()
            return
        self._received, self._stuck = 0, paused
        self._timer = self.loop.call_later(PATIENCE_S, self.check)


class Server(uvicorn.Server):
    """uvicorn that answers what it has taken before it ends.

    At the first SIGTERM or SIGINT, ``drain`` runs while connections are still accepted, so that
    new requests are refused with 503 and not by a closed port; then the server ends with status
    0. The second signal ends it at once. SIGHUP runs ``reload``.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Callable[[], Coroutine[Any, Any, None]],
        reload: Callable[[], Coroutine[Any, Any, None]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(config)
        self._clock = clock
        self._drain = drain
        self._reload = reload
        self._ending = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            self._loop.add_signal_handler(signal.SIGHUP, self._start, self._reload)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._ending or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._ending = True
        self._loop.call_soon_threadsafe(self._start, self._end)

    def end(self) -> None:
        """End in order, as at the first signal."""
        if not self._ending:
            self.handle_exit(signal.SIGTERM, None)

    async def _end(self) -> None:
        begin_s = self._clock()
        await self._drain()
        # Connections that are left have the rest of the same time, not as much again.
        patience_s = self.config.timeout_graceful_shutdown or 0
        left_s = patience_s - (self._clock() - begin_s)
        self.config.timeout_graceful_shutdown = max(1, round(left_s))
        self.should_exit = True

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        job = asyncio.get_running_loop().create_task(work())
        self._jobs.add(job)  # the loop itself holds tasks weakly
        job.add_done_callback(self._jobs.discard)
