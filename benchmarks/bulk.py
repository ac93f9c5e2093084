"""hasten predict over many rows: what the pipeline around the model costs.

    python benchmarks/bulk.py throughput BUNDLE            # 100,000 sentences; a quarter of an hour
    python benchmarks/bulk.py memory                       # 20,000 and 1,000,000 rows; 10 minutes

``throughput`` predicts files of news sentences and, in between, runs samples of them through the
bundle's own pipeline, texts in memory to outputs in memory, as they were when it was tuned. It
prints the ratio of the two, when the first batches were done, and what the same files take with a
tiny model in place of the bundle's: reading, planning, writing, and little else.
``memory`` gives the peak memory of predicting few and many rows with that tiny model.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice, pairwise
from pathlib import Path

import figures
from models import subject

import hasten
from hasten.demo import assets as demo
from hasten.judging.stats import ratio_interval
from hasten.records import Event, Progress
from hasten.runtime.predictor import Predictor

_SAMPLE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    tasks = parser.add_subparsers(required=True)
    throughput = tasks.add_parser("throughput", parents=[figures.parser(None)], add_help=False)
    throughput.add_argument("bundle", type=Path)
    throughput.add_argument("--rows", type=int, default=100_000)
    throughput.add_argument("--files", type=int, default=5, help="runs, each over its share")
    throughput.set_defaults(run=_throughput)
    memory = tasks.add_parser("memory")
    memory.add_argument("--rows", type=int, nargs="+", default=[20_000, 1_000_000])
    memory.set_defaults(run=_memory)
    peak = tasks.add_parser("peak", help="one prediction and its peak memory")
    peak.add_argument("bundle", type=Path)
    peak.add_argument("given", type=Path)
    peak.set_defaults(run=_peak)
    options = parser.parse_args()
    options.run(options)


def write_csv(path: Path, texts: list[str], rows: int) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(islice(cycle(texts), rows)))
    return path


def _throughput(options: argparse.Namespace) -> None:
    """Interleaved: the pipeline alone, a file, the pipeline alone, the next file, ..."""
    texts = demo.news_sentences(1 << 20)
    share = options.rows // options.files
    alone: list[float] = []
    files: list[float] = []
    first: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, hasten.load(options.bundle) as predictor:
        for number in range(options.files):
            begin = number * share % len(texts)
            rotated = texts[begin:] + texts[:begin]
            alone.append(_seconds_a_row(predictor, rotated[:_SAMPLE]))
            folder = Path(scratch)
            given = write_csv(folder / f"{number}.csv", rotated, share)
            clock = _FirstRow()
            summary = hasten.predict_file(
                options.bundle, given, folder / f"{number}.out.csv", on_event=clock
            )
            files.append(summary.seconds / share)
            first.append(clock.first_s)
            print(
                f"{number + 1}: {summary.rows_per_s:.1f} rows/s; alone {1 / alone[-1]:.1f}",
                file=sys.stderr,
            )
        alone.append(_seconds_a_row(predictor, texts[:_SAMPLE]))
        folder = Path(scratch)
        rest = hasten.predict_file(_tiny_bundle(folder), folder / "0.csv", folder / "tiny.csv")
    # Each file lies between two samples, and a machine that drifts has drifted halfway.
    around = [statistics.fmean(pair) for pair in pairwise(alone)]
    ratio = figures.interval(ratio_interval(around, files, seed=0))
    share_of_rest = rest.seconds / share / statistics.median(files)
    in_memory = f"{options.rows:,} news sentences in {options.files} CSV files"
    machine = figures.machine()
    blocks = {
        "bulk": f"{in_memory}, {machine}: {1 / statistics.median(files):.0f} rows/s, "
        f"{ratio} of the speed at which the same bundle answers texts in memory.",
        "bulk-cost": "\n".join(
            [
                f"Measured on {machine}, the demo's bundle, interleaved:",
                "",
                "| | |",
                "|---|---|",
                f"| {in_memory}, share of the bundle's speed with texts in memory | {ratio} |",
                f"| everything but the model (measured with a tiny one) | {share_of_rest:.1%} |",
                f"| first batches done, after loading began | {statistics.median(first):.1f} s |",
            ]
        ),
    }
    data = {"alone_s": alone, "files_s": files, "first_s": first, "rest_s": rest.seconds / share}
    figures.publish(options.result, blocks, data)


def _tiny_bundle(folder: Path) -> Path:
    """A BERT of two layers of 32, in ONNX Runtime."""
    model, tokenizer, random_weights = subject("tiny", folder)
    hasten.tune(
        model,
        demo.news_sentences(200),
        tokenizer=tokenizer,
        random_weights=random_weights,
        engines=["onnx_runtime"],
        precisions=["fp32"],
        batch_sizes=[1, 8, 64],
        budget="2m",
        output=folder / "tiny-bundle",
    )
    return folder / "tiny-bundle"


def _memory(options: argparse.Namespace) -> None:
    texts = demo.news_sentences(1 << 20)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = _tiny_bundle(folder)
        for rows in options.rows:
            given = write_csv(folder / f"{rows}.csv", texts, rows)
            command = [sys.executable, __file__, "peak", str(bundle), str(given)]
            print(f"{rows:,} rows:", flush=True)
            subprocess.run(command, check=True)  # noqa: S603 - this very script


def _peak(options: argparse.Namespace) -> None:
    summary = hasten.predict_file(options.bundle, options.given, f"{options.given}.out.csv")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    print(f"  {peak_kib / 1024:.0f} MiB at most, {summary.rows_per_s:,.0f} rows/s")


def _seconds_a_row(predictor: Predictor, texts: list[str]) -> float:
    begin = time.perf_counter()
    predictor.outputs(texts)
    return (time.perf_counter() - begin) / len(texts)


class _FirstRow:
    """Notes when the model was loaded and when the first batches were done."""

    def __init__(self) -> None:
        self._loaded_s = 0.0
        self.first_s = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "load":
            self._loaded_s = time.perf_counter()
        elif not self.first_s:
            self.first_s = time.perf_counter() - self._loaded_s


if __name__ == "__main__":
    main()
