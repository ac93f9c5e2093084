"""The command line: parse, call the library once, render."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hasten import __version__
from hasten.cli import options
from hasten.cli.display import (
    Display,
    err,
    out,
    print_json,
    reporting,
    show,
    show_document,
    show_summary,
    write_report,
)
from hasten.errors import ChoiceError
from hasten.plain import to_json

app = typer.Typer(
    name="hasten",
    help="Find the fastest way to run a transformer encoder on this machine that still gives "
    "the same answers; prove it; save it as a folder that runs anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _names(value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value else None


def _stand_in_tokenizer(model: str) -> Path | None:
    """The demo's tokenizer, for a ``config.json`` that comes without one of its own."""
    from hasten import demo

    return None if (Path(model) / "tokenizer.json").exists() else demo.tokenizer_file()


def _numbers(option: str, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        numbers = [int(name) for name in value.split(",")]
    except ValueError:
        raise ChoiceError(
            f"{option} is {value!r}", fix="Write numbers with commas: 1,8,32."
        ) from None
    return numbers


@app.command(
    epilog="**Examples**\n\n"
    "`hasten tune ./my-model --data texts.csv -o bundle`\n\n"
    "`hasten tune ./my-model --data texts.parquet --text-column body --label-column topic`\n\n"
    "`hasten tune my.module:build --weights state.pt --tokenizer ./tok --data lines.txt`\n\n"
    "`hasten tune ./my-model --data texts.csv --objective latency --engines onnx_runtime,openvino`"
    "\n\n"
    "`hasten tune ./my-model --data texts.csv --precisions fp32,int8 --max-flips 0.005 --strict`"
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
    budget: options.Budget = "10m",
    objective: Annotated[
        str, typer.Option(help="throughput, or latency (one text at a time).")
    ] = "throughput",
    max_latency_ms: Annotated[
        float | None, typer.Option(help="With throughput: no batch may take longer.")
    ] = None,
    max_flips: Annotated[
        float, typer.Option(help="Largest share of changed answers that is acceptable.")
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
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Find the fastest way to run MODEL on this machine, and save it as a bundle.

    Exports the model to every engine, measures all of them on your texts, checks that the
    answers are the original's, and keeps the winner. An interrupted run continues when the same
    command is given again.
    """
    from hasten import api, corpus

    with reporting(debug):
        read = corpus.read(data, text_column=text_column, label_column=label_column)
        display = Display()
        with display.live():
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
                budget=budget,
                objective=objective,
                max_latency_ms=max_latency_ms,
                max_flips=max_flips,
                strict=strict,
                engines=_names(engines),
                precisions=_names(precisions),
                batch_sizes=_numbers("--batch-sizes", batch_sizes),
                threads=threads,
                device=device,
                max_texts=texts,
                calibration=calibration,
                rounds=rounds,
                seed=seed,
                restart=restart,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
            )
        show(tuning, output, as_json=as_json)


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
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Measure every format over batch sizes, lengths and batching orders, and choose nothing.

    Four experiments: **batch-size** (the texts in arrival order), **length** (8 tokens to the
    model's maximum), **order** (arrival, sorted by length, optimal batches), **latency** (one text
    at a time). Results are appended; the same command, or one that asks for more, continues.
    `hasten report` draws the pictures.
    """
    from hasten import api, corpus

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
                experiments=_names(experiments),
                batch_sizes=_numbers("--batch-sizes", batch_sizes),
                lengths=_numbers("--lengths", lengths),
                runs=runs,
                max_texts=texts,
                engines=_names(engines),
                precisions=_names(precisions),
                threads=threads,
                device=device,
                seed=seed,
                restart=restart,
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
            )
        show(result, output, as_json=as_json)


@app.command("demo")
def run_demo(
    output: options.Output = Path("demo-bundle"),
    budget: options.Budget = "10m",
    restart: options.Restart = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Run the main job on a real encoder and a real corpus; no hub, no network.

    Trains a five-class news classifier on the packaged MiniLM encoder (once; it is kept in your
    cache folder), then tunes it on 1,000 texts from one-line sentences to whole articles.
    """
    from hasten import api, corpus, demo

    with reporting(debug):
        display = Display()
        with display.live():
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
                command=shlex.join(["hasten", *sys.argv[1:]]),
                on_event=display,
            )
        show(tuning, output, as_json=as_json)


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
    text_column: options.TextColumn = None,
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
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Accept an artifact that can run code.")
    ] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Answer every row of INPUT with BUNDLE's model.

    Keeps all columns and the order, adds the answers. Whatever interrupts it, the same command
    continues; equal texts are run once; memory stays bounded. With `-o -` the summary goes to
    standard error.
    """
    from hasten import predict_file

    with reporting(debug):
        display = Display()
        with display.live():
            summary = predict_file(
                bundle,
                given,
                output,
                text_column=text_column,
                columns=_names(columns),
                input_format=input_format,
                output_format=output_format,
                on_error=on_error,
                restart=restart,
                trust=trust_bundle,
                shard_rows=shard_rows,
                on_event=display,
            )
        show_summary(summary, as_json=as_json)


@app.command(
    epilog="**Examples**\n\n"
    "`hasten report bench`\n\n"
    "`hasten report bundle --format html,md,png -o site`\n\n"
    "`hasten report before after`"
)
def report(  # noqa: PLR0917 - typer makes options of all of them
    path: Annotated[Path, typer.Argument(help="A bundle, or the folder of a bench.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second one, to be shown beside the first.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the files; by default beside the results."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", help="With commas: html,md,png,svg.  [default: html]"),
    ] = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show results again, and write them as one HTML page that opens anywhere.

    The page has every chart and table, and loads nothing from a network. Two results are compared:
    before and after, or two machines. With `--json` nothing is written unless `--format` is given.
    """
    from hasten.report import comparison, compose, publish, stored

    with reporting(debug):
        results = [stored.read(given_path) for given_path in (path, other) if given_path]
        if other is None:
            document = compose.of(results[0])
        else:
            sides = zip(stored.labels(path, other), results, strict=True)
            document = comparison.of(*(comparison.Side(*side) for side in sides))
        if as_json:
            print_json(to_json(results if other else results[0]))
        else:
            show_document(document)
        if formats or not as_json:
            base = publish.base(path, other, output)
            write_report(document, base, _names(formats))


@app.command()
def doctor(as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """Show what this machine is, which engines can run here, and what would add the others."""
    from hasten import engines, hardware
    from hasten.report import doctor as checkup

    with reporting(debug):
        diagnosis = checkup.diagnose(hardware.detect(), engines.discover())
        if as_json:
            print_json(checkup.to_dict(diagnosis))
        else:
            out.print(checkup.render(diagnosis))


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"hasten {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options that stand before a command."""


def main() -> None:
    """Entry point of the ``hasten`` command."""
    app()
