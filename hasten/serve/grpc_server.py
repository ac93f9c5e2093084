"""KServe's open inference protocol over gRPC, beside HTTP: the same models, limits and metrics."""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

import hasten
from hasten.errors import ChoiceError
from hasten.serve.calls import Call, Refusal, refusal
from hasten.serve.grpc_messages import PACKAGE, messages
from hasten.serve.metrics import Metrics
from hasten.serve.protocols import kserve
from hasten.serve.requests import HEADER, Record, logged
from hasten.serve.service import Service

_NAME = "kserve-grpc"
"""What metrics and the log call the protocol."""

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    424: grpc.StatusCode.INTERNAL,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What gRPC calls the statuses of HTTP; every other one is INVALID_ARGUMENT."""

Method = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Listening:
    """Where gRPC is listened to, and for whom.

    Attributes:
        address: as in ``127.0.0.1:8081``.
        api_key: what ``authorization: Bearer`` must hold in the metadata; None for everybody.
        body_bytes: the largest message.
        certificate: PEM file, for TLS, with its ``key``.
        key: PEM file.
    """

    address: str
    api_key: str | None = None
    body_bytes: int = 4 * 2**20
    certificate: str | None = None
    key: str | None = None


@contextlib.asynccontextmanager
async def speaking(
    where: Listening, models: Mapping[str, Service], metrics: Metrics
) -> AsyncIterator[int]:
    """Answer gRPC on the running event loop; gives the port.

    Raises:
        ChoiceError: the address cannot be listened at.
    """
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", where.body_bytes)])
    handlers = _Methods(models, metrics, where.api_key).handlers()
    service = grpc.method_handlers_generic_handler(f"{PACKAGE}.GRPCInferenceService", handlers)
    server.add_generic_rpc_handlers((service,))
    try:
        port = _listen(server, where)
    except RuntimeError as error:
        raise ChoiceError(
            f"gRPC cannot listen at {where.address}: {error}", fix="Give another --grpc-port."
        ) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=0)  # what was taken has been answered: the models have drained


def _listen(server: Any, where: Listening) -> int:
    if where.certificate and where.key:
        pair = Path(where.key).read_bytes(), Path(where.certificate).read_bytes()
        return int(server.add_secure_port(where.address, grpc.ssl_server_credentials([pair])))
    return int(server.add_insecure_port(where.address))


class _Methods:
    """The protocol's methods."""

    def __init__(self, models: Mapping[str, Service], metrics: Metrics, key: str | None) -> None:
        self._models, self._metrics, self._key = models, metrics, key
        self._messages = messages()

    def handlers(self) -> dict[str, Any]:
        """How gRPC is to call each method, by its name."""
        methods: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
        }
        found = {name: self._handler(name, self._plain(method)) for name, method in methods.items()}
        return found | {"ModelInfer": self._handler("ModelInfer", self._infer)}

    def _handler(self, name: str, method: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=self._messages[f"{name}Request"].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _plain(self, method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            try:
                return await method(request)
            except Exception as error:  # noqa: BLE001 - every request gets an answer
                await _abort(context, refusal(error))

        return answer

    async def _server_live(self, _: Any) -> Any:
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Any) -> Any:
        ready = all(service.ready for service in self._models.values())
        return self._messages["ServerReadyResponse"](ready=ready)

    async def _model_ready(self, request: Any) -> Any:
        ready = self._named(request.name).ready
        return self._messages["ModelReadyResponse"](ready=ready)

    async def _server_metadata(self, _: Any) -> Any:
        return self._messages["ServerMetadataResponse"](name="hasten", version=hasten.__version__)

    async def _model_metadata(self, request: Any) -> Any:
        service = self._named(request.name)
        return self._messages["ModelMetadataResponse"](**kserve.metadata(self._call(service)))

    async def _infer(self, request: Any, context: Any) -> Any:
        begin = time.perf_counter()
        metadata = dict(context.invocation_metadata() or ())
        name, record = "", Record.of(metadata.get(HEADER, ""), "RPC")
        with logged(record):
            try:
                self._require_key(metadata)
                service = self._named(request.model_name)
                name = service.name
                self._metrics.asked(name, _NAME)
                record.update(model=name, protocol=_NAME, path="ModelInfer")
                call = self._call(service)
                with service.held():
                    response = await self._inferred(call, request)
            except Exception as error:  # noqa: BLE001 - every request gets an answer
                refused = refusal(error)
                self._metrics.failed(name, refused.kind)
                record.update(error=refused.kind, status=refused.status)
                await _abort(context, refused)
            self._metrics.answered(name, time.perf_counter() - begin, call.answered)
            if call.answered:
                record.add(call.answered)
            record.update(status=200)
            return response

    async def _inferred(self, call: Call, request: Any) -> Any:
        names = [wanted.name for wanted in request.outputs]
        tensors = kserve.chosen(await kserve.inferred(call, _tensors(request)), names)
        outputs = [
            self._messages["InferOutputTensor"](
                name=name, datatype=kserve.datatype(values), shape=values.shape
            )
            for name, values in tensors.items()
        ]
        return self._messages["ModelInferResponse"](
            model_name=call.service.name,
            model_version="1",
            id=request.id,
            outputs=outputs,
            raw_output_contents=[kserve.packed(values) for values in tensors.values()],
        )

    def _named(self, name: str) -> Service:
        if name not in self._models:
            names = ", ".join(self._models)
            raise Refusal(404, "not_found", f"no model {name!r}; there are: {names}")
        service = self._models[name]
        if not kserve.fits(service.predictor):
            task = service.predictor.task.name
            raise Refusal(404, "not_found", f"KServe's tensors do not hold what {task} answers")
        return service

    def _call(self, service: Service) -> Call:
        return Call(service, None, self._models)

    def _require_key(self, metadata: Mapping[str, Any]) -> None:
        given, expected = metadata.get("authorization", ""), f"Bearer {self._key}"
        if self._key is not None and not hmac.compare_digest(given.encode(), expected.encode()):
            raise Refusal(401, "unauthorized", "the API key is missing or wrong")


def _tensors(request: Any) -> list[kserve.Tensor]:
    """The inputs of a request, whether their strings lie in the tensors or behind them.

    Raises:
        Refusal: not as many raw contents as tensors, or bytes that hold no strings.
    """
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Refusal(
            400, "validation", f"{len(request.inputs)} inputs have {len(raw)} raw_input_contents"
        )
    return [
        kserve.Tensor(
            name=tensor.name,
            shape=list(tensor.shape),
            datatype=tensor.datatype,
            data=kserve.strings(raw[place])
            if raw
            else kserve.decoded(tensor.contents.bytes_contents),
        )
        for place, tensor in enumerate(request.inputs)
    ]


async def _abort(context: Any, refused: Refusal) -> None:
    code = _CODES.get(refused.status, grpc.StatusCode.INVALID_ARGUMENT)
    await context.abort(code, refused.message)
