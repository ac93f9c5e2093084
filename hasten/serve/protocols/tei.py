"""The protocol of Hugging Face's text-embeddings-inference (TEI).

Source: the OpenAPI document of https://github.com/huggingface/text-embeddings-inference. Where it
differs from ``transformers.pipeline`` (several labels: TEI applies a softmax over them), the
pipeline is followed.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply

_CLASSIFIERS = frozenset({"single_label", "multi_label", "regression"})


class Predict(Body):
    """``inputs``: one text, or a list of lists of one text each."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    truncate: bool = False


async def _predict(call: Call) -> Response:
    body: Predict = call.body
    single = isinstance(body.inputs, str)
    texts = [body.inputs] if isinstance(body.inputs, str) else [_text(i) for i in body.inputs]
    answered = await call.answer(texts, truncate=body.truncate)
    predictor = call.service.predictor
    answers = predictor.task.answers(
        answered.outputs,
        predictor.bundle.model.labels,
        answered.encoded,
        None,
        bare=False,
        function="none" if body.raw_scores else None,
    )
    return reply(answers[0] if single else answers)


def _text(item: str | list[str]) -> str:
    if isinstance(item, str):
        return item
    if len(item) != 1:
        raise Refusal(422, "validation", "this model reads single texts; inputs holds a pair")
    return item[0]


async def _info(call: Call) -> Response:
    bundle = call.service.predictor.bundle
    model = bundle.model
    return reply(
        {
            "model_id": call.service.name,
            "model_dtype": bundle.plan.candidate.precision,
            "model_type": {"classifier": {"id2label": dict(enumerate(model.labels))}}
            if model.labels
            else {"embedding": {"pooling": "none"}},
            "max_input_length": model.max_length,
            "max_client_batch_size": call.service.limits.texts,
            "version": _version(),
        }
    )


def _version() -> str:
    from hasten import __version__

    return __version__


def _refused(refusal: Refusal) -> Any:
    kinds = {
        "validation": "Validation",
        "overloaded": "Overloaded",
        "backend": "Backend",
        "unhealthy": "Unhealthy",
    }
    return {"error": refusal.message, "error_type": kinds.get(refusal.kind, refusal.kind)}


PROTOCOL = Protocol(
    "tei",
    "text-embeddings-inference",
    (
        Operation(
            "POST",
            "/predict",
            "Classify texts.",
            _predict,
            Predict,
            {"inputs": "I like you."},
            _CLASSIFIERS,
        ),
        Operation("GET", "/info", "What is served.", _info),
    ),
    _refused,
)
