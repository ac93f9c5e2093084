"""The ASGI application: routes from the protocols, limits, health, metrics."""

from __future__ import annotations

import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hasten.serve import protocols
from hasten.serve.calls import Call, Operation, Protocol, Refusal, refusal, reply
from hasten.serve.metrics import CONTENT_TYPE, Metrics
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


def create(
    models: Mapping[str, Service], access: Access = Access(), metrics: Metrics | None = None
) -> Starlette:
    """The application.

    Args:
        models: by their names; the first answers the requests that name none. They are closed
            when the server ends.
        access: who may ask.
        metrics: what is counted, the services' batches included.
    """
    metrics = metrics or Metrics()
    for name, service in models.items():
        metrics.serving(name, service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        for service in models.values():
            await service.drain(access.drain_s)

    known = protocols.discover()
    serving = _Serving(models, access, metrics, known)
    routes = [
        Route(path, _endpoint(operation, protocol, serving), methods=[operation.method])
        for protocol in known
        for operation in protocol.operations
        for path in (operation.path, f"/models/{{model}}{operation.path.rstrip('/')}")
    ]
    return Starlette(routes=[*routes, *_operations(serving)], lifespan=lifespan)


@dataclass(frozen=True, slots=True)
class _Serving:
    """What every endpoint needs."""

    models: Mapping[str, Service]
    access: Access
    metrics: Metrics
    protocols: Sequence[Protocol]

    def named(self, name: str | None) -> Service:
        """The model of that name, or the only one where the name is another server's."""
        if name is None or (name not in self.models and len(self.models) == 1):
            return next(iter(self.models.values()))
        if name not in self.models:
            there = ", ".join(self.models)
            raise Refusal(404, "not_found", f"no model {name!r}; there are: {there}")
        return self.models[name]


def _endpoint(
    operation: Operation, protocol: Protocol, serving: _Serving
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        begin = time.perf_counter()
        name = request.path_params.get("model") or next(iter(serving.models))
        try:
            _require_key(request, serving.access)
            body = await _body(request, operation, serving.access)
            service = serving.named(
                request.path_params.get("model") or getattr(body, "model", None)
            )
            name = service.name
            serving.metrics.asked(name, protocol.name)
            _require_task(operation, service, serving.protocols)
            call = Call(service, body, request)
            response = await operation.handler(call)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - refusal() raises what is not ours
            told = refusal(error)
            serving.metrics.failed(name, told.kind)
            return reply(protocol.refused(told), told.status, told.headers)
        serving.metrics.answered(name, time.perf_counter() - begin, call.answered)
        return response

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


def _operations(serving: _Serving) -> list[Route]:
    async def live(_: Request) -> Response:
        return Response(status_code=200)

    async def metrics(_: Request) -> Response:
        return Response(serving.metrics.text(), media_type=CONTENT_TYPE)

    return [Route("/health", live), Route("/live", live), Route("/metrics", metrics)]
