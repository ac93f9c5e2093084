"""Running the server: readiness, the log, replacement, slow clients, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient
from typer.testing import CliRunner

from hasten.cli import app as cli
from hasten.engines.fake import Script, VirtualClock
from hasten.errors import ChoiceError, EngineError
from hasten.runtime.manifest import digest
from hasten.serve import server
from hasten.serve.app import create
from hasten.serve.connections import Connection, Server
from hasten.serve.fleet import Fleet
from hasten.serve.logs import Json
from hasten.serve.metrics import Metrics
from hasten.serve.requests import Recorded
from hasten.serve.service import Limits, Service

SECRET = "a secret of the user"


def fleet(folder: Path, metrics: Metrics, limits: Limits | None = None) -> Fleet:
    def opening(name: str, folder: Path) -> Service:
        return Service.open(name, folder, limits or Limits(), on_batch=metrics.on_batch(name))

    return Fleet({"news": folder}, opening, metrics, 30.0)


def other_bundle(bundle: Path, folder: Path, **script: Any) -> Path:
    """The same bundle with another script, and a manifest that says so."""
    shutil.copytree(bundle, folder)
    artifact = json.loads((folder / "fake.json").read_text())
    content = json.dumps({**artifact, "script": {"*": script}}).encode()
    (folder / "fake.json").write_bytes(content)
    manifest = json.loads((folder / "hasten.json").read_text())
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files = manifest["files"]
    files["fake.json"] = {key: entry[key] for key in files["fake.json"]}
    del manifest["sha256"]
    sealed = {**manifest, "sha256": digest(manifest)}
    (folder / "hasten.json").write_text(json.dumps(sealed))
    return folder


def test_a_server_is_ready_when_its_models_answer_and_alive_without(scripted_bundle: Path) -> None:
    models = {
        "one": Service.open("one", scripted_bundle),
        "two": Service.open("two", scripted_bundle),
    }
    with TestClient(create(models)) as client:
        assert client.get("/ready").status_code == 200
        models["two"].refuse()
        answered = client.get("/ready")
        assert (answered.status_code, answered.json()) == (
            503,
            {"ready": {"one": True, "two": False}},
        )
        assert client.get("/live").status_code == client.get("/health").status_code == 200
        refused = client.post("/models/two/predict", json={"inputs": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert 'hasten_ready{model="two"} 0.0' in client.get("/metrics").text


def test_a_server_whose_engine_fails_is_not_ready(scripted_bundle: Path) -> None:
    metrics = Metrics()
    service = Service.open("news", scripted_bundle, on_batch=metrics.on_batch("news"))
    session: Any = service.predictor.stages.first.streams._session
    session._script = Script(fail="raise")
    with TestClient(create({"news": service}, metrics=metrics)) as client:
        assert client.get("/ready").status_code == 503
        failed = client.post("/predict", json={"inputs": "a"})
        assert failed.status_code == 424
        assert (
            'hasten_batch_failure_total{model="news",stage="1"} 2.0' in client.get("/metrics").text
        )


def test_an_output_that_is_not_finite_is_named_in_the_metrics(scripted_bundle: Path) -> None:
    service = Service.open("news", scripted_bundle)
    session: Any = service.predictor.stages.first.streams._session
    session._script = Script(fail="nan")
    with TestClient(create({"news": service})) as client:
        assert client.post("/predict", json={"inputs": "a"}).status_code == 424
        assert 'kind="non_finite",model="news"} 1.0' in client.get("/metrics").text


def test_overload_says_when_to_ask_again(scripted_bundle: Path) -> None:
    service = Service.open("news", scripted_bundle, Limits(queue_s=1.0))
    with TestClient(create({"news": service})) as client:
        service._runner._scheduler._reserved_s = 5.0
        refused = client.post("/predict", json={"inputs": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "4")
        service._runner._scheduler._reserved_s = 0.0


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "hasten")
    return lambda: [json.loads(Json().format(record)) for record in caplog.records]


def test_each_request_has_an_id_and_a_line_without_its_texts(
    client: TestClient, lines: Any
) -> None:
    given = client.post("/predict", json={"inputs": SECRET}, headers={"X-Request-Id": "mine-1"})
    made = client.post("/predict", json={"inputs": [[SECRET], [SECRET]]})
    assert given.headers["x-request-id"] == "mine-1"
    assert len(made.headers["x-request-id"]) == 16
    first, second = lines()
    assert (first["request_id"], first["status"], first["path"]) == ("mine-1", 200, "/predict")
    assert (second["texts"], second["model"], second["protocol"]) == (2, "news", "tei")
    assert {"duration_ms", "queue_ms", "tokenize_ms", "inference_ms", "tokens"} <= second.keys()
    assert SECRET not in str(lines())


@pytest.mark.parametrize("given", ["a b", "x" * 200, "a\x00b", 'a"b'])
def test_an_id_that_could_garble_the_log_is_replaced(client: TestClient, given: str) -> None:
    answered = client.get("/health", headers={b"X-Request-Id": given.encode()})
    assert answered.headers["x-request-id"] != given


def test_a_refused_request_is_logged_with_its_kind(client: TestClient, lines: Any) -> None:
    client.post(f"/predict?{SECRET}", content=b'{"inputs": ["' + SECRET.encode())
    (line,) = lines()
    assert (line["status"], line["error"]) == (422, "validation")
    assert SECRET not in str(line)


def test_what_nobody_foresaw_is_a_500_without_details(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "answer", lambda *_, **__: 1 / 0)
    answered = client.post("/predict", json={"inputs": "a"})
    assert answered.status_code == 500
    assert "division" not in answered.text


def test_a_client_who_leaves_frees_its_place(
    scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service.open("news", scripted_bundle)
    reached, free = threading.Event(), threading.Event()
    streams = service.predictor.stages.first.streams
    inner = streams.forward

    def forward(*given: Any) -> Any:
        reached.set()
        free.wait()
        return inner(*given)

    async def leave() -> None:
        application = create({"news": service})
        body = json.dumps({"inputs": [["a b"]] * 100}).encode()
        left = asyncio.Event()
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        monkeypatch.setattr(streams, "forward", forward)
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": [],
        }
        scope |= {"query_string": b"", "root_path": "", "http_version": "1.1"}
        request = asyncio.ensure_future(application(scope, receive, send))
        await asyncio.to_thread(reached.wait)
        assert service.in_flight == 1
        left.set()
        await request
        assert (service.in_flight, service.waiting, service.backlog_s) == (0, 0, 0.0)
        assert sent[0]["status"] == 499
        free.set()

    asyncio.run(leave())
    service.close()


def test_a_bundle_is_replaced_while_a_request_is_in_flight(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(scripted_bundle)
    metrics = Metrics()
    served = fleet(link, metrics)

    async def replace() -> None:
        old = served["news"]
        with old.held():
            link.unlink()
            link.symlink_to(other_bundle(scripted_bundle, tmp_path / "new", call_s=2e-3))
            reloading = asyncio.ensure_future(served.reload())
            while served["news"] is old:  # noqa: ASYNC110 - a thread loads it
                await asyncio.sleep(0)
            assert served["news"].ready
            assert len((await old.answer(["a"])).outputs) == 1
            assert not reloading.done()
        await reloading
        assert (await served["news"].answer(["a"])).outputs
        served["news"].close()

    asyncio.run(replace())
    assert 'replacements_total{model="news",outcome="done"} 1.0' in metrics.text().decode()


def test_a_bundle_that_cannot_be_loaded_changes_nothing(
    scripted_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(scripted_bundle, tmp_path / "bundle")
    metrics = Metrics()
    served = fleet(folder, metrics)
    (folder / "fake.json").write_text("{}")
    old = served["news"]
    asyncio.run(served.reload())
    assert served["news"] is old
    assert "news stays as it was" in caplog.text
    assert 'replacements_total{model="news",outcome="refused"} 1.0' in metrics.text().decode()
    old.close()


def test_a_bundle_that_does_not_answer_changes_nothing(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current"
    link.symlink_to(scripted_bundle)
    metrics = Metrics()
    served = fleet(link, metrics)
    old = served["news"]
    link.unlink()
    link.symlink_to(other_bundle(scripted_bundle, tmp_path / "new", call_s=2e-3))

    async def fails(self: Service, *_: Any, **__: Any) -> Any:
        raise EngineError("no answer")

    monkeypatch.setattr(Service, "answer", fails)
    asyncio.run(served.reload())
    assert served["news"] is old
    assert 'replacements_total{model="news",outcome="refused"} 1.0' in metrics.text().decode()
    old.close()


def test_the_same_bundle_is_not_replaced(scripted_bundle: Path) -> None:
    served = fleet(scripted_bundle, Metrics())
    old = served["news"]
    asyncio.run(served.reload())
    assert served["news"] is old
    old.close()


@asynccontextmanager
async def listening(connections: list[Connection]) -> AsyncIterator[int]:
    """A server of one page, whose connections the test looks at itself."""

    class Listed(Connection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            connections.append(self)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 30_000_000})

    config = uvicorn.Config(application, port=0, http=Listed, log_config=None, lifespan="off")
    config.load()
    one = uvicorn.Server(config)
    one.lifespan = config.lifespan_class(config)
    await one.startup()
    try:
        yield one.servers[0].sockets[0].getsockname()[1]
    finally:
        for connection in connections:
            connection.transport.abort()
        await one.shutdown()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST / HTTP/1.1\r\nHost:", b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"],
    ids=["nothing", "headers", "body"],
)
def test_a_connection_on_which_a_request_does_not_advance_is_closed(sent: bytes) -> None:
    async def dawdle() -> None:
        connections: list[Connection] = []
        async with listening(connections) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            while not connections or connections[0]._received < len(sent):  # noqa: ASYNC110
                await asyncio.sleep(0)
            connections[0].check()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            await closed(writer)

    asyncio.run(dawdle())


def test_a_client_that_does_not_read_is_closed_and_one_that_waits_is_not() -> None:
    async def stare() -> None:
        connections: list[Connection] = []
        async with listening(connections) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while not connections or not connections[0].flow.write_paused:  # noqa: ASYNC110
                await asyncio.sleep(0)
            connections[0].check()
            assert not connections[0].transport.is_closing()
            connections[0].check()
            assert connections[0].transport.is_closing()
            await closed(writer)

    asyncio.run(stare())


def start(bundle: Path, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A server in its own process, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [sys.executable, "-m", "hasten", "serve", f"news={bundle}", "--port", str(port)]
    process = subprocess.Popen(
        [*given, "--log", "json", *arguments], stderr=subprocess.PIPE, text=True
    )
    with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
        assert client.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    return process, port


def test_sigterm_ends_the_process_in_order_and_sighup_loads_again(scripted_bundle: Path) -> None:
    process, port = start(scripted_bundle)
    process.send_signal(signal.SIGHUP)
    assert process.stderr
    while "same bundle" not in process.stderr.readline():
        assert process.poll() is None
    body = json.dumps({"inputs": "a"}).encode()
    url = f"http://127.0.0.1:{port}/predict"
    with urllib.request.urlopen(urllib.request.Request(url, body, method="POST")) as answered:
        assert answered.status == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    rest = process.stderr.read().splitlines()
    assert [json.loads(line)["message"] for line in rest] == ["request"]
    process.stderr.close()


HANGS = """
import sys, threading
from hasten.cli import main
from hasten.serve.running import Runner
Runner._run = lambda *_: threading.Event().wait()
main()
"""


@pytest.mark.faults
def test_a_server_whose_engine_hangs_ends_with_an_error(scripted_bundle: Path) -> None:
    given = ["serve", f"news={scripted_bundle}", "--port", "0", "--deadline", "1s", "--drain", "1s"]
    ran = subprocess.run(
        [sys.executable, "-c", HANGS, *given], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "a batch of news does not return; the server ends" in ran.stderr
    assert "the engine of news did not return from a batch" in ran.stderr


def test_a_second_signal_ends_at_once() -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        one = Server(
            uvicorn.Config(Recorded(never), port=0, log_config=None, lifespan="off"), never, never
        )
        serving = asyncio.ensure_future(one._serve())
        while not one.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
        one.handle_exit(signal.SIGTERM, None)
        assert not one.should_exit
        one.handle_exit(signal.SIGTERM, None)
        await serving

    asyncio.run(run())


def test_connections_have_what_draining_leaves_of_the_time() -> None:
    clock = VirtualClock()

    async def drain() -> None:
        clock.advance(28.0)

    async def run() -> int | None:
        config = uvicorn.Config("no:app", log_config=None, timeout_graceful_shutdown=30)
        ending = Server(config, drain, drain, clock)
        await ending._end()
        assert ending.should_exit
        return config.timeout_graceful_shutdown

    assert asyncio.run(run()) == 2


def test_a_dry_run_says_which_bundles_answer(scripted_bundle: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("hasten", "uvicorn", "py.warnings", None)]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    ran = CliRunner().invoke(cli, ["serve", f"news={scripted_bundle}", "--dry-run"])
    assert ran.exit_code == 0, ran.output
    assert "news: fake-fp32-cpu" in ran.output
    # The stream that it wrote its log to is closed by now.
    assert [(log.level, log.propagate, list(log.handlers)) for log in loggers] == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tls_key": "key.pem"}, "two files"),
        ({"tls_key": "key.pem", "tls_certificate": "none.pem"}, "cannot be used for HTTPS"),
        ({"port": 70000}, "--port is 70000"),
        ({"log": "xml"}, "--log is 'xml'"),
        ({"deadline": "soon"}, "--deadline is 'soon'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(options: Any, told: str) -> None:
    with pytest.raises(ChoiceError, match=told):
        server.serve({"news": Path("nowhere")}, **options)


def test_a_public_address_without_a_key_is_warned_of(
    scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HASTEN_API_KEY", raising=False)
    server.serve({"news": scripted_bundle}, host="0.0.0.0", dry_run=True)
    assert "anybody who reaches 0.0.0.0" in capfd.readouterr().err
    monkeypatch.setenv("HASTEN_API_KEY", "k")
    server.serve({"news": scripted_bundle}, host="0.0.0.0", dry_run=True)
    assert "anybody" not in capfd.readouterr().err
