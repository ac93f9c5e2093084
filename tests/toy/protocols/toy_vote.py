"""A protocol of its own: which label most texts have."""

from __future__ import annotations

from collections import Counter
from typing import Any

from starlette.responses import Response

from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, reply


class Vote(Body):
    """The texts that vote."""

    texts: list[str]


async def _vote(call: Call) -> Response:
    answered = await call.answer(call.body.texts)
    found = answers.classified(call, answered, top_k=1)
    return reply(Counter(labels[0]["label"] for labels in found))


def _refused(refusal: Refusal) -> Any:
    return {"no": refusal.message}


PROTOCOL = Protocol(
    "toy_vote",
    "Votes",
    (
        Operation(
            "POST", "/vote", "Count labels.", _vote, Vote, {"texts": ["a"]}, answers.classifies
        ),
    ),
    _refused,
)
