"""What several commands take that is not an option of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUTPUT = "Output"

Debug = Annotated[
    bool,
    typer.Option("--debug", rich_help_panel=OUTPUT, help="Show tracebacks and the library's log."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        rich_help_panel=OUTPUT,
        help="Show every table, not only the rows that matter.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=OUTPUT, help="Print the result as JSON on standard output."
    ),
]
Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder or hub id, or package.module:factory.")
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        "-d",
        help="Your texts: .csv, .tsv, .jsonl, .parquet or .txt (one a line), also .gz or .zst.",
    ),
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column with the texts; found by itself if it is clear.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column with the right labels, to report accuracies.")
]
