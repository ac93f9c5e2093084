"""``hasten load-test``: what a server of models answers under load, measured from outside.

Closed loop: so many clients, each of which sends its next request when it has its answer. That
finds the highest throughput. Open loop: requests come at random moments (Poisson), whether or not
earlier ones have been answered, as they do from many independent users. Latency then counts from
the moment at which a request was due, not from when a connection was free for it; otherwise a
server that stalls would hide it ("coordinated omission", Gil Tene).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import urlsplit

import orjson

from hasten.errors import ChoiceError, InputError
from hasten.judging.stats import percentile_interval
from hasten.records import Interval

_REJECTED = frozenset({429, 503})

_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """The outcome of one load.

    Attributes:
        clients: of a closed loop; of an open one, the connections that were needed.
        rate: requests a second that were due; None in a closed loop.
        duration_s: from the first request to the last answer.
        answered: requests with status 200.
        rejected: requests with 429 or 503.
        failed: other statuses, and connections that broke.
        goodput: answers a second.
        p50_ms: latency of the answers; with p90_ms and p99_ms, 95 % intervals each.
    """

    clients: int
    rate: float | None
    duration_s: float
    answered: int
    rejected: int
    failed: int
    goodput: float
    p50_ms: Interval | None
    p90_ms: Interval | None
    p99_ms: Interval | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and how a text becomes the bytes of one."""

    host: str
    port: int
    path: str
    key: str | None
    body: Callable[[str], Mapping[str, object]]

    def request(self, text: str) -> bytes:
        """The whole HTTP request."""
        body = orjson.dumps(self.body(text))
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, "", ""]).encode() + body


def target(url: str, protocol: str, model: str, key: str | None) -> Target:
    """The target for a URL; a path in it goes before the protocol's own default.

    Raises:
        ChoiceError: the URL is not of the form that is supported.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ChoiceError(f"the URL is {url!r}", fix="Write http://HOST:PORT, or with a path.")
    if protocol == "openai":
        path, body = "/v1/embeddings", lambda text: {"model": model, "input": text}
    else:
        path, body = "/predict", lambda text: {"inputs": text, "truncate": True}
    asked = parts.path if parts.path.strip("/") else path
    return Target(parts.hostname, parts.port or 80, asked, key, body)


class Connection:
    """One keep-alive connection that sends a request and reads its response."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the response; 0 where the connection broke or nothing came."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._ask(request)
        except (OSError, asyncio.IncompleteReadError, ValueError, TimeoutError):
            await self.close()
            return 0

    async def _ask(self, request: bytes) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        if b"connection: close" in head:
            await self.close()
        return int(head.split(b" ", 2)[1])

    async def close(self) -> None:
        """Close it; the next request opens it again."""
        if self._streams:
            (_, writer), self._streams = self._streams, None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@dataclass(frozen=True, slots=True)
class _Seen:
    latency_s: float
    status: int


async def closed_loop(to: Target, texts: Sequence[str], clients: int, duration_s: float) -> Load:
    """So many clients, each with one request at a time."""
    requests = cycle([to.request(text) for text in texts])
    seen: list[_Seen] = []
    begin = time.perf_counter()

    async def client() -> None:
        connection = Connection(to.host, to.port)
        while (sent := time.perf_counter()) < begin + duration_s:
            status = await connection.ask(next(requests))
            seen.append(_Seen(time.perf_counter() - sent, status))
            if status != 200:
                await asyncio.sleep(0.01)  # a server that refuses at once is not hammered
        await connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return _load(seen, clients, None, time.perf_counter() - begin)


def arrivals(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process, in seconds from the start."""
    random_ = random.Random(seed)  # noqa: S311 - no secret
    now = random_.expovariate(rate)
    while now < duration_s:
        yield now
        now += random_.expovariate(rate)


async def open_loop(
    to: Target, texts: Sequence[str], rate: float, duration_s: float, seed: int
) -> Load:
    """Requests at random moments, ``rate`` a second on average."""
    requests = cycle([to.request(text) for text in texts])
    seen: list[_Seen] = []
    free: list[Connection] = []
    opened = 0
    begin = time.perf_counter()

    async def one(due: float, request: bytes) -> None:
        nonlocal opened
        if not free:
            opened += 1
            free.append(Connection(to.host, to.port))
        connection = free.pop()
        status = await connection.ask(request)
        seen.append(_Seen(time.perf_counter() - begin - due, status))
        free.append(connection)

    async with asyncio.TaskGroup() as group:
        for due in arrivals(rate, duration_s, seed):
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            group.create_task(one(due, next(requests)))
    for connection in free:
        await connection.close()
    return _load(seen, opened, rate, time.perf_counter() - begin)


def _load(seen: Sequence[_Seen], clients: int, rate: float | None, duration_s: float) -> Load:
    statuses = Counter(one.status for one in seen)
    latency_ms = [1000 * one.latency_s for one in seen if one.status == 200]
    rejected = sum(statuses[status] for status in _REJECTED)
    answered = statuses[200]

    def quantile(q: float) -> Interval | None:
        return percentile_interval(latency_ms, q) if latency_ms else None

    return Load(
        clients,
        rate,
        duration_s,
        answered,
        rejected,
        len(seen) - answered - rejected,
        answered / duration_s,
        quantile(50),
        quantile(90),
        quantile(99),
    )


def meets(load: Load, slo_ms: float) -> bool:
    """Whether a load was served: nothing failed or was rejected, and p99 is within the limit."""
    served = not load.rejected and not load.failed and load.p99_ms is not None
    return served and load.p99_ms.estimate <= slo_ms  # type: ignore[union-attr]


async def capacity(
    at: Callable[[float], Awaitable[Load]], first_rate: float, slo_ms: float, steps: int = 6
) -> tuple[Load, ...]:
    """Loads on the way to the highest rate that meets the objective, the best one last.

    Args:
        at: runs an open loop at a rate.
        first_rate: where to begin, such as 80 % of a closed loop's throughput.
        slo_ms: the limit on p99.
        steps: how many rates to try; each halves the interval, in which the answer is.
    """
    tried: list[Load] = []
    low, high = 0.0, first_rate * 2
    rate = first_rate
    for _ in range(steps):
        load = await at(rate)
        tried.append(load)
        low, high = (rate, high) if meets(load, slo_ms) else (low, rate)
        rate = (low + high) / 2
    return tuple(sorted(tried, key=lambda load: (meets(load, slo_ms), load.rate or 0.0)))


async def check(to: Target, text: str) -> None:
    """Send one request, so that a wrong address or protocol is not measured.

    Raises:
        InputError: it is not answered.
    """
    connection = Connection(to.host, to.port)
    status = await connection.ask(to.request(text))
    await connection.close()
    if status != 200:
        said = f"answers with status {status}" if status else "does not answer"
        raise InputError(
            f"http://{to.host}:{to.port}{to.path} {said}",
            fix="Give the path that the server has: http://HOST:PORT/embed, or --protocol openai.",
        )
