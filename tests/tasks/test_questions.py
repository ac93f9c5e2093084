"""Answers cut out of a text: as the question-answering pipeline of transformers 4 finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import hasten
from hasten import tasks
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.judging.parity import compare
from hasten.serve.app import create
from hasten.serve.service import Service
from hasten.tasks import Outputs
from tests.golden.questions import FAMILIES, GOLDEN
from tests.tasks.originals import Original
from tests.tasks.readers import LONG, OPTIONS, QUESTIONS, save_headed
from tests.tiny import save_tiny, tiny_texts

EXPECTED: dict[str, list[Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("readers")
    return {f: save_headed(root / f, "QuestionAnswering", f) for f in FAMILIES}


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            continue
        many = ours if isinstance(ours, list) else [ours]
        others = theirs if isinstance(theirs, list) else [theirs]
        # What has no likelihood at all, the pipeline fills up with in no order.
        others = [each for each in others if each["score"] or len(others) == 1]
        rest = [[{k: v for k, v in e.items() if k != "score"} for e in es] for es in (many, others)]
        assert rest[0] == rest[1]
        assert [e["score"] for e in many] == pytest.approx([e["score"] for e in others], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_pipeline(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    original = Original(folders[family], tmp_path / "reference")
    assert original.info.task == "question_answering"
    for options, expected in zip(OPTIONS, EXPECTED[family], strict=True):
        assert_same(original.answers(QUESTIONS, **options), expected)


def test_a_context_of_10_000_tokens_is_read_to_its_end(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    original = Original(folders["bert"], tmp_path / "reference")
    context = "bab " * 9_000 + LONG
    outputs, encoded = original.outputs([("keb", context), ("keb", "bab")])
    tokens = encoded.tokens
    assert len(tokens) == len(outputs) == 2
    assert tokens.longest.tolist() == [128, 5]
    assert tokens.parts is not None
    assert np.diff(tokens.parts)[0] > 100
    assert tokens.spans is not None
    assert tokens.spans[: tokens.offsets[1], 1].max() == len(context)
    assert not tokens.truncated.any()
    again = encoded.select([1, 0]).tokens
    assert again.lengths.tolist() == tokens.lengths[::-1].tolist()
    assert again.longest.tolist() == [5, 128]


def test_a_question_that_leaves_no_room_is_cut(folders: dict[str, Path], tmp_path: Path) -> None:
    original = Original(folders["bert"], tmp_path / "reference")
    _, encoded = original.outputs([("bab " * 500, LONG), ("bab " * 500, "")])
    assert encoded.tokens.truncated.all()
    assert encoded.tokens.longest.max() <= 128
    with pytest.raises(ChoiceError, match=r"cannot share 126.*\n.*at most 124"):
        original.answers([("bab", LONG)], doc_stride=126)
    with pytest.raises(ChoiceError, match="at least 1"):
        original.answers([("bab", LONG)], max_answer_len=0)


def test_flips_are_changed_answers() -> None:
    task = tasks.get("question_answering")
    original = _outputs([[0, 5, 1, 2], [0, 1, 1, 6]])
    moved = _outputs([[0, 5, 1, 2], [0, 6, 1, 1]])
    parity = compare(original, moved, task=task, labels=(), texts=[("q", "a"), ("q", "b")])
    assert parity.flips == 1
    assert parity.examples[0].reference_answer == "token 3"
    assert parity.examples[0].candidate_answer == "token 1"
    assert parity.agreement == {"exact match": 0.5, "F1": 0.5, "as answerable": 1.0}
    assert task.sureness(original) == pytest.approx([3.0, 5.0])
    assert task.margins(original, moved) == pytest.approx([0.0, 10.0])
    unanswerable = _outputs([[9, 5, 1, 2], [0, 1, 1, 6]])
    assert task.changed(original, unanswerable).tolist() == [True, False]
    assert task.describe(unanswerable[0], ()) == "token 1, or no answer"
    assert task.describe(_outputs([[1]])[0], ()) == "no context"


def test_answers_do_not_reach_into_the_next_window() -> None:
    best = tasks.get("question_answering").decisions(
        Outputs.of_counts(_outputs([[0, 1, 9], [0, 9, 1]]).values, [6])
    )
    assert best[:, 0].nonzero()[0].tolist() == best[:, 1].nonzero()[0].tolist()


def _outputs(logits: list[list[float]]) -> Outputs:
    """Beginnings and ends alike; the first number is that of "no answer"."""
    rows = [(x, x, float(place == 0)) for each in logits for place, x in enumerate(each)]
    return Outputs.of_counts(np.array(rows, np.float32), [len(each) for each in logits])


def test_another_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Original(save_tiny(tmp_path / "model"), tmp_path / "one", "question_answering")


def test_answers_go_from_tune_to_report(folders: dict[str, Path], tmp_path: Path) -> None:
    pairs = list(zip(tiny_texts(40, seed=1), tiny_texts(40, seed=2), strict=True))
    bundle = tmp_path / "bundle"
    tuning = hasten.tune(
        folders["bert"],
        texts=[*pairs, ("bab", LONG)],
        output=bundle,
        engines=["onnx_runtime"],
        precisions=["fp32"],
        batch_sizes=[1, 8],
        rounds=5,
        threads=1,
        budget=60,
    )
    parity = tuning.chosen.parity
    assert parity is not None
    assert parity.flips == 0
    assert set(parity.agreement.values()) == {1.0}
    with hasten.load(bundle) as ask:
        assert_same(ask(QUESTIONS), EXPECTED["bert"][0])
        assert_same(ask(QUESTIONS, top_k=3), EXPECTED["bert"][1])
        question, context = QUESTIONS[-1]
        assert_same([ask(question=question, context=context)], EXPECTED["bert"][0][-1:])
        assert_same(ask(question=question, context=[context]), EXPECTED["bert"][0][-1:])
        assert_same([ask({"question": question, "context": context})], EXPECTED["bert"][0][-1:])
        with pytest.raises(InputError, match="'question' and 'context'"):
            ask({"question": question})
        with pytest.raises(ChoiceError, match="has no function_to_apply"):
            ask(QUESTIONS, function_to_apply="softmax")
    with TestClient(create({"ask": Service.open("ask", bundle)})) as client:
        asked = [{"question": question, "context": context} for question, context in QUESTIONS]
        assert_same(client.post("/", json={"inputs": asked}).json(), EXPECTED["bert"][0])
        one = {"inputs": asked[-1], "parameters": {"top_k": 3}}
        assert_same([client.post("/", json=one).json()], EXPECTED["bert"][1][-1:])
    given, made = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"q": question, "c": context} for question, context in QUESTIONS]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hasten.predict_file(bundle, given, made, text_column="q,c")
    lines = [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
    assert [each["answer"] for each in lines] == [each["answer"] for each in EXPECTED["bert"][0]]
