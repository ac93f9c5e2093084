"""What a protocol is made of: operations on a served model, and how refusals are told."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.responses import Response

from hasten.errors import EngineError, HastenError, InputError
from hasten.records import Text
from hasten.runtime.predictor import Predictor
from hasten.serve.running import NonFinite
from hasten.serve.scheduler import Overloaded, TooLarge
from hasten.serve.service import Answered, DeadlineExceeded, Draining, Service

log = logging.getLogger(__name__)


class Body(BaseModel):
    """What a request holds. Fields that a protocol has and hasten does not are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(slots=True, eq=False)
class Refusal(Exception):
    """Why a request is not answered, as the protocols tell it each in its own form.

    Attributes:
        status: of HTTP.
        kind: a word for programs: ``validation``, ``overloaded`` ...
        message: for people.
        headers: of the response.
    """

    status: int
    kind: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One request, its body read and checked; ``answered`` once its texts have run.

    Attributes:
        service: the model that it asks.
        body: as :attr:`Operation.body` says.
        models: all that are served, by their names.
        answered: the outputs of its texts.
    """

    service: Service
    body: Any
    models: Mapping[str, Service]
    answered: Answered | None = None

    async def answer(self, texts: Sequence[Text], *, truncate: bool = True) -> Answered:
        """The outputs for these texts; see :meth:`Service.answer`."""
        self.answered = await self.service.answer(texts, truncate=truncate)
        return self.answered


Handler = Callable[[Call], Awaitable[Response]]


def anything(_: Predictor) -> bool:
    """Every model has the operation."""
    return True


def read_json(_: Headers, body: bytes) -> Any:
    """The body as JSON.

    Raises:
        Refusal: it is not.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(422, "validation", f"the body is not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Operation:
    """One path of a protocol. Several may share a path: the request's body decides among them.

    Attributes:
        method: ``GET`` or ``POST``.
        path: as in ``/v1/embeddings``.
        summary: one sentence for the OpenAPI document.
        handler: answers a call.
        body: what the request must hold; None without a body.
        example: a body, for the document.
        fits: whether a model has this operation.
        read: the JSON value of a body, which :attr:`body` then checks.
        probe: whether it asks after the server and not after a model: it needs no key, and is
            answered while the server ends.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    body: type[BaseModel] | None = None
    example: Any = None
    fits: Callable[[Predictor], bool] = anything
    read: Callable[[Headers, bytes], Any] = read_json
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way in which clients speak to servers of models.

    Attributes:
        name: as in ``tei``.
        title: as its makers write it.
        operations: its paths.
        refused: the body of a refusal.
    """

    name: str
    title: str
    operations: tuple[Operation, ...]
    refused: Callable[[Refusal], Any]


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response; numpy arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(body, status, dict(headers or {}), "application/json")


def refusal(error: Exception) -> Refusal:
    """What an error means in HTTP; what is not ours goes into the log."""
    match error:
        case Refusal():
            return error
        case Overloaded():
            wait_s = str(max(1, round(error.retry_after_s)))
            return Refusal(429, "overloaded", str(error), {"Retry-After": wait_s})
        case TooLarge():
            return Refusal(413, "too_large", f"{error}; split it")
        case Draining():
            return Refusal(503, "unhealthy", "the server is shutting down", {"Retry-After": "5"})
        case DeadlineExceeded():
            return Refusal(504, "timeout", str(error))
        case InputError():
            return Refusal(422, "validation", str(error))
        case NonFinite():
            return Refusal(424, "non_finite", error.message)
        case EngineError():
            return Refusal(424, "backend", error.message)
        case HastenError():
            return Refusal(400, "bad_request", str(error))
    log.error("a request failed unexpectedly", exc_info=error)
    return Refusal(500, "internal", "the server failed unexpectedly; its log says more")
