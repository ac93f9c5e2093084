"""Labels of tokens: as the pipeline of transformers answers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import tasks
from hasten.errors import ChoiceError, ModelError
from hasten.inputs.tokenization import Batch
from hasten.judging.parity import compare
from hasten.tasks import Outputs
from tests.families import save_family
from tests.tasks.originals import Original
from tests.tiny import save_tiny, save_tiny_tokenizer, tiny_model, tiny_texts

LABELS = ("O", "B-PER", "I-PER", "I-MY-LOC", "MISC")
STRATEGIES = ("none", "simple", "first", "average", "max")
TEXTS = [
    *tiny_texts(12, seed=4),
    "",
    " ",
    "Bab \U0001f600 ke\u200dba k\u00e9babs, Lib-mob!",
    "\u05e9\u05dc\u05d5\u05dd bab \u0645\u0631\u062d\u0628\u0627 keb",
    "bab\x00\x07keb\tlib\r\nmob",
    "babkeblib mobnub",
]
LONG = "bab " * 10_000


def save_tagger(folder: Path, family: str = "bert") -> Path:
    """A tiny model with a label for each token."""
    import torch
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    config = tiny_model(family).config
    config.architectures = None
    config.id2label, config.label2id = dict(enumerate(LABELS)), {n: i for i, n in enumerate(LABELS)}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model: Any = AutoModelForTokenClassification.from_config(config)
        torch.nn.init.normal_(model.classifier.weight, std=1.0)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    return save_tiny_tokenizer(folder, family)


def pipeline_of(folder: Path) -> Any:
    from transformers import pipeline

    return pipeline("token-classification", model=str(folder), device="cpu")


def assert_same(answers: list[Any], expected: list[Any]) -> None:
    assert len(answers) == len(expected)
    for ours, theirs in zip(answers, expected, strict=True):
        rest = [[{k: v for k, v in e.items() if k != "score"} for e in es] for es in (ours, theirs)]
        assert rest[0] == rest[1]
        assert [e["score"] for e in ours] == pytest.approx([e["score"] for e in theirs], abs=1e-5)


def expected_of(run: Any, texts: list[str], **options: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        return [run(text, **options) for text in texts]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_answers_are_those_of_the_pipeline(family: str, tmp_path: Path) -> None:
    save_tagger(tmp_path / "model", family)
    original = Original(tmp_path / "model", tmp_path / "reference")
    assert original.info.task == "token_classification"
    run = pipeline_of(tmp_path / "model")
    texts = [*TEXTS, LONG]
    outputs, encoded = original.outputs(texts)
    for strategy in STRATEGIES:
        task, _ = tasks.adjusted(original.task, {"aggregation_strategy": strategy})
        answers = task.answers(outputs, original.info.labels, encoded)
        assert sum(map(len, answers)) > 20
        assert_same(answers, expected_of(run, texts, aggregation_strategy=strategy))
    every, _ = tasks.adjusted(original.task, {"ignore_labels": []})
    answers = every.answers(outputs, original.info.labels, encoded)
    assert_same(answers, expected_of(run, texts, ignore_labels=[]))


@pytest.mark.parametrize("name", ["roberta", "camembert", "deberta-v2"])
def test_tokenizers_without_marks_inside_words_group_as_the_pipeline_does(
    name: str, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification

    save_family(name, tmp_path / "model")
    config: Any = AutoConfig.from_pretrained(tmp_path / "model")
    config.architectures = None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        model: Any = AutoModelForTokenClassification.from_config(config)
        torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(tmp_path / "model")
    original = Original(tmp_path / "model", tmp_path / "reference")
    run = pipeline_of(tmp_path / "model")
    outputs, encoded = original.outputs(TEXTS)
    for strategy in STRATEGIES:
        settings = {"aggregation_strategy": strategy, "ignore_labels": ["LABEL_0"]}
        task, _ = tasks.adjusted(original.task, settings)
        answers = task.answers(outputs, original.info.labels, encoded)
        assert_same(answers, expected_of(run, TEXTS, **settings))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_long_texts_are_read_to_their_end_in_strides(family: str, tmp_path: Path) -> None:
    original = Original(save_tagger(tmp_path / "model", family), tmp_path / "reference")
    run = pipeline_of(tmp_path / "model")
    texts = [*TEXTS, " ".join(tiny_texts(80, seed=6)), LONG[:2000]]
    for strategy in STRATEGIES[1:]:
        how = {"stride": 20, "aggregation_strategy": strategy}
        assert_same(original.answers(texts, **how), expected_of(run, texts, **how))
    answers = original.answers([LONG, LONG[:8]], stride=20, ignore_labels=[])
    assert [len(each) for each in answers] == [10_000, 2]
    assert answers[0][-1]["end"] == len(LONG) - 1


def test_a_head_without_tags_is_refused_and_so_are_tags_for_another_task(tmp_path: Path) -> None:
    save_tiny(tmp_path / "classifier")
    with pytest.raises(ModelError, match=r"\[2, 3\]; one that tags tokens[^\n]*\n.*Leave --task"):
        Original(tmp_path / "classifier", tmp_path / "one", "token_classification")
    save_tagger(tmp_path / "tagger")
    with pytest.raises(ModelError, match="--task token_classification"):
        Original(tmp_path / "tagger", tmp_path / "two", "single_label")


def test_the_report_compares_entities() -> None:
    task = tasks.get("token_classification")
    tags = [[1, 2, 0], [3, 3], []]
    original = _outputs(tags)
    moved = _outputs([[1, 0, 0], [3, 3], []])
    parity = compare(original, moved, task=task, labels=LABELS, texts=["a", "b", "c"])
    assert parity.flips == 1
    assert parity.examples[0].reference_answer == "PER (1-2)"
    assert parity.examples[0].candidate_answer == "PER (token 1)"
    assert parity.agreement == {
        "entity F1": pytest.approx(0.5),
        "tokens with the same label": pytest.approx(0.8),
    }
    assert task.sureness(original).tolist() == [4.0, 4.0, np.inf]
    assert task.margins(original, moved).tolist() == [4.0, 0.0, 0.0]
    assert task.describe(original[2], LABELS) == "no entity"
    nothing = _outputs([[], []])
    assert set(task.agreement(nothing, nothing, ["a", "b"], LABELS).values()) == {1.0}


def _outputs(tags: list[list[int]]) -> Outputs:
    rows = np.eye(len(LABELS), dtype=np.float32)[[tag for each in tags for tag in each]] * 4
    return Outputs.of_counts(rows, [len(each) for each in tags])


def test_one_label_is_no_choice() -> None:
    raw = {"logits": np.zeros((1, 3, 1), np.float32)}
    batch: Any = Batch.__new__(Batch)
    with pytest.raises(ModelError, match="2 labels or more"):
        tasks.get("token_classification").gather(raw, batch)


def test_entities_go_from_tune_to_report(tmp_path: Path) -> None:
    folder = save_tagger(tmp_path / "model")
    bundle = tmp_path / "bundle"
    texts = tiny_texts(48)
    tuning = hasten.tune(
        folder,
        texts=texts,
        output=bundle,
        engines=["onnx_runtime"],
        precisions=["fp32"],
        batch_sizes=[1, 8],
        rounds=5,
        threads=1,
        budget=60,
    )
    assert tuning.model.task == "token_classification"
    parity = tuning.chosen.parity
    assert parity is not None
    assert parity.flips == 0
    assert set(parity.agreement.values()) == {1.0}
    assert "entity F1 1" in (bundle / "report.md").read_text(encoding="utf-8")
    run = pipeline_of(folder)
    with hasten.load(bundle) as tag:
        assert_same(tag(TEXTS), expected_of(run, TEXTS))
        simple = tag(TEXTS, aggregation_strategy="simple")
        assert_same(simple, expected_of(run, TEXTS, aggregation_strategy="simple"))
        assert_same([tag(TEXTS[0])], expected_of(run, TEXTS[:1]))
        with pytest.raises(ChoiceError, match="expected one of"):
            tag(TEXTS, aggregation_strategy="most")
        with pytest.raises(ChoiceError, match="has no top_k"):
            tag(TEXTS, top_k=2)
        with pytest.raises(ChoiceError, match="can be at most 125"):
            tag([LONG], stride=126)
    given, made = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    hasten.predict_file(bundle, given, made)
    lines = made.read_text(encoding="utf-8").splitlines()
    assert_same([json.loads(line)["entities"] for line in lines], simple)
