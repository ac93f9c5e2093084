"""Tiny classifiers of many architectures, each with its own tokenizer class.

Random weights, but large ones, so that a wrong token changes the answer. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import HIDDEN, tiny_texts

LENGTH = 64
TEXTS = [*tiny_texts(6, seed=1), "", "Caf\u00e9 BAK, Kec.", "\U0001f600 \u05e9\u05dc\u05d5\u05dd"]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,"
_SHARED = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH + 8,
}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": LENGTH + 8,
}
# The local layer lies between two that look at everything, as most do.
_MODERNBERT = {
    **_SHARED,
    "num_hidden_layers": 3,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
}
_DISTILBERT = {"dim": HIDDEN, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
_FUNNEL = {"d_model": HIDDEN, "d_inner": 64, "n_head": 2, "d_head": 16, "block_sizes": [1, 1]}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertTokenizer", _SHARED),
    "distilbert": ("BertTokenizer", _DISTILBERT),
    "electra": ("BertTokenizer", {**_SHARED, "embedding_size": HIDDEN}),
    "roberta": ("RobertaTokenizer", _SHARED),
    "camembert": ("CamembertTokenizer", _SHARED),
    "xlm-roberta": ("XLMRobertaTokenizer", _SHARED),
    "albert": ("AlbertTokenizer", {**_SHARED, "embedding_size": 16}),
    "deberta": ("DebertaTokenizer", _SHARED),
    "deberta-v2": ("DebertaV2Tokenizer", _SHARED),
    "funnel": ("FunnelTokenizer", _FUNNEL),
    "bart": ("BartTokenizer", _BART),
    "gpt2": ("GPT2Tokenizer", {"n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}),
    "modernbert": ("BertTokenizer", _MODERNBERT),
    "xlnet": ("XLNetTokenizer", {"d_model": HIDDEN, "n_layer": 2, "n_head": 2, "d_inner": 64}),
}
"""The tokenizer's class, and what the model's configuration needs to be tiny."""


def save_family(name: str, folder: Path, **settings: Any) -> Path:
    """A Hugging Face folder of that architecture, with three labels; ``settings`` its config's."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    kind, sizes = FAMILIES[name]
    tokenizer = tokenizer_of(kind)
    tokenizer.save_pretrained(folder)
    ids: dict[str, Any] = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")
    }
    options = {"num_labels": 3, "vocab_size": len(tokenizer), **ids, **sizes, **settings}
    config = AutoConfig.for_model(name, **options)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def tokenizer_of(kind: str) -> Any:
    """A tokenizer of this class over letters."""
    import transformers

    base = getattr(transformers, kind)
    empty = base()
    special = list(dict.fromkeys(empty.all_special_tokens))
    model = type(empty.backend_tokenizer.model).__name__
    if model == "WordPiece":
        pieces = [*special, *_LETTERS, *("##" + letter for letter in _LETTERS)]
        made = base(vocab={piece: number for number, piece in enumerate(pieces)})
    elif model == "BPE":
        from tokenizers.pre_tokenizers import ByteLevel

        pieces = [*special, *sorted(ByteLevel.alphabet()), "\u0120b", "ab"]
        vocab = {piece: number for number, piece in enumerate(pieces)}
        made = base(vocab=vocab, merges=[("\u0120", "b"), ("a", "b")])
    else:
        scored = [(piece, 0.0) for piece in special]
        scored += [(piece, -2.0) for piece in ("\u2581", *_LETTERS, "\u2581b", "ab")]
        made = base(vocab=scored)
    made.model_max_length = LENGTH
    return made
