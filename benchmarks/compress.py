"""A student of the demo's classifier: how long it takes, what it gains, and what that costs.

    python benchmarks/compress.py student --layers 3 --budget 45m
    python benchmarks/compress.py narrow --ffn-width 768 --budget 20m --texts 10000
    python benchmarks/compress.py both --of student --int8 --budget 10m
    python benchmarks/compress.py student           # measures again what is there

Makes the student from the corpus' training texts, without their labels, unless the folder is
there. Then, engine by engine and at equal precision, original and student take turns over the
demo's own texts, which are of other articles: how many times as fast, how many answers differ, how
many are right, and how large the artifacts are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import hasten
from hasten import engines, hardware, tasks
from hasten.demo import assets as demo
from hasten.inputs import corpus
from hasten.judging.parity import compare
from hasten.judging.stats import ratio_interval
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, Event, Progress, Strategy, Text
from hasten.report import content
from hasten.runtime.pipeline import Pipeline, PipelineRun, Streams

STRATEGY = Strategy("token_budget", 64, 2048)
TIMED_TEXTS = 300


def main() -> None:
    options = _parse()
    assets = demo.prepare(None)
    if not options.student.exists():
        made = hasten.compress(
            options.of or assets.model_folder,
            demo.training_texts()[: options.texts],
            output=options.student,
            layers=options.layers,
            ffn_width=options.ffn_width,
            heads=options.heads,
            int8=options.int8,
            budget=options.budget,
            on_event=_tell,
        )
        print(f"{made.taught_texts:,} texts trained it in {made.steps:,} steps.")
        print(f"In all it took {made.seconds / 60:.1f} minutes.")
    judging = corpus.read(assets.texts_file, label_column="label")
    with tempfile.TemporaryDirectory() as scratch:
        original = prepare(assets.model_folder, Path(scratch) / "original")
        student = prepare(options.student, Path(scratch) / "student")
        here = hardware.detect()
        for name in engines.names():
            candidate = Candidate(name, "fp32", "cpu", here.usable_cores)
            if not engines.get(name).supports(candidate, here):
                _compare(original, student, candidate, judging, options.rounds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("student", type=Path, help="its folder")
    parser.add_argument("--of", type=Path, help="a student to make it of; by default the original")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--ffn-width", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--budget", default="45m")
    parser.add_argument("--texts", type=int, help="train with so many; all by default")
    parser.add_argument("--rounds", type=int, default=6)
    return parser.parse_args()


def _compare(
    original: ModelFolder,
    student: ModelFolder,
    candidate: Candidate,
    judging: corpus.Corpus,
    rounds: int,
) -> None:
    theirs, their_bytes = _pipeline(original, candidate)
    ours, our_bytes = _pipeline(student, candidate)
    truth, answers = (each.run(judging.texts, STRATEGY).outputs for each in (theirs, ours))
    runs = list(_turns(theirs, ours, judging.texts[:TIMED_TEXTS], rounds))
    times_s = [[run.total_s for run in side] for side in zip(*runs, strict=True)]
    faster = content.interval(ratio_interval(*times_s, seed=0))
    parity = compare(
        truth,
        answers,
        task=tasks.of(original.info),
        labels=original.info.labels,
        texts=judging.texts,
        gold=judging.labels,
    )
    engine = engines.get(candidate.engine).title
    print(f"\n{engine}, {candidate.precision}: {faster} times as fast as the original in it.")
    print(f"{our_bytes / 2**20:.1f} MiB instead of {their_bytes / 2**20:.1f}.")
    print(content.agreement(parity))


def _pipeline(reference: ModelFolder, candidate: Candidate) -> tuple[Pipeline, int]:
    """The model as the engine runs it, and how many bytes its artifact has."""
    engine = engines.get(candidate.engine)
    folder = reference.folder.with_name(f"{reference.folder.name}-{candidate.label}")
    folder.mkdir()
    engine.export(reference, candidate, folder)
    streams = Streams(engine.load(folder, candidate), candidate.streams, reference.info)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Pipeline(reference.tokenizer(), streams), size


def _turns(
    original: Pipeline, student: Pipeline, texts: Sequence[Text], rounds: int
) -> Iterator[tuple[PipelineRun, PipelineRun]]:
    """A run of each, and again; both have run before."""
    for _ in range(rounds):
        yield original.run(texts, STRATEGY), student.run(texts, STRATEGY)


def _tell(event: Event) -> None:
    if isinstance(event, Progress):
        print(f"{event.stage}: {event.message}", file=sys.stderr)


if __name__ == "__main__":
    main()
