"""The protocol of Hugging Face's text-embeddings-inference (TEI).

Source: the OpenAPI document of https://github.com/huggingface/text-embeddings-inference. Where it
differs from ``transformers.pipeline`` (several labels: TEI applies a softmax over them), the
pipeline is followed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from starlette.responses import Response

import hasten
from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply

Id = Annotated[int, Field(ge=0, lt=2**32)]


class Predict(Body):
    """``inputs``: one text, a list of one text or of a pair, or a list of such lists."""

    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = False
    truncate: bool = False


class Embed(Body):
    """``inputs``: one text or several."""

    inputs: str | list[str]
    normalize: bool = True
    truncate: bool = False
    dimensions: int | None = None


class Rerank(Body):
    """``texts`` are ordered by how well they fit ``query``."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False


class Sentences(Body):
    """One sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class Similarity(Body):
    """``inputs``: what is compared."""

    inputs: Sentences


class Tokenize(Body):
    """``inputs``: one text or several."""

    inputs: str | list[str]
    add_special_tokens: bool = True


class Decode(Body):
    """``ids``: the tokens of one text or of several."""

    ids: list[Id] | list[list[Id]]
    skip_special_tokens: bool = True


async def _predict(call: Call) -> Response:
    body: Predict = call.body
    lists, single = _lists(body.inputs)
    pairs = answers.reads_pairs(call.service.predictor)
    texts = [_sequence(one, pairs) for one in lists]
    answered = await call.answer(texts, truncate=body.truncate)
    function = "none" if body.raw_scores else None
    found = answers.classified(call, answered, function=function)
    return reply(found[0] if single else found)


def _lists(inputs: Any) -> tuple[list[list[str]], bool]:
    """The sequences of each input, and whether it is a single one.

    >>> _lists("a"), _lists(["a", "b"]), _lists([["a"], ["b"]])
    (([['a']], True), ([['a', 'b']], True), ([['a'], ['b']], False))
    """
    if isinstance(inputs, str):
        return [[inputs]], True
    if inputs and isinstance(inputs[0], str):
        return [inputs], True
    return inputs, False


def _sequence(texts: Any, pairs: bool) -> Any:
    """What the model reads once: a text, or a pair."""
    if len(texts) == 1 + pairs:
        return tuple(texts) if pairs else texts[0]
    wanted = '[["a", "b"], ["c", "d"]]' if pairs else '[["a"], ["b"]]'
    raise Refusal(
        422,
        "validation",
        f"this model reads {'pairs' if pairs else 'single texts'}, and inputs holds a list of "
        f"{len(texts)}, of which TEI makes one input; several inputs are written {wanted}",
    )


async def _embed(call: Call) -> Response:
    body: Embed = call.body
    vectors = await answers.embedded(
        call,
        answers.several(body.inputs),
        dimensions=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncate,
    )
    return reply(vectors)


async def _rerank(call: Call) -> Response:
    body: Rerank = call.body
    scores = await answers.relevances(
        call, [body.query], body.texts, raw=body.raw_scores, truncate=body.truncate
    )
    found = [
        {"index": int(index), "score": scores[index]}
        | ({"text": body.texts[index]} if body.return_text else {})
        for index in np.argsort(-scores, kind="stable")
    ]
    return reply(found)


async def _similarity(call: Call) -> Response:
    inputs: Sentences = call.body.inputs
    return reply(await answers.relevances(call, [inputs.source_sentence], inputs.sentences))


async def _tokenize(call: Call) -> Response:
    body: Tokenize = call.body
    encodings = await call.service.vocabulary.encode(
        answers.several(body.inputs), special=body.add_special_tokens
    )
    return reply([_tokens(encoding) for encoding in encodings])


def _tokens(encoding: Any) -> list[dict[str, Any]]:
    columns = encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets
    return [
        {"id": number, "text": token, "special": True, "start": None, "stop": None}
        if special
        else {"id": number, "text": token, "special": False, "start": span[0], "stop": span[1]}
        for number, token, special, span in zip(*columns, strict=True)
    ]


async def _decode(call: Call) -> Response:
    body: Decode = call.body
    ids: Any = body.ids
    lists = ids if ids and isinstance(ids[0], list) else [ids]
    decoded = await call.service.vocabulary.decode(lists, skip_special=body.skip_special_tokens)
    return reply(decoded)


async def _info(call: Call) -> Response:
    service = call.service
    bundle = service.predictor.bundle
    labels = bundle.model.labels
    names = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    kind = "reranker" if answers.reads_pairs(service.predictor) else "classifier"
    return reply(
        {
            "model_id": service.name,
            "model_sha": None,
            "model_dtype": bundle.plan.candidate.precision,
            "model_type": {kind: names} if labels else {"embedding": {"pooling": "model"}},
            "max_input_length": bundle.stages[-1].max_length,
            "max_client_batch_size": service.limits.texts,
            "auto_truncate": False,
            "version": hasten.__version__,
        }
    )


def refused(refusal: Refusal) -> Any:
    """A refusal as TEI tells it."""
    kinds = {
        "validation": "Validation",
        "too_large": "Validation",
        "overloaded": "Overloaded",
        "backend": "Backend",
        "unhealthy": "Unhealthy",
    }
    return {"error": refusal.message, "error_type": kinds.get(refusal.kind, refusal.kind)}


def _main(operation: Operation) -> Operation:
    """The same at ``/``, where TEI has the model's main task."""
    return replace(operation, path="/", summary=f"{operation.summary} The model's main task.")


PREDICT = Operation(
    "POST",
    "/predict",
    "Classify texts.",
    _predict,
    Predict,
    {"inputs": "I like you."},
    answers.classifies,
)
EMBED = Operation(
    "POST", "/embed", "Embed texts.", _embed, Embed, {"inputs": ["I like you."]}, answers.embeds
)
RERANK = Operation(
    "POST",
    "/rerank",
    "Order texts by how well they fit a query.",
    _rerank,
    Rerank,
    {"query": "What is hasten?", "texts": ["A server.", "I like you."]},
    answers.ranks,
)
SIMILARITY = Operation(
    "POST",
    "/similarity",
    "Compare a sentence with others.",
    _similarity,
    Similarity,
    {"inputs": {"source_sentence": "I like you.", "sentences": ["I love you."]}},
    answers.ranks,
)

PROTOCOL = Protocol(
    "tei",
    "text-embeddings-inference",
    (
        PREDICT,
        EMBED,
        RERANK,
        SIMILARITY,
        Operation(
            "POST",
            "/tokenize",
            "Show the tokens of texts.",
            _tokenize,
            Tokenize,
            {"inputs": "I like you."},
        ),
        Operation("POST", "/decode", "Join tokens to text.", _decode, Decode, {"ids": [5, 6]}),
        Operation("GET", "/info", "What is served.", _info),
        *map(_main, (PREDICT, EMBED, RERANK)),
    ),
    refused,
)
