"""The ASGI application: routes from the protocols, limits, health, metrics."""

from __future__ import annotations

import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hasten.serve import protocols
from hasten.serve.calls import Call, Operation, Protocol, Refusal, refusal, reply
from hasten.serve.service import Service

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask, and how much at once.

    Attributes:
        api_key: what ``Authorization: Bearer`` must hold; None for everybody.
        body_bytes: the largest body.
        drain_s: how long requests in flight may still take when the server ends.
    """

    api_key: str | None = None
    body_bytes: int = 4 * 2**20
    drain_s: float = 30.0


def create(opened: Callable[[], Mapping[str, Service]], access: Access = Access()) -> Starlette:
    """The application.

    Args:
        opened: loads the models, by their names, when the server starts; the first is the one
            that requests without a name are answered by.
        access: who may ask.
    """
    models: dict[str, Service] = {}

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        models.update(opened())
        yield
        for service in models.values():
            await service.drain(access.drain_s)

    known = protocols.discover()
    routes = [
        Route(
            operation.path,
            _endpoint(operation, protocol, known, models, access),
            methods=[operation.method],
        )
        for protocol in known
        for operation in protocol.operations
    ]
    return Starlette(routes=[*routes, *_health(models)], lifespan=lifespan)


def _endpoint(
    operation: Operation,
    protocol: Protocol,
    known: Sequence[Protocol],
    models: Mapping[str, Service],
    access: Access,
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            _require_key(request, access)
            service = next(iter(models.values()))
            _require_task(operation, service, known)
            body = await _body(request, operation, access)
            return await operation.handler(Call(service, body, request))
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - refusal() raises what is not ours
            told = refusal(error)
            return reply(protocol.refused(told), told.status, told.headers)

    return endpoint


def _require_key(request: Request, access: Access) -> None:
    if access.api_key is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), access.api_key.encode()):
        raise Refusal(
            401, "unauthorized", "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"}
        )


def _require_task(operation: Operation, service: Service, known: Sequence[Protocol]) -> None:
    task = service.predictor.task.name
    if operation.kinds and task not in operation.kinds:
        there = sorted(
            one.path
            for protocol in known
            for one in protocol.operations
            if not one.kinds or task in one.kinds
        )
        raise Refusal(
            404, "not_found", f"a {task} model has no {operation.path}; it has {', '.join(there)}"
        )


async def _body(request: Request, operation: Operation, access: Access) -> object:
    if operation.body is None:
        return None
    read = bytearray()
    async for piece in request.stream():
        read += piece
        if len(read) > access.body_bytes:
            raise Refusal(
                413,
                "too_large",
                f"the body is larger than the {access.body_bytes:,} bytes that are taken",
            )
    try:
        return operation.body.model_validate_json(bytes(read))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Refusal(422, "validation", f"{where}: {first['msg']}") from None


def _health(models: Mapping[str, Service]) -> list[Route]:
    async def live(_: Request) -> Response:
        return Response(status_code=200 if models else 503)

    return [Route("/health", live), Route("/live", live)]
