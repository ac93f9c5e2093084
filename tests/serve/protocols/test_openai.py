"""OpenAI's embeddings and models."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from starlette.testclient import TestClient


def test_vectors_in_base64_are_those_in_json(embedder: TestClient) -> None:
    body = {"input": ["a b", "c"], "model": "text-embedding-3-small"}
    plain = embedder.post("/v1/embeddings", json=body).json()
    packed = embedder.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    for one, other in zip(plain["data"], packed["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        np.testing.assert_allclose(decoded, one["embedding"], 1e-6)
    assert plain["usage"]["total_tokens"] == 4 + 3


@pytest.mark.parametrize("given", [[3, 4], [[3, 4]]])
def test_token_ids_of_another_tokenizer_are_refused(embedder: TestClient, given: object) -> None:
    answered = embedder.post("/v1/embeddings", json={"input": given})
    assert answered.status_code == 422
    assert "check_embedding_ctx_length=False" in answered.json()["error"]["message"]


@pytest.mark.parametrize("dimensions", [0, 5, -1])
def test_a_model_has_only_so_many_dimensions(embedder: TestClient, dimensions: int) -> None:
    answered = embedder.post("/v1/embeddings", json={"input": "a", "dimensions": dimensions})
    assert answered.status_code == 422
    assert "1 to 4" in answered.json()["error"]["message"]


def test_models_are_listed_and_found_by_name(embedder: TestClient) -> None:
    (only,) = embedder.get("/v1/models").json()["data"]
    assert embedder.get(f"/v1/models/{only['id']}").json() == only
    assert embedder.get("/v1/models/gpt").status_code == 404
