"""Requests that are meant to hurt, and clients that leave."""

from __future__ import annotations

import ast
import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

import hasten.serve
from hasten.serve.app import create
from hasten.serve.service import Service

BOMB = gzip.compress(b" " * 10_000_000)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"inputs": "' + b"a" * 10_000_000 + b'"}', {}, 413),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 422),
        (b'{"inputs": ' + b'{"a":' * 100_000, {}, 422),
        (BOMB, {"Content-Encoding": "gzip"}, 415),
        (b'{"inputs": "\\ud800"}', {}, 422),
        (b'{"inputs": "\xff"}', {}, 422),
        (b'{"inputs": "a\\u0000b"}', {}, 200),
        (b'{"inputs": ""}', {}, 200),
    ],
    ids=["10 MB", "lists", "objects", "bomb", "surrogate", "latin-1", "NUL", "empty"],
)
def test_a_hostile_body_has_its_answer(
    client: TestClient, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert client.post("/predict", content=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(1_000_000, marks=pytest.mark.faults)], ids=str
)
def test_a_body_in_very_many_pieces_is_read_once(client: TestClient, count: int) -> None:
    whole = b'{"inputs": "a"}' + b" " * (count - 15)
    pieces = iter([whole[place : place + 1] for place in range(count)])
    left = [count]

    async def receive() -> Any:
        left[0] -= 1
        return {"type": "http.request", "body": next(pieces), "more_body": left[0] > 0}

    async def run() -> int:
        statuses: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/tokenize",
            "headers": [],
        }
        scope |= {"query_string": b"", "http_version": "1.1"}
        await client.app(scope, receive, send)
        return statuses[0]

    assert asyncio.run(run()) == 200


def test_clients_who_leave_leave_nothing_behind(
    scripted_bundle: Path,
    listen: Callable[[Any], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service.open("news", scripted_bundle)
    streams = service.predictor.stages.first.streams
    inner, free, reached = streams.forward, threading.Event(), threading.Event()

    def forward(*given: Any) -> Any:
        reached.set()
        free.wait()
        return inner(*given)

    body = json.dumps({"inputs": [["a b"]] * 20}).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with listen(create({"news": service})) as address:
        monkeypatch.setattr(streams, "forward", forward)
        where = urlsplit(address)
        sockets = [socket.create_connection((where.hostname, where.port)) for _ in range(40)]
        for one in sockets:
            one.sendall(head + body)
        reached.wait()
        while service.in_flight < 40:
            pass
        for one in sockets[::2]:
            one.close()
        while service.in_flight > 20:
            pass
        free.set()
        for one in sockets[1::2]:
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")
            one.close()
        while service.in_flight:
            pass
        assert (service.waiting, service.backlog_s) == (0, 0.0)
        assert httpx.post(f"{address}/predict", json={"inputs": "a"}).status_code == 200


def test_no_deadline_or_turn_depends_on_the_clock_of_the_day() -> None:
    allowed = {"answers.py", "logs.py"}  # `created` of OpenAI and vLLM, and the log's own times
    folder = Path(hasten.serve.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "time.time",
                "datetime.now",
                "datetime.utcnow",
            }
            assert not named or path.name in allowed, f"{path}:{node.lineno}"  # type: ignore[attr-defined]
