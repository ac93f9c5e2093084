"""vLLM's classification, scoring and pooling."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

TEXTS = ["a b c", "the team won", "b"]


def test_classes_come_with_the_scores_of_all_labels(client: TestClient) -> None:
    answered = client.post("/classify", json={"input": TEXTS, "model": "any"}).json()
    expected = client.post("/predict", json={"inputs": [[text] for text in TEXTS]}).json()
    assert answered["object"] == "list"
    for one, labels in zip(answered["data"], expected, strict=True):
        assert one["label"] == labels[0]["label"]
        scores = {label["label"]: label["score"] for label in labels}
        assert one["probs"] == pytest.approx([scores[name] for name in ("no", "yes", "maybe")])
        assert one["num_classes"] == 3
    assert [one["index"] for one in answered["data"]] == [0, 1, 2]


def scores(server: str, model: str, **body: Any) -> list[float]:
    answered = httpx.post(f"{server}/models/{model}/score", json=body)
    assert answered.status_code == 200, answered.text
    return [one["score"] for one in answered.json()["data"]]


@pytest.mark.parametrize("model", ["vectors", "pairs"])
def test_one_text_is_scored_against_many_or_many_each_against_its_own(
    live: str, model: str
) -> None:
    one_to_many = scores(live, model, text_1="b", text_2=TEXTS)
    assert one_to_many == scores(live, model, queries=["b"] * 3, documents=TEXTS)
    singly = [scores(live, model, text_1="b", text_2=text)[0] for text in TEXTS]
    assert one_to_many == pytest.approx(singly)
    wrong = httpx.post(f"{live}/models/{model}/score", json={"text_1": ["a", "b"], "text_2": TEXTS})
    assert wrong.status_code == 422
    assert "2 queries and 3 documents" in wrong.json()["error"]["message"]


def test_pooling_gives_the_models_own_vectors(embedder: TestClient) -> None:
    pooled = embedder.post("/pooling", json={"input": TEXTS}).json()["data"]
    expected = embedder.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
    np.testing.assert_allclose([one["data"] for one in pooled], expected, 1e-6)
