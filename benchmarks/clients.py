"""Clients of a server, in a process that does little else.

Each sends its next text when it is answered.

    python benchmarks/clients.py PORT CLIENTS TEXTS.json MODEL

Prints the seconds from the first request until all but the last of each client were answered (so
that all clients were busy), how many that were, and the latency of each, as JSON. It speaks HTTP
on bare sockets, and imports nothing that costs time: server and clients share the machine.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    port, clients, texts, model = sys.argv[1:]
    requests = [request(text, model) for text in json.loads(Path(texts).read_text())]
    print(json.dumps(closed_loop(int(port), int(clients), requests)))


def request(text: str, model: str) -> bytes:
    """One text to classify, as vLLM and Infinity take it."""
    body = json.dumps({"model": model, "input": [text]}).encode()
    head = (
        "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """A connection with one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._sent_s = 0.0

    def send(self, message: bytes) -> None:
        self._received = b""
        self._sent_s = time.perf_counter()
        self.socket.sendall(message)

    def latency_s(self) -> float | None:
        """How long the answer took, once all of it is there."""
        self._received += self.socket.recv(1 << 16)
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {self._received!r}")
        if not length or len(body) < int(length):
            return None
        return time.perf_counter() - self._sent_s


def closed_loop(port: int, clients: int, requests: list[bytes]) -> dict[str, object]:
    selector, rest = selectors.DefaultSelector(), iter(requests)
    latencies_s: list[float] = []
    begin, seconds, counted = time.perf_counter(), 0.0, max(1, len(requests) - clients)
    for message in [next(rest) for _ in range(min(clients, len(requests)))]:
        client = Client(port)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send(message)
    while len(latencies_s) < len(requests):
        for key, _ in selector.select():
            latency_s = key.data.latency_s()
            if latency_s is None:
                continue
            latencies_s.append(latency_s)
            if len(latencies_s) == counted:
                seconds = time.perf_counter() - begin
            message = next(rest, b"")
            if message:
                key.data.send(message)
    return {"seconds": seconds, "answers": counted, "latencies_s": latencies_s}


if __name__ == "__main__":
    main()
