"""Is the candidate that ``tune`` chose the best there is? Compare it with an exhaustive search.

    python benchmarks/exhaustive.py [--texts 200] [--rounds 5] [--budget 5m]

Tunes the demo's classifier on news sentences, then runs every candidate with every strategy on
the same texts, interleaved, in one process and without the tuner: nothing is screened, dropped or
predicted. Prints the best ten, and how much longer the chosen one takes than the best.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import hasten
from hasten import demo, engines
from hasten.batching import CostModel
from hasten.pipeline import Pipeline, Streams
from hasten.records import Candidate, Measurement, Row, Strategy, Tuning
from hasten.reference import Reference, prepare
from hasten.report import content
from hasten.stats import ratio_interval

STRATEGIES = (
    *(Strategy(name, size) for name in ("arrival", "sorted") for size in (1, 8, 32)),
    *(Strategy("token_budget", 64, budget) for budget in (512, 2048)),
    Strategy("optimal", 64),
)
Entry = tuple[Candidate, Strategy]


def main() -> None:
    options = _parse()
    texts = demo.news_sentences(options.texts)
    model = demo.prepare(None).model_folder
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tuning = hasten.tune(model, None, texts, output=folder / "bundle", budget=options.budget)
        chosen = (tuning.plan.candidate, tuning.plan.strategy)
        reference = prepare(str(model), folder / "reference")
        samples_s = _measure(reference, tuning, texts, options.rounds)
    ranked = sorted(samples_s, key=lambda entry: Measurement(tuple(samples_s[entry])).median_s)
    for candidate, strategy in ranked[:10]:
        median_s = Measurement(tuple(samples_s[candidate, strategy])).median_s
        mark = "  <- chosen" if (candidate, strategy) == chosen else ""
        rate = len(texts) / median_s
        print(f"{rate:8.1f} texts/s  {content.short(candidate)}, {strategy.label}{mark}")
    print(f"chosen: {content.short(chosen[0])}, {chosen[1].label}")
    ratio = ratio_interval(samples_s[chosen], samples_s[ranked[0]], seed=0)
    print(f"the chosen one takes {content.interval(ratio)} times as long as the best")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", default="5m")
    return parser.parse_args()


def _measure(
    reference: Reference, tuning: Tuning, texts: list[str], rounds: int
) -> dict[Entry, list[float]]:
    """Seconds of every entry, one for each round; the round before the first is not counted."""
    rows = [row for row in tuning.rows if row.status not in ("unavailable", "failed")]
    pipelines = {row.candidate: _pipeline(reference, row) for row in rows}
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


def _pipeline(reference: Reference, row: Row) -> Pipeline:
    engine, candidate = engines.get(row.candidate.engine), row.candidate
    folder = reference.folder.parent / candidate.label
    folder.mkdir()
    engine.export(reference, candidate, folder)
    streams = Streams(engine.load(folder, candidate), candidate.streams, reference.info)
    return Pipeline(reference.tokenizer(), streams)


if __name__ == "__main__":
    main()
