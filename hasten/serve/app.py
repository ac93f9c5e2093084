"""The ASGI application: routes from the protocols, and limits."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hasten.serve import document, pages, protocols
from hasten.serve.calls import Call, Operation, Refusal, refusal, reply
from hasten.serve.health import routes as health_routes
from hasten.serve.health import watching
from hasten.serve.metrics import Metrics
from hasten.serve.offers import Offer, by_path, likeliest, matching
from hasten.serve.requests import Recorded, record_of, unless_left
from hasten.serve.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]


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
    models: Mapping[str, Service],
    access: Access = Access(),
    metrics: Metrics | None = None,
    *,
    beside: Callable[[], AbstractAsyncContextManager[object]] = contextlib.nullcontext,
) -> ASGIApp:
    """The application.

    Args:
        models: by their names; the first answers the requests that name none. They are closed
            when the server ends.
        access: who may ask.
        metrics: what is counted, the services' batches included.
        beside: what runs on the same event loop from start to end, such as gRPC.
    """
    metrics = metrics or Metrics()
    for name, service in models.items():
        metrics.serving(name, service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with watching(models), beside():
            yield
        await asyncio.gather(*(service.drain(access.drain_s) for service in models.values()))

    serving = _Serving(models, access, metrics, by_path(protocols.discover()))
    routes = [
        Route(path, _endpoint(offers, serving), methods=[offers[0].operation.method])
        for offers in serving.offers
        for path in _paths(offers[0].operation.path)
    ]
    matching_all = Starlette(
        routes=[
            *health_routes(models, metrics),
            *routes,
            *_description(serving),
            *pages.routes(models, lambda request: _require_key(request, access)),
        ],
        lifespan=lifespan,
        exception_handlers={404: _no_route(serving)},
    )
    literal = {
        (offers[0].operation.method, offers[0].operation.path): _endpoint(offers, serving)
        for offers in serving.offers
        if "{" not in offers[0].operation.path
    }
    return Recorded(_Direct(literal, matching_all))


class _Direct:
    """Looks up the usual paths, and leaves the rest to a router, which tries route after route."""

    def __init__(self, literal: Mapping[tuple[str, str], Endpoint], other: ASGIApp) -> None:
        self._literal = literal
        self._other = other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            endpoint = self._literal.get((scope["method"], scope["path"]))
            if endpoint:
                response = await endpoint(Request(scope, receive, send))
                await response(scope, receive, send)
                return
        await self._other(scope, receive, send)


def _paths(path: str) -> tuple[str, ...]:
    """Where an operation is: at its path, and below each model's own."""
    if "{model}" in path:
        return (path,)
    return (path, f"/models/{{model}}{path}", *(["/models/{model}"] if path == "/" else []))


@dataclass(frozen=True, slots=True)
class _Serving:
    """What every endpoint needs."""

    models: Mapping[str, Service]
    access: Access
    metrics: Metrics
    offers: tuple[tuple[Offer, ...], ...]

    def named(self, request: Request, given: object) -> Service:
        """The model that the path or the body names; the first where neither does.

        A name in the body does not matter where there is one model: many clients must send one.
        """
        path = request.path_params.get("model")
        name = path or (given.get("model") if isinstance(given, dict) else None)
        if name is None or (path is None and len(self.models) == 1):
            return next(iter(self.models.values()))
        if not isinstance(name, str) or name not in self.models:
            names = ", ".join(self.models)
            raise Refusal(404, "not_found", f"no model {name!r}; there are: {names}")
        return self.models[name]

    def fitting(self, offers: Iterable[Offer], service: Service) -> list[Offer]:
        """Those that the model has.

        Raises:
            Refusal: none, and which others it has.
        """
        predictor = service.predictor
        fitting = [offer for offer in offers if offer.operation.fits(predictor)]
        if fitting:
            return fitting
        paths = {
            offer.operation.path
            for offers in self.offers
            for offer in offers
            if offer.operation.fits(predictor)
        }
        raise Refusal(
            404,
            "not_found",
            f"a {predictor.task.name} model does not have this; it has {', '.join(sorted(paths))}",
        )


def _endpoint(offers: tuple[Offer, ...], serving: _Serving) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        begin = time.perf_counter()
        record = record_of(request.scope)
        name, protocol = "", offers[0].protocol
        if offers[0].operation.probe:
            first = next(iter(serving.models.values()))
            return await offers[0].operation.handler(Call(first, None, serving.models))
        try:
            _require_key(request, serving.access)
            given = await _read(request, offers[0].operation, serving.access)
            likely = likeliest(offers, given)
            protocol = likely[0].protocol
            service = serving.named(request, given)
            name = service.name
            offer, body = matching(serving.fitting(likely, service), given)
            protocol = offer.protocol
            serving.metrics.asked(name, protocol.name)
            record.update(model=name, protocol=protocol.name, path=offer.operation.path)
            call = Call(service, body, serving.models)
            with service.held():
                response = await unless_left(request, offer.operation.handler(call))
        except ClientDisconnect:
            serving.metrics.failed(name, "disconnected")
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            refused = refusal(error)
            serving.metrics.failed(name, refused.kind)
            record.update(error=refused.kind)
            return reply(protocol.refused(refused), refused.status, refused.headers)
        serving.metrics.answered(name, time.perf_counter() - begin, call.answered)
        if call.answered:
            record.add(call.answered)
            response.raw_headers.append((b"server-timing", call.answered.timing.encode()))
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


async def _read(request: Request, operation: Operation, access: Access) -> object:
    """A request's body as a JSON value, not yet checked."""
    if operation.body is None:
        return None
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "validation", "the body is compressed; send it as it is")
    read = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        read += message.get("body", b"")
        more = message.get("more_body", False)
        if len(read) > access.body_bytes:
            raise Refusal(
                413,
                "too_large",
                f"the body is larger than the {access.body_bytes:,} bytes that are taken",
            )
    return operation.read(request.headers, bytes(read))


def _description(serving: _Serving) -> list[Route]:
    """What the server says of itself: for programs, and to try it out."""

    async def openapi(_: Request) -> Response:
        keyed = serving.access.api_key is not None
        return reply(document.openapi(serving.offers, serving.models, keyed=keyed))

    async def docs(_: Request) -> Response:
        return Response(document.page(), media_type="text/html")

    return [Route("/openapi.json", openapi), Route("/docs", docs)]


def _no_route(serving: _Serving) -> Callable[[Request, Exception], Response]:
    """The answer to a path that no protocol has."""

    def answer(request: Request, _: Exception) -> Response:
        paths = sorted({offers[0].operation.path for offers in serving.offers})
        message = f"there is no {request.url.path}; there are: {', '.join(paths)}; /docs shows them"
        return reply({"error": message}, 404)

    return answer
