"""What is done with every request: an id, a line in the log, and an end where the client leaves.

Lines hold ids, durations and counts; never a text, a key, or a path that a client made up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Awaitable, Iterator
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hasten.serve.service import Answered

log = logging.getLogger("hasten.serve.request")

HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KEY = "hasten.record"
_WATCH_S = 0.02


class Record(dict[str, Any]):
    """What the log says of one request."""

    @classmethod
    def of(cls, given_id: str, method: str) -> Record:
        """That of a new request, with the id that it brings, or one of its own."""
        name = given_id if _ID.fullmatch(given_id) else os.urandom(8).hex()
        return cls(request_id=name, method=method, status=500)

    def add(self, answered: Answered) -> None:
        """How many texts were answered, and where the time went."""
        self.update(
            texts=len(answered.outputs),
            tokens=answered.tokens,
            tokenize_ms=_ms(answered.tokenize_s),
            queue_ms=_ms(answered.queue_s),
            inference_ms=_ms(answered.inference_s),
        )


def record_of(scope: Scope) -> Record:
    """The record of a request; a new one that is not logged where :class:`Recorded` is missing."""
    record: Record = scope.get(_KEY) or Record()
    return record


class Recorded:
    """Middleware that gives each request an id (or keeps its own), and logs it when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record.of(Headers(scope=scope).get(HEADER, ""), scope["method"])
        scope[_KEY] = record
        name = record["request_id"].encode()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                message["headers"] = [*message["headers"], (HEADER.encode(), name)]
            await send(message)

        with logged(record):
            await self._app(scope, receive, sending)


@contextlib.contextmanager
def logged(record: Record) -> Iterator[None]:
    """Log a request when it ends, however it ends."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        record["duration_ms"] = _ms(time.perf_counter() - begin)
        # Probes and pages, which have no model, would drown the requests.
        level = logging.INFO if "model" in record or "error" in record else logging.DEBUG
        if log.isEnabledFor(level):
            # Made here, since the logger would look through the stack for the line that logs,
            # which takes longer than all the rest.
            made = log.makeRecord(
                log.name, level, "", 0, "request", (), None, extra={"fields": record}
            )
            log.handle(made)


async def unless_left(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer, which is given up when the client is gone.

    The client is watched after 20 ms, which most answers do not take.

    Raises:
        ClientDisconnect: it is.
    """
    answering, watchers = asyncio.current_task(), list[asyncio.Task[None]]()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if answering:
            answering.cancel()

    loop = asyncio.get_running_loop()
    timer = loop.call_later(_WATCH_S, lambda: watchers.append(loop.create_task(watch())))
    try:
        return await answer
    except asyncio.CancelledError:
        if answering is None or not any(watcher.done() for watcher in watchers):
            raise
        answering.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
