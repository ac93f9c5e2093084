"""Tiny models that answer questions, fill masks or give hidden states, and texts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import save_tiny_tokenizer, tiny_model, tiny_texts

ODD = [
    "Bab \U0001f600 ke\u200dba k\u00e9babs, Lib-mob!",
    "\u05e9\u05dc\u05d5\u05dd bab \u0645\u0631\u062d\u0628\u0627 keb",
    "bab\x00\x07keb\tlib\r\nmob",
]
LONG = " ".join(tiny_texts(60, seed=9))

QUESTIONS = [
    *zip(["bab", *tiny_texts(7, seed=4)], tiny_texts(8, seed=5), strict=True),
    *(("bab ke?", text) for text in ODD),
    ("mob who is the longest question here bab keb lib", "ke"),
    ("bab", " "),
    ("bab keb", LONG),
]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"handle_impossible_answer": True},
    {"align_to_words": False, "max_answer_len": 4},
    {"doc_stride": 20, "max_seq_len": 60},
]


def save_headed(folder: Path, head: str, family: str = "bert") -> Path:
    """A tiny model with one of transformers' heads, such as ``QuestionAnswering``."""
    import torch
    import transformers
    from transformers.utils import logging

    config = tiny_model(family, labels=2).config
    config.architectures = None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model: Any = getattr(transformers, f"AutoModelFor{head}").from_config(config)
        if head == "QuestionAnswering":
            torch.nn.init.normal_(model.qa_outputs.weight, std=0.5)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    logging.enable_progress_bar()
    return save_tiny_tokenizer(folder, family)
