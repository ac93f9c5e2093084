"""A tune with the fake engine, in this process and in virtual time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hasten import tasks
from hasten.engines.fake import Fake
from hasten.inputs.corpus import profile
from hasten.models import ModelFolder
from hasten.plain import to_json
from hasten.records import Event, HandsOn, Hardware, ModelInfo, Settings, Tuning
from hasten.runtime.saving import NewStage, save
from hasten.storage.journal import Journal
from hasten.tuning import contest
from hasten.tuning.budget import Budget
from hasten.tuning.context import Context, Subject
from hasten.tuning.process import Connection, InlineWorker
from hasten.tuning.worker import Message, RankLayers, Worker
from tests.tiny import save_tiny_tokenizer, tiny_texts

INFO = ModelInfo(
    name="scripted",
    architecture="Scripted",
    task="single_label",
    labels=("no", "yes", "maybe"),
    max_length=128,
    input_names=("input_ids", "attention_mask"),
    output_names=("logits",),
    pad_token_id=0,
    parameter_count=1000,
    flops_per_token=2000.0,
    flops_per_token_squared=1.0,
)

MACHINE = Hardware("Scripted CPU", 2, ("avx2", "avx512_bf16"), 64 * 2**30)

Script = Mapping[str, Mapping[str, Any]]


def save_reference(folder: Path, info: ModelInfo = INFO) -> ModelFolder:
    """A reference without a model: the fake engine needs none."""
    save_tiny_tokenizer(folder)
    (folder / "module").mkdir()
    (folder / "config.json").write_text("{}")
    stored = {"kind": "huggingface", "info": to_json(info)}
    (folder / "reference.json").write_text(json.dumps(stored))
    return ModelFolder.open(folder)


def _opened(folder: Path, info: ModelInfo) -> ModelFolder:
    return ModelFolder.open(folder) if folder.exists() else save_reference(folder, info)


class Lab:
    """One tune: its folder, its clock, and a record of every message that was really sent.

    ``stop_after`` raises KeyboardInterrupt at that message, as Ctrl-C would. With a ``student``
    there are two models, whose candidates' labels in the script begin with ``student-``.
    """

    def __init__(
        self,
        folder: Path,
        script: Script,
        texts: int = 60,
        *,
        student: ModelInfo | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.engine = Fake(script)
        usual = {"engines": ("fake",), "budget_s": 1000.0, "integers": False}
        self.settings = Settings(**{**usual, **settings})
        self.hardware = MACHINE
        self.calibration = np.empty(0, np.int64)
        self.first_look: tuple[str, ...] = ()
        self.long_look: tuple[str, ...] = ()
        self.layers: tuple[str, ...] = ()
        self.texts = tuple(tiny_texts(texts))
        self.messages: list[tuple[str, Message]] = []
        self.events: list[Event] = []
        self.stop_after: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.reference = _opened(folder / "reference", INFO)
        self.student = _opened(folder / "student", student) if student else None

    def tune(self) -> Tuning:
        return contest.run(self.context(), baseline_engine="fake")

    def context(self) -> Context:
        task = tasks.of(self.reference.info)
        tokens = task.encode(self.reference.tokenizer(), self.texts)
        journal = Journal(self.folder / "results.jsonl", {"of": "test"}, self.engine.clock)
        return Context(
            settings=self.settings,
            hardware=self.hardware,
            engines={"fake": self.engine},
            versions={},
            info=self.reference.info,
            task=task,
            reference=self.reference.folder,
            texts=self.texts,
            gold=None,
            lengths=tokens.lengths,
            profile=profile(tokens.lengths, tokens.truncated, INFO.max_length),
            folder=self.folder,
            journal=journal,
            budget=Budget(self.settings.budget_s, journal, self.events.append),
            spawn=self.spawn,
            calibration_lengths=self.calibration,
            first_look=self.first_look,
            long_look=self.long_look,
            look_lengths=self.reference.tokenizer()
            .encode(self.first_look + self.long_look)
            .lengths,
            student=Subject(self.student.folder, self.student.info) if self.student else None,
        )

    def spawn(self, name: str) -> Connection:
        return _Listening(name, self)

    def rows(self, tuning: Tuning) -> dict[str, Any]:
        return {row.candidate.label: row for row in tuning.rows}


def save_bundle(folder: Path, lab: Lab, tuning: Tuning) -> Path:
    """What a lab's tune has chosen, as a bundle."""
    stage = NewStage(
        artifact=lab.folder / "artifacts" / "fake-fp32-cpu",
        reference=lab.reference.folder,
        model=tuning.model,
        plan=tuning.plan,
        probes=tuning.probes,
    )
    save(
        folder,
        tuning,
        stages=[stage],
        extra={"report.md": "# a report\n"},
        results=lab.folder / "results.jsonl",
    )
    return folder


def earlier_stage(folder: Path, lab: Lab, tuning: Tuning, rule: HandsOn, **script: Any) -> NewStage:
    """A scripted model for the front of a cascade; its artifact is made in ``folder``."""
    folder.mkdir(parents=True)
    artifact = {"script": {"*": script}, "columns": len(INFO.labels), "output": "logits"}
    (folder / "fake.json").write_text(json.dumps(artifact))
    return NewStage(folder, lab.reference.folder, tuning.model, tuning.plan, None, rule)


def save_cascade(folder: Path, lab: Lab, tuning: Tuning, *earlier: NewStage) -> Path:
    """A bundle whose last stage is what the lab's tune has chosen."""
    artifact, reference = lab.folder / "artifacts" / "fake-fp32-cpu", lab.reference.folder
    last = NewStage(artifact, reference, tuning.model, tuning.plan, tuning.probes)
    results = lab.folder / "results.jsonl"
    save(folder, tuning, stages=[*earlier, last], extra={}, results=results)
    return folder


class _Listening:
    def __init__(self, name: str, lab: Lab) -> None:
        self._name, self._lab = name, lab
        self._worker = InlineWorker(Worker(lambda _: lab.engine))

    def call(self, message: Message, timeout_s: float) -> Any:
        if self._lab.stop_after is not None and len(self._lab.messages) >= self._lab.stop_after:
            raise KeyboardInterrupt
        self._lab.messages.append((self._name, message))
        if isinstance(message, RankLayers):  # there is no model behind the fake engine
            return self._lab.layers
        return self._worker.call(message, timeout_s)

    def close(self) -> None:
        self._worker.close()


def spread(values: Any) -> float:
    """Largest over smallest."""
    array = np.asarray(values, dtype=float)
    return float(array.max() / array.min())
