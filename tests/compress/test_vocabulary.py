"""Fewer words, and the same answers for every text that was there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from hasten.compress import vocabulary
from hasten.errors import ModelError
from hasten.inputs.corpus import profile
from hasten.models import ModelFolder, prepare, require_comparable
from hasten.models.module import load_original
from tests.tiny import save_tiny, tiny_model

WORDS = ["".join(random.Random(seed).choices("abcdefghij", k=2 + seed % 7)) for seed in range(400)]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def sentences(words: list[str], n: int, seed: int) -> list[str]:
    source = random.Random(seed)
    return [" ".join(source.choices(words, k=source.randint(1, 12))) for _ in range(n)]


def trained(kind: str) -> Any:
    """A tokenizer of each kind as real ones are set up, trained on all words."""
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIALS)
    elif kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet
        )
    elif kind == "BPE with marked ends":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIALS, end_of_word_suffix="</w>"
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>"
        )
    tokenizer.train_from_iterator(sentences(WORDS, 500, seed=1), trainer)
    pieces = [(name, tokenizer.get_vocab()[name]) for name in ("<s>", "</s>")]
    if kind == "byte-level BPE":
        around = processors.RobertaProcessing(pieces[1], pieces[0])
        tokenizer.post_processor = processors.Sequence([around])
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=pieces
        )
    tokenizer.add_tokens(["#added"])
    return tokenizer


def reference_for(tokenizer: Any, folder: Path) -> ModelFolder:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    rows = tokenizer.get_vocab_size(with_added_tokens=True) + 3  # padded, as some models are
    config = RobertaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=66,
        pad_token_id=1,
        initializer_range=0.5,
    )
    config.num_labels = 3
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = RobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    settings = {
        "model_max_length": 64,
        "pad_token": "<pad>",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(name)): {"content": name}
            for name in [*SPECIALS, "#added"]
            if tokenizer.token_to_id(name) is not None
        },
    }
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    return prepare(folder / "model", folder / "reference")


KINDS = ["WordPiece", "byte-level BPE", "BPE with marked ends", "Unigram"]


def answers(folder: Path, texts: list[str], out: Path) -> tuple[np.ndarray, ModelFolder]:
    reference = prepare(folder, out)
    tokenizer, model = reference.tokenizer(), reference.module()
    rows = []
    for text in texts:
        ids, mask = tokenizer.encode([text]).pad([0], reference.info.pad_token_id)
        rows.append(model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()[0])
    return np.array(rows), reference


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_are_answered_exactly_as_before(kind: str, tmp_path: Path) -> None:
    reference = reference_for(trained(kind), tmp_path)
    few = [*sentences(WORDS[:25], 60, seed=2), "a #added b", "zz Ω abZ", "<mask> aaaa", ""]
    model: Any = load_original(reference.folder / "module")
    tokens = reference.tokenizer().encode(few)
    words = vocabulary.reduce(reference, model, few, tokens, tokens)
    rows = model.get_input_embeddings().num_embeddings
    assert len(words.kept) < 0.9 * rows
    vocabulary.shrink(model, words)
    model.save_pretrained(tmp_path / "small")
    words.write(reference.folder, tmp_path / "small")
    before, _ = answers(tmp_path / "model", few, tmp_path / "one")
    after, small = answers(tmp_path / "small", few, tmp_path / "two")
    # The same rows for the same tokens; where the weights lie in memory decides the last digit.
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)
    original: Any = load_original(reference.folder / "module")
    rows_before = original.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, rows_before[words.kept])
    assert small.info.parameter_count == reference.info.parameter_count - 16 * (
        rows - len(words.kept)
    )
    # Every number moved together: specials, and what the settings say of them.
    tokenizer = Tokenizer.from_file(str(tmp_path / "small" / "tokenizer.json"))
    settings = json.loads((tmp_path / "small" / "tokenizer_config.json").read_text())
    for number, entry in settings["added_tokens_decoder"].items():
        assert tokenizer.token_to_id(entry["content"]) == int(number)
    assert len(settings["added_tokens_decoder"]) == len(SPECIALS) + 1
    # What was never there is read all the same, from smaller parts: no letter is unknown.
    unknown = tokenizer.token_to_id("<unk>")
    strange = tokenizer.encode("jihgfedcba bdfhj")
    assert unknown not in strange.ids
    assert len(strange.ids) >= len(trained(kind).encode("jihgfedcba bdfhj").ids)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_with_words_that_are_gone_can_be_compared(kind: str, tmp_path: Path) -> None:
    reference = reference_for(trained(kind), tmp_path)
    few = sentences(WORDS[:25], 60, seed=2)
    model: Any = load_original(reference.folder / "module")
    tokens = reference.tokenizer().encode(few)
    words = vocabulary.reduce(reference, model, few, tokens, tokens)
    vocabulary.shrink(model, words)
    model.save_pretrained(tmp_path / "small")
    words.write(reference.folder, tmp_path / "small")
    small = prepare(tmp_path / "small", tmp_path / "two")
    strange = ["a #added b", "zz Ω abZ é☃🙂", " <mask>  aaaa!", "cafés-déjà_vu\n日本", ""]
    new = [*sentences(WORDS, 200, seed=3), *strange]
    both = [Tokenizer.from_file(str(r.folder / "tokenizer.json")) for r in (reference, small)]
    counts = np.array([[len(encoding.ids) for encoding in t.encode_batch(new)] for t in both])
    assert (counts[0] < counts[1]).mean() > 0.5
    encoded = reference.tokenizer().encode(new)
    lengths = profile(encoded.lengths, encoded.truncated, reference.info.max_length)
    require_comparable(reference, small, new, lengths)


def test_a_word_that_was_unknown_stays_unknown(tmp_path: Path) -> None:
    """WordPiece gives a word up after its longest first part; without that, it would go on."""
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "abc", "ab", "##cx", "other"]
    tokenizer = Tokenizer(
        models.WordPiece({token: number for number, token in enumerate(vocab)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(vocab[:4])
    assert tokenizer.encode("abcx").tokens == ["<unk>"]
    reference = reference_for(tokenizer, tmp_path)
    model: Any = load_original(reference.folder / "module")
    texts = ["abcx", "ab"]
    tokens = reference.tokenizer().encode(texts)
    words = vocabulary.reduce(reference, model, texts, tokens, tokens)
    small = Tokenizer.from_str(json.dumps(words.tokenizer))
    assert small.encode("abcx").tokens == ["<unk>"]
    assert small.token_to_id("abc") is not None
    assert small.token_to_id("other") is None


def test_what_new_texts_will_lack_is_estimated(tmp_path: Path) -> None:
    reference = prepare(save_tiny(tmp_path / "model"), tmp_path / "reference")
    model: Any = load_original(reference.folder / "module")
    texts, new = ["bab bac", "bac"], ["bab", "bad bab", "baf"]
    tokens, others = map(reference.tokenizer().encode, (texts, new))
    words = vocabulary.reduce(reference, model, texts, tokens, others)
    assert words.unseen_share == pytest.approx(2 / 3)
    again = words.renumbered(tokens)
    assert np.array_equal(words.kept[again.ids], tokens.ids)
    assert again.ids.max() < len(words.kept) < 150
    read = words.reader(reference.info.max_length).encode(new)
    assert read.ids.max() < len(words.kept)


def test_a_tokenizer_that_would_read_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = prepare(save_tiny(tmp_path / "model"), tmp_path / "reference")
    model: Any = load_original(reference.folder / "module")
    texts = ["bab bac"]
    tokens = reference.tokenizer().encode(texts)
    monkeypatch.setattr(vocabulary, "_used", lambda tokens: set())
    with pytest.raises(ModelError, match="another way"):
        vocabulary.reduce(reference, model, texts, tokens, tokens)


def test_the_paddings_number_stays_what_it_is() -> None:
    """RoBERTa counts positions from it."""
    model = tiny_model()
    model.config.pad_token_id = 7
    assert set(range(8)) <= vocabulary._named(model.config, 50)
