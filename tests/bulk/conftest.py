"""A bundle whose model is scripted, and files to predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten import hardware
from hasten.runtime import signature
from tests.scripted import Lab, save_bundle


@pytest.fixture(scope="session")
def scripted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the fake engine, tuned in virtual time. Read only."""
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    lab.hardware = hardware.detect()  # or every load would warn that the machine is another one
    return save_bundle(tmp_path_factory.mktemp("bundle") / "bundle", lab, lab.tune())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(signature, "key_file", lambda: tmp_path / "user" / "bundle.key")
