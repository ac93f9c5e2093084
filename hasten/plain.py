"""Records as plain JSON values and back, so that stored results need no second schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar

R = TypeVar("R")


def to_json(value: Any) -> Any:
    """Turn a record, however nested, into dicts, lists and scalars."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[R], value: Any) -> R:
    """The inverse of :func:`to_json` for the record type ``kind``.

    Raises:
        ValueError: a field is missing or unknown, or a value is not of its type.
    """
    result: R = _decode(kind, value)
    return result


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value)
    if origin is tuple:
        return tuple(_decode(arguments[0], item) for item in value)
    if origin is Mapping:
        return {key: _decode(arguments[1], item) for key, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"expected one of {arguments}, got {value!r}")
        return value
    if is_dataclass(kind):
        return _decode_record(kind, value)
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, got {value!r}")
    return value


def _decode_union(kinds: tuple[Any, ...], value: Any) -> Any:
    """As the first of these kinds that the value fits; None only fits None."""
    if value is None and type(None) in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not type(None))
    for kind in others:
        with suppress(ValueError):
            return _decode(kind, value)
    return _decode(last, value)


def _decode_record(kind: Any, value: Any) -> Any:
    hints = _hints(kind)
    if not isinstance(value, Mapping):
        raise ValueError(f"expected the fields of {kind.__name__}, got {value!r}")
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}")
    try:
        return kind(**{name: _decode(hints[name], item) for name, item in value.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error
