"""hasten compress: a smaller model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli import options
from hasten.cli.app import app
from hasten.cli.display import (
    Display,
    reporting,
    show_student,
)


@app.command(
    epilog="**Examples**\n\n"
    "`hasten compress ./my-model --data texts.csv -o student --layers 6`\n\n"
    "`hasten compress ./my-model --data texts.csv -o student --layers 4 --ffn-width 768 "
    "--budget 45m`\n\n"
    "`hasten compress ./my-model --data texts.csv -o student --heads 6 --embeddings`\n\n"
    "`hasten compress ./my-model --data texts.csv -o student --int8`\n\n"
    "`hasten compress ./my-model --data texts.csv -o student --target 2x`\n\n"
    "`hasten tune student --reference ./my-model --data texts.csv -o bundle`"
)
def compress(  # noqa: PLR0917 - typer makes options of all of them
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or hub id.")],
    data: options.Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder for the student.")
    ] = Path("student"),
    layers: Annotated[
        int | None, typer.Option(help="Number of blocks to keep; which ones is measured.")
    ] = None,
    ffn_width: Annotated[
        int | None, typer.Option(help="Feed-forward units to keep in each block.")
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            help="Attention heads to keep in each block; transformers 5 alone "
            "cannot load such a student, hasten and transformers 4 can."
        ),
    ] = None,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="Leave out the words that none of your texts has, those that judge aside; in new "
            "texts they are split smaller, or unknown.",
        ),
    ] = False,
    freeze_embeddings: Annotated[
        bool,
        typer.Option(
            "--freeze-embeddings/--train-embeddings",
            help="Whether the embeddings stay as they are: words that your texts lack then "
            "still fit the rest.",
        ),
    ] = True,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Add quantization-aware training; tune then tries the int8 model."
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(help="Instead of sizes: the speed-up to reach, as in 3x."),
    ] = None,
    target_flips: Annotated[
        float | None,
        typer.Option(
            help="Instead of sizes: the largest share of flipped labels, as in 0.02; students "
            "are made from mild to strong."
        ),
    ] = None,
    text_column: options.TextColumn = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Optional column with the right labels, for single-label models."),
    ] = None,
    budget: options.Budget = "1h",
    allow_pickle: options.AllowPickle = False,
    seed: options.Seed = 0,
    restart: options.Restart = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
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

    with reporting(debug):
        read = corpus.read(data, text_column=text_column, label_column=label_column)
        display = Display()
        with display.live():
            student = api.compress(
                model,
                read.texts,
                labels=read.labels,
                output=output,
                layers=layers,
                ffn_width=ffn_width,
                heads=heads,
                embeddings=embeddings,
                freeze_embeddings=freeze_embeddings,
                int8=int8,
                target=target,
                target_flips=target_flips,
                budget=budget,
                allow_pickle=allow_pickle,
                seed=seed,
                restart=restart,
                on_event=display,
            )
        column = [] if text_column is None else ["--text-column", text_column]
        column += ["--allow-pickle"] if allow_pickle else []
        words = ["--reference", model, "--data", str(data), *column, "-o", "bundle"]
        following = shlex.join(["hasten", "tune", str(output), *words])
        show_student(student, output, following, as_json=as_json)
