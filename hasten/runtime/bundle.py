"""A bundle: one folder that holds everything needed to run the winner, and the proof.

Its manifest (see :mod:`hasten.runtime.manifest`) names the stages: one model that answers, or
several, of which each hands on to the next the texts that it is unsure of. The artifact of the
first lies in the folder itself, with ``config.json`` and the tokenizer's files under the names
that other tools expect, those of further stages in ``stages/2`` and so on. ``probes.json`` has a
few texts and the outputs for them (see :mod:`hasten.runtime.probes`), ``tuning.json`` all rows,
``results.jsonl`` the raw samples, and there is the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten import engines, hardware, tasks
from hasten.engines.base import Engine, Options
from hasten.errors import BundleError
from hasten.plain import from_json
from hasten.records import HandsOn, Hardware, ModelInfo, Parity, Plan, Probes, Tuning
from hasten.runtime import manifest, signature
from hasten.runtime.manifest import MANIFEST, Manifest, StageEntry

TUNING = "tuning.json"

_TUNE_AGAIN = "Tune again: hasten tune MODEL --data FILE -o BUNDLE"
_TUNE_HERE = "Tune on this machine: hasten tune MODEL --data FILE -o BUNDLE"


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of a bundle, and how to run it.

    ``session`` are the engine's options as the manifest states them. ``hands_on`` says which
    texts go on to the next stage; None in the last one.
    """

    folder: Path
    tokenizer: Path
    model: ModelInfo
    plan: Plan
    session: Options
    hands_on: HandsOn | None
    probes: Probes | None

    @property
    def max_length(self) -> int:
        """The most tokens that it reads of a text."""
        return self.plan.candidate.token_limit(self.model.max_length)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its files are the ones that were saved.

    ``model`` is what the answers are those of, ``parity`` the proof that they are.
    ``differences`` says, in sentences, how this machine is not the one it was tuned on;
    ``digest`` stands for all that is in the bundle, and ``here`` is this machine.
    """

    folder: Path
    stages: tuple[Stage, ...]
    model: ModelInfo
    parity: Parity | None
    hardware: Hardware
    versions: Mapping[str, str]
    differences: tuple[str, ...]
    digest: str
    here: Hardware

    @property
    def plan(self) -> Plan:
        """How the first stage runs, to which all texts go."""
        return self.stages[0].plan

    @property
    def columns(self) -> int:
        """How many numbers a row of the model's outputs has."""
        if self.model.labels:
            return len(self.model.labels)
        probes = self.stages[0].probes
        probed = len(probes.outputs[0]) if probes and probes.outputs else 1
        return self.model.output_width or probed  # older bundles do not keep the width


def load(folder: Path, *, trust: bool = False, here: Hardware | None = None) -> Bundle:
    """Verify a bundle and say whether and how it can run on this machine.

    Args:
        folder: the bundle.
        trust: accept an artifact that can run code, from whoever made it.
        here: this machine, when it is known already.

    Raises:
        BundleError: not a bundle, a damaged or incomplete one, one of whose artifacts could run
            foreign code, or one of whose precisions this machine does not have.
    """
    sealed = manifest.read(folder)
    stated = sealed.manifest
    manifest.verify_files(folder, stated.files)
    stages = tuple(_stage(folder, stated, entry) for entry in stated.stages)
    refuse_unfit([(stage.model, stage.hands_on) for stage in stages], folder)
    _require_alike(stages, folder)
    now = here or hardware.detect()
    differences = list(hardware.differences(stated.hardware, now))
    for stage in stages:
        engine = engines.get(stage.plan.candidate.engine)
        if not trust and engine.runs_code(stage.folder):
            signature.require_own(folder, sealed.raw)
        _require_precision(stage.plan, now, engine)
        differences += _other_versions(engine, stated.versions)
    return Bundle(
        folder,
        stages,
        stated.model,
        stated.parity,
        stated.hardware,
        stated.versions,
        tuple(dict.fromkeys(differences)),
        sealed.digest,
        now,
    )


def read_tuning(folder: Path) -> Tuning:
    """The whole result that a bundle was made from, for the report."""
    listed = manifest.read(folder).manifest.files
    if TUNING not in listed:
        raise BundleError(
            f"{folder / MANIFEST} lists no {TUNING}: there is nothing to report", fix=_TUNE_AGAIN
        )
    manifest.verify_files(folder, {TUNING: listed[TUNING]}, alone=False)
    return from_json(Tuning, json.loads((folder / TUNING).read_text(encoding="utf-8")))


def refuse_unfit(stages: Sequence[tuple[ModelInfo, HandsOn | None]], where: Path) -> None:
    """Refuse stages whose answers cannot stand side by side.

    Args:
        stages: the model of each, and which texts it hands on.
        where: the bundle, for the message.

    Raises:
        BundleError: there are none, one but the last hands nothing on, the outputs decide
            nothing, or the stages differ in task or labels.
    """
    if not stages:
        raise BundleError(f"{where} has no stages", fix=_TUNE_AGAIN)
    *earlier, (last, after_last) = stages
    if after_last is not None or any(hands_on is None for _, hands_on in earlier):
        raise BundleError(
            f"{where}: every stage but the last must say which texts it hands on, and only these",
            fix=_TUNE_AGAIN,
        )
    for number, (model, _) in enumerate(earlier, 1):
        if difference := unlike(model, last):
            raise BundleError(f"{where}: stage {number} and the last {difference}", fix=_TUNE_AGAIN)
    if earlier and not tasks.of(last).decides:
        raise BundleError(
            f"{where} has {len(stages)} stages, but the task {last.task} makes no decision that "
            "a stage could be unsure of",
            fix=_TUNE_AGAIN,
        )


def _require_alike(stages: Sequence[Stage], where: Path) -> None:
    """Answers that point into the text need the same tokens from every stage."""
    readings = {(stage.tokenizer, stage.max_length) for stage in stages}
    if len(readings) > 1 and tasks.of(stages[-1].model).needs_spans:
        raise BundleError(
            f"{where}: its stages split texts into different tokens, and answers of the task "
            f"{stages[-1].model.task} point to tokens",
            fix=_TUNE_AGAIN,
        )


def unlike(first: ModelInfo, last: ModelInfo) -> str | None:
    """How two models differ in what their outputs mean; None where they do not."""
    if first.task != last.task:
        return f"have different tasks: {first.task} and {last.task}"
    if first.labels == last.labels:
        return None
    alone = sorted(set(first.labels) ^ set(last.labels))
    if alone:
        return f"have different labels; only one of them knows {', '.join(alone)}"
    return "have the same labels in a different order"


def _stage(folder: Path, stated: Manifest, entry: StageEntry) -> Stage:
    for name in (entry.folder, entry.tokenizer, *filter(None, [entry.probes])):
        manifest.refuse_outside(folder, name)
    for name in (entry.tokenizer, *filter(None, [entry.probes])):
        if name not in stated.files:
            raise BundleError(
                f"{folder / MANIFEST} needs {name}, which is not among the files that it lists",
                fix="Copy the bundle again.",
            )
    return Stage(
        folder / entry.folder,
        folder / entry.tokenizer,
        entry.model or stated.model,
        Plan(entry.candidate, entry.strategy, entry.cost_table, entry.max_batch_latency_s),
        entry.session,
        entry.hands_on,
        _read_probes(folder / entry.probes) if entry.probes else None,
    )


def _read_probes(path: Path) -> Probes:
    return from_json(Probes, json.loads(path.read_text(encoding="utf-8")))


def _require_precision(plan: Plan, here: Hardware, engine: Engine) -> None:
    candidate = plan.candidate
    if candidate.device == "cuda":
        reason = None if here.gpus else "this machine has no GPU"
    else:
        reason = hardware.missing_instructions(candidate.precision, here)
    if reason is None and candidate.recipe and not engine.missing():
        reason = engine.supports(candidate, here)
    if reason:
        raise BundleError(
            f"the bundle runs in {candidate.precision} on {candidate.device}, but {reason}",
            fix=_TUNE_HERE,
        )


def _other_versions(engine: Engine, then: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences about the engine's libraries that are not those it was tuned with."""
    now = {} if engine.missing() else engine.versions()
    return tuple(
        f"it was tuned with {name} {then[name]}, and here is {version}"
        for name, version in now.items()
        if name in then and then[name] != version
    )
