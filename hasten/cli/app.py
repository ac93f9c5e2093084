"""The ``hasten`` command, to which the other modules add theirs; and what they have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten import __version__
from hasten.cli.display import out
from hasten.errors import ChoiceError

app = typer.Typer(
    name="hasten",
    help="Find the fastest way to run a transformer encoder on this machine that still gives "
    "the same answers; prove it; save it as a folder that runs anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def names(value: str | None) -> list[str] | None:
    """Words with commas as a list."""
    return [name.strip() for name in value.split(",") if name.strip()] if value else None


def numbers(option: str, value: str | None) -> list[int] | None:
    """Numbers with commas as a list.

    Raises:
        ChoiceError: they are none.
    """
    if value is None:
        return None
    try:
        numbers = [int(name) for name in value.split(",")]
    except ValueError:
        raise ChoiceError(
            f"{option} is {value!r}", fix="Write numbers with commas: 1,8,32."
        ) from None
    return numbers


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"hasten {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options that stand before a command."""
