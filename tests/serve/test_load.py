"""The load test against servers whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hasten.errors import ChoiceError, InputError
from hasten.records import Interval
from hasten.serve import load
from hasten.serve.load import Load


@asynccontextmanager
async def answering(*statuses: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives these statuses in turn, and keeps what it was sent."""
    bodies: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while head := await reader.read(65536):
            bodies.append(head.partition(b"\r\n\r\n")[2])
            status = statuses[(len(bodies) - 1) % len(statuses)]
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % status)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", bodies
    finally:
        server.close()
        for writer in writers:
            writer.close()
            await writer.wait_closed()


def test_statuses_are_counted_apart() -> None:
    async def run() -> Load:
        async with answering(200, 429, 500) as (url, _):
            to = load.target(url, "tei", "m", None)
            return await load.closed_loop(to, ["a"], 3, 0.05)

    found = asyncio.run(run())
    assert found.answered > 0
    assert abs(found.answered - found.rejected) <= 1
    assert found.p50_ms is not None


def test_an_open_loop_sends_what_is_due() -> None:
    async def run() -> tuple[Load, int]:
        async with answering(200) as (url, bodies):
            to = load.target(url, "openai", "m", "k")
            found = await load.open_loop(to, ["a", "b"], 400.0, 0.1, 7)
            assert json.loads(bodies[0]) == {"model": "m", "input": "a"}
            return found, len(bodies)

    found, sent = asyncio.run(run())
    assert found.answered == sent == len(list(load.arrivals(400.0, 0.1, 7)))
    assert found.failed == 0


def test_moments_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    moments = list(load.arrivals(1000.0, 10.0, 3))
    assert moments == list(load.arrivals(1000.0, 10.0, 3))
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert moments == sorted(moments)


def served(rate: float, limit: float) -> Load:
    """A server that meets the objective up to a rate."""
    p99 = Interval(1.0, 10.0 if rate <= limit else 100.0, 200.0)
    return Load(1, rate, 1.0, 100, 0, 0, rate, p99, p99, p99)


@pytest.mark.parametrize("limit", [70.0, 100.0, 149.0])
def test_the_search_ends_near_the_highest_rate_that_meets_the_objective(limit: float) -> None:
    async def at(rate: float) -> Load:
        return served(rate, limit)

    *_, best = asyncio.run(load.capacity(at, 100.0, 50.0, steps=8))
    assert best.rate is not None
    assert 0.95 * limit <= best.rate <= limit


def test_a_load_with_rejections_does_not_meet_the_objective() -> None:
    p99 = Interval(1.0, 1.0, 1.0)
    assert not load.meets(Load(1, 1.0, 1.0, 100, 1, 0, 1.0, p99, p99, p99), 50.0)


def test_a_server_that_refuses_is_not_measured() -> None:
    async def run() -> None:
        async with answering(404) as (url, _):
            await load.check(load.target(url, "tei", "m", None), "a")

    with pytest.raises(InputError, match="answers with status 404"):
        asyncio.run(run())


@pytest.mark.parametrize("url", ["localhost:8080", "https://a", "http://"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ChoiceError, match="URL"):
        load.target(url, "tei", "m", None)
