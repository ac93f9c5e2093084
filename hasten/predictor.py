"""A loaded bundle answers texts as ``transformers.pipeline("text-classification")`` does."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hasten import bundle as bundles
from hasten import engines, probes, tasks
from hasten.batching import CostModel
from hasten.errors import InputError
from hasten.pipeline import Pipeline, Streams
from hasten.tokenization import TextTokenizer

# As many texts are planned together; more would not pad less, and need memory without bound.
_WINDOW = 8192

_UNSET: Any = object()


class Predictor:
    """A model that is loaded and planned, ready for texts.

    Safe to call from several threads; calls take turns, since each uses all the cores it was
    given. Also a context manager that releases the model at its end.

    Attributes:
        bundle: where it comes from, and how this machine differs from the one it was tuned on.
        task: what its outputs mean.
        cost: what batches cost, if that was measured.
        streams: what runs them.

    Raises:
        BundleError: this machine does not compute what the bundle was proved to compute.
    """

    def __init__(self, bundle: bundles.Bundle) -> None:
        candidate = bundle.plan.candidate
        engine = engines.get(candidate.engine)
        missing = engine.missing()
        if missing:
            raise missing
        tokenizer = TextTokenizer.load(bundle.tokenizer, bundle.model.max_length, candidate.threads)
        session = engine.load(bundle.folder, candidate)
        streams = Streams(session, candidate.streams, bundle.model)
        table = bundle.plan.cost_table
        self.bundle = bundle
        self.streams = streams
        self.cost = CostModel(table, candidate.streams) if table else None
        self.task = tasks.get(bundle.model.task)
        self._pipeline = Pipeline(tokenizer, streams)
        self._turn = threading.Lock()
        self._check(engine.versions())

    def _check(self, versions: Mapping[str, str]) -> None:
        """Once on every machine, see that it computes what was proved; see hasten.probes."""
        bundle = self.bundle
        memory = probes.Memory(bundle.digest, bundle.here, versions)
        if bundle.probes is None or memory.holds:
            return
        precision = bundle.plan.candidate.precision
        try:
            probes.check(
                bundle.probes, self._pipeline, bundle.model, precision, where=bundle.folder
            )
        except BaseException:
            self.close()
            raise
        memory.keep()

    def __call__(self, texts: str | Sequence[str], top_k: int | None = _UNSET) -> list[Any]:
        """Answer one text or many.

        Args:
            texts: a text, or a sequence of texts.
            top_k: how many labels to return, best first; None for all. Without it, the best
                label alone, not wrapped in a list.

        Returns:
            For each text, in the input's order, ``{"label": str, "score": float}``, or a list
            of such where ``top_k`` is given. For a single text the same shapes as the pipeline:
            a list with one dict, or the list of its ``top_k`` labels.

        Raises:
            InputError: something that is not text.
            EngineError: the engine failed.
        """
        single = isinstance(texts, str)
        bare = top_k is _UNSET
        answers: list[Any] = self.task.answers(
            self.outputs([texts] if isinstance(texts, str) else texts),
            self.bundle.model.labels,
            1 if bare else top_k,
            bare=bare,
        )
        return answers[0] if single and not bare else answers

    def table(self, texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Table:
        """Answer texts as Arrow columns, for data frames and databases.

        Args:
            texts: a sequence of str, or an Arrow array of strings; null counts as the empty text.

        Returns:
            One row a text, in order: of a classifier ``label``, ``score``, and ``scores`` of all
            labels by name.

        Raises:
            InputError: something that is not text.
            EngineError: the engine failed.
        """
        if isinstance(texts, pa.Array | pa.ChunkedArray):
            texts = ["" if text is None else text for text in texts.to_pylist()]
        return self.task.table(self.outputs(texts), self.bundle.model.labels)

    def outputs(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The model's raw outputs, float32 [texts, k], in the input's order."""
        given: object = texts  # whatever the annotation says
        if not isinstance(given, Sequence):
            kind = type(given).__name__
            raise InputError(f"texts must be a str or a sequence of str, not {kind}")
        if not all(isinstance(text, str) for text in texts):
            kinds = ", ".join(sorted({type(text).__name__ for text in texts} - {"str"}))
            raise InputError(f"every text must be a str, but there is: {kinds}")
        width = max(len(self.bundle.model.labels), 1)
        parts = [np.empty((0, width), dtype=np.float32)] if not len(texts) else []
        with self._turn:
            for begin in range(0, len(texts), _WINDOW):
                window = texts[begin : begin + _WINDOW]
                parts.append(self._run(window))
        return np.concatenate(parts)

    def _run(self, texts: Sequence[str]) -> NDArray[np.float32]:
        plan = self.bundle.plan
        limit_s = plan.max_batch_latency_s
        run = self._pipeline.run(texts, plan.strategy, self.cost, max_batch_latency_s=limit_s)
        return run.outputs

    def close(self) -> None:
        """Release the model and its threads."""
        self.streams.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load(folder: str | PathLike[str], *, trust: bool = False) -> Predictor:
    """Load a bundle that ``hasten tune`` made.

    Needs neither torch nor transformers, unless the winner does.

    Args:
        folder: the bundle.
        trust: accept an artifact that can run code when it is loaded, whoever made it.

    Raises:
        BundleError: no bundle, a damaged one, one that must not or cannot run here.
        Unavailable: the winner's engine is not installed; the message says what to install.
        EngineError: the engine cannot load the artifact.
    """
    return Predictor(verified(folder, trust=trust))


def verified(folder: str | PathLike[str], *, trust: bool = False) -> bundles.Bundle:
    """A bundle whose files are what was saved; warns where this machine is another one.

    Raises:
        BundleError: no bundle, a damaged one, one that must not or cannot run here.
    """
    bundle = bundles.load(Path(folder), trust=trust)
    for difference in bundle.differences:
        warnings.warn(f"{folder}: {difference}", stacklevel=3)
    return bundle
