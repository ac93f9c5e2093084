"""What spinning threads gain for single texts, on idle cores and beside a busy process.

    python benchmarks/spinning.py                       # the demo's classifier, all cores
    python benchmarks/spinning.py --shapes 1x32,1x128 --rounds 20

Two sessions of ONNX Runtime over one fp32 graph, one whose waiting threads sleep and one whose
threads spin, take turns (A B, B A, ...) over single texts. Times are of the wall clock: run it on
idle cores. Then the same once more while another process keeps one core busy. Ratios are spinning
over sleeping, with 95 % intervals over the rounds; below 1, spinning is faster.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import figures
import numpy as np
from models import NAMES, example, prepared

from hasten import engines, hardware
from hasten.engines.base import Inputs, Session
from hasten.judging.stats import ratio_interval
from hasten.models import ModelFolder
from hasten.records import Candidate

_CALLS = 10
_BUSY = "while True: pass"


def main() -> None:
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reference = prepared("tiny" if options.quick else options.model, folder)
        sessions = _sessions(reference, folder, options.threads)
    found = []
    for beside in ("idle cores", "one core busy"):
        with _busy(beside != "idle cores"):
            for shape in options.shapes.split(","):
                inputs = example(reference, *map(int, shape.split("x")))
                found.append((shape, beside, *_compare(sessions, inputs, options.rounds)))
    rows = [
        f"| {shape} | {beside} | {sleeping:.1f} | {spinning:.1f} | {ratio} |"
        for shape, beside, sleeping, spinning, ratio in found
    ]
    head = "| text | beside | ms, sleeping | ms, spinning | spinning / sleeping |"
    lines = [head, "|---|---|---:|---:|---|", *rows]
    figures.publish(options.result, {"spinning": "\n".join(lines)}, found)


def _parse() -> argparse.Namespace:
    parser = figures.parser(__doc__)
    parser.add_argument("--model", choices=NAMES, default="minilm")
    parser.add_argument("--shapes", default="1x8,1x32,1x128")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--threads", type=int, default=hardware.detect().usable_cores)
    return parser.parse_args()


def _sessions(reference: ModelFolder, folder: Path, threads: int) -> dict[str, Session]:
    engine = engines.get("onnx_runtime")
    sleeping = Candidate(engine.name, "fp32", "cpu", threads)
    artifact = folder / "artifact"
    artifact.mkdir()
    engine.export(reference, sleeping, artifact)
    spinning = replace(sleeping, spinning=True)
    return {
        "sleeping": engine.load(artifact, sleeping),
        "spinning": engine.load(artifact, spinning),
    }


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """Another process that uses one core, for the block."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _BUSY])  # noqa: S603
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _compare(
    sessions: Mapping[str, Session], inputs: Inputs, rounds: int
) -> tuple[float, float, str]:
    """Milliseconds of a call with either, and the ratio of spinning to sleeping."""
    times_s: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds):
        names = list(sessions) if number % 2 else list(sessions)[::-1]
        for name in names:
            session = sessions[name]
            session.run(inputs)  # the other's threads have gone to sleep when it ends
            begin = time.perf_counter()
            for _ in range(_CALLS):
                session.run(inputs)
            times_s[name].append((time.perf_counter() - begin) / _CALLS)
    sleeping, spinning = times_s["sleeping"], times_s["spinning"]
    ratio = figures.interval(ratio_interval(spinning, sleeping, seed=0))
    return 1e3 * float(np.median(sleeping)), 1e3 * float(np.median(spinning)), ratio


if __name__ == "__main__":
    main()
