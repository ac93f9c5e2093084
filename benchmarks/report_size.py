"""What a report from 100,000 raw samples takes: seconds, memory, and bytes of the page.

    python benchmarks/report_size.py

A bench of five formats is made up, its samples drawn at random, and read back, composed and
rendered as ``hasten report`` does it, in a process of its own.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hasten.plain import to_json
from hasten.records import (
    Bench,
    Candidate,
    EndToEnd,
    Format,
    Hardware,
    LengthProfile,
    Measurement,
    ModelInfo,
    Parity,
    Row,
    Settings,
    ShapeTime,
    StartUp,
    Strategy,
)
from hasten.report import compose, page, stored

ENGINES = ("openvino", "onnx_runtime", "torchscript", "torch_compile", "torch_eager")
SIZES, LENGTHS, ROUNDS, TEXTS = (1, 2, 4, 8, 16, 32, 64), (8, 16, 32, 64, 128, 256, 512), 5, 1000
CALLS = 18_500
"""Single calls of each format: with what the grid has, just over 100,000 samples in all."""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        count = _make_up(folder)
        command = [sys.executable, __file__, str(folder)]
        subprocess.run(command, check=True)  # noqa: S603 - this very script
        size = (folder / "report.html").stat().st_size
    print(f"{count:,} samples, a page of {size / 2**20:.1f} MiB")


def _report(folder: Path) -> None:
    start = time.perf_counter()
    text = page.render(compose.of(stored.read(folder)))
    (folder / "report.html").write_text(text, encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.perf_counter() - start:.1f} s, {peak / 2**20:.0f} MiB at most")


def _make_up(folder: Path) -> int:
    """Write a bench as large as they come; returns the number of samples in it."""
    draw = random.Random(0)  # noqa: S311 - made-up samples
    formats = tuple(_format(engine, draw) for engine in ENGINES)
    baseline = Row(
        Candidate("torch_eager", "fp32", "cpu", 2),
        "finalist",
        runs=(_run(Strategy("arrival", 1), 30.0, draw),),
    )
    result = Bench(
        model=ModelInfo(
            name="made-up",
            architecture="BertForSequenceClassification",
            task="single_label",
            labels=("no", "yes"),
            max_length=512,
            input_names=("input_ids", "attention_mask"),
            output_names=("logits",),
            pad_token_id=0,
            parameter_count=22_000_000,
            flops_per_token=4e7,
            flops_per_token_squared=1e4,
        ),
        profile=LengthProfile(TEXTS, 86_000, 86.0, 11, 23, 32, 80, 431, 512, 31, 512, TEXTS),
        hardware=Hardware("Made up", 2, ("avx2",), 2**34),
        settings=Settings(rounds=ROUNDS),
        experiments=("batch-size", "length", "order", "latency"),
        lengths=LENGTHS,
        versions={},
        baseline=baseline,
        formats=formats,
        others=(),
        ceilings=(),
        elapsed_s=3600.0,
        complete=True,
    )
    (folder / stored.BENCH).write_text(json.dumps(to_json(result)))
    samples = sum(len(shape.cost.samples_s) for f in formats for shape in f.shapes)
    for format_ in formats:
        for row in (format_.row, format_.single):
            for run in row.runs if row else ():
                samples += len(run.total.samples_s) + len(run.batch_latency_s)
    return samples


def _format(engine: str, draw: random.Random) -> Format:
    speed = draw.uniform(0.5, 1.0)
    orders = [Strategy("arrival", size) for size in SIZES]
    orders += [Strategy(name, size) for name in ("sorted", "optimal") for size in SIZES[1:]]
    runs = tuple(_run(strategy, 20 * speed, draw) for strategy in orders)
    shapes = tuple(
        ShapeTime(size, length, Measurement(_samples(1e-5 * size * length * speed, 15, draw)))
        for size in SIZES
        for length in LENGTHS
    )
    calls = _samples(0.02 * speed, CALLS, draw)
    single = Row(
        Candidate(engine, "fp32", "cpu", 2),
        "finalist",
        runs=(_run(Strategy("arrival", 1), 20.0, draw, calls),),
    )
    row = Row(
        Candidate(engine, "fp32", "cpu", 1, streams=2),
        "finalist",
        start_up=StartUp(1.0, 0.1, 2**29),
        parity=Parity(TEXTS, 1e-5, 1e-6, 0, 0, 0.003, 0, decisions=True),
        runs=runs,
        ceiling_share=0.6,
    )
    return Format(row, shapes, single)


def _run(
    strategy: Strategy, about_s: float, draw: random.Random, calls: tuple[float, ...] = ()
) -> EndToEnd:
    total = Measurement(_samples(about_s, ROUNDS, draw))
    calls = calls or _samples(about_s / 50, 50, draw)
    return EndToEnd(strategy, TEXTS, 86_000, 0.3, None, total, Measurement((0.1,)), calls)


def _samples(about_s: float, count: int, draw: random.Random) -> tuple[float, ...]:
    return tuple(about_s * draw.lognormvariate(0.0, 0.05) for _ in range(count))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _report(Path(sys.argv[1]))
    else:
        main()
