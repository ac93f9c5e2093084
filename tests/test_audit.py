"""``hasten.audit``: a bundle's answers to new texts, against the original's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from typer.testing import CliRunner, Result

import hasten
from hasten import audits, cli, hardware
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.models import ModelFolder
from hasten.records import Audit, HandsOn, Tuning
from hasten.runtime import bundle
from hasten.tasks import Outputs
from hasten.tuning.study import ModelSource
from tests.scripted import Lab, earlier_stage, save_bundle, save_cascade
from tests.tiny import save_tiny, tiny_texts

Cascades = Callable[[Path, float], Path]

TEXTS = [f"{text} {number}" for number, text in enumerate(tiny_texts(700, seed=9))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    made.hardware = hardware.detect()
    return made


@pytest.fixture(scope="module")
def tuning(lab: Lab) -> Tuning:
    return replace(lab.tune(), original=str(lab.reference.folder))


@pytest.fixture(scope="module")
def exact(lab: Lab, tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("exact") / "bundle", lab, tuning)


@pytest.fixture(autouse=True)
def asked_for(tmp_path: Path, exact: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The original is the exact bundle's model; returns the names by which it was asked for."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    named: list[str | None] = []

    def truth(source: Any, _: bundle.Bundle, texts: Sequence[str]) -> Outputs:
        named.append(source.named)
        with hasten.load(exact) as original:
            return original.outputs(texts)

    monkeypatch.setattr(audits, "_truth", truth)
    return named


@pytest.fixture(scope="module")
def cascades(lab: Lab, tuning: Tuning) -> Cascades:
    """Makes a cascade whose first stage is wrong only where it is less sure than 0.15."""

    def make(folder: Path, below: float) -> Path:
        first = earlier_stage(folder / "1", lab, tuning, HandsOn(below), shift=0.15)
        return save_cascade(folder / "bundle", lab, tuning, first)

    return make


def test_an_exact_bundle_holds_on_any_texts(
    exact: Path, tuning: Tuning, asked_for: list[str | None]
) -> None:
    found = hasten.audit(exact, TEXTS, size=50)
    assert (found.verdict, found.max_flips) == ("holds", 0.0)
    assert (found.parity.compared, found.given) == (50, len(set(TEXTS)))
    assert asked_for == [found.original] == [tuning.original]


def test_a_sample_is_drawn_anew_with_each_seed(exact: Path) -> None:
    drawn = [audits._drawn(TEXTS, 50, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[2])) == 50
    assert audits._drawn(TEXTS[:3], 50, 0) == TEXTS[:3]
    with pytest.raises(InputError, match="texts is empty"):
        hasten.audit(exact, [])


def test_a_cascade_is_judged_by_the_bounds(tmp_path: Path, cascades: Cascades) -> None:
    careful = cascades(tmp_path / "careful", 0.16)
    found = hasten.audit(careful, TEXTS, size=600)
    assert (found.verdict, found.max_flips) == ("holds", 0.01)
    assert found.parity.flips == 0
    assert sum(found.stages.answered) == 600
    assert found.stages.answered[1] > 0
    assert hasten.audit(careful, TEXTS, size=200).verdict == "undecided"
    bold = cascades(tmp_path / "bold", 0.0)
    found = hasten.audit(bold, TEXTS, size=600)
    assert found.verdict == "broken"
    assert found.flip_lower_bound > 0.01


def test_the_original_must_be_found(tmp_path: Path, lab: Lab, tuning: Tuning) -> None:
    nameless = save_bundle(tmp_path / "nameless", lab, replace(tuning, original=None))
    with pytest.raises(ChoiceError, match="does not say where its original, scripted, is"):
        hasten.audit(nameless, TEXTS)
    gone = save_bundle(tmp_path / "gone", lab, replace(tuning, original=str(tmp_path / "away")))
    with pytest.raises(ModelError, match="no longer exists") as caught:
        hasten.audit(gone, TEXTS)
    assert "--model" in str(caught.value.fix)
    assert hasten.audit(gone, TEXTS, model=lab.reference.folder, size=30).verdict == "holds"


def test_another_model_is_refused(lab: Lab, exact: Path) -> None:
    other = ModelFolder(
        lab.reference.folder, replace(lab.reference.info, labels=("no", "yes")), "huggingface"
    )
    with pytest.raises(ModelError, match="only one of them knows maybe"):
        audits._require_original(other, bundle.load(exact))


def test_the_original_runs_in_pytorch(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    folder = save_tiny(tmp_path / "tiny", "bert")
    source = ModelSource(folder)
    info = source.prepare(tmp_path / "prepared", 0).info
    outputs = audits._truth(source, replace_model(lab, info), TEXTS[:9])
    assert outputs.values.shape == (9, len(info.labels))
    assert outputs.finite.all()


def replace_model(lab: Lab, info: Any) -> Any:
    class Made:
        model, folder = info, lab.folder

    return Made()


class TestTheCommand:
    @pytest.mark.parametrize(
        ("below", "size", "told"),
        [
            (0.16, 600, (0, "at most 1 % of flipped labels holds")),
            (0.0, 600, (1, "does not hold")),
            (0.16, 100, (3, "is undecided")),
        ],
    )
    def test_its_exit_status_is_the_verdict(
        self, tmp_path: Path, cascades: Cascades, below: float, size: int, told: tuple[int, str]
    ) -> None:
        status, said = told
        folder = cascades(tmp_path, below)
        done = self.run(folder, tmp_path, "--size", str(size))
        assert done.exit_code == status
        assert said in done.stdout
        assert "Answered by stage" in done.stdout

    def test_json_has_the_whole_record(self, tmp_path: Path, exact: Path) -> None:
        done = self.run(exact, tmp_path, "--size", "40", "--json")
        assert done.exit_code == 0
        told = json.loads(done.stdout)
        assert told["verdict"] == "holds"
        assert told["parity"]["compared"] == 40
        assert set(told) == set(Audit.__dataclass_fields__)

    def test_a_mistake_has_a_status_of_its_own(self, tmp_path: Path) -> None:
        done = self.run(tmp_path / "nothing", tmp_path)
        assert done.exit_code == 2
        assert "is not a bundle" in done.stderr

    def run(self, folder: Path, work: Path, *more: str) -> Result:
        texts = work / "texts.txt"
        texts.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        return CliRunner().invoke(cli.app, ["audit", str(folder), str(texts), *more])
