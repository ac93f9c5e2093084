"""Reranking as Cohere, Jina and vLLM speak it; TEI's own ``/rerank`` differs by its key ``texts``.

Sources: https://docs.cohere.com/reference/rerank, https://jina.ai/reranker and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from starlette.responses import Response

from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply


class Document(Body):
    """A document of which only the text counts."""

    text: str


class Rerank(Body):
    """``documents`` are ordered by how well they fit ``query``."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None


async def _rerank(call: Call) -> Response:
    body: Rerank = call.body
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    read = texts
    if body.max_tokens_per_doc is not None:
        read = await call.service.vocabulary.cut(texts, body.max_tokens_per_doc)
    scores = await answers.relevances(call, [body.query], read)
    best = np.argsort(-scores, kind="stable")[: body.top_n]
    results = [
        {"index": int(index), "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if body.return_documents else {})
        for index in best
    ]
    return reply(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": call.service.name,
            "usage": answers.usage(call),
            "results": results,
        }
    )


def _refused(refusal: Refusal) -> Any:
    return {"message": refusal.message, "detail": refusal.message, "code": refusal.kind}


PROTOCOL = Protocol(
    "rerank",
    "Cohere, Jina and vLLM",
    tuple(
        Operation(
            "POST",
            path,
            "Order documents by how well they fit a query.",
            _rerank,
            Rerank,
            {"query": "What is hasten?", "documents": ["A server.", "I like you."], "top_n": 1},
            answers.ranks,
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    _refused,
)
