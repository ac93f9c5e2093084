"""Options of the functions that use what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypedDict

from hasten.options import shared
from hasten.options.base import Option
from hasten.options.checks import names, one_of, whole_number
from hasten.options.choices import ON_ERROR
from hasten.options.shared import FilePath, Model, Trust


class PredictOptions(TypedDict, total=False):
    """Options of :func:`hasten.predict_file` and ``hasten predict``."""

    text_column: Annotated[
        str | None, Option("Column with the texts; found by itself if it is clear.")
    ]
    columns: Annotated[
        str | Sequence[str] | None,
        Option(
            "Answers to add, with commas, each also under another name: label=topic,score. "
            "Of a classifier: label, score, scores.",
            check=names(),
        ),
    ]
    input_format: Annotated[str | None, Option("Of standard input: csv, tsv, jsonl or txt.")]
    output_format: Annotated[
        str | None,
        Option(
            "Of a folder or standard output: csv, tsv, jsonl or parquet; the input's, if that "
            "can hold answers.",
            flags=("--output-format", "--format"),
        ),
    ]
    on_error: Annotated[
        str,
        Option(
            "stop at a row that cannot be read or answered, or record why in a column.",
            "stop",
            check=one_of(*ON_ERROR),
        ),
    ]
    restart: Annotated[
        bool,
        Option("Discard the results of an interrupted run, and replace an earlier output.", False),
    ]
    shard_rows: Annotated[
        int | None,
        Option(
            "Rows that are planned and stored together; about 20 s of work by default.",
            check=whole_number(1, 10**9),
        ),
    ]
    ray: Annotated[
        str | None,
        Option(
            "Spread the work over a Ray cluster: HEAD:6379, auto, or local for this machine. "
            "All nodes must see bundle, input and output.",
            metavar="ADDRESS",
        ),
    ]
    trust: Trust


class ReportOptions(TypedDict, total=False):
    """Options of :func:`hasten.report` and ``hasten report``."""

    output: Annotated[
        FilePath | None,
        Option("Folder for the files; by default beside the results.", flags=("--output", "-o")),
    ]
    format: Annotated[
        str | Sequence[str] | None,
        Option(
            "Formats of the files, with commas: html,md,png,svg; html by default.", check=names()
        ),
    ]


class AuditOptions(TypedDict, total=False):
    """Options of :func:`hasten.audit` and ``hasten audit``."""

    model: Annotated[
        Model | None,
        Option(
            "The original, where it is no longer where it was when the bundle was made.",
            panel=shared.MODEL,
            metavar="MODEL",
        ),
    ]
    tokenizer: shared.Tokenizer
    weights: shared.Weights
    task: shared.Task
    allow_pickle: shared.AllowPickle
    size: Annotated[
        int,
        Option(
            "How many different texts to draw from FILE at random.",
            300,
            check=whole_number(1, 10**7),
        ),
    ]
    seed: Annotated[int, Option("Seed of the draw.", 0, check=whole_number(0, 2**32 - 1))]
    trust: Trust
