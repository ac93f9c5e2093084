"""The two models that the measurements are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from hasten import demo
from hasten.records import Event

NAMES = ("minilm", "camembert")

# CamemBERT-base (Martin et al., ACL 2020): the architecture of its published config.json.
CAMEMBERT = {
    "architectures": ["CamembertForSequenceClassification"],
    "model_type": "camembert",
    "vocab_size": 32005,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
}


class Subject(NamedTuple):
    """What ``hasten.tune`` and ``hasten.bench`` need to know of a model."""

    model: Path
    tokenizer: Path | None
    random_weights: bool


def subject(name: str, folder: Path) -> Subject:
    """``minilm``: the demo's real classifier; ``camembert``: CamemBERT-base's shape.

    Args:
        name: one of :data:`NAMES`.
        folder: where the shape's configuration is put.
    """
    if name == "minilm":
        return Subject(demo.prepare(None, quiet).model_folder, None, random_weights=False)
    model = folder / "camembert-base"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(CAMEMBERT))
    return Subject(model, demo.tokenizer_file(), random_weights=True)


def quiet(event: Event) -> None:
    """Training the classifier, once, is not what is looked at here."""
    del event
