"""Whether the server lives, whether it is ready, and what it counts.

The process is alive while its event loop runs, and ready while its models have answered recently.
Where no requests come, a text of the server's own (a canary) is run through each model.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hasten.serve.calls import reply
from hasten.serve.metrics import CONTENT_TYPE, Metrics
from hasten.serve.service import Service


def routes(models: Mapping[str, Service], metrics: Metrics) -> list[Route]:
    """``/live`` and ``/health``, ``/ready``, and ``/metrics``."""

    async def live(_: Request) -> Response:
        return Response(status_code=200)

    async def ready(_: Request) -> Response:
        found = {name: service.ready for name, service in models.items()}
        return reply({"ready": found}, 200 if all(found.values()) else 503)

    async def measured(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return [
        Route("/live", live),
        Route("/health", live),
        Route("/ready", ready),
        Route("/metrics", measured),
    ]


@contextlib.asynccontextmanager
async def watching(models: Mapping[str, Service]) -> AsyncIterator[None]:
    """Run canaries: one before the first request, and then wherever no requests come."""

    async def run_canaries() -> None:
        await asyncio.gather(*(service.canary() for service in models.values()))

    async def watch() -> None:
        while True:
            pauses_s = [service.limits.silence_s / 3 for service in models.values()]
            await asyncio.sleep(min(pauses_s))
            await run_canaries()

    await run_canaries()
    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


@contextlib.asynccontextmanager
async def guarding(
    models: Mapping[str, Service], hung: Callable[[str], None], every_s: float = 1.0
) -> AsyncIterator[None]:
    """Call ``hung`` once with the name of a model whose engine does not return from a batch.

    The thread that runs the batch cannot be stopped; only the process can end.
    """

    async def watch() -> None:
        while True:
            for name, service in models.items():
                if service.hangs:
                    hung(name)
                    return
            await asyncio.sleep(every_s)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
