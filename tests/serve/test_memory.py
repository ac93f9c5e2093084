"""Requests leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from hasten.serve.app import Access, create
from hasten.serve.metrics import Metrics
from hasten.serve.service import Service
from tests.tiny import tiny_texts

CLIENTS = 64


def bodies(count: int) -> Iterator[bytes]:
    """Requests of 1 to 3 texts of mixed lengths; one in fifty is refused."""
    texts = tiny_texts(200, seed=3)
    for number, text in enumerate(islice(cycle(texts), count)):
        given = [[text]] * (1 + number % 3) if number % 50 else 3
        yield json.dumps({"inputs": given, "truncate": True}).encode()


async def ask(application: Any, body: bytes) -> int:
    """The status of one request, without a socket."""
    statuses: list[int] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    await application({**scope, "query_string": b"", "http_version": "1.1"}, receive, send)
    return statuses[0]


async def answered(application: Any, count: int) -> int:
    """How many of so many requests got 200, with 64 at a time."""
    requests, done = bodies(count), [0]

    async def client() -> None:
        for body in requests:
            status = await ask(application, body)
            done[0] += status == 200

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done[0]


@pytest.fixture
def application(scripted_bundle: Path) -> Iterator[Any]:
    metrics = Metrics()
    service = Service.open("news", scripted_bundle, on_batch=metrics.on_batch("news"))
    yield create({"news": service}, Access(), metrics)
    service.close()


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_a_thousand_requests_leave_no_objects(application: Any) -> None:
    async def run() -> int:
        assert await answered(application, 500) == 490
        before = objects()
        assert await answered(application, 1000) == 980
        return objects() - before

    assert asyncio.run(run()) < 100


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_million_requests_leave_no_memory(application: Any) -> None:
    def peak_mib() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    async def run() -> float:
        await answered(application, 50_000)
        before = peak_mib()
        assert await answered(application, 1_000_000) == 980_000
        return peak_mib() - before

    assert asyncio.run(run()) < 16.0
