"""Bundles that earlier versions wrote still load, and give the answers that they gave then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import platformdirs
import pytest

import hasten
from hasten.records import Stats
from hasten.runtime import bundle, manifest

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = {"format1": 1, "format2": 2}


@pytest.mark.filterwarnings("ignore::UserWarning")  # they come from another machine
@pytest.mark.parametrize("name", FORMATS)
def test_a_golden_bundle_gives_the_stored_answers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path)
    stored = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert json.loads((GOLDEN / name / "hasten.json").read_text())["format"] == FORMATS[name]
    with hasten.load(GOLDEN / name) as predictor:
        outputs = predictor.outputs(stored["texts"]).values
        assert predictor.stats == Stats(tuple(stored.get("by_stage", [len(stored["texts"])])))
    np.testing.assert_allclose(outputs, stored["outputs"], atol=1e-3)
    assert list(tmp_path.rglob("checked/*"))  # the probes were answered


@pytest.mark.parametrize("name", FORMATS)
def test_a_golden_bundle_still_has_its_report(name: str) -> None:
    tuning = bundle.read_tuning(GOLDEN / name)
    assert tuning.chosen.candidate == bundle.load(GOLDEN / name).stages[-1].plan.candidate


def test_the_golden_bundle_is_of_the_format_that_is_written() -> None:
    assert max(FORMATS.values()) == manifest.FORMAT
