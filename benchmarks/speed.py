"""How much faster than eager PyTorch at batch 1, on 1,000 news sentences of mean 28 tokens.

    python benchmarks/speed.py minilm                 # the demo's real classifier
    python benchmarks/speed.py camembert              # CamemBERT-base's shape, random weights
    python benchmarks/speed.py camembert --budget 20m --json result.json

One ``hasten tune`` over the sentences; what is printed is read off its result: the best
candidate of every precision against the baseline, the winner's batching strategies, and how far
the predicted times are from the measured ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from models import NAMES, subject

import hasten
from hasten import demo
from hasten.plain import to_json
from hasten.records import PRECISIONS, Event, Progress, Tuning
from hasten.report import compose, content, markdown


def main() -> None:
    options = _parse()
    texts = demo.news_sentences(options.texts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, tokenizer, random_weights = subject(options.model, folder)
        tuning = hasten.tune(
            model,
            tokenizer,
            texts,
            random_weights=random_weights,
            output=folder / "bundle",
            budget=options.budget,
            engines=options.engines and options.engines.split(","),
            max_texts=options.texts,
            on_event=_tell,
        )
    if options.json:
        options.json.write_text(json.dumps(to_json(tuning)))
    _print(tuning)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--engines")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _print(tuning: Tuning) -> None:
    print(markdown.render(compose.of(tuning, drawn=False)))
    print("## Best of each precision against the baseline\n")
    for precision in PRECISIONS:
        rows = [
            row
            for row in tuning.rows
            if row.candidate.precision == precision and row.ratio_to_baseline
        ]
        best = max(rows, key=lambda row: row.main.texts_per_s if row.main else 0.0, default=None)
        if best and best.ratio_to_baseline:
            ratio = content.interval(best.ratio_to_baseline)
            print(f"- {precision}: {content.short(best.candidate)}, {ratio}")
    print("\n## Predicted and measured\n")
    for row in tuning.rows:
        for run in row.runs:
            if run.predicted_s:
                off = run.predicted_s / run.total.median_s - 1
                name = f"{content.short(row.candidate)}, {run.strategy.label}"
                print(f"- {name}: {run.predicted_s:.2f} s, {run.total.median_s:.2f} s ({off:+.1%})")


def _tell(event: Event) -> None:
    if isinstance(event, Progress):
        print(f"{event.stage}: {event.message}", file=sys.stderr)


if __name__ == "__main__":
    main()
