"""hasten predict: many rows through a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import (
    Display,
    reporting,
    show_summary,
)
from hasten.options import PredictOptions


@command(
    "hasten predict bundle reviews.csv -o answers.csv",
    "hasten predict bundle 'logs/*.jsonl.gz' -o answers/ --output-format parquet",
    "hasten predict bundle data.parquet -o out.parquet --columns label=topic,score=confidence",
    "zcat lines.txt.gz | hasten predict bundle - -o - --input-format txt | jq .label",
)
def predict(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The folder that `hasten tune` made.")
    ],
    given: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A file (.csv, .tsv, .jsonl, .parquet, .txt, also .gz or .zst), a folder or a "
            "quoted glob pattern of such, or - for standard input.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A file, whose extension names the format; a folder for parts; or - for "
            "standard output.",
        ),
    ],
    *,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[PredictOptions],
) -> None:
    """Answer every row of INPUT with BUNDLE's model.

    Keeps all columns and the order, adds the answers. Whatever interrupts it, the same command
    continues; equal texts are run once; memory stays bounded. With `-o -` the summary goes to
    standard error.
    """
    from hasten import predict_file

    with reporting(debug, _interrupted(given, output, restart=options["restart"])):
        display = Display()
        with display.live():
            summary = predict_file(bundle, given, output, on_event=display, **options)
        show_summary(summary, as_json=as_json)


def _interrupted(given: str, output: str, *, restart: bool) -> str:
    """What becomes of a run that is interrupted."""
    if "-" in {given, output}:
        return "A run that reads from or writes to a pipe has to start over."
    kept = "Finished work is kept; the same command continues"
    return f"{kept}, if --restart is left out." if restart else f"{kept}."
