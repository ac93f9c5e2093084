"""The commands that measure: tune, bench, demo."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TypeVar, Unpack

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import (
    Display,
    err,
    reporting,
    show,
)
from hasten.cli.interrupts import accepting
from hasten.options import BenchOptions, DemoOptions, TuneOptions
from hasten.percent import percent

T = TypeVar("T", TuneOptions, BenchOptions)


def _with_tokenizer(model: str, options: T) -> T:
    """The options, with the demo's tokenizer for a ``config.json`` that comes without one."""
    from hasten.demo import assets

    has_one = options["tokenizer"] or (Path(model) / "tokenizer.json").exists()
    if has_one or not options["random_weights"]:
        return options
    return {**options, "tokenizer": assets.tokenizer_file()}


@command(
    "hasten tune ./my-model --data texts.csv -o bundle",
    "hasten tune ./my-model --data texts.parquet --text-column body --label-column topic",
    "hasten tune my.module:build --weights state.pt --tokenizer ./tok --data lines.txt",
    "hasten tune ./my-model --data texts.csv --objective latency --engines onnx_runtime,openvino",
    "hasten tune ./my-model --data texts.csv --precisions fp32,int8 --max-flips 0.02 --strict",
    "hasten tune student --reference ./my-model --data texts.csv -o bundle",
)
def tune(
    model: shared.Model,
    data: shared.Data,
    *,
    text_column: shared.TextColumn = None,
    label_column: shared.LabelColumn = None,
    verbose: shared.Verbose = False,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[TuneOptions],
) -> None:
    """Find the fastest way to run MODEL on this machine, and save it as a bundle.

    Exports the model to every engine, measures all of them on your texts, checks that the
    answers are the original's, and keeps the winner. With --reference, the original is that
    model, MODEL is a smaller one that `hasten compress` made of it, and both compete. An
    interrupted run continues when the same command is given again. Once a first choice stands,
    Ctrl-C twice, or --accept-now after an interruption, ends with it.
    """
    from hasten import api
    from hasten.inputs import corpus

    with reporting(debug):
        read = corpus.read(data, text_column=text_column, label_column=label_column)
        display = Display()
        with display.live(), accepting(display):
            tuning = api.tune(
                model,
                read.texts,
                labels=read.labels,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
                **_with_tokenizer(model, options),
            )
        show(tuning, Path(options["output"]), verbose=verbose, as_json=as_json)


@command(
    "hasten bench ./my-model --data texts.csv -o bench",
    "hasten bench ./my-model --data texts.csv --experiments batch-size,latency --runs 3",
    "hasten bench ./my-model --data texts.csv --lengths 16,64,256 --engines onnx_runtime",
)
def bench(
    model: shared.Model,
    data: shared.Data,
    *,
    text_column: shared.TextColumn = None,
    verbose: shared.Verbose = False,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[BenchOptions],
) -> None:
    """Measure every format over batch sizes, lengths and batching orders, and choose nothing.

    Four experiments: **batch-size** (the texts in arrival order), **length** (8 tokens to the
    model's maximum), **order** (arrival, sorted by length, optimal batches), **latency** (one text
    at a time). Results are appended; the same command, or one that asks for more, continues.
    `hasten report` draws the pictures.
    """
    from hasten import api
    from hasten.inputs import corpus

    with reporting(debug):
        read = corpus.read(data, text_column=text_column)
        display = Display()
        with display.live():
            result = api.bench(
                model,
                read.texts,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
                **_with_tokenizer(model, options),
            )
        show(result, Path(options["output"]), verbose=verbose, as_json=as_json)


@command(name="demo")
def run_demo(
    *,
    verbose: shared.Verbose = False,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[DemoOptions],
) -> None:
    """Run the main job on a real encoder and a real corpus; no hub, no network.

    Trains a five-class news classifier on the packaged MiniLM encoder (once; it is kept in your
    cache folder), then tunes it on 1,000 texts from one-line sentences to whole articles. With
    --task embeddings nothing is trained: the encoder gives sentences' vectors.
    """
    from hasten import api
    from hasten.demo import assets

    with reporting(debug):
        display = Display()
        with display.live(), accepting(display):
            if options["task"] == "classification":
                made = assets.prepare(None, display)
                err.print(
                    "Demo    news classifier, held-out accuracy "
                    f"{percent(made.article_accuracy)} on articles, "
                    f"{percent(made.sentence_accuracy)} on sentences"
                )
            tuning = api.demo(
                command=shlex.join(["hasten", *sys.argv[1:]]), on_event=display, **options
            )
        show(tuning, Path(options["output"]), verbose=verbose, as_json=as_json)
