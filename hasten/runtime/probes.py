"""A few texts with known answers, by which a bundle shows that this machine computes the same.

The proof was made where the bundle was tuned. Integers above all behave differently elsewhere: a
CPU without VNNI may saturate where another does not, without an error. So the first load on a
machine answers the bundle's probes and compares; that it did is remembered, for this machine,
these library versions and this bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from hasten import hardware, tasks
from hasten.errors import BundleError
from hasten.judging.parity import compare, verdict
from hasten.records import Hardware, ModelInfo, Parity, Probes, Strategy, Text
from hasten.runtime.pipeline import Pipeline
from hasten.tasks import Outputs, Task

TEXTS = 32
STRATEGY = Strategy("sorted", 8)

_LOSSY_TOLERANCE = 0.05
"""Largest mean difference from the stored outputs of a lossy candidate, in the outputs' spread.

The same integer kernels give the same integers, and what is left is rounding, below 0.01;
saturation, another kernel's way of rounding or a damaged scale move outputs by far more.
"""

_ROUNDED_OTHERWISE = 1
"""Flipped labels that rounding explains: of 32 texts, hardly more than one is so undecided."""


def check(
    probes: Probes,
    pipeline: Pipeline,
    info: ModelInfo,
    precision: str,
    *,
    where: Path,
) -> None:
    """Answer the probes and compare.

    Args:
        probes: the texts, and the outputs that were measured with the proof.
        pipeline: the loaded model.
        info: of the model.
        precision: of the candidate.
        where: the bundle, for the message.

    Raises:
        BundleError: the answers are others.
        EngineError: the engine failed.
    """
    expected = answers(probes, info)
    outputs = pipeline.run(probes.texts, STRATEGY).outputs
    reason = _difference(expected, outputs, probes, info, precision)
    if reason:
        raise BundleError(
            f"{where} gives other answers here than where it was tuned: {reason}",
            fix="Tune on this machine: hasten tune MODEL --data FILE -o BUNDLE",
        )


def keep(texts: Sequence[Text], outputs: Outputs) -> Probes:
    """Some texts and the outputs for them, as a bundle stores them."""
    counts = tuple(outputs.counts.tolist())
    one_each = all(count == 1 for count in counts)
    rows = tuple(map(tuple, outputs.values.tolist()))
    return Probes(tuple(texts), rows, () if one_each else counts)


def answers(probes: Probes, info: ModelInfo) -> Outputs:
    """The outputs that :func:`keep` was given."""
    width = len(probes.outputs[0]) if probes.outputs else info.output_width
    rows = np.array(probes.outputs, np.float32).reshape(-1, width)
    return Outputs.of_counts(rows, probes.counts or (1,) * len(probes.texts))


def _difference(
    expected: Outputs,
    outputs: Outputs,
    probes: Probes,
    info: ModelInfo,
    precision: str,
) -> str | None:
    if outputs.width != expected.width or (outputs.counts != expected.counts).any():
        return (
            f"{len(outputs.values)} rows of {outputs.width} numbers, where there were "
            f"{len(expected.values)} of {expected.width}"
        )
    as_decided = _compared(expected, outputs, probes, info, tasks.of(info))
    # Without scale of their own: the stored margins of a lossy candidate are not ground truth.
    as_numbers = _compared(expected, outputs, probes, info, tasks.as_numbers())
    # Against what it gave itself: a student's fp32 is as repeatable as its original's.
    if precision == "fp32" or as_decided.non_finite or as_decided.constant:
        return verdict(as_decided, exact=True, max_flips=0.0, strict=False)
    clear = as_decided.flips - as_decided.ties
    if as_numbers.mean_abs_difference > _LOSSY_TOLERANCE or clear > _ROUNDED_OTHERWISE:
        return (
            f"on {as_decided.compared} texts, outputs are off by "
            f"{as_numbers.mean_abs_difference:.2g} standard deviations on average "
            f"({_LOSSY_TOLERANCE:g} is allowed), and {as_decided.flips} answers differ"
        )
    return None


def _compared(
    expected: Outputs,
    outputs: Outputs,
    probes: Probes,
    info: ModelInfo,
    task: Task,
) -> Parity:
    return compare(expected, outputs, task=task, labels=info.labels, texts=probes.texts)


class Memory:
    """Remembers on this machine which bundles have been checked on it."""

    def __init__(self, bundle: str, here: Hardware, versions: Mapping[str, str]) -> None:
        """Name what is remembered.

        Args:
            bundle: a digest of everything in it.
            here: this machine.
            versions: of the libraries that run it.
        """
        machine = hardware.fingerprint(here)
        identity = json.dumps([bundle, machine, dict(versions)], sort_keys=True)
        name = hashlib.sha256(identity.encode()).hexdigest()
        self._mark = platformdirs.user_cache_path("hasten") / "checked" / name

    @property
    def holds(self) -> bool:
        """Whether the check has been passed here before."""
        try:
            return self._mark.exists()
        except OSError:  # a home that this user may not look into
            return False

    def keep(self) -> None:
        """Remember that it has been passed; where nothing can be written, it is checked again."""
        try:
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        except OSError:
            return
