"""``hasten.tune``: the main job, from a model and texts to a bundle."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from hasten import __version__, bundle, engines, hardware, tasks
from hasten.corpus import profile, stratified_sample
from hasten.engines.base import Engine
from hasten.errors import ChoiceError, InputError, StorageError, Unavailable
from hasten.records import (
    Briefing,
    Event,
    Hardware,
    LengthProfile,
    Settings,
    Tuning,
)
from hasten.reference import Reference, prepare
from hasten.report import markdown
from hasten.tokenization import Tokens
from hasten.tuning import candidates, contest
from hasten.tuning.context import Budget, Context
from hasten.tuning.journal import Journal
from hasten.tuning.process import WorkerProcess

if TYPE_CHECKING:
    from torch import nn

# The length profile of more texts than this would not differ, and takes longer to count.
_MOST_PROFILED = 20_000
_LOCK = ".lock"
_LOGS = "logs"
"""Folder of the workers' logs; a bundle has those of the candidates that failed."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts that are judged, with what is known about all of them."""

    texts: tuple[str, ...]
    gold: tuple[str, ...] | None
    tokens: Tokens
    profile: LengthProfile

    @property
    def digest(self) -> str:
        """SHA-256 over texts and gold labels."""
        content = json.dumps([self.texts, self.gold]).encode()
        return hashlib.sha256(content).hexdigest()


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
    rounds: int = 5,
    seed: int = 0,
    restart: bool = False,
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
        budget: how long it may take, in seconds or as ``"90s"``, ``"10m"``, ``"1h"``.
        objective: ``throughput``, or ``latency`` of one text at a time.
        max_latency_ms: with ``throughput``, the longest that a batch may take.
        max_flips: the largest acceptable share of changed answers, for lossy precisions.
        strict: hold the upper confidence bound of that share against ``max_flips``.
        engines: names of the engines to try; all by default.
        precisions: precisions to try; all that the machine has by default.
        batch_sizes: batch sizes to try.
        threads: how many threads every candidate gets; by default all usable cores.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_texts: as many texts are judged, a stratified sample if there are more.
        rounds: interleaved end-to-end rounds.
        seed: for sampling and resampling.
        restart: throw an interrupted run's results away instead of continuing it.
        on_event: is told what is being done and how long is left.

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
        rounds=rounds,
        seed=seed,
    )
    check(settings)
    _require_tune_extra()
    begin_s = time.monotonic()
    folder = Path(output).resolve()
    bundle.refuse_foreign_folder(folder)
    with _work_folder(folder, restart=restart) as work:
        reference = prepare(
            model if isinstance(model, str) or not isinstance(model, PathLike) else Path(model),
            _fresh(work / "reference"),
            tokenizer=tokenizer,
            weights=weights,
            task=task,
            random_weights=random_weights,
            allow_pickle=allow_pickle,
            seed=seed,
        )
        chosen = choose_texts(reference, texts, labels, settings)
        report = on_event or _keep_quiet
        context = _context(settings, reference, chosen, work, report, begin_s=begin_s)
        report(_briefing(context))
        tuning = contest.run(context)
        _save(folder, tuning, context)
    return tuning


def parse_duration(value: str | float) -> float:
    """Seconds from a number or from text such as ``90s``, ``10m``, ``1.5h``.

    >>> parse_duration("10m"), parse_duration("90"), parse_duration(5)
    (600.0, 90.0, 5.0)

    Raises:
        ChoiceError: it is no duration, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise ChoiceError(f"{value!r} is no duration", fix="Write 90s, 10m or 1.5h.")
    return seconds


def check(settings: Settings) -> None:
    """Refuse settings that mean nothing, before anything is loaded.

    Raises:
        ChoiceError: which one, and what is allowed.
    """
    candidates.check(settings, engines.names())
    if settings.max_latency_ms is not None and settings.objective == "latency":
        raise ChoiceError(
            "--max-latency-ms limits the batches of the objective 'throughput'",
            fix="Leave it out, or use --objective throughput.",
        )
    limits: list[tuple[str, float | None, float, float]] = [
        ("--max-latency-ms", settings.max_latency_ms, 1e-3, 1e9),
        ("--max-flips", settings.max_flips, 0.0, 1.0),
        ("--threads", settings.threads, 1, 4096),
        ("--texts", settings.texts, 1, 10**9),
        ("--rounds", settings.rounds, 5, 10_000),
        ("--seed", settings.seed, 0, 2**32 - 1),
        *(("--batch-sizes", size, 1, 4096) for size in settings.batch_sizes),
    ]
    for name, value, low, high in limits:
        if value is not None and not low <= value <= high:
            raise ChoiceError(f"{name} is {value}", fix=f"It must be from {low:g} to {high:g}.")


def choose_texts(
    reference: Reference,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    settings: Settings,
) -> Texts:
    """Tokenize, profile, and take a stratified sample of the texts to be judged.

    Raises:
        InputError: there are no texts, or not one label for each.
    """
    if not len(texts):
        raise InputError("there are no texts", fix="Give texts of the kind the model will see.")
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"there are {len(texts)} texts and {len(labels)} labels")
    rng = np.random.default_rng(settings.seed)
    known = np.arange(len(texts), dtype=np.int64)
    if len(texts) > _MOST_PROFILED:
        known = np.sort(rng.choice(len(texts), _MOST_PROFILED, replace=False))
    tokens = reference.tokenizer().encode([texts[int(index)] for index in known])
    sample = stratified_sample(tokens.lengths, settings.texts, settings.seed)
    indices = [int(known[index]) for index in sample]
    return Texts(
        texts=tuple(texts[index] for index in indices),
        gold=tuple(str(labels[index]) for index in indices) if labels is not None else None,
        tokens=tokens.select(sample),
        profile=profile(
            tokens.lengths, tokens.truncated, reference.info.max_length, given=len(texts)
        ),
    )


def _context(
    settings: Settings,
    reference: Reference,
    chosen: Texts,
    work: Path,
    report: Callable[[Event], None],
    *,
    begin_s: float,
) -> Context:
    here = hardware.detect()
    found = engines.discover()
    versions = _versions(found)
    header = {**_header(settings, reference, chosen, here), "versions": versions}
    # The budget covers what has been done since the call, not only what is measured.
    journal = Journal(work / "results.jsonl", header, begin_s=begin_s)
    return Context(
        settings=settings,
        hardware=here,
        engines=found,
        versions=versions,
        info=reference.info,
        task=tasks.get(reference.info.task),
        reference=reference.folder,
        texts=chosen.texts,
        gold=chosen.gold,
        lengths=chosen.tokens.lengths,
        profile=chosen.profile,
        folder=work,
        journal=journal,
        budget=Budget(settings.budget_s, journal),
        report=report,
        spawn=lambda name: WorkerProcess(name, work / _LOGS / f"{name}.log"),
    )


def _header(
    settings: Settings, reference: Reference, chosen: Texts, here: Hardware
) -> dict[str, Any]:
    """What must be the same for stored measurements to mean the same."""
    return {
        "model": reference.fingerprint(),
        "texts": chosen.digest,
        "machine": hardware.fingerprint(here),
        "threads": settings.threads or here.usable_cores,
        "objective": settings.objective,
        "max_latency_ms": settings.max_latency_ms,
        "batch_sizes": settings.batch_sizes,
        "seed": settings.seed,
    }


def _versions(found: Mapping[str, Engine]) -> dict[str, str]:
    """Versions of everything installed that measurements depend on."""
    versions = {"hasten": __version__, "python": platform.python_version()}
    for engine in found.values():
        if not engine.missing():
            versions |= engine.versions()
    return versions


def _failure_logs(tuning: Tuning, context: Context) -> dict[str, str]:
    """What the frameworks of failed candidates had to say, by path in the bundle."""
    logs: dict[str, str] = {}
    for candidate in (row.candidate for row in tuning.rows if row.status == "failed"):
        artifact = context.engines[candidate.engine].artifact_name(candidate)
        for name in (f"export-{artifact}", candidate.label):
            path = context.folder / _LOGS / f"{name}.log"
            if path.exists():
                logs[f"{_LOGS}/{name}.log"] = path.read_text(encoding="utf-8", errors="replace")
    return logs


def _briefing(context: Context) -> Briefing:
    return Briefing(
        context.info,
        context.profile,
        context.hardware,
        len(context.texts),
        context.journal.resumed,
    )


def _save(folder: Path, tuning: Tuning, context: Context) -> None:
    candidate = tuning.plan.candidate
    engine = context.engines[candidate.engine]
    bundle.save(
        folder,
        tuning,
        artifact=context.folder / "artifacts" / engine.artifact_name(candidate),
        reference=context.reference,
        extra={"report.md": markdown.render(tuning), **_failure_logs(tuning, context)},
        results=context.journal.path,
    )


def _require_tune_extra() -> None:
    missing = engines.get("torch_eager").missing()
    if missing:
        raise Unavailable(
            f"tuning compares everything with the original in PyTorch; {missing.message}",
            fix="pip install 'hasten[tune]'",
        )


@contextmanager
def _work_folder(folder: Path, *, restart: bool) -> Iterator[Path]:
    """The folder for what is measured, this run's alone; it goes when the run has succeeded."""
    work = folder.with_name(folder.name + ".tuning")
    names = {path.name for path in work.iterdir()} if work.is_dir() else set()
    if names - {_LOCK} and not names & {"reference", "results.jsonl"}:
        raise StorageError(
            f"{work} holds something else, and this is where the run keeps its results",
            fix="Choose another -o, or move it away.",
        )
    lock = FileLock(work / _LOCK, timeout=0)
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if restart:
            _empty(work)
    except Timeout:
        raise StorageError(
            f"another run is writing to {work}", fix="Wait for it to end, or choose another -o."
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write {work}: {error.strerror}") from error
    try:
        yield work
    finally:
        lock.release()
    shutil.rmtree(work)


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _keep_quiet(event: Event) -> None:
    """Nobody asked to be told."""
    del event


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder
