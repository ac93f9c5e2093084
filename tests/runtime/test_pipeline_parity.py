"""A bundle answers as ``transformers.pipeline`` does, over many architectures and arguments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten import engines, hardware
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.inputs.tokenization import TextTokenizer
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, Plan, Strategy
from hasten.runtime import bundle
from hasten.runtime.predictor import Predictor
from tests.families import FAMILIES, LENGTH, TEXTS, save_family

LONG = " ".join(["b", "ab", "c d e"] * LENGTH)


def predictor_of(reference: ModelFolder, folder: Path) -> Predictor:
    """The original in PyTorch, as a loaded bundle runs it: batches of eight, sorted by length."""
    candidate = Candidate("torch_eager", "fp32", "cpu", 1, 1)
    folder.mkdir()
    engines.get("torch_eager").export(reference, candidate, folder)
    shutil.copy(reference.folder / "tokenizer.json", folder)
    here = hardware.detect()
    stage = bundle.Stage(
        folder=folder,
        tokenizer=folder / "tokenizer.json",
        model=reference.info,
        plan=Plan(candidate, Strategy("sorted", 8), None),
        session={},
        hands_on=None,
        probes=None,
    )
    return Predictor(
        bundle.Bundle(
            folder=folder,
            stages=(stage,),
            model=reference.info,
            parity=None,
            hardware=here,
            versions={},
            differences=(),
            digest="",
            here=here,
        )
    )


def pipeline_of(folder: Path) -> Any:
    from transformers import pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    return pipeline("text-classification", model=str(folder), device="cpu")


def assert_same(answer: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert isinstance(answer, list)
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            assert_same(one, other)
    else:
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_answers_as_in_the_pipeline(name: str, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path / "model")
    texts = [*TEXTS, LONG]
    if name in ("gpt2", "funnel"):  # the pipeline fails on a text of so few tokens
        texts.remove("")
    with predictor_of(prepare(folder, tmp_path / "reference"), tmp_path / "bundle") as classify:
        answers = classify(texts, top_k=None)
    assert_same(answers, pipeline_of(folder)(texts, top_k=None, truncation=True))


def test_token_types_are_the_tokenizers(tmp_path: Path) -> None:
    """XLNet gives its last token the type 2."""
    folder = save_family("xlnet", tmp_path / "model")
    settings = folder / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    stored = json.loads(settings.read_text()) | {"model_input_names": names}
    settings.write_text(json.dumps(stored))
    reference = prepare(folder, tmp_path / "reference")
    tokens = reference.tokenizer().encode(TEXTS)
    assert "token_type_ids" in reference.info.input_names
    assert set(tokens.batch([0]).token_types()[0].tolist()) == {0, 2}
    with predictor_of(reference, tmp_path / "bundle") as classify:
        answers = classify(TEXTS, top_k=None)
    assert_same(answers, pipeline_of(folder)(TEXTS, top_k=None, truncation=True))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Predictor, Any]]:
    folder = tmp_path_factory.mktemp("both")
    save_family("bert", folder / "model")
    reference = prepare(folder / "model", folder / "reference")
    with predictor_of(reference, folder / "bundle") as classify:
        yield classify, pipeline_of(folder / "model")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"top_k": 1},
        {"top_k": 2},
        {"function_to_apply": "none"},
        {"function_to_apply": "sigmoid", "top_k": None},
        {"function_to_apply": "SOFTMAX"},
        {"max_length": 6},
        {"padding": True, "batch_size": 4},
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_arguments_mean_what_they_mean_in_the_pipeline(
    both: tuple[Predictor, Any], arguments: dict[str, Any], single: bool
) -> None:
    classify, original = both
    texts = TEXTS[0] if single else TEXTS
    assert_same(classify(texts, **arguments), original(texts, truncation=True, **arguments))


def test_inputs_are_those_of_the_pipeline(both: tuple[Predictor, Any]) -> None:
    from transformers.pipelines.pt_utils import KeyDataset

    classify, original = both
    rows = [{"text": text, "label": 0} for text in TEXTS]
    expected = original(TEXTS, truncation=True)
    assert_same(classify({"text": TEXTS[0]}), original({"text": TEXTS[0]}, truncation=True))
    assert_same(classify([{"text": text} for text in TEXTS]), expected)
    assert_same(list(classify(text for text in TEXTS)), expected)
    dataset: Any = KeyDataset(rows, "text")  # type: ignore[arg-type]
    assert_same(list(classify(dataset)), expected)


def test_all_scores_keep_the_order_of_the_labels(both: tuple[Predictor, Any]) -> None:
    (scores,) = both[0](TEXTS[0], return_all_scores=True)
    assert [score["label"] for score in scores] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_a_generator_is_read_only_as_far_as_it_is_answered(both: tuple[Predictor, Any]) -> None:
    read: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    answers = both[0](texts(), batch_size=2)
    assert read == []
    next(answers)
    assert read == TEXTS[:2]


@pytest.mark.parametrize(
    ("texts", "arguments", "error", "message"),
    [
        ({"text": "a", "text_pair": "b"}, {}, InputError, "reads one text at a time"),
        ([["a", "b"]], {}, InputError, "text 0 is list"),
        (3, {}, InputError, "a sequence, array or series"),
        (b"a", {}, InputError, "texts are bytes"),
        ([LONG], {"truncation": False}, InputError, "text 0 is longer than 64 tokens"),
        (["a"], {"max_length": LENGTH + 1}, ChoiceError, "from 1 to 64"),
        (["a"], {"max_length": "6"}, ChoiceError, "from 1 to 64"),
        (["a"], {"truncation": "banana"}, ChoiceError, "True, False, longest_first"),
        (["a"], {"top_k": -1}, ChoiceError, "at least 1, or None"),
        ("a", {"top_k": "2"}, ChoiceError, "at least 1, or None"),
        (["a"], {"function_to_apply": "relu"}, ChoiceError, "softmax, sigmoid, none"),
        (iter(["a"]), {"batch_size": 0}, ChoiceError, "at least 1"),
    ],
)
def test_what_cannot_be_taken_says_what_can(
    both: tuple[Predictor, Any], texts: Any, arguments: Any, error: Any, message: str
) -> None:
    with pytest.raises(error) as raised:
        both[0](texts, **arguments)
    assert message in str(raised.value)


def test_a_shorter_max_length_keeps_the_tokenizer_to_the_bundles_threads(
    both: tuple[Predictor, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[Any, ...]] = []
    load = TextTokenizer.load

    def note(*arguments: Any) -> TextTokenizer:
        loaded.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(TextTokenizer, "load", note)
    both[0](["a"], max_length=7)
    assert [arguments[2:] for arguments in loaded] == [(both[0].bundle.plan.candidate.threads,)]


def test_duplicate_label_names_are_refused_early(tmp_path: Path) -> None:
    labels = {0: "good", 1: "bad", 2: "good"}
    folder = save_family("bert", tmp_path / "model", id2label=labels)
    with pytest.raises(ModelError, match="several outputs the name 'good'"):
        prepare(folder, tmp_path / "reference")


@pytest.mark.parametrize("missing", ["architectures", "id2label"])
def test_a_config_may_lack_what_the_weights_tell(missing: str, tmp_path: Path) -> None:
    folder = save_family("bert", tmp_path / "model", num_labels=2)
    config = json.loads((folder / "config.json").read_text())
    config.pop(missing, None)
    (folder / "config.json").write_text(json.dumps(config))
    info = prepare(folder, tmp_path / "reference").info
    assert info.labels == ("LABEL_0", "LABEL_1")
    assert info.architecture == "BertForSequenceClassification"
