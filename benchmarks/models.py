"""The models that the measurements are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import mpnet
import numpy as np

from hasten import engines
from hasten.demo import assets as demo
from hasten.engines.base import Inputs
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, Event
from hasten.runtime.pipeline import Pipeline, Streams

NAMES = ("minilm", "mpnet", "camembert")

# Two layers of 32, to see a measurement run without waiting for it.
TINY = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 30522,
}

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


SHAPES = {"camembert": ("camembert-base", CAMEMBERT), "tiny": ("tiny", TINY)}
"""What has random weights: the name in reports, and its configuration."""


class Subject(NamedTuple):
    """What ``hasten.tune`` and ``hasten.bench`` need to know of a model."""

    model: Path
    tokenizer: Path | None
    random_weights: bool


def subject(name: str, folder: Path) -> Subject:
    """A model by its name.

    ``minilm`` is the demo's classifier and ``mpnet`` a base-size one, both with real weights;
    ``camembert`` is CamemBERT-base's shape.

    Args:
        name: one of :data:`NAMES`, or ``tiny``.
        folder: where the shape's configuration is put.
    """
    if name == "minilm":
        return Subject(demo.prepare(None, quiet).model_folder, None, random_weights=False)
    if name == "mpnet":
        return Subject(mpnet.prepare().model_folder, None, random_weights=False)
    called, config = SHAPES[name]
    model = folder / called
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(config))
    return Subject(model, demo.tokenizer_file(), random_weights=True)


def prepared(name: str, folder: Path) -> ModelFolder:
    """The same, prepared in ``folder`` for engines to export."""
    model, tokenizer, random_weights = subject(name, folder)
    return prepare(model, folder / "reference", tokenizer=tokenizer, random_weights=random_weights)


def example(reference: ModelFolder, batch: int, length: int) -> Inputs:
    """A batch of the model's inputs, int64 [batch, length], without padding."""
    ids = np.array(reference.info.example(batch, length))
    named = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: named.get(name, np.zeros_like(ids)) for name in reference.info.input_names}


def sentences(name: str, count: int) -> list[str]:
    """News sentences; for ``mpnet`` those of articles that its head has not seen."""
    return list(mpnet.prepare().texts[:count]) if name == "mpnet" else demo.news_sentences(count)


def exported_pipeline(reference: ModelFolder, candidate: Candidate, folder: Path) -> Pipeline:
    """A candidate's artifact, exported to ``folder`` and loaded: what runs, without the tuner."""
    engine = engines.get(candidate.engine)
    folder.mkdir(exist_ok=True)
    engine.export(reference, candidate, folder)
    streams = Streams(engine.load(folder, candidate), candidate.streams, reference.info)
    return Pipeline(reference.tokenizer(), streams)


def quiet(event: Event) -> None:
    """Training the classifier, once, is not what is looked at here."""
    del event
