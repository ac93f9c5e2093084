"""``hasten.tune`` and ``hasten.bench``: from a model and texts to a bundle, or to an experiment."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ChoiceError, EndedEarly, StorageError, Unavailable
from hasten.experiment.run import Experiment, Wanted
from hasten.models.folder import storing
from hasten.plain import to_json
from hasten.records import EXPERIMENTS, Bench, Event, ModelInfo, Settings, Student, Tuning
from hasten.report import compose, markdown, stored
from hasten.report.notebook import progress
from hasten.report.stored import BENCH
from hasten.runtime import bundle
from hasten.storage import durable
from hasten.tuning import contest, job
from hasten.tuning.context import Context
from hasten.tuning.job import Job, Source

if TYPE_CHECKING:
    from torch import nn

_SHORTEST = 4
_DECISIVE = ("objective", "max_latency_ms", "batch_sizes", "rounds")


def tune(
    model: str | PathLike[str] | nn.Module,
    tokenizer: Any = None,
    texts: Sequence[str] = (),
    *,
    labels: Sequence[str] | None = None,
    output: str | PathLike[str] = "bundle",
    weights: str | PathLike[str] | None = None,
    task: str | None = None,
    random_weights: bool = False,
    allow_pickle: bool = False,
    reference: str | PathLike[str] | nn.Module | None = None,
    budget: str | float = "10m",
    objective: str = "throughput",
    max_latency_ms: float | None = None,
    max_flips: float = 0.01,
    strict: bool = False,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    threads: int | None = None,
    device: str = "auto",
    max_texts: int = 1000,
    calibration: int = 300,
    rounds: int = 5,
    seed: int = 0,
    restart: bool = False,
    accept_now: bool = False,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Tuning:
    """Find the fastest way to run ``model`` on this machine that keeps its answers; save it.

    While it runs, results are kept in a folder beside ``output``, named ``<output>.tuning``.
    The same call continues from there if it was interrupted.

    Args:
        model: a Hugging Face folder or hub id, ``package.module:factory``, or a module whose
            forward takes ``input_ids`` and ``attention_mask``.
        tokenizer: a folder, a ``tokenizer.json``, or a tokenizer object; by default the model's.
        texts: your own texts, of the kind that the model will see.
        labels: the right label of each text, if known; accuracies are then reported.
        output: the bundle's folder; an earlier bundle there is replaced.
        weights: a state_dict for a factory's module.
        task: ``single_label``, ``multi_label``, ``regression`` or ``tensors``, where the model
            itself does not say.
        random_weights: measure an architecture's speed from its ``config.json`` alone.
        allow_pickle: accept a folder whose weights are a pickle.
        reference: the original model, where ``model`` is its student. Answers are compared with the
            original's, and both are measured side by side; a
            student is then lossy in every precision. ``tokenizer`` and ``task`` are for both.
        budget: how long it may take, in seconds or as ``"90s"``, ``"10m"``, ``"1h"``.
        objective: ``throughput``, or ``latency`` of one text at a time.
        max_latency_ms: with ``throughput``, the longest that a batch may take.
        max_flips: the largest acceptable share of flipped labels, for lossy precisions.
        strict: hold the upper confidence bound of that share against ``max_flips``.
        engines: names of the engines to try; all by default.
        precisions: precisions to try; all that the machine has by default.
        batch_sizes: batch sizes to try.
        threads: how many threads every candidate gets; by default all usable cores.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_texts: as many texts are judged, a stratified sample if there are more.
        calibration: as many other texts set the ranges of int8 candidates; at most three in ten.
        rounds: interleaved end-to-end rounds, at least; more where the budget holds them.
        seed: for sampling and resampling.
        restart: throw an interrupted run's results away instead of continuing it.
        accept_now: measure no more; end an interrupted run with the choice that stands. Its results
            are kept, and the same call without it continues the search.
        command: what to show as the command that repeats it.
        on_event: called with what is being done and how much time is left; in a notebook, a
            progress bar by default.

    Returns:
        The plan and all the evidence for it, as saved in the bundle.

    Raises:
        HastenError: see :mod:`hasten.errors`; the message says what to do.
    """
    settings = Settings(
        budget_s=parse_duration(budget),
        objective=objective,
        max_latency_ms=max_latency_ms,
        max_flips=max_flips,
        strict=strict,
        engines=tuple(engines or ()),
        precisions=tuple(precisions or ()),
        batch_sizes=tuple(sorted(set(batch_sizes or Settings().batch_sizes))),
        threads=threads,
        device=device,
        texts=max_texts,
        calibration=calibration,
        rounds=rounds,
        seed=seed,
    )
    job.check(settings)
    job.require_tune_extra()
    folder = Path(output).resolve()
    bundle.refuse_foreign_folder(folder)
    work = folder.with_name(folder.name + ".tuning")
    source = Source(model, tokenizer, weights, task, random_weights, allow_pickle)
    original = None
    if reference is not None:
        if random_weights:
            raise ChoiceError(
                "--random-weights measures speed alone, and --reference compares answers",
                fix="Leave one of them out.",
            )
        original = Source(reference, tokenizer, None, task, allow_pickle=allow_pickle)
    # What a stage leaves out depends on these; a resumed run must leave out the same.
    header = {name: getattr(settings, name) for name in _DECISIVE}
    if accept_now:
        _require_interrupted(work, restart=restart)
    with job.held(work, restart=restart), progress(on_event, job.ignore_event) as report:
        asked = Job(source, texts, labels, settings, report, reference=original)
        context = asked.open(work, header, settings.budget_s, accept_now=accept_now)
        tuning = replace(_run(context, accept_now=accept_now), command=command)
        _save(folder, tuning, context)
        if not tuning.ended_early:
            job.discard(work)
    return tuning


def _require_interrupted(work: Path, *, restart: bool) -> None:
    if restart:
        raise ChoiceError(
            "--accept-now ends an interrupted run, and --restart throws it away",
            fix="Leave one of them out.",
        )
    if not (work / job.RESULTS).exists():
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


def compress(
    model: str | PathLike[str],
    texts: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    output: str | PathLike[str] = "student",
    layers: int | None = None,
    ffn_width: int | None = None,
    heads: int | None = None,
    embeddings: bool = False,
    freeze_embeddings: bool = True,
    int8: bool = False,
    target: str | float | None = None,
    target_flips: float | None = None,
    budget: str | float = "1h",
    allow_pickle: bool = False,
    seed: int = 0,
    restart: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Student:
    """Make a smaller model that answers as ``model`` does, and save it as an ordinary folder.

    Blocks, feed-forward units and attention heads that matter least are really taken out of the
    weights; the rest is trained on your texts to answer as the original does (distillation).
    While it runs, checkpoints are kept in ``<output>.training``; the same call continues from
    there if it was interrupted.

    Args:
        model: a Hugging Face folder or hub id.
        texts: of the kind that the model will see; unlabelled ones suffice.
        labels: the right label of each text, if known.
        output: the folder for the student; it must be new or empty.
        layers: how many blocks stay; which ones is chosen by their agreement.
        ffn_width: how many feed-forward units stay in each block, rounded down to a multiple of 16.
        heads: how many attention heads stay in each block.
        embeddings: leave words out of the vocabulary that none of ``texts`` has, those that judge
            aside; special tokens and single characters stay, so that other words are split smaller.
        freeze_embeddings: leave the embeddings as they are while the rest is trained.
        int8: also train it with 8-bit integers, and keep their ranges beside the weights, where
            :func:`tune` finds them.
        target: instead of sizes, how many times as fast the student should be, as ``"3x"``; which
            sizes are, is predicted in PyTorch.
        target_flips: instead of that, the largest acceptable share of flipped labels: students
            are made from mild to strong within the budget, and the last that keeps it is taken.
        budget: how long it may take, in seconds or as ``"45m"``, ``"1h"``.
        allow_pickle: accept a folder whose weights are a pickle.
        seed: of everything that is drawn.
        restart: throw an interrupted run's work away.
        on_event: called with what is being done and how much time is left; in a notebook, a
            progress bar by default.

    Returns:
        What the student is, and how it compares with the original on held-out texts.

    Raises:
        HastenError: see :mod:`hasten.errors`; the message says what to do.
    """
    from hasten.compress import kept
    from hasten.compress import run as compression
    from hasten.compress import target as targets

    begin_s = time.monotonic()
    targets.check(
        {
            "--target": target,
            "--target-flips": target_flips,
            "--layers": layers,
            "--ffn-width": ffn_width,
            "--heads": heads,
        }
    )
    wanted = compression.Wanted(
        layers,
        ffn_width,
        parse_duration(budget),
        seed,
        heads,
        embeddings,
        freeze_embeddings,
        int8,
        None if target is None else targets.parse(target),
    )
    job.require_tune_extra()
    if find_spec("accelerate") is None:
        raise Unavailable(
            "training a student needs accelerate, which is not installed",
            fix="pip install 'hasten[compress]'",
        )
    folder = Path(output).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} already exists", fix="Choose another -o, or remove it.")
    work = folder.with_name(folder.name + ".training")
    with (
        job.held(work, restart=restart, ours=kept.FILES, worth=kept.WORTH),
        progress(on_event, job.ignore_event) as report,
    ):
        shutil.rmtree(work / "reference", ignore_errors=True)
        reference = Source(model, allow_pickle=allow_pickle).prepare(work / "reference", seed)
        if target_flips is not None:
            targets.require_decisions(reference.info.task)
        make = partial(compression.make, reference, texts, labels, report=report)
        if target_flips is None:
            student = make(wanted, work=work, begin_s=begin_s)
        else:
            student = targets.fastest_within(target_flips, wanted, make, work=work, begin_s=begin_s)
        with storing(folder):
            student_json = json.dumps(to_json(student), indent=1)
            (work / kept.STUDENT / "student.json").write_text(student_json, encoding="utf-8")
            durable.sync_tree(work / kept.STUDENT)
            (work / kept.STUDENT).replace(folder)
            durable.sync_folder(folder.parent)
        job.discard(work)
    return student


def bench(
    model: str | PathLike[str] | nn.Module,
    tokenizer: Any = None,
    texts: Sequence[str] = (),
    *,
    output: str | PathLike[str] = "bench",
    weights: str | PathLike[str] | None = None,
    task: str | None = None,
    random_weights: bool = False,
    allow_pickle: bool = False,
    experiments: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    runs: int = 5,
    max_texts: int = 1000,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: int | None = None,
    device: str = "auto",
    seed: int = 0,
    restart: bool = False,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Bench:
    """Measure every format over batch sizes, lengths and batching orders; choose nothing.

    Engines, workers and statistics are those of :func:`tune`. Results are appended to
    ``results.jsonl`` in ``output``; the same call, or one that asks for more, continues there.

    Args:
        model: as for :func:`tune`, like all that is not described here otherwise.
        tokenizer: as for ``tune``.
        texts: as for ``tune``.
        weights: as for ``tune``.
        task: as for ``tune``.
        random_weights: as for ``tune``.
        allow_pickle: as for ``tune``.
        output: the folder for the results, which :mod:`hasten.report` renders.
        experiments: which of :data:`hasten.records.EXPERIMENTS`; all by default.
        batch_sizes: 1, 2, 4 ... 64 by default.
        lengths: tokens, for the experiment ``length``; 8, 16, 32 ... the model's maximum by
            default.
        runs: interleaved runs over the texts.
        max_texts: as many texts are used, a stratified sample if there are more.
        engines: as for ``tune``.
        precisions: as for ``tune``, but int8 only where it is named.
        threads: as for ``tune``.
        device: as for ``tune``.
        seed: as for ``tune``.
        restart: throw earlier results in the folder away.
        command: what to show as the command that repeats it.
        on_event: called with what is being done and how much time is left; in a notebook, a
            progress bar by default.

    Returns:
        Everything that was measured, as saved in ``bench.json``.

    Raises:
        HastenError: see :mod:`hasten.errors`; the message says what to do.
    """
    settings = Settings(
        engines=tuple(engines or ()),
        precisions=tuple(precisions or ()),
        batch_sizes=tuple(sorted(set(batch_sizes or Settings().batch_sizes))),
        threads=threads,
        device=device,
        texts=max_texts,
        integers=False,
        rounds=runs,
        seed=seed,
    )
    wanted = Wanted(tuple(experiments or EXPERIMENTS), tuple(lengths or ()), command)
    _check_experiments(settings, wanted)
    job.require_tune_extra()
    folder = Path(output).resolve()
    source = Source(model, tokenizer, weights, task, random_weights, allow_pickle)
    with job.held(folder, restart=restart), progress(on_event, job.ignore_event) as report:
        earlier = _finished(folder)
        if earlier:
            wanted, settings = wanted.with_all_of(earlier), _with_sizes_of(earlier, settings)
        asked = Job(source, texts, None, settings, report)
        context = asked.open(folder, {"kind": "bench"}, math.inf)
        _check_lengths(wanted, context.info)

        def save(part: Bench) -> None:
            # What was finished once stays whole until all of the rest is there.
            if part.complete or not earlier:
                _save_bench(folder, part)

        result = Experiment.plan(context, wanted, save).run()
        # Another start would make these again: gigabytes, for a large model.
        job.remove(folder, "reference", "artifacts")
    return result


def parse_duration(value: str | float) -> float:
    """Seconds from a number or from text such as ``90s``, ``10m``, ``1.5h``.

    >>> parse_duration("10m"), parse_duration("90"), parse_duration(5)
    (600.0, 90.0, 5.0)

    Raises:
        ChoiceError: it is not a duration, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise ChoiceError(
            f"{value!r} is not a duration above zero",
            fix="Write 90s, 10m or 1.5h; a number alone is seconds.",
        )
    return seconds


def _check_experiments(settings: Settings, wanted: Wanted) -> None:
    job.check(settings, "--runs", fewest=2)
    for name in wanted.experiments:
        if name not in EXPERIMENTS:
            raise ChoiceError(
                f"unknown experiment {name!r}", fix=f"Choose from: {', '.join(EXPERIMENTS)}."
            )


def _check_lengths(wanted: Wanted, model: ModelInfo) -> None:
    for length in wanted.lengths:
        if not _SHORTEST <= length <= model.max_length:
            raise ChoiceError(
                f"--lengths has {length}",
                fix=f"{model.name} takes {_SHORTEST} to {model.max_length} tokens.",
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


def _save_bench(folder: Path, result: Bench) -> None:
    """Write the result so that the file is whole or the earlier one."""
    unfinished = folder / f"{BENCH}.unfinished"
    try:
        unfinished.write_text(json.dumps(to_json(result)), encoding="utf-8")
        unfinished.replace(folder / BENCH)
    except OSError as error:
        raise StorageError(f"cannot write {folder / BENCH}: {error.strerror}") from error


def _failure_logs(tuning: Tuning, context: Context) -> dict[str, str]:
    """What the frameworks of failed candidates had to say, by path in the bundle."""
    logs: dict[str, str] = {}
    for candidate in (row.candidate for row in tuning.rows if row.status == "failed"):
        for name in (f"export-{context.artifact_name(candidate, '-')}", candidate.label):
            path = context.folder / job.LOGS / f"{name}.log"
            if path.exists():
                logs[f"{job.LOGS}/{name}.log"] = path.read_text(encoding="utf-8", errors="replace")
    return logs


def _save(folder: Path, tuning: Tuning, context: Context) -> None:
    candidate = tuning.plan.candidate
    bundle.save(
        folder,
        tuning,
        artifact=context.artifact(candidate),
        reference=context.subject(candidate).reference,
        extra={
            "report.md": markdown.render(compose.of(tuning, drawn=False)),
            **_failure_logs(tuning, context),
        },
        results=context.journal.path,
    )
