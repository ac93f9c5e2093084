"""What makes a sentence's vector of an encoder's tokens, described; :mod:`pooling` builds it.

It is kept as ``sentence.json`` in ``module/``, with the weights of its dense layers beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.errors import ModelError
from hasten.plain import from_json, to_json

STORED = "sentence.json"
WEIGHTS = "sentence.safetensors"

POOLING = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Ways to make one vector of a text's tokens, in the order in which several are joined."""

SPARSE = "splade"
"""Makes one sparse vector of the numbers that a head of masked words gives each token."""

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
"""Classes of ``torch.nn`` that a dense layer may end with."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer and its activation; a residual is projected where the widths differ."""

    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False


@dataclass(frozen=True, slots=True)
class Sentence:
    """What follows the encoder, and how texts are read.

    Attributes:
        pooling: of :data:`POOLING`, or :data:`SPARSE`; several are joined, and none leaves a vector
            for each token.
        after: the steps after pooling, in order; None scales vectors to length 1.
        truncate_dim: how many numbers of a vector are kept, the first ones; None for all.
        max_length: the most tokens of a text, where the folder says so.
        lowercase: whether texts are read in lower case, whatever the tokenizer does.
        settings: those of the task.
    """

    pooling: tuple[str, ...] = ("mean",)
    after: tuple[Dense | None, ...] = ()
    truncate_dim: int | None = None
    max_length: int | None = None
    lowercase: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)


def stored(module_folder: Path) -> Sentence | None:
    """What ``module/`` says; None where the model is no such one.

    Raises:
        ModelError: the file is damaged.
    """
    path = module_folder / STORED
    if not path.is_file():
        return None
    try:
        return from_json(Sentence, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def as_fields(sentence: Sentence) -> dict[str, Any]:
    """What a configuration has under the name ``sentence``, by which tasks know such a model."""
    return dict(to_json(sentence))
