"""What the library does, and the command line with it: from a model and texts to a saved result."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Unpack

from hasten import engines, hardware, tasks
from hasten.errors import ChoiceError, EndedEarly, StorageError, Unavailable
from hasten.experiment.run import Experiment, Wanted
from hasten.inputs import corpus
from hasten.inputs.datasets import texts_of
from hasten.options import (
    BenchOptions,
    CompressOptions,
    DemoOptions,
    Model,
    ReportOptions,
    TuneOptions,
    choose,
    documented,
    record,
)
from hasten.options.choices import SHORTEST
from hasten.plain import to_json
from hasten.records import Bench, Event, ModelInfo, Notice, Settings, Student, Text, Tuning
from hasten.report import compose, publish, stored
from hasten.report.doctor import Diagnosis, diagnose
from hasten.report.media import markdown
from hasten.report.notebook import progress
from hasten.report.stored import BENCH
from hasten.runtime.saving import refuse_foreign_folder, save
from hasten.storage import durable, workfolder
from hasten.tuning import cascade_trial, contest, study
from hasten.tuning.context import Context
from hasten.tuning.study import ModelSource, Study

_DECISIVE = (
    "objective",
    "max_latency_ms",
    "batch_sizes",
    "rounds",
    "cascade",
    "cascade_only",
    "stages",
)


@documented(TuneOptions)
def tune(
    model: Model,
    texts: Sequence[Text],
    *,
    labels: Sequence[str] | None = None,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[TuneOptions],
) -> Tuning:
    """Find the fastest way to run ``model`` on this machine that keeps its answers; save it.

    While it runs, results are kept in a folder beside ``output``, named ``<output>.tuning``.
    The same call continues from there if it was interrupted.

    Args:
        model: a Hugging Face folder or hub id, ``package.module:factory``, or a module whose
            forward takes ``input_ids`` and ``attention_mask``.
        texts: your own texts, of the kind that the model will see; or a ``datasets.Dataset`` with
            a column ``text``, and for pairs ``text_pair``, or ``question`` and ``context``.
        labels: the right label of each text, if known; accuracies are then reported.
        command: what to show as the command that repeats it.
        on_event: called with what is being done and how much time is left; in a notebook, a
            progress bar by default.

    Returns:
        The plan and all the evidence for it, as saved in the bundle.

    Raises:
        HastenError: its message says what to do.
    """
    options = choose("hasten.tune", TuneOptions, options)
    settings = record(Settings, TuneOptions, options)
    study.check(settings)
    study.require_tune_extra()
    folder = Path(options["output"]).resolve()
    refuse_foreign_folder(folder)
    work = folder.with_name(folder.name + ".tuning")
    source, original = _sources(model, options)
    # What a stage leaves out depends on these; a resumed run must leave out the same.
    header = {name: getattr(settings, name) for name in _DECISIVE}
    restart, accept_now = options["restart"], options["accept_now"]
    if accept_now:
        _require_interrupted(work, restart=restart)
    with (
        workfolder.held(work, restart=restart, ours=study.OURS),
        progress(on_event, study.ignore_event) as report,
    ):
        asked = Study(source, texts_of(texts), labels, settings, report, reference=original)
        context = asked.open(work, header, settings.budget_s, accept_now=accept_now)
        found = _run(context, accept_now=accept_now)
        named = (original or source).named
        tuning = replace(found, command=command, original=named)
        _save(folder, tuning, context)
        if not tuning.ended_early:
            workfolder.discard(work)
    return tuning


def _sources(model: Model, options: TuneOptions) -> tuple[ModelSource, ModelSource | None]:
    """The model, and the original where the model is its student."""
    source = record(ModelSource, TuneOptions, options, model=model)
    if options["reference"] is None:
        return source, None
    if source.random_weights:
        raise ChoiceError(
            "--random-weights measures speed alone, and --reference compares answers",
            fix="Leave one of them out.",
        )
    return source, replace(source, model=options["reference"], weights=None)


def _require_interrupted(work: Path, *, restart: bool) -> None:
    if restart:
        raise ChoiceError(
            "--accept-now ends an interrupted run, and --restart throws it away",
            fix="Leave one of them out.",
        )
    if not (work / workfolder.RESULTS).exists():
        raise ChoiceError(
            f"--accept-now ends an interrupted run, and there is none in {work}",
            fix="Leave it out to begin a run, or name the -o of the interrupted one.",
        )


def _run(context: Context, *, accept_now: bool) -> Tuning:
    try:
        return contest.run(context)
    except EndedEarly:
        if not accept_now:
            raise
        raise ChoiceError(
            "no choice stands yet in the interrupted run: the first comes after about 40 % of the "
            "budget",
            fix="The same command without --accept-now continues it.",
        ) from None


@documented(CompressOptions)
def compress(
    model: str | PathLike[str],
    texts: Sequence[Text],
    *,
    labels: Sequence[str] | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[CompressOptions],
) -> Student:
    """Make a smaller model that answers as ``model`` does, and save it as an ordinary folder.

    The least important blocks, feed-forward units and attention heads are removed from the
    weights; the rest is trained on your texts to answer as the original does (distillation).
    While it runs, checkpoints are kept in ``<output>.training``; the same call continues from
    there if it was interrupted.

    Args:
        model: a Hugging Face folder or hub id.
        texts: of the kind that the model will see; unlabelled ones suffice.
        labels: the right label of each text, if known.
        on_event: called with what is being done and how much time is left; in a notebook, a
            progress bar by default.

    Returns:
        What the student is, and how it compares with the original on held-out texts.

    Raises:
        HastenError: its message says what to do.
    """
    from hasten.compress import kept
    from hasten.compress import run as compression
    from hasten.compress import target as targets

    begin_s = time.monotonic()
    options = choose("hasten.compress", CompressOptions, options)
    targets.check(options)
    wanted = record(compression.Wanted, CompressOptions, options)
    target_flips = options["target_flips"]
    single = corpus.singles(texts_of(texts))
    _require_compress_extra()
    folder = Path(options["output"]).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} already exists", fix="Choose another -o, or remove it.")
    work = folder.with_name(folder.name + ".training")
    with (
        workfolder.held(work, restart=options["restart"], ours=kept.FILES, worth=kept.WORTH),
        progress(on_event, study.ignore_event) as report,
    ):
        shutil.rmtree(work / "reference", ignore_errors=True)
        reference = record(ModelSource, CompressOptions, options, model=model).prepare(
            work / "reference", wanted.seed
        )
        if target_flips is not None:
            targets.require_decisions(tasks.of(reference.info))
        notices = study.noticed(reference, single).notices
        for notice in notices:
            report(Notice(notice))
        make = partial(compression.make, reference, single, labels, report=report)
        if target_flips is None:
            student = make(wanted, work=work, begin_s=begin_s)
        else:
            student = targets.fastest_within(target_flips, wanted, make, work=work, begin_s=begin_s)
        student = replace(student, notices=notices)
        _save_student(folder, student, work / kept.STUDENT)
        workfolder.discard(work)
    return student


def _save_student(folder: Path, student: Student, made: Path) -> None:
    """Move the finished model to where it was asked for, with what is known about it."""
    with durable.storing(folder):
        durable.write_json(made / "student.json", to_json(student))
        durable.move(made, folder)


def _require_compress_extra() -> None:
    study.require_tune_extra()
    if find_spec("accelerate") is None:
        raise Unavailable(
            "training a student needs accelerate, which is not installed",
            fix="pip install 'hasten[compress]'",
        )


@documented(BenchOptions)
def bench(
    model: Model,
    texts: Sequence[Text],
    *,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[BenchOptions],
) -> Bench:
    """Measure every format over batch sizes, lengths and batching orders; choose nothing.

    Engines, workers and statistics are those of ``hasten.tune``. Results are appended to
    ``results.jsonl`` in ``output``, which ``hasten.report`` renders; the same call, or one that
    asks for more, continues there.

    Args:
        model: as for ``hasten.tune``.
        texts: as for ``hasten.tune``.
        command: what to show as the command that repeats it.
        on_event: called with what is being done and how much time is left; in a notebook, a
            progress bar by default.

    Returns:
        Everything that was measured, as saved in ``bench.json``.

    Raises:
        HastenError: its message says what to do.
    """
    options = choose("hasten.bench", BenchOptions, options)
    settings = record(Settings, BenchOptions, options, integers=False)
    wanted = record(Wanted, BenchOptions, options, command=command)
    study.check(settings)
    study.require_tune_extra()
    folder = Path(options["output"]).resolve()
    source = record(ModelSource, BenchOptions, options, model=model)
    with (
        workfolder.held(folder, restart=options["restart"], ours=study.OURS),
        progress(on_event, study.ignore_event) as report,
    ):
        earlier = _finished(folder)
        if earlier:
            wanted, settings = wanted.with_all_of(earlier), _with_sizes_of(earlier, settings)
        asked = Study(source, texts_of(texts), None, settings, report)
        context = asked.open(folder, {"kind": "bench"}, math.inf)
        _check_lengths(wanted, context.info)

        def save(part: Bench) -> None:
            # What was finished once stays whole until all of the rest is there.
            if part.complete or not earlier:
                durable.write(folder / BENCH, json.dumps(to_json(part)).encode())

        result = Experiment.plan(context, wanted, save).run()
        # Another start would make these again: gigabytes, for a large model.
        workfolder.remove(folder, "reference", "artifacts")
    return result


@documented(DemoOptions)
def demo(
    *,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[DemoOptions],
) -> Tuning:
    """Run ``hasten.tune`` on a real encoder and a real corpus; no hub, no network.

    Trains a five-class news classifier on the packaged MiniLM encoder, once: it is kept in your
    cache folder. Then tunes it on 1,000 texts from one-line sentences to whole articles. With
    ``task="embeddings"`` nothing is trained: the encoder is tuned as the sentence embedding model
    that it is.

    Args:
        command: as for ``hasten.tune``.
        on_event: as for ``hasten.tune``.

    Returns:
        As ``hasten.tune``.

    Raises:
        HastenError: its message says what to do.
    """
    from hasten.demo import assets

    options = choose("hasten.demo", DemoOptions, options)
    if options.pop("task") == "embeddings":
        encoder, texts = assets.embedder()
        return tune(encoder, texts, command=command, on_event=on_event, **options)
    with progress(on_event, study.ignore_event) as report:
        made = assets.prepare(None, report)
    read = corpus.read(made.texts_file, text_column="text", label_column="label")
    return tune(
        made.model_folder,
        read.texts,
        labels=read.labels,
        command=command,
        on_event=on_event,
        **options,
    )


@documented(ReportOptions)
def report(
    path: str | PathLike[str],
    other: str | PathLike[str] | None = None,
    **options: Unpack[ReportOptions],
) -> tuple[Path, ...]:
    """Write results as one HTML page that opens anywhere, or in other formats.

    The page has every chart and table, and loads nothing from a network. Two results are compared:
    before and after, or two machines.

    Args:
        path: a bundle, or the folder of a ``hasten.bench``.
        other: a second one, to be shown beside the first.

    Returns:
        The files.

    Raises:
        HastenError: its message says what to do.
    """
    options = choose("hasten.report", ReportOptions, options)
    first, second = Path(path), None if other is None else Path(other)
    _, document = publish.read(first, second)
    base = publish.base(first, second, options["output"])
    return publish.write(document, base, options["format"] or ("html",))


def doctor() -> Diagnosis:
    """What this machine is, which engines can run here, and what would add the others."""
    return diagnose(hardware.detect(), engines.discover())


def _check_lengths(wanted: Wanted, model: ModelInfo) -> None:
    for length in wanted.lengths:
        if length > model.max_length:
            raise ChoiceError(
                f"--lengths has {length}",
                fix=f"{model.name} takes {SHORTEST} to {model.max_length} tokens.",
            )


def _finished(folder: Path) -> Bench | None:
    """A whole result in the folder, to which another start adds."""
    if not (folder / BENCH).exists():
        return None
    found = stored.read(folder)
    return found if isinstance(found, Bench) and found.complete else None


def _with_sizes_of(earlier: Bench, settings: Settings) -> Settings:
    sizes = {*settings.batch_sizes, *earlier.settings.batch_sizes}
    return replace(settings, batch_sizes=tuple(sorted(sizes)))


def _failure_logs(tuning: Tuning, context: Context) -> dict[str, str]:
    """What the frameworks of failed candidates had to say, by path in the bundle."""
    logs: dict[str, str] = {}
    for candidate in (row.candidate for row in tuning.rows if row.status == "failed"):
        for name in (f"export-{context.artifact_name(candidate, '-')}", candidate.label):
            path = context.folder / study.LOGS / f"{name}.log"
            if path.exists():
                logs[f"{study.LOGS}/{name}.log"] = path.read_text(
                    encoding="utf-8", errors="replace"
                )
    return logs


def _save(folder: Path, tuning: Tuning, context: Context) -> None:
    save(
        folder,
        tuning,
        stages=cascade_trial.stages_of(tuning, context),
        extra={
            "report.md": markdown.render(compose.of(tuning, drawn=False)),
            **_failure_logs(tuning, context),
        },
        results=context.journal.path,
    )
