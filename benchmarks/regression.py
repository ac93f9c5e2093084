"""Is this checkout as fast as another one? Both run the same bundle, in turns.

    git worktree add ../before v0.1.0
    python benchmarks/regression.py ../before BUNDLE

BUNDLE must be one that both can load: make it with the older checkout. Each figure is the time of
this checkout over that of the other one, so that more than 1 is slower: `import hasten` and
`hasten.load` in fresh processes; texts in memory, single texts and a CSV file in processes that
stay.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import contender

ROOT = Path(__file__).parents[1]
SINGLE = 50
"""How many texts are answered one at a time in a round."""

FRESH = {
    "import hasten": "import time; t = time.perf_counter(); import hasten; "
    "print(time.perf_counter() - t)",
    "hasten.load": "import sys, time; t = time.perf_counter(); import hasten; "
    "hasten.load(sys.argv[1]); print(time.perf_counter() - t)",
}


def main() -> None:
    import figures

    from hasten.demo import assets as demo
    from hasten.judging.stats import ratio_interval

    parser = figures.parser(__doc__)
    parser.add_argument("other", type=Path, help="a checkout of hasten")
    parser.add_argument("bundle", type=Path, help="a bundle that both can load")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    texts = demo.news_sentences(options.texts)
    checkouts = {"this": ROOT, "other": options.other.resolve()}
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "texts.csv"
        _write(table, texts)
        found = _fresh(checkouts, options.bundle, options.rounds)
        found |= _staying(checkouts, options.bundle, table, options.rounds)
    ratios = {
        name: ratio_interval(took["this"], took["other"], seed=0) for name, took in found.items()
    }
    conditions = f"{options.rounds} interleaved rounds, {len(texts):,} sentences"
    lines = [
        f"This checkout's time over the other's, {conditions}, {figures.machine()}:",
        "",
        "| | time, this over the other (95 %) |",
        "|---|---|",
        *(f"| {name} | {figures.interval(ratio)} |" for name, ratio in ratios.items()),
    ]
    figures.publish(options.result, {"regression": "\n".join(lines)}, found)


def _write(table: Path, texts: Sequence[str]) -> None:
    import csv

    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def _fresh(
    checkouts: dict[str, Path], bundle: Path, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds that each of :data:`FRESH` takes in processes of its own, by checkout."""
    found: dict[str, dict[str, list[float]]] = {
        name: {which: [] for which in checkouts} for name in FRESH
    }
    for number in range(rounds + 1):
        for name, script in FRESH.items():
            for which, checkout in checkouts.items():
                done = subprocess.run(  # noqa: S603 - scripts of this file
                    [sys.executable, "-c", script, bundle],
                    env=_environment(checkout),
                    capture_output=True,
                    text=True,
                    check=True,
                )
                if number:  # the first round fills the disk cache
                    found[name][which].append(float(done.stdout))
    return found


def _staying(
    checkouts: dict[str, Path], bundle: Path, table: Path, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each order in processes that have loaded the bundle, by checkout."""
    processes = {
        which: contender.Contender(
            sys.executable, __file__, bundle, table, environment=_environment(checkout)
        )
        for which, checkout in checkouts.items()
    }
    entries = [
        ((order, which), process, order) for order in ORDERS for which, process in processes.items()
    ]
    took = contender.take_turns(entries, rounds)
    for process in processes.values():
        process.close()
    return {order: {which: took[order, which] for which in checkouts} for order in ORDERS}


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


ORDERS = ("texts in memory", "single texts", "a CSV file")


def _contend(bundle: str, table: str) -> None:
    """One checkout's process: the hasten that PYTHONPATH names."""
    import csv

    import hasten

    with Path(table).open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]

    def run(order: str) -> Any:
        if order == "texts in memory":
            return predictor(texts)
        if order == "single texts":
            return [predictor(text) for text in texts[:SINGLE]]
        return hasten.predict_file(bundle, table, next(outputs))

    with tempfile.TemporaryDirectory() as scratch, hasten.load(bundle) as predictor:
        outputs = (Path(scratch) / f"{number}.csv" for number in count())
        contender.answer(run)


if __name__ == "__main__":
    if "--contender" in sys.argv:
        _contend(*sys.argv[2:])
    else:
        main()
