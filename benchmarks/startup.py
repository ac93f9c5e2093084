"""What importing hasten and loading a bundle cost beyond the engine's own load.

    python benchmarks/startup.py BUNDLE

Each figure is the median over fresh processes; "engine alone" imports NumPy, which every engine
does, and the winner's library, and loads the same artifact with the same settings, without
hasten's checks, tokenizer and plan.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

IMPORT = "import time; t = time.perf_counter(); import hasten; print(time.perf_counter() - t)"

BUNDLE = """
import sys, time
t = time.perf_counter()
import hasten
predictor = hasten.load(sys.argv[1])
print(time.perf_counter() - t)
"""

ENGINE = """
import time
t = time.perf_counter()
import numpy
numpy_s = time.perf_counter() - t
import json, sys
from pathlib import Path
from hasten import engines
from hasten.plain import from_json
from hasten.records import Plan
folder = Path(sys.argv[1])
plan = from_json(Plan, json.loads((folder / "hasten.json").read_text())["plan"])
t = time.perf_counter()
session = engines.get(plan.candidate.engine).load(folder, plan.candidate)
print(numpy_s + time.perf_counter() - t)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=11)
    options = parser.parse_args()
    scripts = {"import hasten": IMPORT, "hasten.load": BUNDLE, "engine alone": ENGINE}
    samples_s: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(options.runs):
        for name, script in scripts.items():  # interleaved, so that drift hits all alike
            samples_s[name].append(_seconds(script, options.bundle))
    medians_s = {name: statistics.median(values) for name, values in samples_s.items()}
    for name, median_s in medians_s.items():
        low, high = min(samples_s[name]), max(samples_s[name])
        print(f"{name:14} {1000 * median_s:7.0f} ms  ({1000 * low:.0f} to {1000 * high:.0f})")
    beyond_s = medians_s["hasten.load"] - medians_s["engine alone"]
    print(f"{'beyond engine':14} {1000 * beyond_s:7.0f} ms")


def _seconds(script: str, bundle: Path) -> float:
    command = [sys.executable, "-c", script, str(bundle)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return float(done.stdout)


if __name__ == "__main__":
    main()
