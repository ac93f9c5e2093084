"""From what the user gives to a question that can be measured: checks, texts, a context.

What ``tune`` and ``bench`` have in common before the first measurement.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten import __version__, engines, hardware, tasks
from hasten.errors import (
    ChoiceError,
    EndedEarly,
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
from hasten.storage.workfolder import RESULTS
from hasten.tuning import candidates
from hasten.tuning.budget import Budget
from hasten.tuning.context import Context, Subject
from hasten.tuning.original import TRUTH
from hasten.tuning.process import Connection, WorkerProcess
from hasten.tuning.texts import choose_texts, looks

if TYPE_CHECKING:
    from torch import nn

LOGS = "logs"

OURS = (RESULTS, LOGS, TRUTH, "reference", "artifacts", "bench.json")
"""What a run may leave in its folder."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model as the user names it; the fields are the arguments of :func:`hasten.tune`."""

    model: str | PathLike[str] | nn.Module
    tokenizer: Any = None
    weights: str | PathLike[str] | None = None
    task: str | None = None
    task_settings: Mapping[str, Any] | None = field(default=None, hash=False)
    random_weights: bool = False
    allow_pickle: bool = False

    @property
    def named(self) -> str | None:
        """By what name another process finds the model: an absolute path where it is a folder."""
        if not isinstance(self.model, str | PathLike):
            return None
        path = Path(self.model)
        return str(path.absolute()) if path.exists() else str(self.model)

    def prepare(self, folder: Path, seed: int) -> ModelFolder:
        """The model as a folder that every process can open."""
        model = self.model
        return prepare(
            model if isinstance(model, str) or not isinstance(model, PathLike) else Path(model),
            folder,
            tokenizer=self.tokenizer,
            weights=self.weights,
            task=self.task,
            task_settings=self.task_settings or {},
            random_weights=self.random_weights,
            allow_pickle=self.allow_pickle,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Study:
    """What is asked, of which model, over which texts; ``begin_s`` is when it was asked.

    Where there is a ``reference``, the answers are compared with that model's instead of the
    source's own, and both are measured.
    """

    source: ModelSource
    texts: Sequence[Text]
    labels: Sequence[str] | None
    settings: Settings
    report: Callable[[Event], None]
    begin_s: float = field(default_factory=time.monotonic)
    reference: ModelSource | None = None

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
            lengths=chosen.tokens.longest,
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
