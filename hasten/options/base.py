"""How an option is defined, and what a function makes of the options it was called with.

The options of a function are a ``TypedDict`` whose annotations carry an :class:`Option` each::

    class TuneOptions(TypedDict, total=False):
        max_flips: Annotated[float, Option("Largest share of ...", 0.01, check=number(0, 1))]

    @documented(TuneOptions)
    def tune(model: str, **options: Unpack[TuneOptions]) -> Tuning:
        options = choose("hasten.tune", TuneOptions, options)
        settings = record(Settings, TuneOptions, options)

Type checkers read the same lines as these functions, and as the command line does.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from types import NoneType
from typing import Any, TypeVar

from hasten.errors import ChoiceError
from hasten.options.checks import Check

F = TypeVar("F", bound=Callable[..., Any])
O = TypeVar("O", bound=Mapping[str, object])  # noqa: E741 - options
R = TypeVar("R")

_WIDTH = 92


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword of the library, and the option of the command line that has its name.

    Attributes:
        help: what it is for; other options are written as on the command line.
        default: its value where it is left out, None or an empty list.
        check: refuses values, and returns the others as records hold them.
        field: the field of a record that holds the value, where it has another name.
        panel: the part of the command's help in which it stands.
        flags: how the command line writes it; by default as its name, with dashes.
        metavar: what stands for its value in the command's help.
    """

    help: str
    default: Any = None
    check: Check | None = None
    field: str | None = None
    panel: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class Defined:
    """An option, with the name and the type that its ``TypedDict`` gives it."""

    name: str
    type: Any
    option: Option
    required: bool = False

    @property
    def flag(self) -> str:
        """As messages name it.

        >>> Defined("max_flips", float, Option("...")).flag
        '--max-flips'
        """
        return f"--{self.name.replace('_', '-')}"

    def value(self, given: Any) -> Any:
        """What was given, or else the default, as records hold it.

        Raises:
            ChoiceError: it is not allowed.
        """
        left_out = given is None or (isinstance(given, list | tuple) and not given)
        value, check = self.option.default if left_out else given, self.option.check
        return value if value is None or check is None else check(self.flag, value)


@cache
def defined(kind: type) -> Mapping[str, Defined]:
    """The options in a ``TypedDict`` by name, in the order in which they are written."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        required = typing.get_origin(hint) is typing.Required
        annotated = typing.get_args(hint)[0] if required else hint
        value_type, option = typing.get_args(annotated)
        found[name] = Defined(name, value_type, option, required)
    return found


def default(kind: type, name: str) -> Any:
    """The default of one option, as records hold it."""
    return defined(kind)[name].value(None)


def choose(function: str, kind: type[O], given: O) -> O:
    """All options of a function: those that were given, checked, and the others' defaults.

    Args:
        function: its name, for messages.
        kind: the ``TypedDict`` that defines its options.
        given: what it was called with; None and an empty list stand for the default.

    Raises:
        ChoiceError: there is no such option, or its value is not allowed.
    """
    known = defined(kind)
    for name in given:
        if name not in known:
            raise _unknown(function, name, known)
    chosen: Any = {name: option.value(given.get(name)) for name, option in known.items()}
    result: O = chosen
    return result


def _unknown(function: str, name: str, known: Mapping[str, Defined]) -> ChoiceError:
    close = get_close_matches(name, known, n=1)
    fix = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
    return ChoiceError(f"{function} has no option {name!r}", fix=fix)


def record(into: type[R], kind: type, chosen: Mapping[str, Any], **others: Any) -> R:
    """A record made of those options that it has fields for, and of ``others``."""
    wanted = {field.name for field in fields(typing.cast("Any", into))}
    names = {name: option.option.field or name for name, option in defined(kind).items()}
    found = {names[name]: value for name, value in chosen.items() if names[name] in wanted}
    return into(**{**found, **others})


def documented(kind: type) -> Callable[[F], F]:
    """Show the options in ``kind`` in a function's docstring and signature, instead of ``**``."""

    def show(function: F) -> F:
        described = [_described(option) for option in defined(kind).values()]
        section = "\n".join(["Options:", *described])
        text, returns, after = inspect.cleandoc(function.__doc__ or "").partition("Returns:\n")
        function.__doc__ = f"{text}{section}\n\n{returns}{after}"
        function.__signature__ = _spread(inspect.signature(function), kind)  # type: ignore[attr-defined]
        return function

    return show


def _described(option: Defined) -> str:
    """One option as a docstring lists it."""
    text = re.sub(
        r"--([a-z][a-z0-9-]*)", lambda m: f"``{m[1].replace('-', '_')}``", option.option.help
    )
    if not any(option.option.default is one for one in (None, False, ())):
        text = f"{text.removesuffix('.')}; {option.option.default!r} by default."
    lines = f"{option.name} ({_named(option.type)}): {text}"
    return textwrap.indent(textwrap.fill(lines, _WIDTH, subsequent_indent="    "), "    ")


def _named(hint: Any) -> str:
    """A type as a docstring names it."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not NoneType]
    return " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)


def _spread(signature: inspect.Signature, kind: type) -> inspect.Signature:
    """A signature that names every option instead of ``**options``."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            option.name,
            keyword,
            default=inspect.Parameter.empty if option.required else option.option.default,
            annotation=option.type,
        )
        for option in defined(kind).values()
    ]
    return signature.replace(parameters=[*kept, *options])
