"""Tiny models of sentences, as sentence-transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tiny import HIDDEN, save_tiny_tokenizer, tiny_model

DENSE = 8


def save_sentences(
    folder: Path,
    modules: Sequence[str] = ("Pooling", "Normalize"),
    pooling: str | Sequence[str] = "mean",
    family: str = "bert",
    reads: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """An encoder of two layers and these modules.

    Args:
        folder: new.
        modules: what follows the encoder, in order.
        pooling: one way or several.
        family: of the encoder, as in :mod:`tests.tiny`.
        reads: ``sentence_bert_config.json``.
        settings: ``config_sentence_transformers.json``.
    """
    import torch
    from safetensors.torch import save_file
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    tiny_model(family).base_model.save_pretrained(folder)
    logging.enable_progress_bar()
    save_tiny_tokenizer(folder, family)
    ways = [pooling] if isinstance(pooling, str) else list(pooling)
    width = HIDDEN * len(ways)
    listed = [("Transformer", "")]
    for number, kind in enumerate(modules, 1):
        path = folder / f"{number}_{kind}"
        path.mkdir()
        listed.append((kind, path.name))
        if kind == "Pooling":
            _write(path / "config.json", {"embedding_dimension": width, "pooling_mode": ways})
        if kind == "Dense":
            torch.manual_seed(number)
            weights = {
                "linear.weight": torch.randn(DENSE, width),
                "linear.bias": torch.randn(DENSE),
            }
            save_file(weights, path / "model.safetensors")
            sizes = {"in_features": width, "out_features": DENSE, "bias": True}
            activation = "torch.nn.modules.activation.Tanh"
            _write(path / "config.json", {**sizes, "activation_function": activation})
            width = DENSE
    types = [
        {"idx": i, "name": f"{i}", "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(listed)
    ]
    _write(folder / "modules.json", types)
    _write(folder / "sentence_bert_config.json", reads or {"do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", settings)
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
