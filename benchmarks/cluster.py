"""What a second node brings: two Ray nodes of one core each against one such node.

    python benchmarks/cluster.py BUNDLE [--sentences 12000] [--runs 3]

All nodes are on this machine, so the bundle's plan must take one thread (hasten tune --threads 1)
and the machine needs two cores that are idle. Runs alternate. What is compared is the time from
when the nodes are ready to the finished output: starting processes and loading the model on the
nodes is in it, inspecting them is not. What that start takes is paid once whatever the input's
size, so the rate from the first stored shard on is printed as well.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Before Ray is imported, whose processes inherit it.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")

import hasten
from hasten.demo import assets as demo
from hasten.records import Event, Progress, Summary

_STORE_BYTES = 100 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="one whose plan takes one thread")
    parser.add_argument("--sentences", type=int, default=12000)
    parser.add_argument("--shard-rows", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "sentences.txt"
        sentences = demo.news_sentences(options.sentences)
        given.write_text("\n".join(" ".join(text.split()) for text in sentences) + "\n")
        seconds: dict[int, list[float]] = {1: [], 2: []}
        steady: dict[int, list[float]] = {1: [], 2: []}
        for run in range(options.runs):
            for nodes, samples_s in seconds.items():
                output = Path(folder) / f"{nodes}-{run}.jsonl"
                whole_s, row_s = _measured(options, given, output, nodes)
                samples_s.append(whole_s)
                steady[nodes].append(row_s)
                if not filecmp.cmp(output, Path(folder) / "1-0.jsonl", shallow=False):
                    raise SystemExit("the outputs differ")
    for what, samples in (("in all", seconds), ("once they run", steady)):
        ratio = statistics.median(samples[1]) / statistics.median(samples[2])
        print(f"two nodes answer {ratio:.2f}x as many rows a second as one, {what}")


def _measured(
    options: argparse.Namespace, given: Path, output: Path, nodes: int
) -> tuple[float, float]:
    """Seconds of the whole run, and for each row from the first stored shard on."""
    first = _FirstShard()
    with _cluster(nodes) as address:
        summary: Summary = hasten.predict_file(
            options.bundle,
            given,
            output,
            shard_rows=options.shard_rows,
            ray=address,
            on_event=first,
        )
    row_s = (time.perf_counter() - first.at_s) / ((1.0 - first.done) * summary.total.rows)
    rate = f"{summary.seconds:7.1f} s  {summary.rows_per_s:8.1f} rows/s"
    print(f"{nodes} node{'s' if nodes > 1 else ' '}  {rate}, then {1 / row_s:.1f}", flush=True)
    return summary.seconds, row_s


class _FirstShard:
    """Notes when the first shards were stored, and which share of the input they are."""

    def __init__(self) -> None:
        self.at_s = self.done = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.done and not self.done:
            self.at_s, self.done = time.perf_counter(), event.done


@contextmanager
def _cluster(nodes: int) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    # The head schedules and does not compute, so that one and two nodes are told apart by nothing
    # else.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        },
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
        yield cluster.address
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
