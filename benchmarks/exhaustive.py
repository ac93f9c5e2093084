"""Is the candidate that ``tune`` chose the best there is? Compare it with an exhaustive search.

    python benchmarks/exhaustive.py [--texts 200] [--rounds 5] [--budget 5m]

Tunes the demo's classifier on news sentences, then runs every candidate with every strategy on
the same texts, interleaved, in one process and without the tuner: nothing is screened, dropped or
predicted. Shows the best ones, and how much longer the chosen one takes than the best.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import figures
from models import exported_pipeline, quiet, subject

import hasten
from hasten.demo import assets as demo
from hasten.judging.stats import ratio_interval
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, Measurement, Strategy, Tuning
from hasten.report import content
from hasten.runtime.batching import CostModel

STRATEGIES = (
    *(Strategy(name, size) for name in ("arrival", "sorted") for size in (1, 8, 32)),
    *(Strategy("token_budget", 64, budget) for budget in (512, 2048)),
    Strategy("optimal", 64),
)
Entry = tuple[Candidate, Strategy]


def main() -> None:
    options = _parse()
    texts = demo.news_sentences(options.texts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, tokenizer, random_weights = subject("tiny" if options.quick else "minilm", folder)
        tuning = hasten.tune(
            model,
            texts,
            tokenizer=tokenizer,
            random_weights=random_weights,
            output=folder / "bundle",
            budget=options.budget,
            on_event=quiet,
        )
        reference = prepare(
            model, folder / "reference", tokenizer=tokenizer, random_weights=random_weights
        )
        samples_s = _measure(reference, tuning, texts, options.rounds)
    figures.publish(options.result, {"exhaustive": _block(tuning, samples_s, len(texts))}, [])


def _parse() -> argparse.Namespace:
    parser = figures.parser(__doc__)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", default="5m")
    return parser.parse_args()


def _block(tuning: Tuning, samples_s: dict[Entry, list[float]], texts: int) -> str:
    """The best ten, and how much longer the chosen one takes than the best."""
    chosen = (tuning.plan.candidate, tuning.plan.strategy)
    medians_s = {entry: Measurement(tuple(times)).median_s for entry, times in samples_s.items()}
    ranked = sorted(medians_s, key=medians_s.__getitem__)
    ratio = figures.interval(ratio_interval(samples_s[chosen], samples_s[ranked[0]], seed=0))
    lines = [
        (
            f"Of {len(ranked)} combinations of a candidate with a batch plan, run interleaved "
            f"without the tuner over {texts:,} news sentences ({figures.machine()}), the tuner's "
            f"choice is number {ranked.index(chosen) + 1}. It takes {ratio} times as long as the "
            "fastest:"
        ),
        "",
        "| | texts/s |",
        "| --- | ---: |",
    ]
    for entry in dict.fromkeys((*ranked[:5], chosen)):
        name = f"{content.short(entry[0])}, {entry[1].label}"
        mark = f"**{name}** (chosen)" if entry == chosen else name
        lines.append(f"| {mark} | {texts / medians_s[entry]:.1f} |")
    return "\n".join(lines)


def _measure(
    reference: ModelFolder, tuning: Tuning, texts: list[str], rounds: int
) -> dict[Entry, list[float]]:
    """Seconds of every entry, one for each round; the round before the first is not counted."""
    rows = [row for row in tuning.rows if row.status not in ("unavailable", "failed")]
    pipelines = {
        row.candidate: exported_pipeline(
            reference, row.candidate, reference.folder.parent / row.candidate.label
        )
        for row in rows
    }
    strategies = dict.fromkeys((*STRATEGIES, tuning.plan.strategy))
    samples_s: dict[Entry, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for strategy in strategies:
            for row in rows:
                cost = CostModel(row.cost_table, row.candidate.streams) if row.cost_table else None
                if strategy.name == "optimal" and cost is None:
                    continue
                run = pipelines[row.candidate].run(texts, strategy, cost)
                if number:
                    samples_s[row.candidate, strategy].append(run.total_s)
    return samples_s


if __name__ == "__main__":
    main()
