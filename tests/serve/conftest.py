"""A served bundle whose model is scripted, and a client of it without a network."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from hasten import hardware, tasks
from hasten.records import ModelInfo
from hasten.runtime import signature
from hasten.serve.app import Access, create
from hasten.serve.metrics import Metrics
from hasten.serve.service import Limits, Service
from tests.scripted import INFO, Lab, save_bundle, save_reference

EMBEDDER = replace(INFO, task="tensors", labels=(), output_names=("output",))
TAGGER = replace(INFO, task="toy_tags", labels=("O", "PER", "LOC"))
RANKER = replace(INFO, task="reranking", labels=("LABEL_0",))


def saved_bundle(folder: Path, info: ModelInfo = INFO, **script: Any) -> Path:
    """A bundle of the fake engine, tuned in virtual time."""
    lab = Lab(folder / "lab", {"*": {"call_s": 1e-3}, **script}, precisions=("fp32",))
    lab.hardware = hardware.detect()
    lab.reference = save_reference(folder / "model", info)
    if tasks.of(info).takes == "pairs":
        pairs: Any = zip(lab.texts, reversed(lab.texts), strict=True)
        lab.texts = tuple(pairs)
    return save_bundle(folder / "bundle", lab, lab.tune())


@pytest.fixture(scope="session")
def scripted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a classifier. Read only."""
    return saved_bundle(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def embedding_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that gives vectors. Read only."""
    return saved_bundle(tmp_path_factory.mktemp("embedder"), EMBEDDER)


@pytest.fixture(scope="session")
def live(
    scripted_bundle: Path, embedding_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a server with a model of each kind: news, vectors, tags and pairs."""
    folder = tmp_path_factory.mktemp("toys")
    toys = str(Path(__file__).parents[1] / "toy" / "tasks")
    with pytest.MonkeyPatch.context() as patch:  # tasks are looked up where bundles are opened
        patch.setattr(tasks, "__path__", [*tasks.__path__, toys])
        folders = {
            "news": scripted_bundle,
            "vectors": embedding_bundle,
            "tags": saved_bundle(folder / "tags", TAGGER, per_token=True),
            "pairs": saved_bundle(folder / "pairs", RANKER),
        }
        models = {name: Service.open(name, bundle) for name, bundle in folders.items()}
    with listening(create(models)) as address:
        yield address


@contextlib.contextmanager
def listening(application: Any) -> Iterator[str]:
    """The application behind a socket of this machine, as `hasten serve` runs it."""
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def listen() -> Callable[[Any], contextlib.AbstractContextManager[str]]:
    """Puts an application behind a socket, and gives its address."""
    return listening


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(signature, "key_file", lambda: tmp_path / "user" / "bundle.key")


@pytest.fixture
def client(scripted_bundle: Path) -> Iterator[TestClient]:
    metrics = Metrics()
    service = Service.open("news", scripted_bundle, Limits(), on_batch=metrics.on_batch("news"))
    with TestClient(create({"news": service}, Access(), metrics)) as one:
        yield one


@pytest.fixture
def embedder(embedding_bundle: Path) -> Iterator[TestClient]:
    with TestClient(create({"vectors": Service.open("vectors", embedding_bundle)})) as one:
        yield one
