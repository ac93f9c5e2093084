"""Results on disk, and what is said when they are not there or not readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.errors import BundleError, InputError
from hasten.plain import to_json
from hasten.records import Bench
from hasten.report import stored
from hasten.runtime.saving import NewStage, save
from tests.report.results import SCRIPT, benched
from tests.scripted import Lab


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return benched(tmp_path_factory.mktemp("bench"), "batch-size")


def write(folder: Path, value: object) -> Path:
    (folder / stored.BENCH).write_text(json.dumps(value))
    return folder


def test_a_bench_is_read_from_its_folder_or_its_file(bench: Bench, tmp_path: Path) -> None:
    folder = write(tmp_path, to_json(bench))
    assert stored.read(folder) == bench
    assert stored.read(folder / stored.BENCH) == bench


def test_a_bundle_is_read_and_one_that_was_altered_is_not(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", SCRIPT)
    tuning = lab.tune()
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    reference = lab.reference.folder
    stage = NewStage(artifact, reference, tuning.model, tuning.plan, tuning.probes)
    save(
        tmp_path / "b",
        tuning,
        stages=[stage],
        extra={},
        results=lab.folder / "results.jsonl",
    )
    assert stored.read(tmp_path / "b") == tuning
    with (tmp_path / "b" / "tuning.json").open("a") as file:
        file.write(" ")
    with pytest.raises(BundleError):
        stored.read(tmp_path / "b")


def test_fields_that_came_later_have_their_usual_values(bench: Bench, tmp_path: Path) -> None:
    value = to_json(bench)
    del value["command"], value["settings"]["seed"]
    found = stored.read(write(tmp_path, value))
    assert isinstance(found, Bench)
    assert (found.command, found.settings.seed) == (None, 0)


@pytest.mark.parametrize("change", ["missing", "unknown", "type"])
def test_another_versions_results_are_refused_with_a_way_on(
    bench: Bench, tmp_path: Path, change: str
) -> None:
    value = to_json(bench)
    if change == "missing":
        del value["profile"]
    elif change == "unknown":
        value["invented"] = 1
    else:
        value["complete"] = "yes"
    with pytest.raises(InputError, match="an incompatible version of hasten") as caught:
        stored.read(write(tmp_path, value))
    assert len(caught.value.message) < 500
    assert "Repeat the `hasten bench` command" in str(caught.value.fix)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / stored.BENCH).write_text('{"model": ')
    with pytest.raises(InputError, match="is damaged"):
        stored.read(tmp_path)


def test_folders_without_results_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        stored.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="it is not a bundle and has no bench"):
        stored.read(tmp_path)
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="an interrupted run without a result") as caught:
        stored.read(tmp_path)
    assert "continues" in str(caught.value.fix)
