"""A served bundle whose model is scripted, and a client of it without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hasten import hardware
from hasten.runtime import signature
from hasten.serve.app import Access, create
from hasten.serve.metrics import Metrics
from hasten.serve.service import Limits, Service
from tests.scripted import Lab, save_bundle


@pytest.fixture(scope="session")
def scripted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the fake engine, tuned in virtual time. Read only."""
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    lab.hardware = hardware.detect()
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
