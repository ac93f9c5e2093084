"""A real model, exported and run by ONNX Runtime, behind a socket."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

import hasten
from hasten.serve.app import create
from hasten.serve.service import Service
from tests.tiny import save_tiny, tiny_texts

TEXTS = [*tiny_texts(40), "", "a \N{PILE OF POO} b", "c " * 300]


def test_answers_are_those_of_the_loaded_bundle(
    tmp_path: Path, listen: Callable[[Any], AbstractContextManager[str]]
) -> None:
    model = save_tiny(tmp_path / "model", problem_type="multi_label_classification")
    hasten.tune(
        model,
        texts=tiny_texts(48),
        output=tmp_path / "bundle",
        engines=["onnx_runtime"],
        precisions=["fp32"],
        batch_sizes=[1, 8],
        rounds=5,
        threads=1,
        budget=60,
    )
    with hasten.load(tmp_path / "bundle") as predictor:
        expected = predictor(TEXTS, top_k=None)
    service = Service.open("tiny", tmp_path / "bundle")
    with listen(create({"tiny": service})) as address:
        body = {"inputs": [[text] for text in TEXTS], "truncate": True}
        answered = httpx.post(f"{address}/predict", json=body, timeout=60).json()
        classes = httpx.post(f"{address}/classify", json={"input": TEXTS}, timeout=60).json()
    for found, probs, labels in zip(answered, classes["data"], expected, strict=True):
        scores = {one["label"]: one["score"] for one in labels}
        assert {one["label"]: one["score"] for one in found} == pytest.approx(scores, abs=1e-5)
        assert sum(probs["probs"]) == pytest.approx(sum(scores.values()), abs=1e-4)
        assert sum(scores.values()) != pytest.approx(1.0)  # each label for itself
