"""``hasten.audit``: whether a bundle keeps its promise on texts that it was not proved with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Unpack

import numpy as np

from hasten import engines, hardware
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.judging import audit as judging
from hasten.judging.parity import compare
from hasten.models import ModelFolder
from hasten.options import AuditOptions, Model, choose, documented, record
from hasten.records import (
    Audit,
    Candidate,
    Event,
    Parity,
    Progress,
    Text,
    Tuning,
)
from hasten.runtime import bundle as bundles
from hasten.runtime import probes
from hasten.runtime.bundle import Bundle, read_tuning
from hasten.runtime.pipeline import Pipeline, Streams
from hasten.runtime.predictor import Predictor, load
from hasten.tasks import Outputs
from hasten.tuning import study
from hasten.tuning.study import ModelSource


@documented(AuditOptions)
def audit(
    bundle: str | PathLike[str],
    texts: Sequence[Text],
    *,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[AuditOptions],
) -> Audit:
    """Answer a random sample of ``texts`` with a bundle and with the original, and compare.

    Give texts that have come since the bundle was made: those that proved it say nothing new.

    Args:
        bundle: the folder that :func:`hasten.tune` made.
        texts: of the kind that the bundle answers.
        on_event: receives progress.

    Returns:
        Whether the bundle's promise holds on texts like these, is broken, or is undecided.

    Raises:
        HastenError: see :mod:`hasten.errors`; the message says what to do.
    """
    options = choose("hasten.audit", AuditOptions, options)
    report = on_event or study.ignore_event
    folder = Path(bundle)
    tuning = read_tuning(folder)
    source = _source(folder, tuning, options)
    study.require_tune_extra()
    different = list(dict.fromkeys(texts))
    sample = _drawn(different, options["size"], options["seed"])
    with load(folder, trust=options["trust"]) as predictor:
        report(Progress("audit", f"the bundle's answers to {len(sample)} texts", 0.0, None))
        answers = predictor.outputs(sample)
        report(Progress("audit", f"the original's answers to {len(sample)} texts", 0.3, None))
        truth = _truth(source, predictor.bundle, sample)
        parity = compare(
            truth,
            answers,
            task=predictor.task,
            labels=predictor.bundle.model.labels,
            texts=sample,
        )
        return _judged(predictor, tuning, parity, source.named or "", len(different))


def _source(folder: Path, tuning: Tuning, options: AuditOptions) -> ModelSource:
    """The original as it was named, now or when the bundle was made.

    Raises:
        ChoiceError: neither says where it is.
    """
    model: Model | None = options["model"]
    if model is None:
        model = tuning.original
    if model is None:
        raise ChoiceError(
            f"{folder} does not say where its original, {tuning.model.name}, is",
            fix="Name it: --model MODEL",
        )
    try_folder = Path(model) if isinstance(model, str) else None
    if try_folder and try_folder.is_absolute() and not try_folder.exists():
        raise ModelError(
            f"the original of {folder}, {model}, no longer exists",
            fix="Say where it is now: --model MODEL",
        )
    return record(ModelSource, AuditOptions, options, model=model)


def _drawn(different: Sequence[Text], size: int, seed: int) -> list[Text]:
    """A uniform sample, in the order in which the texts were given.

    Raises:
        InputError: there are no texts.
    """
    if not different:
        raise InputError("texts is empty", fix="Give texts of the kind that the bundle answers.")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(different), min(size, len(different)), replace=False)
    return [different[index] for index in np.sort(chosen).tolist()]


def _truth(source: ModelSource, bundle: Bundle, texts: Sequence[Text]) -> Outputs:
    """The original's outputs in fp32 PyTorch.

    Raises:
        ModelError: the model is not the bundle's original.
    """
    cores = hardware.detect().usable_cores
    engine = engines.get("torch_eager")
    candidate = Candidate(engine.name, "fp32", "cpu", cores)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = source.prepare(Path(scratch) / "original", seed=0)
        _require_original(prepared, bundle)
        artifact = Path(scratch) / "artifact"
        artifact.mkdir()
        engine.export(prepared, candidate, artifact)
        streams = Streams(engine.load(artifact, candidate), candidate.streams, prepared.info)
        pipeline = Pipeline(prepared.tokenizer(cores), streams)
        try:
            return pipeline.run(texts, probes.STRATEGY).outputs
        finally:
            pipeline.close()


def _require_original(prepared: ModelFolder, bundle: Bundle) -> None:
    """Refuse a model whose answers cannot stand beside the bundle's."""
    different = bundles.unlike(prepared.info, bundle.model)
    if different:
        raise ModelError(
            f"{prepared.info.name} is not the original of {bundle.folder}: they {different}",
            fix="Name the model that the bundle was made of: --model MODEL",
        )


def _judged(
    predictor: Predictor, tuning: Tuning, parity: Parity, original: str, given: int
) -> Audit:
    stages = predictor.bundle.stages
    exact = len(stages) == 1 and stages[0].plan.candidate.exact
    max_flips = 0.0 if exact else tuning.settings.max_flips
    found = judging.judge(parity, exact=exact, max_flips=max_flips)
    return Audit(
        bundle=str(predictor.bundle.folder),
        original=original,
        verdict=found.verdict,
        reason=found.reason,
        max_flips=max_flips,
        flip_lower_bound=found.flip_lower_bound,
        parity=parity,
        given=given,
        more_texts=found.more_texts,
        stages=predictor.stats,
    )
