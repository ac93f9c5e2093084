"""The server's description of itself."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
import pytest
from starlette.testclient import TestClient


@pytest.mark.parametrize("model", ["news", "vectors", "tags", "pairs"])
def test_every_example_is_answered_by_some_model(live: str, model: str) -> None:
    document = httpx.get(f"{live}/openapi.json").json()
    asked = 0
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            bodies = told.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in bodies.get("examples", {"": {"value": None}}).values():
                check(bodies.get("schema", {}), example["value"], document)
                where = path.replace("{model}", model).replace("{version}", "1")
                prefix = "" if "{model}" in path else f"/models/{model}"
                given = {"json": example["value"]} if method == "post" else {}
                answered = httpx.request(method, f"{live}{prefix}{where}", **given)
                # Another kind of model may have the path; the body may be of another kind too.
                assert answered.status_code in {200, 404, 422, 400}, answered.text
                asked += answered.status_code == 200
    assert asked >= 8


def check(schema: dict[str, Any], value: Any, document: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schema, "components": document["components"]})


def test_it_names_what_the_models_have_and_no_more(
    client: TestClient, embedder: TestClient
) -> None:
    classifier = client.get("/openapi.json").json()["paths"]
    vectors = embedder.get("/openapi.json").json()["paths"]
    assert "/predict" in classifier
    assert "/predict" not in vectors
    assert "/v1/embeddings" in vectors
    assert (
        len(
            vectors["/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"][
                "anyOf"
            ]
        )
        == 2
    )


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"https?://", page.text)


def test_an_unknown_path_names_those_there_are(client: TestClient) -> None:
    answered = client.get("/v1/completions")
    assert answered.status_code == 404
    assert "/v1/models" in answered.json()["error"]
