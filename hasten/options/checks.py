"""What the value of an option may be: each check returns the value as records hold it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

from hasten.errors import ChoiceError

Check = Callable[[str, Any], Any]
"""Takes an option's name on the command line and its value; raises ChoiceError or returns it."""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def number(low: float, high: float) -> Check:
    """A number from ``low`` to ``high``."""

    def check(name: str, value: Any) -> Any:
        return value if _within(Real, value, low, high) else _refuse_number(name, value, low, high)

    return check


def whole_number(low: int, high: int, *, zero: str | None = None) -> Check:
    """A whole number from ``low`` to ``high``; or 0, where ``zero`` says what that means."""

    def check(name: str, value: Any) -> Any:
        if _within(Integral, value, low, high) or (zero and value == 0):
            return value
        return _refuse_number(name, value, low, high, f"; 0 {zero}" if zero else "")

    return check


def whole_numbers(low: int, high: int) -> Check:
    """Whole numbers, as a sequence or with commas; becomes a sorted tuple without repetitions."""

    def check(name: str, value: Any) -> tuple[int, ...]:
        try:
            numbers = [int(part) for part in _parts(value)]
        except (TypeError, ValueError):
            raise ChoiceError(
                f"{name} is {value!r}", fix="Write numbers with commas: 1,8,32."
            ) from None
        for number in numbers:
            if not low <= number <= high:
                _refuse_number(name, number, low, high)
        return tuple(sorted(set(numbers)))

    return check


def settings(name: str, value: Any) -> Mapping[str, Any]:
    """Values by name: a mapping, a JSON object, or ``NAME=VALUE`` with commas between several."""
    if isinstance(value, Mapping):
        return value
    try:
        if value.lstrip().startswith("{"):
            return dict(json.loads(value))
        pairs = (part.split("=", 1) for part in value.split(","))
        return {key.strip(): _scalar(text.strip()) for key, text in pairs}
    except ValueError:
        raise ChoiceError(
            f"{name} is {value!r}", fix="Write NAME=VALUE, several with commas, or a JSON object."
        ) from None


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def one_of(*allowed: str) -> Check:
    """One of these names."""

    def check(name: str, value: Any) -> Any:
        if value not in allowed:
            raise ChoiceError(f"{name} is {value!r}", fix=f"Choose from: {', '.join(allowed)}.")
        return value

    return check


def names(*allowed: str) -> Check:
    """Names, as a sequence or with commas, all of them ``allowed`` if any are; becomes a tuple."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        found = tuple(part for part in _parts(value) if part)
        if isinstance(value, str) and not found:
            raise ChoiceError(f"{name} is empty", fix="Name one, or leave it out.")
        for part in found:
            if allowed and part not in allowed:
                raise ChoiceError(f"{name} has {part!r}", fix=f"Choose from: {', '.join(allowed)}.")
        return found

    return check


def duration(name: str, value: Any) -> float:
    """Seconds, from a number or from text such as ``90s``, ``10m``, ``1.5h``.

    >>> duration("--budget", "10m"), duration("--budget", "90"), duration("--budget", 5)
    (600.0, 90.0, 5.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ChoiceError(
            f"{name} is {value!r}, which is not a duration above zero",
            fix="Write 90s, 10m or 1.5h; a number alone is seconds.",
        )
    return seconds


def speed_up(name: str, value: Any) -> float:
    """How many times as fast, above 1.

    >>> speed_up("--target", "3x"), speed_up("--target", "1.5"), speed_up("--target", 2)
    (3.0, 1.5, 2.0)
    """
    try:
        speed = float(str(value).strip().lower().removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 1.0 < speed < float("inf"):
        raise ChoiceError(f"{name} is {value!r}", fix="How many times as fast: 2x, 3x.")
    return speed


def share(name: str, value: Any) -> float:
    """A share above 0 and below 1."""
    if not isinstance(value, float) or not 0.0 < value < 1.0:
        raise ChoiceError(f"{name} is {value!r}", fix="It is a share, such as 0.02 for 2 %.")
    return value


def _parts(value: str | Sequence[Any]) -> list[Any]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def _within(kind: Any, value: Any, low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _refuse_number(name: str, value: Any, low: float, high: float, more: str = "") -> NoReturn:
    raise ChoiceError(f"{name} is {value!r}", fix=f"It must be from {low:,} to {high:,}{more}.")
