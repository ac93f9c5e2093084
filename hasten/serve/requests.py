"""What is done with every request: an id, a line in the log, and an end where the client leaves.

Lines hold ids, durations and counts; never a text, a key, or a path that a client made up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hasten.serve.service import Answered

log = logging.getLogger("hasten.serve.request")

_HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KEY = "hasten.record"


class Record(dict[str, Any]):
    """What the log says of one request."""

    def add(self, answered: Answered | None) -> None:
        """How many texts were answered, and where the time went."""
        if answered:
            self.update(
                texts=len(answered.outputs),
                tokens=int(answered.tokens.sum()),
                tokenize_ms=_ms(answered.tokenize_s),
                queue_ms=_ms(answered.queue_s),
                inference_ms=_ms(answered.inference_s),
            )


def record_of(scope: Scope) -> Record:
    """The record of a request; a new one that is not logged where :class:`Recorded` is missing."""
    found: Record = scope.get(_KEY) or Record()
    return found


class Recorded:
    """Middleware that gives each request an id (or keeps its own), and logs it when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        given = Headers(scope=scope).get(_HEADER, "")
        name = given if _ID.fullmatch(given) else os.urandom(8).hex()
        record = scope[_KEY] = Record(request_id=name, method=scope["method"], status=500)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                MutableHeaders(scope=message)[_HEADER] = name
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            record["duration_ms"] = _ms(time.perf_counter() - begin)
            # Probes and pages, which have no model, would drown the requests.
            level = logging.INFO if "model" in record or "error" in record else logging.DEBUG
            log.log(level, "request", extra={"fields": record})


async def unless_left(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer, which is given up as soon as the client is gone.

    Raises:
        ClientDisconnect: it is.
    """
    answering = asyncio.current_task()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if answering:
            answering.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await answer
    except asyncio.CancelledError:
        if not watcher.done() or answering is None:
            raise
        answering.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.cancel()


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
