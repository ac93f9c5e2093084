"""The commands that measure: tune, bench, demo."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli import options
from hasten.cli.app import app, names, numbers
from hasten.cli.display import (
    Display,
    err,
    reporting,
    show,
)
from hasten.cli.interrupts import accepting


def _stand_in_tokenizer(model: str) -> Path | None:
    """The demo's tokenizer, for a ``config.json`` that comes without one of its own."""
    from hasten import demo

    return None if (Path(model) / "tokenizer.json").exists() else demo.tokenizer_file()


@app.command(
    epilog="**Examples**\n\n"
    "`hasten tune ./my-model --data texts.csv -o bundle`\n\n"
    "`hasten tune ./my-model --data texts.parquet --text-column body --label-column topic`\n\n"
    "`hasten tune my.module:build --weights state.pt --tokenizer ./tok --data lines.txt`\n\n"
    "`hasten tune ./my-model --data texts.csv --objective latency --engines onnx_runtime,openvino`"
    "\n\n"
    "`hasten tune ./my-model --data texts.csv --precisions fp32,int8 --max-flips 0.02 --strict`"
    "\n\n"
    "`hasten tune student --reference ./my-model --data texts.csv -o bundle`"
)
def tune(  # noqa: PLR0917 - typer makes options of all of them
    model: options.Model,
    data: options.Data,
    output: options.Output = Path("bundle"),
    text_column: options.TextColumn = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column with the right labels, to report accuracies.")
    ] = None,
    tokenizer: options.Tokenizer = None,
    weights: options.Weights = None,
    task: options.Task = None,
    random_weights: options.RandomWeights = False,
    allow_pickle: options.AllowPickle = False,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The model that MODEL is a student of: answers are compared with its own.",
        ),
    ] = None,
    budget: options.Budget = "10m",
    objective: Annotated[
        str, typer.Option(help="throughput, or latency (one text at a time).")
    ] = "throughput",
    max_latency_ms: Annotated[
        float | None, typer.Option(help="With throughput: no batch may take longer.")
    ] = None,
    max_flips: Annotated[
        float, typer.Option(help="Largest share of flipped labels that is acceptable.")
    ] = 0.01,
    strict: Annotated[
        bool, typer.Option("--strict", help="Hold the 95 % bound against --max-flips.")
    ] = False,
    engines: options.Engines = None,
    precisions: options.Precisions = None,
    batch_sizes: options.BatchSizes = None,
    threads: options.Threads = None,
    device: options.Device = "auto",
    texts: options.Texts = 1000,
    calibration: Annotated[
        int, typer.Option(help="Hold so many other texts apart to calibrate int8 with.")
    ] = 300,
    rounds: Annotated[int, typer.Option(help="Interleaved end-to-end rounds, at least.")] = 5,
    seed: options.Seed = 0,
    restart: options.Restart = False,
    accept_now: options.AcceptNow = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
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
                tokenizer or (_stand_in_tokenizer(model) if random_weights else None),
                read.texts,
                labels=read.labels,
                output=output,
                weights=weights,
                task=task,
                random_weights=random_weights,
                allow_pickle=allow_pickle,
                reference=reference,
                budget=budget,
                objective=objective,
                max_latency_ms=max_latency_ms,
                max_flips=max_flips,
                strict=strict,
                engines=names(engines),
                precisions=names(precisions),
                batch_sizes=numbers("--batch-sizes", batch_sizes),
                threads=threads,
                device=device,
                max_texts=texts,
                calibration=calibration,
                rounds=rounds,
                seed=seed,
                restart=restart,
                accept_now=accept_now,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
            )
        show(tuning, output, verbose=verbose, as_json=as_json)


@app.command(
    epilog="**Examples**\n\n"
    "`hasten bench ./my-model --data texts.csv -o bench`\n\n"
    "`hasten bench ./my-model --data texts.csv --experiments batch-size,latency --runs 3`\n\n"
    "`hasten bench ./my-model --data texts.csv --lengths 16,64,256 --engines onnx_runtime`"
)
def bench(  # noqa: PLR0917 - typer makes options of all of them
    model: options.Model,
    data: options.Data,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the results; another start continues."),
    ] = Path("bench"),
    text_column: options.TextColumn = None,
    tokenizer: options.Tokenizer = None,
    weights: options.Weights = None,
    task: options.Task = None,
    random_weights: options.RandomWeights = False,
    allow_pickle: options.AllowPickle = False,
    experiments: Annotated[
        str | None, typer.Option(help="With commas: batch-size,length,order,latency.")
    ] = None,
    batch_sizes: options.BatchSizes = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Tokens, with commas.  [default: 8,16,32,... the model's maximum]"),
    ] = None,
    runs: Annotated[int, typer.Option(help="Interleaved runs over the texts.")] = 5,
    texts: options.Texts = 1000,
    engines: options.Engines = None,
    precisions: options.Precisions = None,
    threads: options.Threads = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    restart: options.Restart = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
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
                tokenizer or (_stand_in_tokenizer(model) if random_weights else None),
                read.texts,
                output=output,
                weights=weights,
                task=task,
                random_weights=random_weights,
                allow_pickle=allow_pickle,
                experiments=names(experiments),
                batch_sizes=numbers("--batch-sizes", batch_sizes),
                lengths=numbers("--lengths", lengths),
                runs=runs,
                max_texts=texts,
                engines=names(engines),
                precisions=names(precisions),
                threads=threads,
                device=device,
                seed=seed,
                restart=restart,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
            )
        show(result, output, verbose=verbose, as_json=as_json)


@app.command("demo")
def run_demo(  # noqa: PLR0917 - typer makes options of all of them
    output: options.Output = Path("demo-bundle"),
    budget: options.Budget = "4m",
    restart: options.Restart = False,
    accept_now: options.AcceptNow = False,
    verbose: options.Verbose = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Run the main job on a real encoder and a real corpus; no hub, no network.

    Trains a five-class news classifier on the packaged MiniLM encoder (once; it is kept in your
    cache folder), then tunes it on 1,000 texts from one-line sentences to whole articles.
    """
    from hasten import api, demo
    from hasten.inputs import corpus

    with reporting(debug):
        display = Display()
        with display.live(), accepting(display):
            assets = demo.prepare(None, display)
            read = corpus.read(assets.texts_file, text_column="text", label_column="label")
            err.print(
                f"Demo    news classifier, held-out accuracy {assets.article_accuracy:.1%} on "
                f"articles, {assets.sentence_accuracy:.1%} on sentences"
            )
            tuning = api.tune(
                assets.model_folder,
                texts=read.texts,
                labels=read.labels,
                output=output,
                budget=budget,
                restart=restart,
                accept_now=accept_now,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
            )
        show(tuning, output, verbose=verbose, as_json=as_json)
