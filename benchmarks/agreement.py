"""Do ``hasten tune`` and ``hasten bench`` give the same numbers for the same candidate?

    python benchmarks/agreement.py                    # five minutes
    python benchmarks/agreement.py --engine onnx_runtime --texts 400

Both run the demo's classifier over the same news sentences, one after the other. What both have
timed, the same candidate with the same way of batching, is compared: texts a second, and the
ratio with the 95 % interval for samples that were not taken in pairs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from models import subject

import hasten
from hasten import demo
from hasten.records import EndToEnd, Event, Progress, Row
from hasten.report.content import interval, short
from hasten.stats import independent_ratio_interval

SIZES = (1, 8, 64)


def main() -> None:
    options = _parse()
    texts = demo.news_sentences(options.texts)
    with tempfile.TemporaryDirectory() as scratch:
        model, _, _ = subject("minilm", Path(scratch))
        tuning = hasten.tune(
            model,
            texts=texts,
            output=Path(scratch, "bundle"),
            budget=options.budget,
            engines=[options.engine],
            precisions=["fp32"],
            batch_sizes=SIZES,
            on_event=_tell,
        )
        bench = hasten.bench(
            model,
            texts=texts,
            output=Path(scratch, "bench"),
            experiments=["order"],
            engines=[options.engine],
            precisions=["fp32"],
            batch_sizes=SIZES,
            on_event=_tell,
        )
    here = _runs([tuning.baseline, *tuning.rows])
    there = _runs([bench.baseline, *(format_.row for format_ in bench.formats)])
    print("| candidate | texts/s, tune | texts/s, bench | bench over tune (95 %) |")
    print("| --- | ---: | ---: | ---: |")
    for name in here.keys() & there.keys():
        ratio = independent_ratio_interval(_per_text_s(here[name]), _per_text_s(there[name]))
        speeds = (f"{run.texts_per_s:.1f}" for run in (here[name], there[name]))
        print(f"| {name} | {' | '.join(speeds)} | {interval(ratio)} |")


def _runs(rows: list[Row]) -> dict[str, EndToEnd]:
    return {
        f"{short(row.candidate)}, {run.strategy.label}": run for row in rows for run in row.runs
    }


def _per_text_s(run: EndToEnd) -> list[float]:
    return [total_s / run.texts for total_s in run.total.samples_s]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--budget", default="3m")
    return parser.parse_args()


def _tell(event: Event) -> None:
    if isinstance(event, Progress):
        print(f"{event.stage}: {event.message}", file=sys.stderr)


if __name__ == "__main__":
    main()
