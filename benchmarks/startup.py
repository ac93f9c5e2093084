"""What importing hasten and loading a bundle cost beyond the engine's own load.

    python benchmarks/startup.py BUNDLE

Each figure is the median over fresh processes; "engine alone" imports NumPy, which every engine
does, and the winner's library, and loads the same artifact with the same settings, without
hasten's checks, tokenizer and plan.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import figures

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
    parser = figures.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=11)
    options = parser.parse_args()
    scripts = {"import hasten": IMPORT, "hasten.load": BUNDLE, "engine alone": ENGINE}
    samples_s: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(options.runs):
        for name, script in scripts.items():  # interleaved, so that drift hits all alike
            samples_s[name].append(_seconds(script, options.bundle))
    medians_s = {name: statistics.median(values) for name, values in samples_s.items()}
    beyond_s = medians_s["hasten.load"] - medians_s["engine alone"]
    block = (
        f"`import hasten` takes {_ms(medians_s['import hasten'])}, `hasten.load` {_ms(beyond_s)} "
        f"beyond importing and loading the demo's engine itself ({figures.machine()})."
    )
    figures.publish(options.result, {"startup": block}, samples_s)


def _ms(time_s: float) -> str:
    return f"{1000 * time_s:.0f} ms"


def _seconds(script: str, bundle: Path) -> float:
    command = [sys.executable, "-c", script, str(bundle)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return float(done.stdout)


if __name__ == "__main__":
    main()
