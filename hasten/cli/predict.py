"""hasten predict: many rows through a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli import shared
from hasten.cli.app import app, names
from hasten.cli.display import (
    Display,
    reporting,
    show_summary,
)


@app.command(
    epilog="**Examples**\n\n"
    "`hasten predict bundle reviews.csv -o answers.csv`\n\n"
    "`hasten predict bundle 'logs/*.jsonl.gz' -o answers/ --format parquet`\n\n"
    "`hasten predict bundle data.parquet -o out.parquet --columns label=topic,score=confidence`"
    "\n\n"
    "`zcat lines.txt.gz | hasten predict bundle - -o - --input-format txt | jq .label`"
)
def predict(  # noqa: PLR0917 - typer makes options of all of them
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
    text_column: shared.TextColumn = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Answers to add, with commas, each also under a name of its own: "
            "label=topic,score. Of a classifier: label, score, scores."
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="Of a folder or standard output: csv,tsv,jsonl,parquet."),
    ] = None,
    input_format: Annotated[
        str | None, typer.Option(help="Of standard input: csv, tsv, jsonl or txt.")
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            help="stop at a row that cannot be read or answered, or record why in a column."
        ),
    ] = "stop",
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Throw away what was done, and replace what is there."),
    ] = False,
    shard_rows: Annotated[
        int | None,
        typer.Option(help="Rows that are planned and stored together.  [default: 20 s of work]"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Spread the work over a Ray cluster: HEAD:6379, auto, or local for this machine.",
        ),
    ] = None,
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Accept an artifact that can run code.")
    ] = False,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
) -> None:
    """Answer every row of INPUT with BUNDLE's model.

    Keeps all columns and the order, adds the answers. Whatever interrupts it, the same command
    continues; equal texts are run once; memory stays bounded. With `-o -` the summary goes to
    standard error.
    """
    from hasten import predict_file

    with reporting(debug, _interrupted(given, output, restart=restart)):
        display = Display()
        with display.live():
            summary = predict_file(
                bundle,
                given,
                output,
                text_column=text_column,
                columns=names(columns),
                input_format=input_format,
                output_format=output_format,
                on_error=on_error,
                restart=restart,
                trust=trust_bundle,
                shard_rows=shard_rows,
                ray=ray,
                on_event=display,
            )
        show_summary(summary, as_json=as_json)


def _interrupted(given: str, output: str, *, restart: bool) -> str:
    """What becomes of a run that is interrupted."""
    if "-" in {given, output}:
        return "A run that reads from or writes to a pipe has to start over."
    kept = "What was done is kept; the same command continues"
    return f"{kept}, if --restart is left out." if restart else f"{kept}."
