"""Requests and answers of text-embeddings-inference."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

import hasten

TEXTS = ["a b c", "the team won", "b"]


def vectors_of(bundle: Path, texts: list[str]) -> np.ndarray:
    with hasten.load(bundle) as predictor:
        outputs = predictor.outputs(texts)
    return outputs.values


def test_raw_scores_are_the_logits(client: TestClient, scripted_bundle: Path) -> None:
    answered = client.post("/predict", json={"inputs": "b", "raw_scores": True}).json()
    by_label = {one["label"]: one["score"] for one in answered}
    logits = vectors_of(scripted_bundle, ["b"])[0]
    np.testing.assert_allclose([by_label[name] for name in ("no", "yes", "maybe")], logits, 1e-6)


def test_vectors_have_unit_length_unless_asked_otherwise(
    embedder: TestClient, embedding_bundle: Path
) -> None:
    expected = vectors_of(embedding_bundle, TEXTS)
    bare = embedder.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
    np.testing.assert_allclose(bare, expected, 1e-6)
    unit = np.array(embedder.post("/embed", json={"inputs": TEXTS}).json())
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1)[:, None], 1e-5)
    short = np.array(embedder.post("/embed", json={"inputs": "b", "dimensions": 2}).json())
    assert short.shape == (1, 2)
    np.testing.assert_allclose(np.linalg.norm(short), 1.0, 1e-5)


def test_similarity_is_the_cosine_and_rerank_its_order(embedder: TestClient) -> None:
    unit = np.array(embedder.post("/embed", json={"inputs": TEXTS}).json())
    cosines = unit[0] @ unit[1:].T
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    np.testing.assert_allclose(embedder.post("/similarity", json=body).json(), cosines, 1e-5)
    ranked = embedder.post(
        "/rerank", json={"query": TEXTS[0], "texts": TEXTS[1:], "return_text": True}
    ).json()
    assert [one["index"] for one in ranked] == np.argsort(-cosines).tolist()
    assert [one["text"] for one in ranked] == [TEXTS[1 + one["index"]] for one in ranked]


def test_the_root_is_the_main_task(client: TestClient, embedder: TestClient) -> None:
    for one, path in ((client, "/predict"), (embedder, "/embed")):
        assert (
            one.post("/", json={"inputs": "b"}).json()
            == one.post(path, json={"inputs": "b"}).json()
        )


def test_tokens_lead_back_to_the_text(client: TestClient) -> None:
    text = "the team won"
    (tokens,) = client.post("/tokenize", json={"inputs": text}).json()
    inner = [token for token in tokens if not token["special"]]
    assert len(inner) == len(tokens) - 2
    assert inner[0]["start"] == 0
    assert inner[-1]["stop"] == len(text)
    ids = [token["id"] for token in tokens]
    assert client.post("/decode", json={"ids": ids}).json() == [text]
    assert client.post("/decode", json={"ids": [ids, ids]}).json() == [text, text]


@pytest.mark.parametrize("ids", [[-1], [2**40], [1.5], [[1], "a"]])
def test_what_is_no_token_is_refused(client: TestClient, ids: list[object]) -> None:
    assert client.post("/decode", json={"ids": ids}).status_code == 422


def test_a_text_that_is_too_long_is_cut_only_if_asked(client: TestClient) -> None:
    body = {"inputs": "a " * 500}
    assert client.post("/predict", json=body).json()["error_type"] == "Validation"
    assert client.post("/predict", json=body | {"truncate": True}).status_code == 200


def test_info_names_labels_both_ways(client: TestClient) -> None:
    names = client.get("/info").json()["model_type"]["classifier"]
    assert names["id2label"]["1"] == "yes"
    assert names["label2id"] == {"no": 0, "yes": 1, "maybe": 2}


def test_a_list_of_two_texts_is_one_pair(live: str) -> None:
    one = httpx.post(f"{live}/models/pairs/predict", json={"inputs": ["a", "b"]}).json()
    (same,) = httpx.post(f"{live}/models/pairs/predict", json={"inputs": [["a", "b"]]}).json()
    assert one == same
    single = httpx.post(f"{live}/models/pairs/predict", json={"inputs": "a"})
    assert single.status_code == 422
    assert '[["a", "b"], ["c", "d"]]' in single.json()["error"]


def test_pairs_are_ranked_by_their_scores(live: str) -> None:
    body = {"query": "b", "texts": ["a b c", "the team won", "b"]}
    ranked = httpx.post(f"{live}/models/pairs/rerank", json=body).json()
    assert httpx.post(f"{live}/models/pairs", json=body).json() == ranked
    for one in ranked:
        pair = {"inputs": ["b", body["texts"][one["index"]]]}
        (answer,) = httpx.post(f"{live}/models/pairs/predict", json=pair).json()
        assert answer["score"] == pytest.approx(one["score"])
    assert [one["score"] for one in ranked] == sorted([o["score"] for o in ranked], reverse=True)
