"""Clients that people have already, against a server that listens."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import hasten

TEXTS = ["a b c", "the team won", "b"]


def labels_of(bundle: Path, text: str, **arguments: Any) -> dict[str, float]:
    with hasten.load(bundle) as predictor:
        return {one["label"]: one["score"] for one in predictor([text], None, **arguments)[0]}


class TestHuggingFace:
    @pytest.fixture
    def ask(self, live: str) -> Iterator[Any]:
        from huggingface_hub import InferenceClient, close_session

        yield lambda path="": InferenceClient(base_url=f"{live}{path}", token="none")
        close_session()

    def test_classification(self, ask: Any, scripted_bundle: Path) -> None:
        found = ask("/models/news").text_classification("b")
        assert {one.label: one.score for one in found} == labels_of(scripted_bundle, "b")
        (best,) = ask("/models/news").text_classification("b", top_k=1, function_to_apply="none")
        raw = labels_of(scripted_bundle, "b", function_to_apply="none")
        assert raw[best.label] == max(raw.values()) == best.score

    def test_the_address_alone_names_the_first_model(self, ask: Any) -> None:
        assert ask().text_classification("b") == ask("/models/news").text_classification("b")

    def test_vectors(self, ask: Any, embedding_bundle: Path) -> None:
        with hasten.load(embedding_bundle) as predictor:
            expected = predictor.outputs(TEXTS).values
        found = ask("/models/vectors").feature_extraction(TEXTS, normalize=False)
        np.testing.assert_allclose(found, expected, 1e-6)
        unit = ask("/models/vectors").feature_extraction("b", normalize=True)
        np.testing.assert_allclose(np.linalg.norm(unit), 1.0, 1e-5)

    def test_similarity(self, ask: Any) -> None:
        found = ask("/models/vectors").sentence_similarity("b", ["b", "the team won"])
        assert found[0] == pytest.approx(1.0)
        assert len(found) == 2

    def test_what_the_task_does_not_have_is_an_error(self, ask: Any) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        with pytest.raises(HfHubHTTPError, match="404"):
            ask("/models/news/pipeline/feature-extraction").feature_extraction("b")
        with pytest.raises(HfHubHTTPError, match="valid string"):
            ask("/models/tags").sentence_similarity("b", ["a"])

    def test_entities(self, ask: Any) -> None:
        text = "the team won"
        found = ask("/models/tags").token_classification(text)
        assert found
        assert all(text[one.start : one.end] == one.word for one in found)


class TestOpenAI:
    @pytest.fixture
    def ask(self, live: str) -> Iterator[Any]:
        openai = pytest.importorskip("openai", reason="pip install 'hasten[interop]'")
        with openai.OpenAI(base_url=f"{live}/v1", api_key="none") as client:
            yield client

    @pytest.mark.parametrize("encoding", ["float", "base64", None])
    def test_embeddings(self, ask: Any, embedding_bundle: Path, encoding: str | None) -> None:
        given = {"encoding_format": encoding} if encoding else {}
        found = ask.embeddings.create(input=TEXTS, model="vectors", **given)
        with hasten.load(embedding_bundle) as predictor:
            expected = predictor.outputs(TEXTS).values
        vectors = [one.embedding for one in found.data]
        if encoding == "base64":
            vectors = [np.frombuffer(base64.b64decode(one), "<f4") for one in vectors]
        np.testing.assert_allclose(vectors, expected, 1e-6)
        assert found.usage.total_tokens == found.usage.prompt_tokens > len(TEXTS)

    def test_models(self, ask: Any) -> None:
        assert [one.id for one in ask.models.list()] == ["news", "vectors", "tags", "pairs"]
        assert ask.models.retrieve("tags").id == "tags"

    def test_errors_are_its_own(self, ask: Any) -> None:
        import openai

        with pytest.raises(openai.NotFoundError, match="there are: news, vectors, tags, pairs"):
            ask.embeddings.create(input="a", model="other")
        with pytest.raises(openai.UnprocessableEntityError, match="no texts"):
            ask.embeddings.create(input=[], model="vectors")


class TestCohere:
    @pytest.fixture
    def cohere(self) -> Any:
        return pytest.importorskip("cohere", reason="pip install 'hasten[interop]'")

    @pytest.mark.parametrize("version", ["Client", "ClientV2"])
    def test_rerank(self, live: str, cohere: Any, version: str) -> None:
        with httpx.Client() as http:
            client = getattr(cohere, version)("none", base_url=live, httpx_client=http)
            found = client.rerank(query="b", documents=TEXTS, model="pairs", top_n=2)
        assert len(found.results) == 2
        best, second = found.results
        assert best.relevance_score >= second.relevance_score
        expected = httpx.post(f"{live}/models/pairs/rerank", json={"query": "b", "texts": TEXTS})
        assert [best.index, second.index] == [one["index"] for one in expected.json()[:2]]


class TestTriton:
    @pytest.fixture
    def ask(self, live: str) -> Iterator[Any]:
        triton = pytest.importorskip("tritonclient.http", reason="pip install 'hasten[interop]'")
        with triton.InferenceServerClient(live.removeprefix("http://")) as client:
            yield client

    @pytest.mark.parametrize("binary", [True, False])
    def test_inference(self, ask: Any, scripted_bundle: Path, binary: bool) -> None:
        import tritonclient.http as triton

        text = triton.InferInput("text", [3, 1], "BYTES")
        text.set_data_from_numpy(np.array(TEXTS, object).reshape(3, 1), binary_data=binary)
        wanted = [triton.InferRequestedOutput(name, binary) for name in ("logits", "label")]
        found = ask.infer("news", [text], outputs=wanted, request_id="4")
        with hasten.load(scripted_bundle) as predictor:
            expected = predictor.outputs(TEXTS).values
            labels = [one["label"] for one in predictor(TEXTS)]
        np.testing.assert_allclose(found.as_numpy("logits"), expected, 1e-6)
        names = [one.decode() if binary else one for one in found.as_numpy("label")]
        assert names == labels
        assert found.get_response()["id"] == "4"
        assert ask.infer("news", [text]).as_numpy("scores").shape == (3, 3)

    def test_metadata_and_health(self, ask: Any) -> None:
        assert ask.is_server_live()
        assert ask.is_server_ready()
        assert ask.is_model_ready("pairs")
        assert not ask.is_model_ready("other")
        told = ask.get_model_metadata("pairs")
        assert [one["name"] for one in told["inputs"]] == ["text", "text_pair"]
