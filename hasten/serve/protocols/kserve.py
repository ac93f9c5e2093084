"""KServe's open inference protocol, version 2, over HTTP, as Triton's clients speak it.

Sources: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and, for
tensors as bytes behind the JSON, Triton's extension for binary data. A model takes the tensor
``text`` (and ``text_pair``, if it reads pairs), and gives ``logits``, or ``embedding``; of a
classifier also ``scores`` and the best ``label``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field
from starlette.datastructures import Headers
from starlette.responses import Response

import hasten
from hasten.runtime.predictor import Predictor
from hasten.serve import answers
from hasten.serve.calls import Body, Call, Operation, Protocol, Refusal, read_json, reply

_HEADER = "inference-header-content-length"


class Tensor(Body):
    """An input: strings, as the datatype BYTES, of shape [n] or [n, 1]."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Wanted(Body):
    """An output, and whether it comes as bytes behind the JSON."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Infer(Body):
    """``outputs``: those that are wanted; all, if it is empty."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Wanted] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)


def read_tensors(headers: Headers, body: bytes) -> Any:
    """The request, tensors that lie behind its JSON as bytes put into it.

    Raises:
        Refusal: the body is not JSON, or the bytes are not what it announces.
    """
    if _HEADER not in headers:
        return read_json(headers, body)
    length = headers[_HEADER]
    if not length.isdecimal() or int(length) > len(body):
        raise _wrong(f"{_HEADER} is {length!r}, and the body has {len(body)} bytes")
    given = read_json(headers, body[: int(length)])
    rest = body[int(length) :]
    for tensor in given.get("inputs", ()) if isinstance(given, dict) else ():
        size = _binary_size(tensor)
        if size is not None:
            if size > len(rest):
                raise _wrong(f"binary_data_size is {size}, and {len(rest)} bytes are left")
            tensor["data"] = strings(rest[:size])
            rest = rest[size:]
    return given


def _binary_size(tensor: object) -> int | None:
    """How many bytes behind the JSON are this input's."""
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    return size if isinstance(size, int) and size >= 0 else None


def strings(data: bytes) -> list[str]:
    """Strings that each follow their length, little-endian uint32.

    >>> strings(bytes([2, 0, 0, 0, 97, 98, 0, 0, 0, 0]))
    ['ab', '']

    Raises:
        Refusal: the bytes are not such strings.
    """
    pieces, place = [], 0
    while place < len(data):
        begin = place + 4
        end = begin + int.from_bytes(data[place:begin], "little")
        if end > len(data):
            raise _wrong(f"{len(data)} bytes of input do not hold whole strings")
        pieces.append(data[begin:end])
        place = end
    return decoded(pieces)


def decoded(pieces: Iterable[bytes]) -> list[str]:
    """Strings of UTF-8.

    Raises:
        Refusal: one is not UTF-8.
    """
    try:
        return [piece.decode() for piece in pieces]
    except UnicodeDecodeError as error:
        raise _wrong(f"a string is not UTF-8: {error}") from None


def _wrong(message: str) -> Refusal:
    return Refusal(400, "validation", message)


async def _infer(call: Call) -> Response:
    body: Infer = call.body
    tensors = chosen(await inferred(call, body.inputs), [wanted.name for wanted in body.outputs])
    as_bytes = {wanted.name: wanted.parameters.get("binary_data") for wanted in body.outputs}
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for name, values in tensors.items():
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype(values),
            "shape": list(values.shape),
        }
        if as_bytes.get(name, body.parameters.get("binary_data_output")):
            behind.append(packed(values))
            output["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    answer = {"model_name": call.service.name, "model_version": "1", "outputs": outputs}
    answer |= {"id": body.id} if body.id is not None else {}
    if not behind:
        return reply(answer)
    head = orjson.dumps(answer)
    return Response(
        b"".join([head, *behind]),
        headers={_HEADER: str(len(head))},
        media_type="application/octet-stream",
    )


def chosen(tensors: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The tensors of these names, or all without names.

    Raises:
        Refusal: there is none of such a name.
    """
    for name in names:
        if name not in tensors:
            raise _wrong(f"there is no output {name!r}; there are: {', '.join(tensors)}")
    return {name: tensors[name] for name in names or tensors}


async def inferred(call: Call, inputs: list[Tensor]) -> dict[str, NDArray[Any]]:
    """The output tensors by name, each with a row for every text.

    Raises:
        Refusal: the inputs are not those of the model.
    """
    names = input_names(call.service.predictor)
    given = {tensor.name: _column(tensor) for tensor in inputs}
    if given.keys() != set(names) or len({len(column) for column in given.values()}) != 1:
        raise _wrong(
            f"the inputs are {', '.join(sorted(given)) or 'missing'}; "
            f"this model takes {' and '.join(names)}, of equal shape"
        )
    columns = [given[name] for name in names]
    texts: list[Any] = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    answered = await call.answer(texts)
    outputs, predictor = answers.rows(answered), call.service.predictor
    if not answers.classifies(predictor):
        return {"embedding": outputs}
    scores = predictor.task.scores(answered.outputs)
    labels = np.array(predictor.bundle.model.labels, dtype=object)
    return {"label": labels[scores.argmax(axis=1)], "scores": scores, "logits": outputs}


def input_names(predictor: Predictor) -> tuple[str, ...]:
    """The input tensors of a model."""
    return ("text", "text_pair") if answers.reads_pairs(predictor) else ("text",)


def _column(tensor: Tensor) -> list[str]:
    if tensor.datatype != "BYTES" or not all(isinstance(one, str) for one in tensor.data):
        raise _wrong(f"the input {tensor.name} must be strings, of the datatype BYTES")
    if tensor.shape not in ([len(tensor.data)], [len(tensor.data), 1]):
        raise _wrong(
            f"the input {tensor.name} has {len(tensor.data)} strings and the shape {tensor.shape}"
        )
    return tensor.data


def datatype(values: NDArray[Any]) -> str:
    """As the protocol names it."""
    return "BYTES" if values.dtype == object else "FP32"


def packed(values: NDArray[Any]) -> bytes:
    """A tensor as bytes: little-endian, strings each behind their length."""
    if values.dtype != object:
        return values.astype("<f4").tobytes()
    pieces = [text.encode() for text in values.ravel()]
    return b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)


async def _server(_: Call) -> Response:
    return reply(
        {"name": "hasten", "version": hasten.__version__, "extensions": ["binary_tensor_data"]}
    )


async def _live(_: Call) -> Response:
    return reply({"live": True})


async def _ready(call: Call) -> Response:
    ready = all(service.ready for service in call.models.values())
    return reply({"ready": ready}, 200 if ready else 503)


async def _model_ready(call: Call) -> Response:
    ready = call.service.ready
    return reply({"name": call.service.name, "ready": ready}, 200 if ready else 503)


async def _model(call: Call) -> Response:
    return reply(metadata(call))


def metadata(call: Call) -> dict[str, Any]:
    """What a model takes and gives."""
    predictor = call.service.predictor
    count = len(predictor.bundle.model.labels)
    outputs = (
        [("label", "BYTES", [-1]), ("scores", "FP32", [-1, count]), ("logits", "FP32", [-1, count])]
        if answers.classifies(predictor)
        else [("embedding", "FP32", [-1, -1])]
    )
    return {
        "name": call.service.name,
        "versions": ["1"],
        "platform": "hasten",
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [-1]} for name in input_names(predictor)
        ],
        "outputs": [
            {"name": name, "datatype": kind, "shape": shape} for name, kind, shape in outputs
        ],
    }


def fits(predictor: Predictor) -> bool:
    """Whether outputs are tensors with a row for each text."""
    return answers.classifies(predictor) or answers.embeds(predictor)


def _refused(refusal: Refusal) -> Any:
    return {"error": refusal.message}


def _versioned(operation: Operation) -> Operation:
    """The same below a version of the model; there is one."""
    path = operation.path.replace("{model}", "{model}/versions/{version}")
    return replace(operation, path=path)


_MODEL = (
    Operation("GET", "/v2/models/{model}", "What a model takes and gives.", _model, fits=fits),
    Operation("GET", "/v2/models/{model}/ready", "Whether a model answers.", _model_ready),
    Operation(
        "POST",
        "/v2/models/{model}/infer",
        "Answer texts with tensors.",
        _infer,
        Infer,
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I like you."]}]},
        fits,
        read_tensors,
    ),
)

PROTOCOL = Protocol(
    "kserve",
    "KServe v2",
    (
        Operation("GET", "/v2", "What the server is.", _server),
        Operation("GET", "/v2/health/live", "Whether the server runs.", _live, probe=True),
        Operation("GET", "/v2/health/ready", "Whether the server answers.", _ready, probe=True),
        *_MODEL,
        *map(_versioned, _MODEL),
    ),
    _refused,
)
