"""hasten audit: does a bundle keep its promise on new texts?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import Display, reporting, show_audit
from hasten.options import AuditOptions

EXIT_STATUS = {"holds": 0, "broken": 1, "undecided": 3}


@command(
    "hasten audit bundle last-week.csv",
    "hasten audit bundle last-week.csv --size 1000 --json",
    "hasten audit bundle last-week.csv --model ./my-model",
)
def audit(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The folder that `hasten tune` made.")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="New texts: .csv, .tsv, .jsonl, .parquet or .txt, also compressed."
        ),
    ],
    *,
    text_column: shared.TextColumn = None,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[AuditOptions],
) -> None:
    """Compare BUNDLE's answers to a random sample of FILE with the original's.

    Says whether what was promised when the bundle was made holds on texts like these. The exit
    status is 0 if it holds and 1 if it is broken, both with 95 % confidence; 3 if the sample is too
    small to tell; and 2 if the command cannot be carried out as it was given.
    """
    from hasten import audits
    from hasten.inputs import corpus

    with reporting(debug, "Nothing was kept."):
        read = corpus.read(data, text_column=text_column)
        display = Display()
        with display.live():
            found = audits.audit(bundle, read.texts, on_event=display, **options)
        show_audit(found, as_json=as_json)
    raise typer.Exit(EXIT_STATUS[found.verdict])
