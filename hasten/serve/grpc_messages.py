"""The messages of KServe's open inference protocol, version 2, over gRPC.

Source of names and numbers: the protocol's specification,
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md.
They are built when they are needed, in a pool of their own: no generated code is shipped, and
other packages of the process may have classes of the same protocol. Fields that the server neither
reads nor writes are left out; the library skips them where a client sends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"

_NAMED = {1: "name string", 2: "version string"}
_TENSOR = {1: "name string", 2: "datatype string", 3: "shape int64*"}

FIELDS: Mapping[str, Mapping[int, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {1: "live bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {1: "ready bool"},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {1: "ready bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAMED, 3: "extensions string*"},
    "ModelMetadataRequest": _NAMED,
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": {
        1: "name string",
        2: "versions string*",
        3: "platform string",
        4: "inputs TensorMetadata*",
        5: "outputs TensorMetadata*",
    },
    "InferTensorContents": {6: "fp32_contents float*", 8: "bytes_contents bytes*"},
    "InferInputTensor": {**_TENSOR, 5: "contents InferTensorContents"},
    "InferRequestedOutputTensor": {1: "name string"},
    "ModelInferRequest": {
        1: "model_name string",
        2: "model_version string",
        3: "id string",
        5: "inputs InferInputTensor*",
        6: "outputs InferRequestedOutputTensor*",
        7: "raw_input_contents bytes*",
    },
    "InferOutputTensor": _TENSOR,
    "ModelInferResponse": {
        1: "model_name string",
        2: "model_version string",
        3: "id string",
        5: "outputs InferOutputTensor*",
        6: "raw_output_contents bytes*",
    },
}
"""Name and type of each field by its number; ``*`` marks repeated ones."""


@cache
def messages() -> Mapping[str, type[Any]]:
    """The classes of :data:`FIELDS`, by their names."""
    file = descriptor_pb2.FileDescriptorProto(
        name="hasten/inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, field in fields.items():
            _add(message, number, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in FIELDS
    }


def _add(message: Any, number: int, name: str, kind: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
    if kind.endswith("*"):
        field.label = kinds.LABEL_REPEATED
        kind = kind.removesuffix("*")
    if kind in FIELDS:
        field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
