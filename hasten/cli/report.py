"""The commands that show: report and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import (
    out,
    print_json,
    reporting,
    show_document,
    write_report,
)
from hasten.options import ReportOptions, choose
from hasten.plain import to_json


@command(
    "hasten report bench",
    "hasten report bundle --format html,md,png -o site",
    "hasten report before after",
)
def report(
    path: Annotated[Path, typer.Argument(help="A bundle, or the folder of a bench.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second one, to be shown beside the first.")
    ] = None,
    *,
    verbose: shared.Verbose = False,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[ReportOptions],
) -> None:
    """Show results again, and write them as one HTML page that opens anywhere.

    The page has every chart and table, and loads nothing from a network. Two results are compared:
    before and after, or two machines. With `--json` nothing is written unless `--format` is given.
    """
    from hasten.report import publish, screen

    with reporting(debug):
        chosen = choose("hasten report", ReportOptions, options)
        results, document = publish.read(path, other)
        if as_json:
            print_json(to_json(results if other else results[0]))
        elif verbose:
            show_document(document)
        elif other is None:
            show_document(screen.of(results[0]))
        else:
            show_document(screen.shortened(document))
        if chosen["format"] or not as_json:
            write_report(document, publish.base(path, other, chosen["output"]), chosen["format"])


@command()
def doctor(*, as_json: shared.AsJson = False, debug: shared.Debug = False) -> None:
    """Show what this machine is, which engines can run here, and what would add the others."""
    from hasten import api
    from hasten.report import doctor as checkup

    with reporting(debug):
        diagnosis = api.doctor()
        if as_json:
            print_json(checkup.to_dict(diagnosis))
        else:
            out.print(checkup.render(diagnosis))
