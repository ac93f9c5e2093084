"""vLLM's classification, scoring and pooling.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field
from starlette.responses import Response

from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, reply
from hasten.serve.protocols.openai import encoded, refused


class Classify(Body):
    """``input``: one text or several."""

    input: str | list[str]
    model: str | None = None
    use_activation: bool = Field(
        True, validation_alias=AliasChoices("use_activation", "activation")
    )


class Score(Body):
    """``text_1`` and ``text_2``: one and several, or equally many. Also as queries, documents."""

    text_1: str | list[str] = Field(validation_alias=AliasChoices("text_1", "queries"))
    text_2: str | list[str] = Field(validation_alias=AliasChoices("text_2", "documents"))
    model: str | None = None
    use_activation: bool = Field(
        True, validation_alias=AliasChoices("use_activation", "activation")
    )


class Pooling(Body):
    """``input``: one text or several."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def _classify(call: Call) -> Response:
    body: Classify = call.body
    answered = await call.answer(answers.several(body.input))
    predictor = call.service.predictor
    labels = predictor.bundle.model.labels
    outputs = answers.rows(answered)
    scores = predictor.task.scores(answered.outputs) if body.use_activation else outputs
    data = [
        {
            "index": index,
            "label": labels[int(row.argmax())],
            "probs": row,
            "num_classes": len(row),
        }
        for index, row in enumerate(scores)
    ]
    return reply(answers.listed(call, "classify", data))


async def _score(call: Call) -> Response:
    body: Score = call.body
    scores = await answers.relevances(
        call,
        answers.several(body.text_1),
        answers.several(body.text_2),
        raw=not body.use_activation,
    )
    data = [
        {"index": index, "object": "score", "score": score} for index, score in enumerate(scores)
    ]
    return reply(answers.listed(call, "score", data))


async def _pooling(call: Call) -> Response:
    body: Pooling = call.body
    vectors = await answers.embedded(call, answers.several(body.input), dimensions=body.dimensions)
    data: list[Any] = [
        {"index": index, "object": "pooling", "data": encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return reply(answers.listed(call, "pool", data))


PROTOCOL = Protocol(
    "vllm",
    "vLLM",
    (
        Operation(
            "POST",
            "/classify",
            "Classify texts, with a score for every label.",
            _classify,
            Classify,
            {"input": ["I like you."]},
            answers.classifies,
        ),
        Operation(
            "POST",
            "/score",
            "Score how well texts fit each other.",
            _score,
            Score,
            {"text_1": "What is hasten?", "text_2": ["A server.", "I like you."]},
            answers.ranks,
        ),
        Operation(
            "POST",
            "/pooling",
            "Embed texts.",
            _pooling,
            Pooling,
            {"input": ["I like you."]},
            answers.embeds,
        ),
    ),
    refused,
)
