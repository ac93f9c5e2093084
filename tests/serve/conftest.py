"""A served bundle whose model is scripted, and a client of it without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hasten import hardware
from hasten.runtime import signature
from hasten.serve.app import Access, create
from hasten.serve.metrics import Metrics
from hasten.serve.service import Limits, Service
from tests.scripted import INFO, Lab, save_bundle, save_reference

EMBEDDER = replace(INFO, task="tensors", labels=(), output_names=("output",))


@pytest.fixture(scope="session")
def scripted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the fake engine, tuned in virtual time. Read only."""
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    lab.hardware = hardware.detect()
    return save_bundle(tmp_path_factory.mktemp("bundle") / "bundle", lab, lab.tune())


@pytest.fixture(scope="session")
def embedding_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a model that gives vectors."""
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    lab.hardware = hardware.detect()
    lab.reference = save_reference(tmp_path_factory.mktemp("model") / "model", EMBEDDER)
    return save_bundle(tmp_path_factory.mktemp("bundle") / "bundle", lab, lab.tune())


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
