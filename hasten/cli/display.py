"""What a person sees: progress, results, errors. The only module that prints."""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hasten import records
from hasten.errors import EngineError, HastenError, NoCandidate, StorageError, Unavailable
from hasten.percent import percent
from hasten.plain import to_json
from hasten.records import (
    Audit,
    Bench,
    Briefing,
    Decided,
    Event,
    Forecast,
    Notice,
    Settings,
    Standing,
    Student,
    Summary,
    Tuning,
)

if TYPE_CHECKING:
    from hasten.report.document import Document

_INTERRUPTED = 130

# How often progress is printed where there is no terminal to redraw.
_EVERY_S = 30.0

out = Console()
err = Console(stderr=True)


class Display:
    """Shows events on standard error: one live line on a terminal, elsewhere one every 30 s."""

    def __init__(self) -> None:
        self.standing: Tuning | None = None
        """What a tune would end with now; None before the first choice, and after the last."""
        self._printed_s = -math.inf
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", style="dim"),
            console=err,
            transient=True,
        )

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Briefing):
            self._brief(event)
        elif isinstance(event, Notice):
            _fact("Note", event.text)
        elif isinstance(event, Forecast):
            self._forecast(event)
        elif isinstance(event, Standing):
            self._stands(event.tuning)
        elif isinstance(event, Decided):
            self.standing = None
        elif err.is_terminal:
            self._advance(event)
        elif time.monotonic() - self._printed_s > _EVERY_S:
            err.print(
                f"{event.stage}: {escape(event.message)}{_left(event.left_s)}", soft_wrap=True
            )
            self._printed_s = time.monotonic()

    @contextmanager
    def live(self) -> Iterator[Display]:
        """Keep the bar on the screen for the time of the block."""
        if not err.is_terminal:
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

        for what, model in (("Model", event.model), ("Student", event.student)):
            if model:
                _fact(what, f"{model.name} ({model.architecture})")
                for notice in model.notices:
                    _fact("Note", notice)
        cores = content.count(event.hardware.usable_cores, "usable core")
        _fact("Machine", f"{event.hardware.cpu_model}, {cores}")
        _fact("Texts", content.range_of_lengths(event.profile))
        uses = _uses(event)
        if uses:
            _fact("", uses)
        if event.resumed:
            err.print("Continuing an interrupted run; --restart starts over.")

    def _stands(self, tuning: Tuning) -> None:
        from hasten.report import content, headline

        self.standing, chosen = tuning, tuning.chosen
        _fact("So far", headline.first(tuning))
        if chosen.parity and not chosen.candidate.exact:
            _fact("", content.agreement(chosen.parity))
        _fact("", "The search goes on; Ctrl-C twice ends it with this choice.")

    def _forecast(self, event: Forecast) -> None:
        parts = ", ".join(f"{name} {_minutes(s)}" for name, s in event.seconds.items())
        _fact("Left", f"{_minutes(sum(event.seconds.values()))}: {parts}")
        _fact("", "Shorten it with --experiments, --max-texts, --runs, --engines or --lengths.")


def _fact(name: str, value: str) -> None:
    err.print(f"{name:<7} {escape(value)}", soft_wrap=True)


def _uses(event: Briefing) -> str:
    """What the texts are used for; empty where all of them are evaluated."""
    judged, different = event.judged_texts, event.different_texts
    copies = f" ({different:,} different)" if different and different < judged else ""
    if judged >= event.profile.given and not copies:
        return ""
    uses = [f"{judged:,} for evaluation{copies}"]
    if event.calibration_texts:
        # Fewer than requested where texts are few: the limit says why.
        most = "" if event.taught_texts else " (at most 30 % of all)"
        uses.append(f"{event.calibration_texts:,} for int8 calibration{most}")
    if event.taught_texts:
        uses.append(f"{event.taught_texts:,} not used, as they trained the student")
    return ", ".join(uses)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", {_minutes(seconds)} left"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def reporting(
    debug: bool, interrupted: str = "Finished work is kept; the same command continues."
) -> Iterator[None]:
    """Turn hasten's errors into a message and an exit status; ``interrupted`` follows Ctrl-C.

    2 for what the user can change in the command, 1 for a run that failed, 130 for Ctrl-C.
    Anything else is a bug and shows its traceback.
    """
    try:
        with _logging(debug), warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
    except HastenError as error:
        if debug:
            raise
        _fail(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Permissions, long file names and full disks are rarely bugs in hasten.
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(StorageError(f"{where}{error.strerror or error}", fix="--debug shows where."))
    except KeyboardInterrupt:
        err.print(f"\nInterrupted. {interrupted}")
        raise typer.Exit(_INTERRUPTED) from None


@contextmanager
def _logging(debug: bool) -> Iterator[None]:
    """Show the library's log on standard error, unless the program around it logs already."""
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler, level = logging.StreamHandler(), root.level
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning's message, without the line of code that raised it."""
    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def _fail(error: HastenError) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.fix:
        err.print(escape(error.fix), highlight=False, soft_wrap=True)
    raise typer.Exit(1 if isinstance(error, EngineError | NoCandidate) else 2) from None


def show(result: Tuning | Bench, folder: Path, *, verbose: bool, as_json: bool) -> None:
    """Print a result and how to use what is in ``folder``.

    One screen by default, every table with ``verbose``, JSON for scripts.
    """
    if as_json:
        print_json(to_json(result))
        return
    from hasten.report import compose, screen

    show_document(compose.of(result, drawn=False) if verbose else screen.of(result))
    where = escape(shlex.quote(str(folder)))
    lines = [f"All results and charts: hasten report {where}{'' if verbose else ' --verbose'}"]
    if isinstance(result, Tuning):
        use = f"import hasten; print(hasten.load({str(folder)!r})(['...']))"
        lines += [
            f"Saved:  {escape(str(folder))}, with every measurement in report.md",
            f'Use it: python -c "{escape(use)}"',
        ]
    out.print("\n" + "\n".join(lines), soft_wrap=True, highlight=False)


def show_summary(summary: Summary, *, as_json: bool) -> None:
    """Print a bulk run's summary; on standard error if the answers went to standard output."""
    from hasten.report import content

    console = err if summary.output == "-" else out
    if as_json:
        value = {**to_json(summary), "rows_per_s": summary.rows_per_s}
        (print_json(value) if console is out else err.print(json.dumps(value), soft_wrap=True))
        return
    total = summary.total
    answered = total.rows - total.errors
    notes = [
        f"{total.tokens:,} tokens with {percent(total.padding_share)} padding",
        f"{content.count(total.duplicates, 'duplicate')} run once" if total.duplicates else "",
        f"{content.count(summary.kept_rows, 'row')} kept from an earlier run"
        if summary.kept_rows
        else "",
    ]
    load_s, rate = content.number(summary.load_s), content.number(summary.rows_per_s)
    console.print(
        f"{content.count(answered, 'row')} answered in {_minutes(summary.seconds)} after "
        f"{load_s} s of loading: {rate} rows/s",
        highlight=False,
    )
    console.print("; ".join(filter(None, notes)), highlight=False)
    if total.stages:
        shares = (percent(each / (sum(total.stages) or 1)) for each in total.stages)
        console.print(f"Answered by stage: {', '.join(shares)}", highlight=False)
    if summary.unlike:
        console.print(f"[yellow]{escape(summary.unlike)}[/]", highlight=False)
    if total.errors:
        have = "has" if total.errors == 1 else "have"
        console.print(
            f"[bold red]{content.count(total.errors, 'row')} {have} an error instead[/]",
            highlight=False,
        )
    if console is out:
        console.print(f"Written: {escape(summary.output)}", soft_wrap=True, highlight=False)


def show_audit(audit: Audit, *, as_json: bool) -> None:
    """Print whether a bundle's promise holds, and what the sample showed."""
    if as_json:
        print_json(to_json(audit))
        return

    promise = (
        f"at most {percent(audit.max_flips)} of flipped labels"
        if audit.max_flips
        else "the original's answers"
    )
    outcomes = {"holds": "holds", "broken": "does not hold", "undecided": "is undecided"}
    lines = [
        f"The promise of {promise} {outcomes[audit.verdict]}: {audit.reason}.",
        f"Compared with {audit.original}: {audit.parity.compared:,} of {audit.given:,} texts.",
    ]
    if len(audit.stages.answered) > 1:
        shares = [percent(each / audit.stages.texts) for each in audit.stages.answered]
        lines.append(f"Answered by stage: {', '.join(shares)}.")
    if audit.more_texts:
        lines.append(f"If the share stays as it is, about --size {audit.more_texts} will decide.")
    lines += [
        f'{flip.reference_answer} became {flip.candidate_answer}: "{flip.text[:80]}"'
        for flip in audit.parity.examples[:5]
    ]
    out.print("\n".join(map(escape, lines)), soft_wrap=True, highlight=False)


def show_student(student: Student, folder: Path, following: str, *, as_json: bool) -> None:
    """Print a student's sizes and flipped labels, and the command to run next."""
    if as_json:
        print_json(to_json(student))
        return
    from hasten.report import content

    rows = (
        ("blocks", len(student.layers), student.of_layers),
        ("feed-forward units", student.ffn_width, student.of_ffn_width),
        ("attention heads", student.heads, student.of_heads),
        ("vocabulary", student.vocabulary, student.of_vocabulary),
        ("weights", student.parameter_count, student.of_parameter_count),
    )
    for name, now, then in rows:
        if then:
            out.print(f"{name}: {now:,} of {then:,}{_remark(student, name)}", highlight=False)
    steps = content.count(student.steps + student.int8_steps, "step")
    out.print(
        f"Trained on {content.count(student.taught_texts, 'text')} in {steps}, "
        f"{_minutes(student.seconds)} in all. On "
        f"{content.count(student.after.compared, 'held-out text')}:",
        highlight=False,
    )
    bare = student.int8_after and not student.steps  # its fp32 weights are the original's
    compared = {
        "before": None if bare else student.before,
        "after": None if bare else student.after,
        "int8, calibrated only": student.int8_before,
        "int8, after training (QAT)": student.int8_after,
    }
    for name, parity in compared.items():
        if parity is None:
            continue
        bound = f" (at most {percent(parity.flip_upper_bound)})" if parity.decisions else ""
        changed = (
            f"{parity.flips:,} labels flipped{bound}"
            if parity.decisions
            else f"mean difference {parity.mean_abs_difference:.2g} standard deviations"
        )
        out.print(f"  {name}: {changed}", highlight=False)
    if student.vocabulary < student.of_vocabulary:
        err.print(
            "[yellow]warning:[/] words that are in none of your texts are now split into smaller "
            f"tokens, or unknown. About {percent(student.unseen_share)} of new texts have one.",
            highlight=False,
            soft_wrap=True,
        )
    if student.heads < student.of_heads:
        err.print(
            "[yellow]warning:[/] transformers 5 alone cannot load this student, since its blocks "
            "have fewer heads; hasten and transformers 4 can.",
            highlight=False,
            soft_wrap=True,
        )
    if student.predicted_speed:
        out.print(
            f"Predicted speed-up in PyTorch: {content.number(student.predicted_speed)}x; "
            "hasten tune tests it.",
            highlight=False,
        )
    if student.after.decisions and student.after.flip_rate > Settings().max_flips:
        err.print(
            f"[yellow]warning:[/] hasten tune --reference accepts it only with --max-flips above "
            f"{student.after.flip_rate:.3f}; the default is {Settings().max_flips:g}. More texts, "
            "a longer --budget, or a larger student flip fewer labels.",
            highlight=False,
            soft_wrap=True,
        )
    out.print(f"\nStudent: {escape(str(folder))}", soft_wrap=True, highlight=False)
    out.print(f"Next:    {escape(following)}", soft_wrap=True, highlight=False)


def _remark(student: Student, name: str) -> str:
    """A remark on one of a student's sizes, if any."""
    if name == "feed-forward units" and student.asked_ffn_width not in (None, student.ffn_width):
        return f" ({student.asked_ffn_width:,} requested, rounded down to a multiple of 16)"
    if name == "vocabulary" and student.vocabulary < student.of_vocabulary:
        return (
            f" ({percent(student.vocabulary / student.of_vocabulary)}, "
            f"{student.vocabulary_saved_bytes / 1e6:,.1f} MB less)"
        )
    return ""


def show_document(document: Document) -> None:
    """Print a report."""
    from hasten.report import terminal

    out.print(terminal.render(document))


def write_report(document: Document, base: Path, formats: Sequence[str] | None) -> None:
    """Write a report's files and say where they are.

    The default is the HTML page. Where the packages for it are missing, a note gives the command
    that installs them, and this is not an error.
    """
    from hasten.report import publish

    err.print()
    try:
        for path in publish.write(document, base, formats or ("html",)):
            err.print(f"Written: {escape(str(path))}", soft_wrap=True, highlight=False)
    except Unavailable as error:
        if formats:
            raise
        err.print(
            f"The HTML page was not written: {error.message}. To get it: {error.fix}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def print_json(value: object) -> None:
    """Print a value as one line of JSON on standard output."""
    # Not through rich, which wraps lines at the width of the terminal.
    sys.stdout.write(json.dumps(value) + "\n")
