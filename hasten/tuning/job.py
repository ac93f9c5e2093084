"""From what the user gives to a question that can be measured: checks, texts, a folder, a context.

What ``tune`` and ``bench`` have in common before the first measurement.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from hasten import __version__, engines, hardware, tasks
from hasten.errors import (
    ChoiceError,
    EndedEarly,
    HastenError,
    StorageError,
    Unavailable,
)
from hasten.judging.parity import FP32_TOLERANCE
from hasten.models import (
    ModelFolder,
    padding_notice,
    prepare,
    reading_notice,
    require_comparable,
)
from hasten.records import Briefing, Event, ModelInfo, Settings, Text
from hasten.storage.journal import Journal
from hasten.tuning import candidates
from hasten.tuning.budget import Budget
from hasten.tuning.context import Context, Subject
from hasten.tuning.original import TRUTH
from hasten.tuning.process import Connection, WorkerProcess
from hasten.tuning.texts import choose_texts, looks

if TYPE_CHECKING:
    from torch import nn

RESULTS = "results.jsonl"
LOGS = "logs"

MARKER = ".hasten.lock"
_OURS = (RESULTS, LOGS, TRUTH, "reference", "artifacts", "bench.json")


@dataclass(frozen=True, slots=True)
class Source:
    """The model as the user names it; the fields are the arguments of :func:`hasten.tune`."""

    model: str | PathLike[str] | nn.Module
    tokenizer: Any = None
    weights: str | PathLike[str] | None = None
    task: str | None = None
    random_weights: bool = False
    allow_pickle: bool = False

    def prepare(self, folder: Path, seed: int) -> ModelFolder:
        """The model as a folder that every process can open."""
        model = self.model
        return prepare(
            model if isinstance(model, str) or not isinstance(model, PathLike) else Path(model),
            folder,
            tokenizer=self.tokenizer,
            weights=self.weights,
            task=self.task,
            random_weights=self.random_weights,
            allow_pickle=self.allow_pickle,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, of which model, over which texts; ``begin_s`` is when it was asked.

    Where there is a ``reference``, the answers are compared with that model's instead of the
    source's own, and both are measured.
    """

    source: Source
    texts: Sequence[Text]
    labels: Sequence[str] | None
    settings: Settings
    report: Callable[[Event], None]
    begin_s: float = field(default_factory=time.monotonic)
    reference: Source | None = None

    def open(
        self, work: Path, header: Mapping[str, Any], budget_s: float, *, accept_now: bool = False
    ) -> Context:
        """Prepare the model and the texts in ``work``, and open the journal there.

        Args:
            work: the folder for what is measured.
            header: what must be the same for stored results to mean the same, beside the model,
                the texts, the machine and the versions.
            budget_s: how long it may take; may be infinite.
            accept_now: measure no more than the journal holds.

        Raises:
            HastenError: the model or the texts cannot be used, or ``work`` belongs to others.
        """
        reference, student = self._prepare(work)
        taught = self._taught(reference, student)
        chosen = choose_texts(reference, self.texts, self.labels, self.settings, taught)
        if student:
            texts = (*chosen.texts, *chosen.calibration)
            require_comparable(reference, student, texts, chosen.profile)
        if chosen.calibration:
            for prepared in filter(None, (reference, student)):
                prepared.keep_calibration(chosen.calibration)
        info = noticed(reference, self.texts)
        here, versions = hardware.detect(), _versions()
        threads = self.settings.threads or here.usable_cores
        identity = {
            "model": (student or reference).fingerprint(),
            **({"reference": reference.fingerprint()} if student else {}),
            "texts": chosen.digest,
            "calibration": len(chosen.calibration),
            "machine": hardware.fingerprint(here),
            "threads": threads,
            "seed": self.settings.seed,
            "versions": versions,
        }
        # The budget covers what has been done since the call, not only what is measured.
        header = {**identity, **header}
        journal = Journal(work / RESULTS, header, begin_s=self.begin_s, complete=accept_now)
        context = Context(
            settings=self.settings,
            hardware=here,
            engines=engines.discover(),
            versions=versions,
            info=info,
            task=tasks.of(reference.info),
            reference=reference.folder,
            texts=chosen.texts,
            gold=chosen.gold,
            lengths=chosen.tokens.lengths,
            profile=chosen.profile,
            folder=work,
            journal=journal,
            budget=Budget(budget_s, journal, self.report),
            spawn=_refuse_to_measure if accept_now else partial(_spawn, work / LOGS, threads),
            calibration_lengths=chosen.calibration_lengths,
            student=Subject(student.folder, student.info) if student else None,
            taught_texts=chosen.taught,
            **looks(chosen, self.settings.seed),
        )
        self.report(
            Briefing(
                info,
                chosen.profile,
                context.hardware,
                len(chosen.texts),
                context.journal.resumed,
                len(chosen.calibration),
                len(set(chosen.texts)),
                student.info if student else None,
                chosen.taught,
            )
        )
        return context

    def _taught(self, reference: ModelFolder, student: ModelFolder | None) -> frozenset[str]:
        """Digests of the texts that the student was trained on, which may not judge it."""
        made = [student] if student else []
        # Of a model whose answers are the truth, only the integers were made to agree.
        if reference.trained_ranges.exists() and candidates.tries_int8(self.settings):
            made.append(reference)
        return frozenset[str]().union(*(model.taught() for model in made))

    def _prepare(self, work: Path) -> tuple[ModelFolder, ModelFolder | None]:
        """The original, and the student that is tuned beside it if a reference was named."""
        for name in ("reference", "student"):
            shutil.rmtree(work / name, ignore_errors=True)
        seed = self.settings.seed
        if self.reference is None:
            return self.source.prepare(work / "reference", seed), None
        original = self.reference.prepare(work / "reference", seed)
        return original, self.source.prepare(work / "student", seed)


def check(settings: Settings) -> None:
    """Refuse engines that do not exist, and settings that contradict each other.

    Raises:
        ChoiceError: which one, and what is allowed.
    """
    known = engines.names()
    for name in settings.engines:
        if name not in known:
            raise ChoiceError(f"unknown engine {name!r}", fix=f"Choose from: {', '.join(known)}.")
    if settings.max_latency_ms is not None and settings.objective == "latency":
        raise ChoiceError(
            "--max-latency-ms limits the batches of the objective 'throughput'",
            fix="Leave it out, or use --objective throughput.",
        )
    if settings.cascade_only and not settings.cascade:
        raise ChoiceError(
            "--cascade-only and --no-cascade exclude each other", fix="Leave one of them out."
        )


def noticed(reference: ModelFolder, texts: Sequence[Text]) -> ModelInfo:
    """The model, with what ``texts`` show of it among its notices.

    That is whether the files of its tokenizer disagree, and whether padding changes its answers.
    """
    info = reference.info
    seen = (reading_notice(reference, texts), padding_notice(reference, texts, FP32_TOLERANCE))
    return replace(info, notices=(*info.notices, *filter(None, seen)))


def require_tune_extra() -> None:
    """Say what to install where the original itself cannot run.

    Raises:
        Unavailable: PyTorch or transformers is missing.
    """
    missing = engines.get("torch_eager").missing()
    if missing:
        raise Unavailable(
            f"tuning compares everything with the original in PyTorch; {missing.message}",
            fix="pip install 'hasten[tune]'",
        )


def _spawn(logs: Path, threads: int, name: str) -> Connection:
    return WorkerProcess(name, logs / f"{name}.log", threads)


def _refuse_to_measure(name: str) -> Connection:
    raise EndedEarly(name)


@contextmanager
def held(
    work: Path, *, restart: bool, ours: Sequence[str] = (), worth: Sequence[str] = ()
) -> Iterator[None]:
    """Hold the folder ``work`` for one run's measurements, and keep other runs out of it.

    Where the run is refused before anything was measured, no new folder stays behind.

    Args:
        work: is made if it does not exist. One with anything in it must have been made here: a
            marker in it says so, which is also the lock.
        restart: throw away what an earlier run left in it.
        ours: names in it that may be thrown away as well.
        worth: names of files or folders that, like measurements, are kept when the run fails.

    Raises:
        StorageError: it holds something else, another run holds it, or it cannot be written.
    """
    lock, new = FileLock(work / MARKER, timeout=0), not work.exists()
    try:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()) and not (work / MARKER).exists():
            raise StorageError(
                f"{work} holds something else, and this is where the run keeps its results",
                fix="Choose another -o, or move it away.",
            )
        lock.acquire()
        if restart:
            remove(work, *_OURS, *ours)
    except Timeout:
        raise StorageError(
            f"another run is writing to {work}", fix="Wait for it to end, or choose another -o."
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write {work}: {error.strerror}") from error
    try:
        yield
    except HastenError:
        if new and not _has_results(work, worth):
            with suppress(OSError):
                discard(work)
        raise
    finally:
        lock.release()


def _has_results(work: Path, worth: Sequence[str]) -> bool:
    """Whether anything is there that another start would go on from."""
    if any(path.name in worth for path in work.rglob("*")):
        return True
    try:
        with (work / RESULTS).open("rb") as lines:
            return len(list(islice(lines, 2))) > 1  # the first is the header
    except OSError:
        return False


def remove(work: Path, *names: str) -> None:
    """Remove these files and folders of ours, as far as they are there."""
    for path in (work / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def discard(work: Path) -> None:
    """Remove a folder that is :func:`held`; what cannot be removed is in nobody's way."""
    # Moved away first, so that a run that begins at once finds nothing that is about to go.
    gone = work.with_name(f"{work.name}.{os.getpid()}.gone")
    work.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def ignore_event(event: Event) -> None:
    """Do nothing: the default for ``on_event``."""
    del event


def _versions() -> dict[str, str]:
    """Versions of everything installed that measurements depend on."""
    versions = {"hasten": __version__, "python": platform.python_version()}
    for engine in engines.discover().values():
        if not engine.missing():
            versions |= engine.versions()
    return versions
