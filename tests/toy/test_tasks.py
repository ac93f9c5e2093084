"""A task is one file: two toy ones, from tune to report, with real models in real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import tasks
from hasten.errors import ChoiceError, InputError
from hasten.report import stored
from tests.tiny import save_tiny, save_tiny_tokenizer, tiny_model, tiny_texts

TEXTS = tiny_texts(48)
QUICK: dict[str, Any] = {
    "engines": ["onnx_runtime"],
    "precisions": ["fp32"],
    "batch_sizes": [1, 8],
    "rounds": 5,
    "threads": 1,
    "budget": 60,
}


@pytest.fixture(autouse=True, scope="module")
def toy_tasks() -> Any:
    here = str(Path(__file__).with_name("tasks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "__path__", [*tasks.__path__, here])
        yield


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tagger")
    save_tagger(folder / "model")
    tuning = hasten.tune(
        folder / "model", texts=TEXTS, task="toy_tags", output=folder / "bundle", **QUICK
    )
    return folder / "bundle", tuning


def save_tagger(folder: Path) -> Path:
    """A tiny BERT with a tag for each token."""
    import torch
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    config = tiny_model().config
    config.architectures = None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model: Any = AutoModelForTokenClassification.from_config(config)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    return save_tiny_tokenizer(folder)


def test_a_task_of_tokens_is_claimed_and_proved(tagger: Any) -> None:
    folder, tuning = tagger
    parity = tuning.chosen.parity
    assert tuning.model.task == "toy_tags"
    assert parity.compared == len(set(TEXTS))
    assert (parity.flips, parity.non_finite, parity.misaligned) == (0, 0, 0)
    assert stored.read(folder) == tuning
    assert "toy" not in (folder / "report.md").read_text(encoding="utf-8").lower().split("\n")[0]


def test_its_answers_point_into_the_text(tagger: Any) -> None:
    with hasten.load(tagger[0]) as tag:
        together = tag(TEXTS)
        alone = [tag([text])[0] for text in TEXTS]
        outputs = tag.outputs(TEXTS)
        assert tag(TEXTS[0]) == tag({"text": TEXTS[0]}) == together[0]
    assert together == alone
    for text, found in zip(TEXTS, together, strict=True):
        assert all(text[one["start"] : one["end"]] == one["word"] for one in found)
    assert sum(map(len, together)) > 40
    # One row for each token of the text, and none for those that the tokenizer adds.
    assert len(outputs) == len(TEXTS)
    assert (outputs.counts >= [len(text.split()) for text in TEXTS]).all()


def test_texts_of_the_same_tokens_have_spans_of_their_own(tagger: Any, tmp_path: Path) -> None:
    rows = ["ba ke", "ba    ke", "", "BA ke"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    hasten.predict_file(tagger[0], tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    with hasten.load(tagger[0]) as tag:
        expected = tag(rows)
    assert [json.loads(line)["entities"] for line in lines] == expected
    assert expected[2] == []


def test_a_damaged_answer_to_one_token_flips_its_text(tagger: Any) -> None:
    from hasten.judging.parity import compare

    with hasten.load(tagger[0]) as tag:
        original, task = tag.outputs(TEXTS), tag.task
    values = original.values.copy()
    values[original.offsets[5]] = -values[original.offsets[5]]
    damaged = tasks.Outputs(values, original.offsets)
    parity = compare(original, damaged, task=task, labels=("a", "b", "c"), texts=TEXTS)
    assert parity.flips == 1
    assert parity.examples[0].text == TEXTS[5]


def test_settings_travel_with_the_model() -> None:
    strict: Any = tasks.get("toy_tags", {"margin": 2.5})
    outputs = tasks.Outputs.of_counts([[0, 3, 0], [0, 1, 0]], [2])
    assert strict.decisions(outputs).tolist() == [1, 0]
    with pytest.raises(ChoiceError, match="settings of the task toy_tags"):
        tasks.get("toy_tags", {"margins": 2.5})


@pytest.fixture(scope="module")
def similarity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("similarity")
    save_tiny(folder / "model", labels=1)
    rows = "".join(f"{a}\t{b}\n" for a, b in zip(TEXTS, tiny_texts(48, seed=9), strict=True))
    (folder / "pairs.tsv").write_text(f"one\tother\n{rows}", encoding="utf-8")
    from hasten.inputs import corpus

    pairs = corpus.read(folder / "pairs.tsv", text_column="one,other").texts
    assert pairs[0] == (TEXTS[0], tiny_texts(48, seed=9)[0])
    bundle = folder / "bundle"
    hasten.tune(folder / "model", texts=pairs, task="toy_pairs", output=bundle, **QUICK)
    return bundle, folder / "model"


def test_a_task_of_pairs_gives_what_transformers_computes(similarity: Any) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bundle, model = similarity
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(
        *zip(*pairs, strict=True), padding=True, truncation=True, return_tensors="pt"
    )
    assert inputs["token_type_ids"].any()
    with torch.no_grad():
        original: Any = AutoModelForSequenceClassification.from_pretrained(model).eval()
        expected = original(**inputs).logits[:, 0].numpy()
    with hasten.load(bundle) as compare:
        answers = compare(pairs)
        assert compare({"text": pairs[0][0], "text_pair": pairs[0][1]}) == answers[0]
        with pytest.raises(InputError, match="not a pair"):
            compare("one text")
    np.testing.assert_allclose([a["similarity"] for a in answers], expected, atol=1e-4)


def test_files_of_pairs_name_two_columns(similarity: Any, tmp_path: Path) -> None:
    rows = [{"a": "ba ke", "b": "ba"}, {"a": "ke", "b": "mo li"}, {"a": "ba ke", "b": "ba"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given, made = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with pytest.raises(ChoiceError, match="reads pairs"):
        hasten.predict_file(similarity[0], given, made, text_column="a")
    hasten.predict_file(similarity[0], given, made, text_column="a,b")
    lines = [json.loads(line) for line in made.read_text().splitlines()]
    assert lines[0] == lines[2] != lines[1]
    with hasten.load(similarity[0]) as compare:
        expected = compare([(row["a"], row["b"]) for row in rows])
    assert [line["similarity"] for line in lines] == pytest.approx(
        [answer["similarity"] for answer in expected], abs=1e-5
    )
