"""A bundle shows on every machine that it computes what was proved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest

import hasten
from hasten.errors import BundleError
from hasten.records import Probes, Tuning
from hasten.runtime import bundle, manifest, predictor, probes
from hasten.runtime.probes import Memory
from hasten.tasks import Outputs
from tests.runtime.test_bundle import FAST
from tests.scripted import MACHINE, Lab, save_bundle


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), FAST, precisions=("fp32",))


@pytest.fixture(scope="module")
def tuning(lab: Lab) -> Tuning:
    return lab.tune()


def altered(tuning: Tuning, by: float) -> Tuning:
    assert tuning.probes
    outputs = np.array(tuning.probes.outputs) + by * np.array([1.0, -1.0, 0.0])
    stored = Probes(tuning.probes.texts, tuple(map(tuple, outputs.tolist())))
    return replace(tuning, probes=stored)


def test_a_bundle_that_answers_as_it_did_loads_and_is_remembered(
    tmp_path: Path,
    lab: Lab,
    tuning: Tuning,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
) -> None:
    folder = save_bundle(tmp_path / "bundle", lab, tuning)
    with pytest.warns(UserWarning, match="bundle"):  # the lab's machine is another than this one
        hasten.load(folder).close()
    assert len(list(own_cache.rglob("checked/*"))) == 1
    monkeypatch.setattr(probes, "check", lambda *_, **__: pytest.fail("checked twice"))
    with pytest.warns(UserWarning, match="bundle"):
        hasten.load(folder).close()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_altered_outputs_are_refused_with_the_reason(
    tmp_path: Path, lab: Lab, tuning: Tuning, own_cache: Path
) -> None:
    folder = save_bundle(tmp_path / "bundle", lab, altered(tuning, 0.5))
    with pytest.raises(BundleError, match="other answers here than where it was tuned") as caught:
        hasten.load(folder)
    assert "Tune on this machine" in (caught.value.fix or "")
    assert not list(own_cache.rglob("checked/*"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_outputs_altered_in_the_file_alone_are_damage(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    folder = save_bundle(tmp_path / "bundle", lab, tuning)
    path = folder / manifest.PROBES
    stored = json.loads(path.read_text())
    stored["outputs"][0][0] += 1.0
    path.write_text(json.dumps(stored))
    with pytest.raises(BundleError, match=r"probes\.json"):
        hasten.load(folder)


@pytest.mark.parametrize(("by", "refused"), [(0.001, False), (0.2, True), (np.nan, True)])
def test_lossy_outputs_may_round_otherwise_and_no_more(
    tmp_path: Path, lab: Lab, tuning: Tuning, by: float, refused: bool
) -> None:
    assert tuning.probes
    stored = altered(tuning, 0.0).probes
    assert stored

    class Pipeline:
        def run(self, texts: Any, strategy: Any) -> Any:
            assert stored is not None
            outputs = Outputs.of_rows(np.array(stored.outputs) + by)

            class Run:
                pass

            Run.outputs = outputs  # type: ignore[attr-defined]
            return Run

    def check() -> None:
        probes.check(stored, Pipeline(), tuning.model, "int8", where=tmp_path)  # type: ignore[arg-type]

    if not refused:
        check()
        return
    with pytest.raises(BundleError, match=r"NaN|standard deviations"):
        check()


def test_what_is_remembered_is_this_bundle_on_this_machine(tmp_path: Path) -> None:
    memory = Memory("bundle", MACHINE, {"engine": "1"})
    assert not memory.holds
    memory.keep()
    assert Memory("bundle", MACHINE, {"engine": "1"}).holds
    assert not Memory("another", MACHINE, {"engine": "1"}).holds
    assert not Memory("bundle", MACHINE, {"engine": "2"}).holds
    assert not Memory("bundle", replace(MACHINE, cpu_model="other"), {"engine": "1"}).holds


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    memory = Memory("bundle", MACHINE, {})
    memory.keep()
    assert not memory.holds


def test_a_home_that_may_not_be_looked_into_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    memory = Memory("bundle", MACHINE, {})
    monkeypatch.setattr(Path, "exists", refuse)
    assert not memory.holds


def test_bundles_without_probes_still_load(
    tmp_path: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bundle(tmp_path / "bundle", lab, replace(tuning, probes=None))
    monkeypatch.setattr(probes, "check", lambda *_, **__: pytest.fail("nothing to check with"))
    loaded = bundle.load(folder, here=MACHINE)
    assert loaded.stages[0].probes is None
    predictor.Predictor(loaded).close()
