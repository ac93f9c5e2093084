"""Makes a command of a function that takes the library's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from hasten.cli.app import app
from hasten.cli.shared import OUTPUT
from hasten.options import Defined, defined

F = TypeVar("F", bound=Callable[..., None])


def command(*examples: str, name: str | None = None) -> Callable[[F], F]:
    """Add a function to the command line.

    A parameter ``**options: Unpack[TuneOptions]`` becomes all the options that are defined there.

    Args:
        examples: shown at the end of the help.
        name: the command's; by default the function's.
    """

    def add(function: F) -> F:
        epilog = "\n\n".join(["**Examples**", *(f"`{line}`" for line in examples)])
        function.__signature__ = _spread(inspect.signature(function, eval_str=True))  # type: ignore[attr-defined]
        app.command(name, epilog=epilog if examples else None)(function)
        return function

    return add


def _spread(signature: inspect.Signature) -> inspect.Signature:
    """The signature that typer reads, with a parameter for each option."""
    own = list(signature.parameters.values())
    if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return signature
    (kind,) = get_args(own[-1].annotation)
    options = [_parameter(option) for option in defined(kind).values()]
    return signature.replace(parameters=sorted([*own[:-1], *options], key=_about_output))


def _about_output(parameter: inspect.Parameter) -> bool:
    """Whether an option is only about what is printed: those come last."""
    return bool(get_args(parameter.annotation)[1].rich_help_panel == OUTPUT)


def _parameter(defined_option: Defined) -> inspect.Parameter:
    option = defined_option.option
    flags = option.flags or (defined_option.flag,)
    parameter = typer.Option(
        *flags,
        help=option.help,
        rich_help_panel=option.panel,
        metavar=option.metavar,
    )
    return inspect.Parameter(
        defined_option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if defined_option.required else _default(option.default),
        annotation=Annotated[_type(defined_option), parameter],
    )


def _default(value: Any) -> Any:
    """A default as it would be written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or None
    return value


def _type(defined_option: Defined) -> Any:
    """What typer reads for an option: the first of these that its type has."""
    kinds = get_args(defined_option.type) or (defined_option.type,)
    needed = defined_option.required or defined_option.option.default not in {None, ()}
    for kind, read in ((PathLike, Path), (str, str), (bool, bool), (int, int), (float, float)):
        if any(kind in {member, get_origin(member)} for member in kinds):
            return read if needed else read | None
    return str | None
