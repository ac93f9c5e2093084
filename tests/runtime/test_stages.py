"""Several stages answer together: each text by the first one that is sure of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest

import hasten
from hasten import engines, hardware
from hasten.engines.fake import Fake, FakeSession
from hasten.errors import BundleError, EngineError, Unavailable
from hasten.records import HandsOn, Probes, Stats, Tuning
from hasten.runtime.predictor import Predictor
from hasten.runtime.watch import Watch, unlike
from tests.scripted import Lab, earlier_stage, save_bundle, save_cascade
from tests.tiny import tiny_texts

TEXTS = tiny_texts(300, seed=4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    made.hardware = hardware.detect()  # or every load would warn that the machine is another one
    return made


@pytest.fixture(scope="module")
def tuning(lab: Lab) -> Tuning:
    return lab.tune()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)


@pytest.fixture(scope="module")
def right(lab: Lab, tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The original's outputs for ``TEXTS``."""
    folder = tmp_path_factory.mktemp("exact") / "b"
    with hasten.load(save_bundle(folder, lab, tuning)) as predictor:
        return predictor.outputs(TEXTS).values


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[float, list[int]]:
    """How many texts each session ran, batch by batch; sessions by their scripted shift."""
    seen: dict[float, list[int]] = {}
    run = FakeSession.run

    def noted(self: FakeSession, *arrays: Any) -> Any:
        outputs = run(self, *arrays)
        (rows,) = (len(output) for output in outputs.values())
        seen.setdefault(self._script.shift, []).append(rows)
        return outputs

    monkeypatch.setattr(FakeSession, "run", noted)
    return seen


def margins(outputs: np.ndarray) -> np.ndarray:
    ranked = np.sort(outputs, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2])


def shifted(outputs: np.ndarray, by: float) -> np.ndarray:
    return outputs + np.array([by, 0.0, 0.0], np.float32)


def test_a_text_is_answered_by_the_first_stage_that_is_sure(
    tmp_path: Path,
    lab: Lab,
    tuning: Tuning,
    right: np.ndarray,
    sizes: dict[float, list[int]],
) -> None:
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(0.5), shift=0.25)
    second = earlier_stage(tmp_path / "2", lab, tuning, HandsOn(0.2), shift=0.125)
    with hasten.load(save_cascade(tmp_path / "b", lab, tuning, first, second)) as predictor:
        sizes.clear()
        outputs = predictor.outputs(TEXTS).values
    cheap, middle = shifted(right, 0.25), shifted(right, 0.125)
    to_second = margins(cheap) < 0.5
    to_third = to_second & (margins(middle) < 0.2)
    expected = np.where(to_second[:, None], np.where(to_third[:, None], right, middle), cheap)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    counts = (300, int(to_second.sum()), int(to_third.sum()))
    assert 300 > counts[1] > counts[2] > 0
    assert tuple(sum(sizes[shift]) for shift in (0.25, 0.125, 0.0)) == counts
    answered = (300 - counts[1], counts[1] - counts[2], counts[2])
    assert predictor.stats == Stats(answered)
    # Planned again: the deferred texts share batches with each other.
    assert max(sizes[0.125]) > 1


def test_texts_that_a_stage_cuts_have_a_threshold_of_their_own(
    tmp_path: Path, lab: Lab, tuning: Tuning, right: np.ndarray
) -> None:
    rule = HandsOn(0.2, below_cut=1.0)
    first = earlier_stage(tmp_path / "1", lab, tuning, rule, shift=0.25)
    shorter = replace(first.plan.candidate, max_tokens=12)
    first = replace(first, plan=replace(first.plan, candidate=shorter))
    with hasten.load(save_cascade(tmp_path / "b", lab, tuning, first)) as predictor:
        predictor.outputs(TEXTS)
        (read, _) = (stage.encode(TEXTS) for stage in predictor.stages.loaded)
        cheap = predictor.stages.first.run(TEXTS).outputs.values
        stats = predictor.stats
    assert 30 < read.truncated.sum() < 270
    handed = margins(cheap) < np.where(read.truncated, 1.0, 0.2)
    assert handed.sum() not in {(margins(cheap) < below).sum() for below in (0.2, 1.0)}
    assert stats == Stats((300 - int(handed.sum()), int(handed.sum())))


@pytest.mark.parametrize("always", [True, False])
def test_a_stage_that_is_always_or_never_sure(
    tmp_path: Path, lab: Lab, tuning: Tuning, right: np.ndarray, always: bool
) -> None:
    below, later = (-1.0, 0) if always else (1e9, 300)
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(below), shift=0.25)
    with hasten.load(save_cascade(tmp_path / "b", lab, tuning, first)) as predictor:
        outputs = predictor.outputs(TEXTS).values
        assert predictor.stats == Stats((300 - later, later))
        assert predictor.outputs([]).values.shape == (0, 3)
    np.testing.assert_allclose(outputs, right if later else shifted(right, 0.25), atol=1e-6)


def test_what_is_not_a_number_goes_to_the_next_stage(
    tmp_path: Path, lab: Lab, tuning: Tuning, right: np.ndarray
) -> None:
    tokens = lab.reference.tokenizer().encode(TEXTS)
    poison = int(tokens.ids[1])
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(-1.0), nan_on=poison)
    with hasten.load(save_cascade(tmp_path / "b", lab, tuning, first)) as predictor:
        np.testing.assert_allclose(predictor.outputs(TEXTS).values, right, atol=1e-6)
        assert predictor.stats.answered[1] > 0


def test_answers_and_single_texts_come_from_the_cascade(
    tmp_path: Path, lab: Lab, tuning: Tuning, right: np.ndarray
) -> None:
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(1e9), shift=9.0)
    with hasten.load(save_cascade(tmp_path / "b", lab, tuning, first)) as predictor:
        answers = [answer["label"] for answer in predictor(TEXTS[:20])]
        assert answers == [tuning.model.labels[i] for i in right[:20].argmax(axis=1)]
        assert predictor(TEXTS[0])[0]["label"] == answers[0]


def test_stages_with_one_artifact_share_a_session(tmp_path: Path, lab: Lab, tuning: Tuning) -> None:
    artifact = lab.folder / "artifacts" / "fake-fp32-cpu"
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(0.5))
    shared = save_cascade(tmp_path / "b", lab, tuning, replace(first, artifact=artifact))
    with hasten.load(shared) as predictor:
        assert len({id(stage.streams) for stage in predictor.stages.loaded}) == 1
    with hasten.load(save_cascade(tmp_path / "c", lab, tuning, first)) as predictor:
        assert len({id(stage.streams) for stage in predictor.stages.loaded}) == 2


# --- refused before anything is answered -------------------------------------------------------


def test_a_stage_that_cannot_be_loaded_releases_the_others(
    tmp_path: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[float] = []
    monkeypatch.setattr(FakeSession, "close", lambda self: closed.append(self._script.shift))
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(0.5), shift=0.25)
    second = earlier_stage(tmp_path / "2", lab, tuning, HandsOn(0.5), fail="raise", when="load")
    with pytest.raises(EngineError, match="scripted failure at load"):
        hasten.load(save_cascade(tmp_path / "b", lab, tuning, first, second))
    assert closed == [0.25]


def test_an_engine_that_a_later_stage_needs_is_named(
    tmp_path: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(0.5))
    folder = save_cascade(tmp_path / "b", lab, tuning, first)
    missing = Unavailable("Fake needs fakelib, which is not installed", fix="pip install fakelib")
    here = iter([None, missing])

    class Elsewhere(Fake):
        def missing(self) -> Unavailable | None:
            return next(here)

    bundle = hasten.runtime.bundle.load(folder)
    monkeypatch.setattr(engines, "get", lambda name: Elsewhere())
    with pytest.raises(Unavailable, match=r"stage 2 of .* cannot run here: Fake needs fakelib"):
        Predictor(bundle)


def test_every_stage_must_answer_its_probes_as_it_did(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    assert tuning.probes
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(0.5))
    hasten.load(
        save_cascade(tmp_path / "b", lab, tuning, replace(first, probes=tuning.probes))
    ).close()
    others = np.array(tuning.probes.outputs) + np.array([0.5, -0.5, 0.0])
    altered = Probes(tuning.probes.texts, tuple(map(tuple, others.tolist())))
    with pytest.raises(BundleError, match="other answers here"):
        hasten.load(save_cascade(tmp_path / "c", lab, tuning, replace(first, probes=altered)))


# --- watched in use ---------------------------------------------------------------------------


def test_texts_unlike_the_proved_ones_are_noticed_once(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    rule = HandsOn(1e9, handed=60, texts=1000)
    first = earlier_stage(tmp_path / "1", lab, tuning, rule)
    with hasten.load(save_cascade(tmp_path / "b", lab, tuning, first)) as predictor:
        predictor.outputs(TEXTS[:199])
        with pytest.warns(UserWarning, match=r"stage 1 handed on 299 of 299 texts .*6 %"):
            predictor.outputs(TEXTS[:100])
        for _ in range(4):
            predictor.outputs(TEXTS)  # a second warning would be an error
        assert predictor.stats.answered == (0, 299 + 4 * len(TEXTS))


@pytest.mark.parametrize(
    ("handed", "of", "noticed"),
    [(12, 200, False), (30, 200, False), (50, 200, True), (4, 200, False), (0, 200, True)],
)
def test_a_share_is_unlike_where_exact_intervals_have_no_point_in_common(
    handed: int, of: int, noticed: bool
) -> None:
    told = unlike(Stats((of - handed, handed)), [HandsOn(0.5, handed=60, texts=1000), None])
    assert (told is not None) == noticed


def test_nothing_is_compared_with_a_share_that_was_not_counted() -> None:
    assert unlike(Stats((0, 500)), [HandsOn(0.5), None]) is None
    assert Watch([None]).count((500,)) is None
