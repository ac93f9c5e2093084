"""OpenAI's embeddings, and its list of models.

Source: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply


class Embeddings(Body):
    """``input``: one text or several. Texts that are too long are cut, unlike at OpenAI."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def _embeddings(call: Call) -> Response:
    body: Embeddings = call.body
    texts = answers.several(_texts(body.input))
    vectors = await answers.embedded(call, texts, dimensions=body.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return reply(
        {
            "object": "list",
            "data": data,
            "model": call.service.name,
            "usage": answers.usage(call),
        }
    )


def _texts(given: Any) -> Any:
    """Texts; token ids are refused, since those of OpenAI's tokenizers mean nothing here."""
    if isinstance(given, list) and not all(isinstance(one, str) for one in given):
        raise Refusal(
            422,
            "validation",
            "input holds token ids, which this model would read with another tokenizer than the "
            "client's; send texts (in LangChain: check_embedding_ctx_length=False)",
        )
    return given


def encoded(vector: NDArray[np.float32], encoding_format: str) -> Any:
    """A vector as JSON numbers, or as base64 of its little-endian float32."""
    if encoding_format == "float":
        return vector
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def _models(call: Call) -> Response:
    return reply({"object": "list", "data": [_model(name) for name in call.models]})


async def _named(call: Call) -> Response:
    return reply(_model(call.service.name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "hasten"}


def refused(refusal: Refusal) -> Any:
    """A refusal as OpenAI tells it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(refusal.status)
    kind = kind or ("invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": refusal.message, "type": kind, "code": refusal.kind}}


PROTOCOL = Protocol(
    "openai",
    "OpenAI",
    (
        Operation(
            "POST",
            "/v1/embeddings",
            "Embed texts.",
            _embeddings,
            Embeddings,
            {"input": ["I like you."], "model": "bundle"},
            answers.embeds,
        ),
        Operation("GET", "/v1/models", "The models that are served.", _models),
        Operation("GET", "/v1/models/{model}", "One of them.", _named),
    ),
    refused,
)
