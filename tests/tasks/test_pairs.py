"""Pairs of texts: as the pipeline of transformers and CrossEncoder answer them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import tasks
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.inputs import corpus
from hasten.tasks._ranking import ranking_agreement
from tests.tasks.originals import Original
from tests.tiny import save_tiny, tiny_texts

TEXTS = tiny_texts(24)
ODD = ["", "\U0001f600 ba\u200dke", "\u05e9\u05dc\u05d5\u05dd ba", "ba\x00\x07\nke", "ba " * 3000]
PAIRS = list(zip([*TEXTS, *ODD], [*ODD, *reversed(TEXTS)], strict=True))
FULL = [pair for pair in PAIRS if pair[1]]  # the pipeline takes ("text", "") for "text" alone


def pipeline_answers(folder: Path, pairs: list[tuple[str, str]], **options: Any) -> Any:
    from transformers import pipeline

    run: Any = pipeline("text-classification", model=str(folder), device="cpu")
    given = [{"text": one, "text_pair": other} for one, other in pairs]
    return run(given, truncation=True, batch_size=1, **options)


def assert_same(answers: list[Any], expected: list[Any]) -> None:
    assert len(answers) == len(expected)
    for ours, theirs in zip(answers, expected, strict=True):
        many = ours if isinstance(ours, list) else [ours]
        others = theirs if isinstance(theirs, list) else [theirs]
        assert [one["label"] for one in many] == [one["label"] for one in others]
        assert [o["score"] for o in many] == pytest.approx([o["score"] for o in others], abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("task", "labels"), [("pair_classification", 3), ("reranking", 1)], ids=["nli", "reranking"]
)
def test_answers_are_those_of_the_pipeline(
    family: str, task: str, labels: int, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "model", family, labels=labels)
    original = Original(tmp_path / "model", tmp_path / "reference", task)
    assert_same(original.answers(FULL), pipeline_answers(tmp_path / "model", FULL))
    every = original.answers(FULL[:8], top_k=None, bare=False)
    assert_same(every, pipeline_answers(tmp_path / "model", FULL[:8], top_k=None))


@pytest.fixture
def cross_encoder(tmp_path: Path) -> Any:
    """Makes the folder of a cross-encoder whose config names this activation."""

    def make(activation: str, labels: int = 1, **settings: Any) -> Path:
        folder = save_tiny(tmp_path / "model", labels=labels)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["sentence_transformers"] = {"activation_fn": activation, "version": "6.2.0"}
        (folder / "config.json").write_text(json.dumps({**config, **settings}), encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize("name", ["Sigmoid", "Identity"])
def test_scores_are_those_of_a_cross_encoder(cross_encoder: Any, tmp_path: Path, name: str) -> None:
    kind = {"Sigmoid": "torch.nn.modules.activation.Sigmoid"}.get(name)
    folder = cross_encoder(kind or "torch.nn.modules.linear.Identity")
    original = Original(folder, tmp_path / "reference")
    assert original.info.task == "reranking"
    scores = original.table(PAIRS)["score"].to_numpy()
    sentence_transformers = pytest.importorskip("sentence_transformers")
    other: Any = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(scores, other.predict(PAIRS, batch_size=1), atol=1e-5)


def test_a_cross_encoder_with_several_labels_chooses_one(
    cross_encoder: Any, tmp_path: Path
) -> None:
    original = Original(cross_encoder("torch.nn.Identity", labels=3), tmp_path / "reference")
    assert original.info.task == "pair_classification"


def test_an_unknown_activation_is_named(cross_encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"scores pairs with mine\.Evil\n.*Sigmoid and Identity"):
        Original(cross_encoder("mine.Evil"), tmp_path / "reference")


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"sbert_ce_default_activation_function": "torch.nn.Identity"}, "none"),
        ({"sentence_transformers": {"version": "5"}}, "sigmoid"),
    ],
)
def test_the_config_chooses_the_score(config: dict[str, Any], activation: str) -> None:
    task: Any = tasks.named("reranking", config)
    assert task.activation == activation


def test_the_head_must_have_what_the_task_needs(tmp_path: Path) -> None:
    save_tiny(tmp_path / "three", labels=3)
    with pytest.raises(ModelError, match=r"gives 3\n.*--task pair_classification"):
        Original(tmp_path / "three", tmp_path / "one", "reranking")
    save_tiny(tmp_path / "single", labels=1)
    with pytest.raises(ModelError, match=r"one number a pair\n.*--task reranking"):
        Original(tmp_path / "single", tmp_path / "two", "pair_classification")


def test_pairs_for_a_classifier_of_texts_are_told_which_tasks_read_pairs(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    with pytest.raises(InputError, match="question_answering or reranking"):
        hasten.tune(tmp_path / "model", texts=PAIRS, output=tmp_path / "bundle")


def test_rankings_are_compared_query_by_query() -> None:
    queries = ["a"] * 12 + ["b"] * 2 + ["c"]
    ours = np.arange(15, dtype=np.float32)
    same = ranking_agreement(ours, ours * 2, queries)
    assert same == {
        "queries": 2.0,
        "Kendall's tau": 1.0,
        "same first": 1.0,
        "of the first 10 kept": 1.0,
    }
    theirs = ours.copy()
    theirs[[12, 13]] = theirs[[13, 12]]
    theirs[[0, 11]] = theirs[[11, 0]]
    moved = ranking_agreement(ours, theirs, queries)
    assert moved["same first"] == 0.0
    assert moved["of the first 10 kept"] == pytest.approx(0.9)
    assert moved["Kendall's tau"] == pytest.approx(((66 - 2 * 21) / 66 - 1) / 2)
    assert ranking_agreement(ours, ours, [str(n) for n in range(15)]) == {}
    tied = np.zeros(2, np.float32)
    assert ranking_agreement(tied, tied, ["a", "a"])["Kendall's tau"] == 1.0
    assert ranking_agreement(tied, ours[:2], ["a", "a"])["Kendall's tau"] == 0.0


def test_a_reranker_goes_from_tune_to_report(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", labels=1)
    queries = [TEXTS[place // 6] for place in range(48)]
    rows = [{"query": q, "text": t} for q, t in zip(queries, tiny_texts(48, seed=5), strict=True)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bundle = tmp_path / "bundle"
    tuning = hasten.tune(
        folder,
        texts=corpus.read(data, text_column="query,text").texts,
        task="reranking",
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
    assert parity.agreement["Kendall's tau"] == pytest.approx(1.0, abs=0.02)
    assert "Kendall's tau" in (bundle / "report.md").read_text(encoding="utf-8")
    pairs = [(row["query"], row["text"]) for row in rows]
    with hasten.load(bundle) as score:
        answers = score(pairs)
        assert score({"text": pairs[0][0], "text_pair": pairs[0][1]}) == answers[0]
        for half in ({"text": "ba"}, {"text": "ba", "text_pair": None}, ("ba",)):
            with pytest.raises(InputError, match="not a pair of str"):
                score(half)
    assert_same(answers, pipeline_answers(folder, pairs))
    made = tmp_path / "out.jsonl"
    hasten.predict_file(bundle, data, made, text_column="query,text")
    found = [json.loads(line)["score"] for line in made.read_text(encoding="utf-8").splitlines()]
    assert found == pytest.approx([answer["score"] for answer in answers], abs=1e-5)
    with pytest.raises(ChoiceError, match="reads pairs"):
        hasten.predict_file(bundle, data, tmp_path / "no.jsonl", text_column="query")
