"""The command line: parse, call the library once, render."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hasten import __version__, records
from hasten.errors import ChoiceError, EngineError, HastenError, NoCandidate
from hasten.plain import to_json
from hasten.records import Briefing, Event, Tuning

INTERRUPTED = 130

# A log wants a sign of life, not every measurement.
_QUIET_S = 10.0

app = typer.Typer(
    name="hasten",
    help="Find the fastest way to run a transformer encoder on this machine that still gives "
    "the same answers; prove it; save it as a folder that runs anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_out = Console()
_err = Console(stderr=True)


class Display:
    """Shows events on standard error: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._stage, self._told_s = "", 0.0
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", style="dim"),
            console=_err,
            transient=True,
        )

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Briefing):
            self._brief(event)
        elif _err.is_terminal:
            self._advance(event)
        elif event.stage != self._stage or time.monotonic() - self._told_s > _QUIET_S:
            _err.print(
                f"{event.stage}: {escape(event.message)}{_left(event.left_s)}", soft_wrap=True
            )
            self._stage, self._told_s = event.stage, time.monotonic()

    @contextmanager
    def live(self) -> Iterator[Display]:
        """Keep the bar on the screen for the time of the block."""
        if not _err.is_terminal:
            yield self
            return
        with self._progress:
            yield self

    def _advance(self, event: records.Progress) -> None:
        stage, left = event.stage, _left(event.left_s).lstrip(", ")
        if self._task is None:
            self._task = self._progress.add_task("", total=1.0, stage=stage, left=left)
        self._progress.update(
            self._task,
            completed=event.done,
            description=escape(event.message),
            stage=stage,
            left=left,
        )

    def _brief(self, event: Briefing) -> None:
        from hasten.report import content

        here = event.hardware
        _err.print(f"Model   {escape(event.model.name)} ({event.model.architecture})")
        _err.print(f"Machine {escape(here.cpu_model)}, {here.usable_cores} usable cores")
        _err.print(f"Texts   {content.lengths(event.profile)}")
        _err.print(f"        {event.judged_texts:,} of them are judged")
        if event.resumed:
            _err.print("Continuing an interrupted run; --restart begins anew.")


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f", {minutes}:{rest:02d} left"


def _names(value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value else None


def _stand_in_tokenizer(model: str) -> Path | None:
    """The demo's tokenizer, for a ``config.json`` that comes without one of its own."""
    from hasten import demo

    return None if (Path(model) / "tokenizer.json").exists() else demo.tokenizer_file()


def _numbers(value: str | None) -> list[int] | None:
    try:
        return [int(name) for name in _names(value) or ()] or None
    except ValueError:
        raise ChoiceError(
            f"--batch-sizes is {value!r}", fix="Write numbers with commas: 1,8,32."
        ) from None


Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the library's log.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the bundle.")]
Budget = Annotated[str, typer.Option(help="How long it may take: 90s, 10m, 1h.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Throw away what an interrupted run measured.")
]


@app.command(
    epilog="**Examples**\n\n"
    "`hasten tune ./my-model --data texts.csv -o bundle`\n\n"
    "`hasten tune ./my-model --data texts.parquet --text-column body --label-column topic`\n\n"
    "`hasten tune my.module:build --weights state.pt --tokenizer ./tok --data lines.txt`\n\n"
    "`hasten tune ./my-model --data texts.csv --objective latency --engines onnx_runtime,openvino`"
)
def tune(  # noqa: PLR0917 - typer makes options of all of them
    model: Annotated[
        str,
        typer.Argument(help="A Hugging Face folder or hub id, or package.module:factory."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            help="Your texts: .csv, .tsv, .jsonl, .parquet or .txt (one a line), also with .gz.",
        ),
    ],
    output: Output = Path("bundle"),
    text_column: Annotated[
        str | None, typer.Option(help="Column with the texts; found by itself if it is clear.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column with the right labels, to report accuracies.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json or its folder; the model's by default.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A state_dict (.pt, .safetensors) for a factory's module.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="single_label, multi_label, regression or tensors, for own modules."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Measure speed from config.json alone.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Accept a folder with pickled weights.")
    ] = False,
    budget: Budget = "10m",
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
    engines: Annotated[
        str | None, typer.Option(help="Engines to try, with commas; see `hasten doctor`.")
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(help="Precisions to try, with commas: fp32,bf16,fp16.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Batch sizes to try, with commas.  [default: 1,2,4,...,64]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads for every candidate; all usable cores by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    texts: Annotated[
        int, typer.Option(help="Judge this many texts, a stratified sample if there are more.")
    ] = 1000,
    rounds: Annotated[int, typer.Option(help="Interleaved end-to-end rounds.")] = 5,
    seed: Annotated[int, typer.Option(help="For sampling and resampling.")] = 0,
    restart: Restart = False,
    as_json: AsJson = False,
    debug: Debug = False,
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
                batch_sizes=_numbers(batch_sizes),
                threads=threads,
                device=device,
                max_texts=texts,
                rounds=rounds,
                seed=seed,
                restart=restart,
                on_event=display,
            )
        _show(tuning, output, as_json=as_json)


@app.command("demo")
def run_demo(
    output: Output = Path("demo-bundle"),
    budget: Budget = "5m",
    restart: Restart = False,
    as_json: AsJson = False,
    debug: Debug = False,
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
            _err.print(
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
                on_event=display,
            )
        _show(tuning, output, as_json=as_json)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the report of a bundle again."""
    from hasten import bundle

    with reporting(debug):
        _show(bundle.read_tuning(path), path, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what this machine is, which engines can run here, and what would add the others."""
    from hasten import engines, hardware
    from hasten.report import doctor as checkup

    with reporting(debug):
        diagnosis = checkup.diagnose(hardware.detect(), engines.discover())
        if as_json:
            _print_json(checkup.to_dict(diagnosis))
        else:
            _out.print(checkup.render(diagnosis))


def _version(wanted: bool) -> None:
    if wanted:
        _out.print(f"hasten {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options that stand before a command."""


@contextmanager
def reporting(debug: bool) -> Iterator[None]:
    """Turn our errors into a message and an exit status.

    2 for what the user can change in the command, 1 for a run that failed, 130 for Ctrl-C.
    Anything else is a bug and shows its traceback.
    """
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, stream=sys.stderr)
    try:
        yield
    except HastenError as error:
        if debug:
            raise
        _fail(error)
    except KeyboardInterrupt:
        _err.print("\nInterrupted. What was measured is kept; the same command continues.")
        raise typer.Exit(INTERRUPTED) from None


def _fail(error: HastenError) -> NoReturn:
    _err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.fix:
        _err.print(escape(error.fix), highlight=False, soft_wrap=True)
    raise typer.Exit(1 if isinstance(error, EngineError | NoCandidate) else 2) from None


def _show(tuning: Tuning, folder: Path, *, as_json: bool) -> None:
    if as_json:
        _print_json(to_json(tuning))
        return
    from hasten.report import terminal

    _out.print(terminal.render(tuning))
    _out.print(
        f"\nBundle: {escape(str(folder))} (report.md in it has every column)", soft_wrap=True
    )
    _out.print(
        f"Use it: python -c \"import hasten; print(hasten.load({str(folder)!r})(['...']))\"",
        soft_wrap=True,
        highlight=False,
    )


def _print_json(value: object) -> None:
    # Not through rich: a script wants bytes that no terminal width has touched.
    sys.stdout.write(json.dumps(value) + "\n")


def main() -> None:
    """Entry point of the ``hasten`` command."""
    app()
