"""The commands that show: report and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli import shared
from hasten.cli.app import app, names
from hasten.cli.display import (
    out,
    print_json,
    reporting,
    show_document,
    write_report,
)
from hasten.plain import to_json


@app.command(
    epilog="**Examples**\n\n"
    "`hasten report bench`\n\n"
    "`hasten report bundle --format html,md,png -o site`\n\n"
    "`hasten report before after`"
)
def report(  # noqa: PLR0917 - typer makes options of all of them
    path: Annotated[Path, typer.Argument(help="A bundle, or the folder of a bench.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second one, to be shown beside the first.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the files; by default beside the results."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", help="With commas: html,md,png,svg.  [default: html]"),
    ] = None,
    verbose: shared.Verbose = False,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
) -> None:
    """Show results again, and write them as one HTML page that opens anywhere.

    The page has every chart and table, and loads nothing from a network. Two results are compared:
    before and after, or two machines. With `--json` nothing is written unless `--format` is given.
    """
    from hasten.report import comparison, compose, publish, screen, stored

    with reporting(debug):
        results = [stored.read(given_path) for given_path in (path, other) if given_path]
        if other is None:
            document = compose.of(results[0])
        else:
            sides = zip(stored.labels(path, other), results, strict=True)
            document = comparison.of(*(comparison.Side(*side) for side in sides))
        if as_json:
            print_json(to_json(results if other else results[0]))
        elif verbose:
            show_document(document)
        elif other is None:
            show_document(screen.of(results[0]))
        else:
            show_document(screen.shortened(document))
        if formats or not as_json:
            base = publish.base(path, other, output)
            write_report(document, base, names(formats))


@app.command()
def doctor(as_json: shared.AsJson = False, debug: shared.Debug = False) -> None:
    """Show what this machine is, which engines can run here, and what would add the others."""
    from hasten import engines, hardware
    from hasten.report import doctor as checkup

    with reporting(debug):
        diagnosis = checkup.diagnose(hardware.detect(), engines.discover())
        if as_json:
            print_json(checkup.to_dict(diagnosis))
        else:
            out.print(checkup.render(diagnosis))
