"""The experiment of docs/experiment.md: every format over batch sizes, lengths and orders.

    python benchmarks/experiment.py minilm                # the demo's real classifier, an hour
    python benchmarks/experiment.py camembert --texts 64  # CamemBERT-base's shape

Runs ``hasten.bench`` over news sentences into ``experiment-results/<model>`` and draws the
pictures and tables of it into ``docs/experiment/<model>``. Started again, it continues.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from models import NAMES, subject

import hasten
from hasten.cli import main as command
from hasten.demo import assets as demo
from hasten.records import Event, Forecast, Progress


def main() -> None:
    options = _parse()
    results = options.output / options.model
    with tempfile.TemporaryDirectory() as scratch:
        model, tokenizer, random_weights = subject(options.model, Path(scratch))
        hasten.bench(
            model,
            demo.news_sentences(1000),
            tokenizer=tokenizer,
            random_weights=random_weights,
            output=results,
            max_texts=options.texts,
            runs=options.runs,
            lengths=options.lengths,
            batch_sizes=options.batch_sizes,
            command=f"python benchmarks/experiment.py {' '.join(sys.argv[1:])}",
            on_event=_tell,
        )
    pictures = Path("docs/experiment", options.model)
    sys.argv[1:] = ["report", str(results), "-o", str(pictures), "--format", "md,png"]
    command()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("experiment-results"))
    return parser.parse_args()


def _tell(event: Event) -> None:
    if isinstance(event, Progress):
        print(f"{event.stage}: {event.message}", file=sys.stderr)
    elif isinstance(event, Forecast):
        minutes = {name: round(seconds / 60, 1) for name, seconds in event.seconds.items()}
        print(f"minutes still to go: {minutes}", file=sys.stderr)


if __name__ == "__main__":
    main()
