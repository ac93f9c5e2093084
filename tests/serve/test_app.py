"""The server, as clients of any protocol see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

import hasten
from hasten.serve.app import Access, create
from hasten.serve.service import Limits, Service

TEXTS = ["a b c", "the team won", "b", "stocks fell sharply on monday"]


def test_answers_are_those_of_the_loaded_bundle(client: TestClient, scripted_bundle: Path) -> None:
    with hasten.load(scripted_bundle) as predictor:
        expected = predictor(TEXTS, top_k=None)
    answered = client.post("/predict", json={"inputs": [[text] for text in TEXTS]})
    assert answered.status_code == 200
    assert answered.json() == expected
    assert client.post("/predict", json={"inputs": TEXTS[1]}).json() == expected[1]


def test_a_route_that_the_task_does_not_have_names_those_it_has(client: TestClient) -> None:
    answered = client.post("/v1/embeddings", json={"input": "a"})
    assert answered.status_code == 404
    assert "/predict" in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "body"),
        (b'{"inputs": 3}', "inputs"),
        (b'{"inputs": []}', "no texts"),
        (b'{"inputs": [["a", "b"]]}', "a list of 2"),
        (b'{"inputs": ["a", "b"]}', '[["a"], ["b"]]'),
    ],
)
def test_a_body_that_is_no_request_is_told_why(client: TestClient, body: bytes, said: str) -> None:
    answered = client.post("/predict", content=body)
    assert answered.status_code == 422
    assert answered.json()["error_type"] == "Validation"
    assert said in answered.json()["error"]


def test_a_model_is_named_by_its_path(client: TestClient) -> None:
    assert client.post("/models/news/predict", json={"inputs": "a"}).status_code == 200
    assert client.get("/models/news/info").json()["model_id"] == "news"


def test_of_several_models_a_wrong_name_is_refused(scripted_bundle: Path) -> None:
    models = {name: Service.open(name, scripted_bundle) for name in ("one", "two")}
    with TestClient(create(models)) as client:
        answered = client.post("/models/three/predict", json={"inputs": "a"})
        assert answered.status_code == 404
        assert "one, two" in answered.json()["error"]
        assert client.post("/models/two/predict", json={"inputs": "a"}).status_code == 200


def test_only_who_has_the_key_is_answered(scripted_bundle: Path) -> None:
    service = Service.open("news", scripted_bundle)
    with TestClient(create({"news": service}, Access(api_key="secret"))) as client:
        assert client.post("/predict", json={"inputs": "a"}).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert client.post("/predict", json={"inputs": "a"}, headers=headers).status_code == 200
        text = client.get("/metrics").text
        assert 'hasten_request_failure_total{kind="unauthorized",model=""} 1.0' in text
        for probe in ("/health", "/v2/health/live", "/v2/health/ready"):
            assert client.get(probe).status_code == 200


def test_what_no_queue_could_hold_is_too_large(scripted_bundle: Path) -> None:
    service = Service.open("news", scripted_bundle, Limits(queue_s=1e-6))
    with TestClient(create({"news": service})) as client:
        assert client.post("/predict", json={"inputs": "a"}).status_code == 413


def test_a_body_beyond_the_limit_is_not_read(scripted_bundle: Path) -> None:
    service = Service.open("news", scripted_bundle)
    with TestClient(create({"news": service}, Access(body_bytes=100))) as client:
        assert client.post("/predict", json={"inputs": "a" * 200}).status_code == 413


def test_metrics_count_requests_and_batches(client: TestClient) -> None:
    before = batched(client)
    client.post("/predict", json={"inputs": [[text] for text in TEXTS]})
    client.post("/predict", json={"inputs": 3})
    text = client.get("/metrics").text
    assert 'hasten_request_success_total{model="news"} 1.0' in text
    assert 'hasten_request_failure_total{kind="validation",model="news"} 1.0' in text
    assert batched(client) - before == 4.0
    assert 'hasten_queue_size{model="news"} 0.0' in text


def batched(client: TestClient) -> float:
    """How many texts have run."""
    named = 'hasten_batch_size_sum{model="news",stage="1"} '
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(named)) for line in lines if line.startswith(named))
