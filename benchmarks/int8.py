"""int8 recipes on real weights: how many labels flip, and how fast they are.

    python benchmarks/int8.py minilm                  # the demo's classifier, its own 1,000 texts
    python benchmarks/int8.py mpnet                   # base-size: see benchmarks/mpnet.py
    python benchmarks/int8.py mpnet --recipes token,static --engine openvino
    python benchmarks/int8.py mpnet --work work --rounds 0     # flips alone, on a busy machine
    python benchmarks/int8.py mpnet --work work --texts 0      # then speeds alone, on a quiet one

Of every recipe: labels that flip against fp32, the original's largest margin among them, how far
answers are apart alone and in batches, and end-to-end speed over fp32 in the same engine. For
speeds, each takes the token budget that is its best, and all take turns; 95 % intervals.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import figures
import mpnet
import numpy as np

from hasten import engines, hardware, tasks
from hasten.demo import assets as demo
from hasten.engines.base import Engine
from hasten.errors import HastenError
from hasten.inputs import corpus
from hasten.judging.parity import compare
from hasten.judging.stats import ratio_interval
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, Strategy, Text
from hasten.runtime.pipeline import Pipeline, Streams

BUDGETS = (512, 1024, 2048)  # padded tokens of a batch
ALONE = 100  # texts that are answered one at a time as well


class Model(NamedTuple):
    """A classifier and the texts that judge it."""

    folder: Path
    texts: Sequence[Text]


def main() -> None:
    options = _parse()
    name = "minilm" if options.quick else options.model
    try:
        chosen = model(name)
    except HastenError as error:
        raise SystemExit(str(error)) from error
    engine, here = engines.get(options.engine), hardware.detect()
    recipes = options.recipes.split(",") if options.recipes else engine.recipes("int8", here)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        made = reference(chosen, folder / name)
        exact = Candidate(engine.name, "fp32", "cpu", 1, streams=here.usable_cores)
        pipelines = {"fp32": _pipeline(engine, made, exact)}
        for recipe in recipes:
            lossy = Candidate(
                engine.name, "int8", "cpu", 1, streams=here.usable_cores, recipe=recipe
            )
            pipelines[recipe] = _pipeline(engine, made, lossy)
    print(f"{name} in {engine.title}, {exact.layout}, {figures.machine()}", flush=True)
    judged = chosen.texts[: options.texts]
    flips = _judge(pipelines, made, judged) if options.texts else {}
    speeds = _time(pipelines, chosen.texts[: options.timed], options.rounds)
    table = _table(flips, speeds, len(judged))
    figures.publish(options.result, {f"int8-{name}": table}, {"flips": flips, "speeds": speeds})


def _parse() -> argparse.Namespace:
    parser = figures.parser(__doc__)
    parser.add_argument("model", choices=("minilm", "mpnet"))
    parser.add_argument("--engine", default="onnx_runtime")
    parser.add_argument("--recipes", help="by comma; what is tried here by default")
    parser.add_argument("--texts", type=int, default=1000, help="that flips are counted on")
    parser.add_argument("--timed", type=int, default=200, help="texts of a round")
    parser.add_argument("--rounds", type=int, default=6)
    return parser.parse_args()


def model(name: str) -> Model:
    """The classifier called ``minilm`` or ``mpnet``, made on the first call."""
    if name == "mpnet":
        base = mpnet.prepare()
        return Model(base.model_folder, base.texts)
    assets = demo.prepare(None)
    return Model(assets.model_folder, corpus.read(assets.texts_file, label_column="label").texts)


def reference(model: Model, folder: Path) -> ModelFolder:
    """The model in hasten's form, with texts to calibrate on that judge nothing."""
    if folder.exists():
        return ModelFolder.open(folder)
    made = prepare(model.folder, folder)
    made.keep_calibration(demo.training_texts()[:300])
    return made


def artifact(engine: Engine, reference: ModelFolder, candidate: Candidate) -> Path:
    """The candidate's artifact, beside the reference; made, and its base's, where it is absent."""
    folder = reference.folder.with_name(
        f"{reference.folder.name}-{engine.artifact_name(candidate)}"
    )
    if not folder.exists():
        base = engine.base(candidate)
        source = artifact(engine, reference, base) if base else None
        folder.mkdir()
        if source:
            engine.derive(source, reference, candidate, folder)
        else:
            engine.export(reference, candidate, folder)
    return folder


def _pipeline(engine: Engine, reference: ModelFolder, candidate: Candidate) -> Pipeline:
    folder = artifact(engine, reference, candidate)
    streams = Streams(engine.load(folder, candidate), candidate.streams, reference.info)
    return Pipeline(reference.tokenizer(), streams)


def _judge(
    pipelines: dict[str, Pipeline], reference: ModelFolder, texts: Sequence[Text]
) -> dict[str, list[str]]:
    """Of each recipe: flips, their 95 % bound, largest margin, and what the batch changes."""
    strategy = Strategy("token_budget", 64, BUDGETS[0])
    truth = pipelines["fp32"].run(texts, strategy).outputs
    found = {}
    for name, pipeline in pipelines.items():
        outputs = pipeline.run(texts, strategy).outputs
        parity = compare(
            truth,
            outputs,
            task=tasks.of(reference.info),
            labels=reference.info.labels,
            texts=texts,
        )
        alone = pipeline.run(texts[:ALONE], Strategy("arrival", 1)).outputs.values
        beside = outputs.values[:ALONE]
        apart = float(np.abs(alone - beside).max())
        flipped = int((alone.argmax(axis=1) != beside.argmax(axis=1)).sum())
        margin = max(parity.flip_margins, default=0.0)
        together = f"{apart:.1g} apart, {flipped} of {len(alone)} flip" if apart else "equal"
        bound = f"{parity.flip_upper_bound:.1%}"
        found[name] = [str(parity.flips), bound, f"{margin:.2f}", together]
        print(f"{name:16} {'  '.join(found[name])}", flush=True)
    return found


def _time(pipelines: dict[str, Pipeline], texts: Sequence[Text], rounds: int) -> dict[str, str]:
    """Of each recipe, how many times as fast as fp32 it is."""
    if not rounds:
        return {}
    best = {name: _best(pipeline, texts) for name, pipeline in pipelines.items()}
    times_s: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(rounds):
        for name, run_s in _turns(pipelines, texts, best):
            times_s[name].append(run_s)
    for name, taken in times_s.items():
        speed = len(texts) / float(np.median(taken))
        print(f"{name:16} {speed:7.1f} texts/s  {best[name].label}", flush=True)
    ratios = {name: ratio_interval(times_s["fp32"], times_s[name], seed=0) for name in times_s}
    return {name: figures.interval(ratio) for name, ratio in ratios.items() if name != "fp32"}


def _table(flips: dict[str, list[str]], speeds: dict[str, str], texts: int) -> str:
    lines = [
        f"| recipe | flips of {texts:,} | at most | largest margin | alone, in batches | x fp32 |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name in dict.fromkeys([*flips, *speeds]):
        if name != "fp32":
            cells = [f"`{name}`", *flips.get(name, [""] * 4), speeds.get(name, "")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(pipeline: Pipeline, texts: Sequence[Text]) -> Strategy:
    few = texts[: len(texts) // 2]
    choices = [Strategy("token_budget", 64, budget) for budget in BUDGETS]
    return min(choices, key=lambda strategy: pipeline.run(few, strategy).total_s)


def _turns(
    pipelines: dict[str, Pipeline], texts: Sequence[Text], best: dict[str, Strategy]
) -> Iterator[tuple[str, float]]:
    for name, pipeline in pipelines.items():
        yield name, pipeline.run(texts, best[name]).total_s


if __name__ == "__main__":
    main()
