"""The options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the library's log.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every table, not only the rows that matter.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.")
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
Tokenizer = Annotated[
    Path | None, typer.Option(help="A tokenizer.json or its folder; the model's by default.")
]
Weights = Annotated[
    Path | None, typer.Option(help="A state_dict (.pt, .safetensors) for a factory's module.")
]
Task = Annotated[
    str | None,
    typer.Option(help="single_label, multi_label, regression or tensors, for own modules."),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Measure speed from config.json alone.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Accept a folder with pickled weights.")
]
Engines = Annotated[
    str | None, typer.Option(help="Engines to try, with commas; see `hasten doctor`.")
]
Precisions = Annotated[
    str | None, typer.Option(help="Precisions to try, with commas: fp32,bf16,fp16,int8.")
]
BatchSizes = Annotated[
    str | None, typer.Option(help="Batch sizes to try, with commas.  [default: 1,2,4,...,64]")
]
Threads = Annotated[
    int | None, typer.Option(help="Threads for every candidate; all usable cores by default.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Texts = Annotated[
    int, typer.Option(help="Use this many texts, a stratified sample if there are more.")
]
Seed = Annotated[int, typer.Option(help="For sampling and resampling.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the bundle.")]
Budget = Annotated[str, typer.Option(help="How long it may take: 90s, 10m, 1h.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Throw away what an interrupted run measured.")
]
AcceptNow = Annotated[
    bool,
    typer.Option("--accept-now", help="End an interrupted run with the choice that stands so far."),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column with the right labels, to report accuracies.")
]
