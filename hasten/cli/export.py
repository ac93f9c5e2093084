"""hasten export: one artifact, checked against the original."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Unpack

import typer
from rich.markup import escape

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import Display, err, out, print_json, reporting
from hasten.errors import ChoiceError
from hasten.inputs import corpus
from hasten.inputs.corpus import Corpus
from hasten.options import ExportOptions
from hasten.percent import percent
from hasten.plain import to_json
from hasten.records import Exported, Parity
from hasten.report.own_terms import own_terms

_FEW_TEXTS = 100
_WIDTH = 9  # of the names at the left


@command(
    "hasten export ./my-model --engine onnx_runtime -o onnx",
    "hasten export ./my-model --engine openvino --precision int8 --data texts.csv -o int8",
    "hasten export ./my-model --engine onnx_runtime --precision int8 --data texts.csv "
    "--max-flips 0.03",
)
def export(
    model: shared.Model,
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            help="Your texts, in any format that tune reads; built-in ones otherwise.",
        ),
    ] = None,
    text_column: shared.TextColumn = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column with the right labels, to compare accuracies.")
    ] = None,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[ExportOptions],
) -> None:
    """Export MODEL to one engine, and check that it still gives the original's answers.

    Writes the engine's best recipe for the precision, with the tokenizer, as a folder that Optimum
    loads. Nothing is timed: `hasten tune` finds out which engine is fastest.
    """
    from hasten import exports

    with reporting(debug, "Nothing was written."):
        read = _read(data, text_column, label_column)
        display = Display()
        with display.live():
            exported = exports.export(
                model,
                read.texts if read else (),
                labels=read.labels if read else None,
                on_event=display,
                **options,
            )
        if as_json:
            print_json(to_json(exported))
        else:
            _show(exported, Path(options["output"]))


def _read(data: Path | None, text_column: str | None, label_column: str | None) -> Corpus | None:
    if data is not None:
        return corpus.read(data, text_column=text_column, label_column=label_column)
    for option, column in (("--text-column", text_column), ("--label-column", label_column)):
        if column is not None:
            raise ChoiceError(
                f"{option} {column} names a column of --data, which is missing",
                fix=f"Add --data FILE, or leave {option} out to check on built-in texts.",
            )
    return None


def _show(exported: Exported, folder: Path) -> None:
    """Print what was written, what the check found, and how to load it."""
    candidate = exported.candidate
    recipe = f" ({candidate.recipe})" if candidate.recipe else ""
    _line("Exported", f"{exported.model.name} to {candidate.engine} {candidate.precision}{recipe}")
    largest = sorted(exported.files, key=lambda name: -exported.files[name])[:2]
    names = ", ".join(f"{name} {_size(exported.files[name])}" for name in largest)
    _line(
        "Written", f"{folder}, {_size(exported.total_bytes)} ({names}), {exported.elapsed_s:.0f} s"
    )
    _line("Check", _check(exported))
    for row in exported.tried:
        _line("Not taken", f"{row.candidate.recipe or row.candidate.precision}: {row.reason}")
    out.print("\nLoad it:")
    out.print(textwrap.indent(exported.usage, "  "), markup=False, highlight=False, soft_wrap=True)
    for warning in _warnings(exported):
        err.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)


def _line(name: str, text: str) -> None:
    out.print(f"[bold]{name:<{_WIDTH}}[/] {escape(text)}", highlight=False, soft_wrap=True)


def _check(exported: Exported) -> str:
    parity = exported.parity
    whose = "texts of yours" if exported.own_texts else "built-in texts"
    texts = f"{parity.compared:,} {whose}"
    if parity.demanded and not parity.decisions:
        return f"{own_terms(parity)} on {texts}"
    if not parity.decisions:
        return (
            f"outputs differ by {parity.mean_abs_difference:.2g} standard deviations in the mean "
            f"({parity.max_abs_difference:.2g} at most) on {texts}{_errors(parity)}"
        )
    flipped = (
        f"{parity.flips:,} of {texts} have a flipped label (95 % confidence: at most "
        f"{percent(parity.flip_upper_bound)} of such texts); outputs differ by at most "
        f"{parity.max_abs_difference:.2g}"
    )
    if quality := parity.quality:
        ours, original = percent(quality.accuracy), percent(quality.reference_accuracy)
        flipped += f"; accuracy {ours}, the original's {original}"
    return flipped


def _warnings(exported: Exported) -> Iterator[str]:
    if exported.refusal:
        yield f"the check failed and --force wrote it anyway: {exported.refusal}"
    if not exported.own_texts:
        uses = "calibrated and checked" if exported.calibration_texts else "checked"
        yield (
            f"this export was {uses} on built-in texts, which say less than the texts that your "
            "model will see. Give some of those with --data FILE."
        )
    if (different := exported.parity.compared) < _FEW_TEXTS:
        yield f"only {different} different texts were compared; give at least 100."


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _errors(parity: Parity) -> str:
    found = parity.errors
    if found is None:
        return ""
    return (
        f"; mean absolute error {found.mean_absolute:.3g}, the original's "
        f"{found.reference_mean_absolute:.3g}"
    )
