"""KServe v2 over gRPC, as Triton's client speaks it."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

import hasten
from hasten.serve.app import Access, create
from hasten.serve.metrics import Metrics
from hasten.serve.service import Limits, Service

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'hasten[interop]'")
grpc_server = pytest.importorskip(
    "hasten.serve.grpc_server", reason="pip install 'hasten[serve-grpc]'"
)

TEXTS = ["a b c", "the team won", "b"]
KEY = {"authorization": "Bearer secret"}


@contextlib.contextmanager
def speaking(models: dict[str, Service], metrics: Metrics, key: str | None) -> Iterator[str]:
    """The address of a server that speaks gRPC beside HTTP, as `hasten serve` runs it."""
    ports: list[int] = []

    @contextlib.asynccontextmanager
    async def beside() -> Any:
        where = grpc_server.Listening("127.0.0.1:0", key)
        async with grpc_server.speaking(where, models, metrics) as port:
            ports.append(port)
            yield

    application = create(models, Access(key), metrics, beside=beside)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    started, startup = threading.Event(), server.startup

    async def starting(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = starting  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    started.wait()
    try:
        yield f"127.0.0.1:{ports[0]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def address(scripted_bundle: Path, embedding_bundle: Path, metrics: Metrics) -> Iterator[str]:
    models = {
        "news": Service.open("news", scripted_bundle, Limits(texts=5)),
        "vectors": Service.open("vectors", embedding_bundle),
    }
    with speaking(models, metrics, "secret") as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


def strings(texts: list[str], name: str = "text") -> Any:
    tensor = triton.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, object))
    return tensor


def test_answers_are_those_of_the_loaded_bundle(client: Any, scripted_bundle: Path) -> None:
    with hasten.load(scripted_bundle) as predictor:
        expected = predictor.outputs(TEXTS).values
        labels = [one["label"] for one in predictor(TEXTS)]
    found = client.infer("news", [strings(TEXTS)], headers=KEY, request_id="7")
    np.testing.assert_allclose(found.as_numpy("logits"), expected, 1e-6)
    assert [label.decode() for label in found.as_numpy("label")] == labels
    assert found.get_response().id == "7"
    wanted = [triton.InferRequestedOutput("scores")]
    few = client.infer("news", [strings(TEXTS)], outputs=wanted, headers=KEY)
    assert few.as_numpy("scores").shape == (3, 3)
    assert few.as_numpy("logits") is None
    vectors = client.infer("vectors", [strings(TEXTS)], headers=KEY)
    assert vectors.as_numpy("embedding").shape == (3, 4)


def test_metadata_and_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("news")
    assert client.get_server_metadata().name == "hasten"
    outputs = client.get_model_metadata("news").outputs
    assert [(one.name, one.datatype) for one in outputs] == [
        ("label", "BYTES"),
        ("scores", "FP32"),
        ("logits", "FP32"),
    ]


@pytest.mark.parametrize(
    ("model", "tensor", "headers", "told"),
    [
        ("news", strings(["a"]), {}, "UNAUTHENTICATED: the API key"),
        ("news", strings(["a"], "words"), KEY, "INVALID_ARGUMENT: .* takes text"),
        ("news", strings(["a"] * 6), KEY, "INVALID_ARGUMENT: 6 texts are too many"),
        ("other", strings(["a"]), KEY, "NOT_FOUND: .* there are: news, vectors"),
    ],
)
def test_refusals_have_a_status_and_a_message(
    client: Any, model: str, tensor: Any, headers: dict[str, str], told: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [tensor], headers=headers)
    status = str(refused.value.status()).removeprefix("StatusCode.")
    assert re.match(told, f"{status}: {refused.value.message()}")


def test_requests_are_counted(client: Any, metrics: Metrics) -> None:
    client.infer("news", [strings(["a"])], headers=KEY)
    text = metrics.text().decode()
    assert 'hasten_request_count_total{model="news",protocol="kserve-grpc"}' in text


def test_the_messages_have_the_numbers_of_the_protocol() -> None:
    from tritonclient.grpc import service_pb2

    from hasten.serve.grpc_messages import FIELDS, messages

    nested = {
        "TensorMetadata": "ModelMetadataResponse",
        "InferInputTensor": "ModelInferRequest",
        "InferRequestedOutputTensor": "ModelInferRequest",
        "InferOutputTensor": "ModelInferResponse",
    }
    for name in FIELDS:
        holder = getattr(service_pb2, nested[name]) if name in nested else service_pb2
        theirs = {
            field.name: (field.number, field.type, field.is_repeated)
            for field in getattr(holder, name).DESCRIPTOR.fields
        }
        ours = {
            field.name: (field.number, field.type, field.is_repeated)
            for field in messages()[name].DESCRIPTOR.fields
        }
        assert ours.items() <= theirs.items()
