"""OpenAI's embeddings, and its list of models.

Source: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply


class Embeddings(Body):
    """``input``: one text or several. Texts that are too long are cut, unlike at OpenAI."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def _embeddings(call: Call) -> Response:
    body: Embeddings = call.body
    texts = [body.input] if isinstance(body.input, str) else body.input
    answered = await call.answer(texts)
    vectors = np.ascontiguousarray(_cut(answered.outputs.values, body.dimensions))
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    tokens = int(answered.tokens.sum())
    return reply(
        {
            "object": "list",
            "data": data,
            "model": call.service.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _cut(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first ``dimensions`` of each vector, made unit length again."""
    if dimensions is None:
        return vectors
    if dimensions not in range(1, vectors.shape[1] + 1):
        raise Refusal(
            422, "validation", f"dimensions is {dimensions}; it must be 1 to {vectors.shape[1]}"
        )
    cut = vectors[:, :dimensions]
    unit: NDArray[np.float32] = cut / np.linalg.norm(cut, axis=1, keepdims=True).clip(1e-12)
    return unit


def _encoded(vector: NDArray[np.float32], encoding: str) -> Any:
    if encoding == "float":
        return vector
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _refused(refusal: Refusal) -> Any:
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
            frozenset({"tensors"}),
        ),
    ),
    _refused,
)
