"""hasten compress: a smaller model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Unpack

import typer

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import (
    Display,
    reporting,
    show_student,
)
from hasten.options import CompressOptions


@command(
    "hasten compress ./my-model --data texts.csv -o student --layers 6",
    "hasten compress ./my-model --data texts.csv -o student --layers 4 --ffn-width 768 "
    "--budget 45m",
    "hasten compress ./my-model --data texts.csv -o student --heads 6 --embeddings",
    "hasten compress ./my-model --data texts.csv -o student --int8",
    "hasten compress ./my-model --data texts.csv -o student --target 2x",
    "hasten tune student --reference ./my-model --data texts.csv -o bundle",
)
def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or hub id.")],
    data: shared.Data,
    *,
    text_column: shared.TextColumn = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Optional column with the right labels, for single-label models."),
    ] = None,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[CompressOptions],
) -> None:
    """Make a smaller model that answers as MODEL does, from unlabelled texts.

    Takes out the blocks, feed-forward units and heads that matter least, trains what is left with
    MODEL's own answers, and compares both on held-out texts. The student is an ordinary Hugging
    Face folder. With --int8, alone or with the others, it also gets quantization-aware training,
    and `hasten tune` has one more int8 recipe for it. An interrupted run
    continues when the same command is given.
    """
    from hasten import api
    from hasten.inputs import corpus

    output = Path(options["output"])
    with reporting(debug):
        read = corpus.read(data, text_column=text_column, label_column=label_column)
        display = Display()
        with display.live():
            student = api.compress(
                model, read.texts, labels=read.labels, on_event=display, **options
            )
        column = [] if text_column is None else ["--text-column", text_column]
        column += ["--allow-pickle"] if options["allow_pickle"] else []
        words = ["--reference", model, "--data", str(data), *column, "-o", "bundle"]
        following = shlex.join(["hasten", "tune", str(output), *words])
        show_student(student, output, following, as_json=as_json)
