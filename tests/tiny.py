"""Tiny models of every tested family, built here, without a network.

Random weights, but large ones: logits differ clearly from text to text, so that a wrong answer
cannot hide within a tolerance.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("bert", "roberta", "camembert", "xlm-roberta", "distilbert")
MAX_LENGTH = 128
HIDDEN = 32

_WORDS = tuple(a + b for a in ("ba", "ke", "li", "mo", "nu", "po") for b in "bcdfghjklmnprstvwxz")


@dataclass(frozen=True)
class _Specials:
    pad: str
    unknown: str
    first: str
    last: str
    vocabulary: tuple[str, ...]
    position_offset: int


_BERT = _Specials("[PAD]", "[UNK]", "[CLS]", "[SEP]", ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), 0)
_ROBERTA = _Specials("<pad>", "<unk>", "<s>", "</s>", ("<s>", "<pad>", "</s>", "<unk>"), 2)


def _specials(family: str) -> _Specials:
    return _BERT if family in ("bert", "distilbert") else _ROBERTA


def tiny_texts(n: int, seed: int = 0) -> list[str]:
    """``n`` texts of 1 to 60 words, most of them short, in the tiny models' vocabulary."""
    source = random.Random(seed)
    lengths = [min(60, 1 + int(source.expovariate(1 / 12))) for _ in range(n)]
    return [" ".join(source.choices(_WORDS, k=length)) for length in lengths]


def tiny_tokenizer(family: str = "bert") -> Any:
    """A ``tokenizers.Tokenizer`` with the family's special tokens: 118 words and suffixes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    specials = _specials(family)
    pieces = ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"]
    letters = [piece[2:] for piece in pieces]
    tokens = [*specials.vocabulary, *_WORDS, *letters, *pieces]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=specials.unknown))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first, last = specials.first, specials.last
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    tokenizer.add_special_tokens(list(specials.vocabulary))
    return tokenizer


def save_tiny_tokenizer(folder: Path, family: str = "bert") -> Path:
    """``tokenizer.json``, with training's truncation and padding left in, and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = _specials(family)
    tokenizer = tiny_tokenizer(family)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(specials.pad), pad_token=specials.pad)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "model_input_names": names if family == "bert" else names[::2],
        "pad_token": specials.pad,
        "unk_token": specials.unknown,
        "cls_token": specials.first,
        "sep_token": specials.last,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def tiny_model(
    family: str = "bert", labels: int = 3, problem_type: str | None = None, seed: int = 0
) -> Any:
    """A ``transformers`` model for sequence classification: 2 layers, hidden size 32."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    specials = _specials(family)
    tokenizer = tiny_tokenizer(family)
    distil = {"dim": HIDDEN, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    usual = {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "type_vocab_size": 2 if family == "bert" else 1,
    }
    config = AutoConfig.for_model(
        family,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=MAX_LENGTH + specials.position_offset,
        pad_token_id=tokenizer.token_to_id(specials.pad),
        bos_token_id=tokenizer.token_to_id(specials.first),
        eos_token_id=tokenizer.token_to_id(specials.last),
        num_labels=labels,
        problem_type=problem_type,
        initializer_range=0.5,
        **(distil if family == "distilbert" else usual),
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    _centre(model, tokenizer)
    return model


def _centre(model: Any, tokenizer: Any) -> None:
    """Shift the logits so that every label is some texts' answer."""
    import torch

    tokenizer.enable_padding(pad_id=model.config.pad_token_id)
    batch = tokenizer.encode_batch(tiny_texts(64))
    ids = torch.tensor([encoding.ids for encoding in batch])
    mask = torch.tensor([encoding.attention_mask for encoding in batch])
    last = getattr(model.classifier, "out_proj", model.classifier)
    with torch.no_grad():
        last.bias -= model(input_ids=ids, attention_mask=mask).logits.mean(0)


def save_tiny(
    folder: Path,
    family: str = "bert",
    labels: int = 3,
    problem_type: str | None = None,
    seed: int = 0,
) -> Path:
    """A Hugging Face folder: config.json, model.safetensors, tokenizer.json and its config."""
    from transformers.utils import logging

    model = tiny_model(family, labels, problem_type, seed)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return save_tiny_tokenizer(folder, family)
