"""``hasten.tune(student, reference=original)``: real folders, and a student that compress made."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hasten
from hasten import api
from hasten.compress import distil
from hasten.errors import ChoiceError, InputError, ModelError, ResumeError
from hasten.inputs import corpus
from hasten.models import prepare
from hasten.records import Briefing, Progress, Settings
from hasten.tuning import study
from hasten.tuning.study import ModelSource, Study
from hasten.tuning.texts import Texts, choose_texts
from tests.tiny import save_tiny, tiny_texts

TEXTS = tiny_texts(400)
QUICK: dict[str, Any] = {
    "engines": ["onnx_runtime"],
    "precisions": ["fp32"],
    "batch_sizes": [1, 8],
    "rounds": 5,
    "threads": 1,
    "budget": 120,
    "max_texts": 60,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same kind, as good as any student for what is checked beforehand."""
    return save_tiny(tmp_path_factory.mktemp("other") / "model", seed=1)


def logits(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = model(**batch).logits.numpy()
    return found


def test_a_student_is_judged_by_the_answers_of_its_original(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "time_steps", lambda lesson, count: 1.0)
    student = tmp_path / "student"
    api.compress(original, TEXTS, output=student, layers=1, budget=70.0)
    events: list[Any] = []
    tuning = hasten.tune(
        student,
        texts=TEXTS,
        reference=original,
        output=tmp_path / "bundle",
        max_flips=1.0,
        on_event=events.append,
        **QUICK,
    )
    assert tuning.student is not None
    assert tuning.student.parameter_count < tuning.model.parameter_count
    assert next(e for e in events if isinstance(e, Briefing)).student == tuning.student
    rows = {row.candidate.variant: row for row in tuning.rows if row.runs}
    assert rows.keys() == {"fp32", "student fp32"}
    # Eight in ten made the student: what they say about it is not a proof.
    made = prepare(student, tmp_path / "reference").taught()
    assert tuning.taught_texts == sum(corpus.digest(text) in made for text in TEXTS) > 300
    assert tuning.judged_texts == min(60, len(TEXTS) - tuning.taught_texts)
    # The same count, by transformers alone: what differs between the two folders' answers.
    judged = list(dict.fromkeys(TEXTS))  # those that did not train it are among them
    answers = [logits(folder, judged).argmax(1) for folder in (original, student)]
    exact, lossy = rows["fp32"].parity, rows["student fp32"].parity
    assert exact is not None
    assert lossy is not None
    assert exact.flips == 0
    assert 0 < lossy.flips <= (answers[0] != answers[1]).sum()
    kept = {flip.text for flip in lossy.examples}
    assert kept <= {text for text, a, b in zip(judged, *answers, strict=True) if a != b}
    # Whichever of the two is the faster today, the bundle answers as that one.
    winner = {"original": original, "student": student}[tuning.plan.candidate.model]
    with hasten.load(tmp_path / "bundle") as classify:
        np.testing.assert_allclose(
            classify.outputs(TEXTS[:20]).values, logits(winner, TEXTS[:20]), atol=1e-3
        )
    told = (tmp_path / "bundle" / "report.md").read_text()
    assert "Original: model, BertForSequenceClassification" in told
    assert "Student: student, BertForSequenceClassification" in told
    assert "student ONNX Runtime fp32 1x1" in told


def test_words_that_a_student_lacks_are_its_own_loss(original: Path, tmp_path: Path) -> None:
    """compress --embeddings, then tune --reference with texts of other words."""
    few = [" ".join(word for word in text.split() if word[0] != "p") for text in TEXTS]
    made = api.compress(original, few, output=tmp_path / "student", embeddings=True, budget=60.0)
    assert made.vocabulary < made.of_vocabulary
    assert made.after.flips == 0
    new = [f"{text} {word}" for text in tiny_texts(60, seed=9) for word in ("pob", "bab")]
    tuning = hasten.tune(
        tmp_path / "student",
        texts=new,
        reference=original,
        output=tmp_path / "bundle",
        max_flips=1.0,
        **{**QUICK, "max_texts": 120},
    )
    (row,) = (row for row in tuning.rows if row.runs and row.candidate.model == "student")
    answers = [logits(folder, new).argmax(1) for folder in (original, tmp_path / "student")]
    changed = {text for text, a, b in zip(new, *answers, strict=True) if a != b}
    assert row.parity is not None
    assert row.parity.compared == len(set(new))
    assert row.parity.flips == len(changed) > 0


def opened(original: Path, student: Path | str, work: Path) -> Any:
    asked = Study(
        ModelSource(student),
        TEXTS,
        None,
        Settings(texts=60, calibration=40),
        study.ignore_event,
        reference=ModelSource(original),
    )
    return asked.open(work, {}, 60.0)


def test_the_texts_that_made_a_student_calibrate_and_do_not_judge(
    original: Path, other: Path, tmp_path: Path
) -> None:
    student = shutil.copytree(other, tmp_path / "student")
    made = {"texts": [corpus.digest(text) for text in TEXTS[:300]]}
    (student / corpus.TAUGHT).write_text(json.dumps(made))
    context = opened(original, student, tmp_path / "work")
    assert context.taught_texts >= 300  # copies included
    assert set(context.texts) <= set(TEXTS[300:])
    assert len(context.texts) == 60
    stored = json.loads((context.reference / "calibration.json").read_text())["texts"]
    assert len(stored) == 40
    assert set(stored) <= set(TEXTS[:300])
    made["texts"] = [corpus.digest(text) for text in TEXTS]
    (student / corpus.TAUGHT).write_text(json.dumps(made))
    with pytest.raises(InputError, match="so none of them can judge it"):
        opened(original, student, tmp_path / "all")
    (student / corpus.TAUGHT).write_text("{")
    with pytest.raises(ModelError, match=r"taught.json of student is damaged"):
        opened(original, student, tmp_path / "damaged")
    # Against its own answers they judge as well as others: nothing was trained from those.
    (student / corpus.TAUGHT).write_text(json.dumps(made))
    alone = Study(ModelSource(student), TEXTS, None, Settings(texts=400), study.ignore_event)
    assert alone.open(tmp_path / "alone", {}, 60.0).taught_texts == 0


def test_the_texts_that_made_a_student_of_the_hub_do_not_judge_it_either(
    original: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = shutil.copytree(other, tmp_path / "student")
    made = {"texts": [corpus.digest(text) for text in TEXTS[:300]]}
    (student / corpus.TAUGHT).write_text(json.dumps(made))
    cache = tmp_path / "cache"

    def download(name: str, allow_patterns: list[str]) -> str:
        cache.mkdir()
        for path in student.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    context = opened(original, "org/student", tmp_path / "work")
    assert context.student.info.name == "org/student"
    assert context.taught_texts >= 300
    assert set(context.texts) <= set(TEXTS[300:])


@pytest.mark.parametrize(("overlap", "free"), [(5, 85), (40, 50), (100, 0)])
def test_texts_that_made_a_student_do_not_keep_others_from_calibrating(
    original: Path, tmp_path: Path, overlap: int, free: int
) -> None:
    reference = prepare(original, tmp_path / "reference")
    texts = list(dict.fromkeys(tiny_texts(400, seed=5)))[:300]
    made = texts[::3][:overlap]
    chosen = choose_texts(reference, texts, None, Settings(), frozenset(map(corpus.digest, made)))
    # Three in ten are held apart, beginning with those that judge nothing anyway.
    assert set(made) <= set(chosen.calibration)
    assert len(chosen.calibration) == len(set(chosen.calibration)) == overlap + free
    assert list(chosen.calibration) == [text for text in texts if text in set(chosen.calibration)]
    assert set(chosen.texts) == set(texts) - set(made) - set(chosen.calibration)
    np.testing.assert_array_equal(
        chosen.calibration_lengths, reference.tokenizer().encode(chosen.calibration).lengths
    )
    fewer = choose_texts(
        reference, texts, None, Settings(calibration=40), frozenset(map(corpus.digest, made))
    )
    assert len(fewer.calibration) == 40
    assert len(set(fewer.calibration) & set(made)) == min(overlap, 40)


def test_texts_that_made_a_student_leave_copies_and_few_others_to_judge(
    original: Path, tmp_path: Path
) -> None:
    reference = prepare(original, tmp_path / "reference")
    texts = list(dict.fromkeys(tiny_texts(400, seed=5)))

    def chosen(given: list[str], made: list[str], **settings: Any) -> Texts:
        seen = frozenset(map(corpus.digest, made))
        return choose_texts(reference, given, None, Settings(**settings), seen)

    # Of the file that made it: what is left judges, however many might calibrate.
    whole = chosen(texts[:200], texts[:160])
    assert set(whole.calibration) == set(texts[:160])
    assert set(whole.texts) == set(texts[160:200])
    assert set(chosen(texts[:200], texts[:195]).texts) == set(texts[195:200])
    # Too few for any ranges, all together.
    assert chosen(texts[:100], texts[:5]).calibration == ()
    assert len(chosen(texts[:100], texts[:5]).texts) == 95
    # A copy of what calibrates judges no more than what calibrates itself.
    twice = chosen(texts[:200] * 2, texts[:20])
    assert len(twice.calibration) == 60
    assert not set(twice.calibration) & set(twice.texts)
    assert (twice.taught, len(twice.texts)) == (40, 2 * (180 - 40))
    for settings in ({"precisions": ("fp32",)}, {"calibration": 0}):
        none = chosen(texts[:200], texts[:40], **settings)
        assert none.calibration == ()
        assert set(none.texts) == set(texts[40:200])


def test_calibration_texts_reach_both_models(original: Path, other: Path, tmp_path: Path) -> None:
    context = opened(original, other, tmp_path)
    stored = [
        json.loads((folder / "calibration.json").read_text())["texts"]
        for folder in (context.reference, context.student.reference)
    ]
    assert stored[0] == stored[1]
    assert len(stored[0]) == len(context.calibration_lengths) == 40


def test_results_beside_another_original_are_not_continued(
    original: Path, other: Path, tmp_path: Path
) -> None:
    third = save_tiny(tmp_path / "third", seed=2)
    context = opened(original, other, tmp_path / "work")
    context.journal.once("start:original", lambda: 1.0)  # without a result, nothing is refused
    opened(original, other, tmp_path / "work")
    with pytest.raises(ResumeError, match="another reference"):
        opened(third, other, tmp_path / "work")
    with pytest.raises(ResumeError, match="another model"):
        opened(original, third, tmp_path / "work")


def assert_refused(
    student: Path, original: Path, output: Path, kind: type[Exception], told: str
) -> None:
    events: list[Any] = []
    with pytest.raises(kind, match=told):
        hasten.tune(
            student, texts=TEXTS, reference=original, output=output, on_event=events.append, **QUICK
        )
    assert not any(isinstance(event, Progress) for event in events)
    assert not output.exists()


def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    original: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(original, tmp_path / "copy")
    assert_refused(copy, original, tmp_path / "bundle", ChoiceError, "the very model that is tuned")
    two = save_tiny(tmp_path / "two", labels=2)
    assert_refused(two, original, tmp_path / "bundle", ModelError, "gives 3 numbers a text")
    several = save_tiny(tmp_path / "several", problem_type="multi_label_classification")
    assert_refused(several, original, tmp_path / "bundle", ModelError, "of the same task")
    config = json.loads((copy / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1", "2": "other"}
    (copy / "config.json").write_text(json.dumps(config))
    assert_refused(copy, original, tmp_path / "bundle", ModelError, "output 2 is 'LABEL_2' in")


def test_random_weights_answer_nothing_to_compare(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="compares answers"):
        hasten.tune(
            original,
            texts=TEXTS,
            reference=original,
            random_weights=True,
            output=tmp_path / "bundle",
            **QUICK,
        )
