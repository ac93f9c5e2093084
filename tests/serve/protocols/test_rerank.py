"""Reranking as Cohere, Jina and vLLM speak it."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

BODY = {"query": "a b c", "documents": ["b", {"text": "the team won", "title": "-"}, "c c"]}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_best_documents_come_first(embedder: TestClient, path: str) -> None:
    answered = embedder.post(path, json=BODY | {"return_documents": True}).json()
    scores = [one["relevance_score"] for one in answered["results"]]
    assert scores == sorted(scores, reverse=True)
    by_index = {one["index"]: one["document"]["text"] for one in answered["results"]}
    assert by_index == {0: "b", 1: "the team won", 2: "c c"}
    best = embedder.post(path, json=BODY | {"top_n": 1}).json()["results"]
    assert best == [{"index": answered["results"][0]["index"], "relevance_score": scores[0]}]


def test_the_body_decides_whose_rerank_it_is(embedder: TestClient) -> None:
    texts = embedder.post("/rerank", json={"query": "a", "texts": ["b", "c"]})
    assert {"index", "score"} == set(texts.json()[0])
    documents = embedder.post("/rerank", json={"query": "a", "documents": ["b", "c"]})
    assert "results" in documents.json()
    wrong = embedder.post("/rerank", json={"query": "a", "documents": 3}).json()
    assert "documents" in wrong["message"]
    assert "error_type" in embedder.post("/rerank", json={"query": "a", "texts": 3}).json()


def test_documents_are_cut_at_the_tokens_that_are_asked_for(embedder: TestClient) -> None:
    long = {"query": "a", "documents": ["b c a b"], "max_tokens_per_doc": 2}
    cut = {"query": "a", "documents": ["b c"]}
    long_answer, cut_answer = (embedder.post("/v2/rerank", json=one).json() for one in (long, cut))
    assert long_answer["results"] == cut_answer["results"]
    assert long_answer["usage"] == cut_answer["usage"]


def test_nothing_to_rank_is_told(embedder: TestClient) -> None:
    answered = embedder.post("/v2/rerank", json={"query": "a", "documents": []})
    assert answered.status_code == 422
    assert "no documents" in answered.json()["message"]
