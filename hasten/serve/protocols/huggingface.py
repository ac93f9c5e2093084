"""Hugging Face's inference API, as ``huggingface_hub.InferenceClient`` speaks it to a URL.

Source: https://huggingface.co/docs/inference-providers/tasks/index. Answers are those of
``transformers.pipeline``. A list is answered with a list; classification wraps the labels of a
single text in a list too, which is what the client unwraps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from hasten.runtime.predictor import Predictor
from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply
from hasten.serve.protocols import tei
from hasten.tasks import DEFAULT_FORM, Form


class Pair(Body):
    """What a model reads that takes pairs."""

    text: str
    text_pair: str


class Question(Body):
    """A question, and the text that holds its answer."""

    question: str
    context: str


class Choice(Body):
    """How labels are scored, and how many are returned."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class Classify(Body):
    """``inputs``: one text or several, or pairs."""

    inputs: str | Pair | list[str | Pair]
    parameters: Choice = Choice()


class ClassifyHere(Classify):
    """At a path that TEI has too, ``parameters`` say whose request it is."""

    parameters: Choice


class Best(Body):
    """How many answers are returned."""

    top_k: Annotated[int, Field(ge=1)] | None = None


class Answer(Body):
    """``inputs``: one text or several, or questions about texts."""

    inputs: str | Pair | Question | list[str | Pair | Question]
    parameters: Best = Best()


async def _classify(call: Call) -> Response:
    body: Classify = call.body
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    answered = await call.answer(_read(call, given))
    choice = body.parameters
    found = answers.classified(
        call, answered, top_k=choice.top_k, function=choice.function_to_apply
    )
    return reply(found)


async def _answer(call: Call) -> Response:
    body: Answer = call.body
    several = isinstance(body.inputs, list)
    given: Any = body.inputs if several else [body.inputs]
    answered = await call.answer(_read(call, given))
    predictor, top_k = call.service.predictor, body.parameters.top_k
    form = DEFAULT_FORM if top_k is None else Form(top_k, bare=False)
    labels = predictor.bundle.model.labels
    found = predictor.task.answers(answered.outputs, labels, answered.encoded, form)
    return reply(found if several else found[0])


def _read(call: Call, inputs: list[Any]) -> list[Any]:
    """Inputs as the model reads them: texts, or pairs of them.

    Raises:
        Refusal: an input is of the other kind.
    """
    pairs = answers.reads_pairs(call.service.predictor)
    if any(isinstance(one, str) == pairs for one in inputs):
        wanted = '{"text": ..., "text_pair": ...}' if pairs else "a text"
        raise Refusal(422, "validation", f"each of this model's inputs is {wanted}")
    return [one if isinstance(one, str) else tuple(one.model_dump().values()) for one in inputs]


def _other(predictor: Predictor) -> bool:
    """Whether the model neither classifies nor embeds: it finds entities, answers, words ..."""
    return not answers.classifies(predictor) and not answers.embeds(predictor)


_CLASSIFY = Operation(
    "POST",
    "/pipeline/text-classification",
    "Classify texts.",
    _classify,
    Classify,
    {"inputs": "I like you.", "parameters": {"top_k": 1}},
    answers.classifies,
)
_ANSWER = Operation(
    "POST",
    "/",
    "Answer as the task's pipeline does.",
    _answer,
    Answer,
    {"inputs": "I like you.", "parameters": {}},
    _other,
)

PROTOCOL = Protocol(
    "huggingface",
    "Hugging Face Inference",
    (
        _CLASSIFY,
        replace(_CLASSIFY, path="/", body=ClassifyHere),
        replace(tei.EMBED, path="/pipeline/feature-extraction"),
        replace(tei.SIMILARITY, path="/pipeline/sentence-similarity"),
        replace(tei.SIMILARITY, path="/"),
        _ANSWER,
    ),
    tei.refused,
)
