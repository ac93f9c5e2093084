"""What practitioners say of formats and batches, each with what a bench found here.

    python benchmarks/claims.py experiment-results/minilm

Prints a Markdown table for docs/experiment.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hasten.judging.stats import percentile, ratio_interval
from hasten.records import Bench, EndToEnd, Format
from hasten.report.content import interval, short
from hasten.report.stored import read


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    bench = read(parser.parse_args().results)
    if not isinstance(bench, Bench):
        raise SystemExit("that is a bundle; the claims are about the results of `hasten bench`")
    print("| claim | found here |\n| --- | --- |")
    for claim, found in (
        ("Formats differ most at small batches and come within 10 % at 64.", _spread(bench)),
        ("ONNX at batch 1 is far ahead of eager.", _single(bench)),
        ("The best batch size depends on the device.", _best_sizes(bench)),
        (
            "Time grows about linearly with length for large batches, not for single inputs.",
            _growth(bench),
        ),
        (
            "Unsorted data loses about 20 % from batch 16 to 64, sorted gains about 10 %.",
            _orders(bench),
        ),
    ):
        print(f"| {claim} | {found} |")


def _spread(bench: Bench) -> str:
    parts = []
    for size in _sizes(bench):
        times = [run.total.median_s for f in bench.formats if (run := _run(f, "arrival", size))]
        parts.append(f"{size}: {max(times) / min(times):.2f}")
    return f"Slowest over fastest format, by batch size: {', '.join(parts)}."


def _single(bench: Bench) -> str:
    eager, onnx = _format(bench, "torch_eager"), _format(bench, "onnx_runtime")
    parts = []
    before, after = _run(eager, "arrival", 1), _run(onnx, "arrival", 1)
    if before and after:
        ratio = ratio_interval(before.total.samples_s, after.total.samples_s, seed=0)
        names = f"{short(eager.row.candidate)} over {short(onnx.row.candidate)}"
        parts.append(f"{names} at batch 1: {interval(ratio)}")
    if eager.single and eager.single.main and onnx.single and onnx.single.main:
        times = [percentile(r.batch_latency_s, 50) for r in (eager.single.main, onnx.single.main)]
        parts.append(f"one text at a time, medians: {times[0] / times[1]:.2f}")
    return "; ".join(parts) + "."


def _best_sizes(bench: Bench) -> str:
    parts = []
    for format_ in bench.formats:
        runs = [run for size in _sizes(bench) if (run := _run(format_, "arrival", size))]
        if runs:
            best = min(runs, key=lambda run: run.total.median_s)
            parts.append(f"{short(format_.row.candidate)}: {best.strategy.batch_size}")
    devices = {format_.row.candidate.device for format_ in bench.formats}
    gpu = "" if "cuda" in devices else " GPUs: not measured, there is none here."
    return f"In arrival order: {', '.join(parts)}.{gpu}"


def _growth(bench: Bench) -> str:
    sizes = sorted({shape.batch_size for f in bench.formats for shape in f.shapes})
    parts = []
    for format_ in bench.formats:
        slopes = [f"{_exponent(format_, size):.2f}" for size in (sizes[0], sizes[-1])]
        parts.append(f"{short(format_.row.candidate)}: {' and '.join(slopes)}")
    return (
        f"Exponent of the length in the time of a batch, at batch {sizes[0]} and {sizes[-1]} "
        f"(1 is linear): {'; '.join(parts)}."
    )


def _exponent(format_: Format, size: int) -> float:
    """Slope of log time over log length, from the shortest length to 128 tokens."""
    cells = [s for s in format_.shapes if s.batch_size == size and s.length <= 128]
    lengths = np.log([cell.length for cell in cells])
    times = np.log([cell.cost.median_s for cell in cells])
    return float(np.polyfit(lengths, times, 1)[0])


def _orders(bench: Bench) -> str:
    parts = []
    for format_ in bench.formats:
        changes = []
        for order in ("arrival", "sorted", "optimal"):
            small, large = _run(format_, order, 16), _run(format_, order, 64)
            if small and large:
                ratio = ratio_interval(small.total.samples_s, large.total.samples_s, seed=0)
                changes.append(f"{order} {ratio.estimate - 1:+.0%}")
        if len(changes) > 1:
            parts.append(f"{short(format_.row.candidate)}: {', '.join(changes)}")
    return f"Speed at 64 against 16: {'; '.join(parts)}."


def _sizes(bench: Bench) -> list[int]:
    runs = [run for format_ in bench.formats for run in format_.row.runs]
    return sorted({run.strategy.batch_size for run in runs if run.strategy.name == "arrival"})


def _run(format_: Format, order: str, size: int) -> EndToEnd | None:
    wanted = (order, size)
    runs = (r for r in format_.row.runs if (r.strategy.name, r.strategy.batch_size) == wanted)
    return next(runs, None)


def _format(bench: Bench, engine: str) -> Format:
    return next(format_ for format_ in bench.formats if format_.row.candidate.engine == engine)


if __name__ == "__main__":
    main()
