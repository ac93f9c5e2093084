"""What several protocols have in common: which models can do what, vectors, relevance, usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.runtime.predictor import Predictor
from hasten.serve.calls import Call, Refusal
from hasten.serve.service import Answered
from hasten.tasks import Form


def reads_pairs(predictor: Predictor) -> bool:
    """Whether the model reads a text and its pair."""
    return predictor.task.takes == "pairs"


def classifies(predictor: Predictor) -> bool:
    """Whether the model gives every text, or every pair, a score for each label."""
    task = predictor.task
    return task.has_labels and task.model_class == "AutoModelForSequenceClassification"


def embeds(predictor: Predictor) -> bool:
    """Whether the model gives every text a vector."""
    return predictor.task.vectors


def ranks(predictor: Predictor) -> bool:
    """Whether texts can be ordered by a query: by pairs with one score, or by vectors."""
    one_score = classifies(predictor) and len(predictor.bundle.model.labels) == 1
    return (one_score and reads_pairs(predictor)) or embeds(predictor)


def classified(
    call: Call,
    answered: Answered,
    *,
    top_k: int | None = None,
    function: str | None = None,
    ranked: bool = True,
) -> list[Any]:
    """The labels of each text, as ``transformers.pipeline`` names them."""
    predictor = call.service.predictor
    form = Form(top_k, bare=False, function=function, ranked=ranked)
    labels = predictor.bundle.model.labels
    return predictor.task.answers(answered.outputs, labels, answered.encoded, form)


async def embedded(
    call: Call,
    texts: Sequence[str],
    *,
    dimensions: int | None = None,
    normalize: bool = False,
    truncate: bool = True,
) -> NDArray[np.float32]:
    """The vectors of texts: float32 [n, dimensions].

    Args:
        call: what asks.
        texts: at least one.
        dimensions: keep the first so many, and make the vectors unit length again.
        normalize: make the vectors unit length.
        truncate: cut texts that are too long, instead of refusing them.

    Raises:
        Refusal: there are not so many dimensions.
    """
    vectors = rows(await call.answer(texts, truncate=truncate))
    if dimensions is not None:
        if dimensions not in range(1, vectors.shape[1] + 1):
            raise Refusal(
                422, "validation", f"dimensions is {dimensions}; it must be 1 to {vectors.shape[1]}"
            )
        vectors = vectors[:, :dimensions]
    return unit(vectors) if normalize or dimensions else vectors


async def relevances(
    call: Call,
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    raw: bool = False,
    truncate: bool = True,
) -> NDArray[np.float32]:
    """How well each document fits its query, or the only one: float32 [documents].

    Of a model that reads pairs it is the pair's score (``raw``: before sigmoid), of others the
    cosine of the texts' vectors.
    """
    if not documents:
        raise Refusal(422, "validation", "there are no documents; send at least one")
    if len(queries) not in {1, len(documents)}:
        raise Refusal(
            422,
            "validation",
            f"{len(queries)} queries and {len(documents)} documents do not pair; "
            "send one query, or one for each document",
        )
    if reads_pairs(call.service.predictor):
        paired = queries if len(queries) > 1 else [queries[0]] * len(documents)
        pairs = list(zip(paired, documents, strict=True))
        answered = await call.answer(pairs, truncate=truncate)
        task = call.service.predictor.task
        scores = rows(answered) if raw else task.scores(answered.outputs)
        column: NDArray[np.float32] = scores[:, 0]
        return column
    vectors = await embedded(call, [*queries, *documents], normalize=True, truncate=truncate)
    cosines: NDArray[np.float32] = (vectors[: len(queries)] * vectors[len(queries) :]).sum(axis=1)
    return cosines


def rows(answered: Answered) -> NDArray[np.float32]:
    """Outputs of a model that gives one row a text: float32 [n, k]."""
    return np.ascontiguousarray(answered.outputs.values)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / lengths.clip(1e-12)
    return scaled


def usage(call: Call) -> dict[str, int]:
    """How many tokens the call has read."""
    tokens = call.answered.tokens if call.answered else 0
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def listed(call: Call, prefix: str, data: list[Any]) -> dict[str, Any]:
    """A list of results as vLLM wraps it; ``prefix`` begins its id."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": call.service.name,
        "data": data,
        "usage": usage(call),
    }


def several(given: str | Sequence[str]) -> list[str]:
    """One text or several, as a list."""
    return [given] if isinstance(given, str) else list(given)
