"""Write the golden bundle of format 2 anew: two stages of the tiny model, int8 and fp32.

``python tests/golden/make.py`` replaces ``format2/`` and ``format2.json``. The bundle of format 1
was written by the version of hasten that its manifest names, and stays as it is.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten import engines
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, CostTable, HandsOn, Plan, Strategy
from hasten.runtime.pipeline import Pipeline, Streams
from hasten.runtime.predictor import load
from hasten.runtime.probes import keep
from hasten.runtime.saving import NewStage, save
from tests.scripted import Lab
from tests.tiny import save_tiny, tiny_texts

HERE = Path(__file__).parent
ANSWERED = [*tiny_texts(12, seed=9), ""]
PROBED = tuple(tiny_texts(8, seed=7))
TABLE = CostTable((1, 4, 16), (8, 32, 128), ((0.1, 0.3, 1.0), (0.3, 1.0, 3.6), (1.1, 3.9, 14.0)))
STRATEGY = Strategy("optimal", 16)
SIMPLE = Strategy("sorted", 8)


def main() -> None:
    """Make the model, both artifacts, the bundle and its answers."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = prepare(save_tiny(work / "model", seed=3), work / "reference")
        exact = Candidate("onnx_runtime", "fp32", "cpu", 1)
        last, _ = _stage(work, model, exact)
        # Its answers do not depend on who shares a batch.
        first, outputs = _stage(work, model, replace(exact, precision="int8", recipe="token"))
        ranked = np.sort(outputs, axis=1)
        below = float(np.quantile(ranked[:, -1] - ranked[:, -2], 0.4))
        first = replace(first, hands_on=HandsOn(below, handed=0, texts=0))
        _save(work, [first, last])
    with load(HERE / "format2") as predictor:
        outputs = predictor.outputs(ANSWERED).values
        answers = {"texts": ANSWERED, "outputs": outputs.tolist()}
        answers["by_stage"] = predictor.stats.answered
    (HERE / "format2.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


def _stage(
    work: Path, model: ModelFolder, candidate: Candidate
) -> tuple[NewStage, np.ndarray[Any, Any]]:
    """One stage, and its outputs for the texts that are answered."""
    engine, artifact = engines.get("onnx_runtime"), work / candidate.format
    artifact.mkdir()
    engine.export(model, candidate, artifact)
    streams = Streams(engine.load(artifact, candidate), 1, model.info)
    pipeline = Pipeline(model.tokenizer(), streams)
    probed = pipeline.run(PROBED, SIMPLE).outputs
    probes = keep(PROBED, probed)
    plan = Plan(candidate, STRATEGY, TABLE)
    outputs = pipeline.run(ANSWERED, SIMPLE).outputs.values
    return NewStage(artifact, model.folder, model.info, plan, probes), outputs


def _save(work: Path, stages: list[NewStage]) -> None:
    """The evidence is that of a scripted tune; the answers are the model's own."""
    lab = Lab(work / "lab", {"*": {}}, 40, precisions=("fp32",))
    tuning = lab.tune()
    rows = (
        replace(row, candidate=stages[-1].plan.candidate) if row.status == "chosen" else row
        for row in tuning.rows
    )
    plan, info = stages[-1].plan, stages[-1].model
    tuning = replace(tuning, plan=plan, rows=tuple(rows), model=info, probes=stages[-1].probes)
    results = work / "results.jsonl"
    lines = (lab.folder / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    results.write_text("".join(lines[:5]), encoding="utf-8")
    save(HERE / "format2", tuning, stages=stages, extra={}, results=results)


if __name__ == "__main__":
    main()
