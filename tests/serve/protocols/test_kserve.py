"""KServe v2 over HTTP, tensors in JSON and as bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from starlette.testclient import TestClient

TEXTS = ["a b c", "the team won", "b"]


def tensor(*texts: object, **changed: Any) -> dict[str, Any]:
    usual = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    return usual | changed


def test_tensors_hold_what_the_model_gives(client: TestClient) -> None:
    body = {"id": "7", "inputs": [tensor(*TEXTS)]}
    answered = client.post("/v2/models/news/infer", json=body).json()
    assert (answered["id"], answered["model_name"], answered["model_version"]) == ("7", "news", "1")
    outputs = {one["name"]: one for one in answered["outputs"]}
    assert outputs["scores"]["shape"] == [3, 3]
    expected = client.post("/classify", json={"input": TEXTS}).json()["data"]
    assert outputs["label"]["data"] == [one["label"] for one in expected]
    flat = [score for one in expected for score in one["probs"]]
    assert outputs["scores"]["data"] == pytest.approx(flat)


def test_the_metadata_is_what_comes(client: TestClient) -> None:
    told = client.get("/v2/models/news/versions/1").json()
    came = client.post("/v2/models/news/infer", json={"inputs": [tensor("a")]}).json()
    assert [(one["name"], one["datatype"]) for one in told["outputs"]] == [
        (one["name"], one["datatype"]) for one in came["outputs"]
    ]
    assert client.get("/v2/models/other").status_code == 404
    assert client.get("/v2/models/news/ready").json()["ready"] is True


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([tensor("a", datatype="FP32")], "BYTES"),
        ([tensor("a", 3)], "strings"),
        ([tensor("a", shape=[2])], "shape"),
        ([tensor("a", name="texts")], "takes text"),
        ([], "missing"),
    ],
)
def test_other_inputs_are_refused(client: TestClient, given: list[Any], said: str) -> None:
    answered = client.post("/v2/models/news/infer", json={"inputs": given})
    assert answered.status_code == 400
    assert said in answered.json()["error"]


@pytest.mark.parametrize(
    ("data", "size"), [(b"\x05\x00\x00\x00ab", 6), (b"\x01", 1), (b"", 9), (b"\x01\0\0\0\xff", 5)]
)
def test_bytes_that_are_no_strings_are_refused(client: TestClient, data: bytes, size: int) -> None:
    given = {"inputs": [tensor(parameters={"binary_data_size": size}, shape=[1])]}
    head = client.build_request("POST", "/", json=given).content
    answered = client.post(
        "/v2/models/news/infer",
        content=head + data,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answered.status_code == 400
    text = struct.pack("<I", 2) + b"ab"
    head = client.build_request(
        "POST", "/", json={"inputs": [tensor(parameters={"binary_data_size": 6}, shape=[1])]}
    ).content
    fine = client.post(
        "/v2/models/news/infer",
        content=head + text,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert fine.status_code == 200
