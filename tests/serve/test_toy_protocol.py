"""A protocol is one file: a toy one, from its request to the OpenAPI document."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hasten.serve import protocols
from hasten.serve.app import create
from hasten.serve.service import Service

TOYS = str(Path(__file__).parents[1] / "toy" / "protocols")
TEXTS = ["a b c", "the team won", "b", "c"]


@pytest.fixture(autouse=True)
def found_by_being_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, TOYS])


def test_it_answers_refuses_and_is_described(scripted_bundle: Path) -> None:
    with TestClient(create({"news": Service.open("news", scripted_bundle)})) as client:
        answered = client.post("/vote", json={"texts": TEXTS}).json()
        expected = [
            client.post("/predict", json={"inputs": text}).json()[0]["label"] for text in TEXTS
        ]
        assert answered == {label: expected.count(label) for label in expected}
        refused = client.post("/models/news/vote", json={"texts": []})
        assert (refused.status_code, list(refused.json())) == (422, ["no"])
        assert client.get("/openapi.json").json()["paths"]["/vote"]["post"]["tags"] == ["Votes"]
        assert 'hasten_request_count_total{model="news",protocol="toy_vote"}' in (
            client.get("/metrics").text
        )


def test_models_that_it_is_not_for_do_not_have_it(embedding_bundle: Path) -> None:
    with TestClient(create({"vectors": Service.open("vectors", embedding_bundle)})) as client:
        refused = client.post("/vote", json={"texts": ["a"]})
        assert refused.status_code == 404
        assert "/embed" in refused.json()["no"]
        assert "/vote" not in client.get("/openapi.json").json()["paths"]
