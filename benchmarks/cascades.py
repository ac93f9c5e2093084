"""Cascades against the best exact candidate, and whether they keep their promise.

    python benchmarks/cascades.py demo                 # the demo's texts, of very mixed length
    python benchmarks/cascades.py minilm               # news sentences
    python benchmarks/cascades.py mpnet --budget 4m    # base-size: see benchmarks/mpnet.py

``hasten tune`` runs once, with interleaved rounds; options that are not this script's are handed to
it. Of the best cascade: its speed over the best exact candidate, its predicted time over the
measured one, and the share of deferred texts. Then, from the answers that the run has kept, its
threshold is chosen anew on a random half of the judged texts, twenty times, and flips are counted
on the other half, which takes no part in the choice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import figures
import numpy as np
from models import sentences, subject

from hasten.demo import assets as demo
from hasten.judging.cascade import StageAnswers, certify, path, worst
from hasten.judging.stats import speed_up
from hasten.plain import from_json
from hasten.records import Candidate, Reading, Row, Tuning
from hasten.report import content
from hasten.runtime import bundle

SPLITS = 20
KINDS = ("demo", "minilm", "mpnet")


class Split(NamedTuple):
    """One random split: texts deferred and flipped of those that took no part in the choice."""

    deferred: float
    flips: float


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("model", choices=KINDS, nargs="?", default="demo")
    parser.add_argument("--budget", default="4m")
    parser.add_argument("--texts", type=int, default=1000)
    options, passed_on = parser.parse_known_args()
    work = options.work or Path("cascade-results")
    work.mkdir(parents=True, exist_ok=True)
    command = [*_command(options.model, work, options.texts), "--budget", options.budget]
    folder = work / options.model
    if not folder.exists():
        subprocess.run([*command, "-o", str(folder), *passed_on], check=True)  # noqa: S603 - ours
    tuning = bundle.read_tuning(folder)
    rows = [row for row in tuning.rows if row.candidate.then and row.runs]
    if not rows:
        told = f"No cascade was run: {tuning.no_cascade or _reasons(tuning)}."
        figures.publish(options.result, {f"cascade-{options.model}": told}, [])
        return
    best = min(rows, key=lambda row: row.main.total.mean_s if row.main else np.inf)
    splits = list(resplit(folder / "results.jsonl", best.candidate, tuning.settings.max_flips))
    table = report(tuning, best, splits)
    figures.publish(options.result, {f"cascade-{options.model}": table}, [list(s) for s in splits])


def resplit(journal: Path, cascade: Candidate, max_flips: float) -> Iterable[Split]:
    """Choose the threshold on random halves, and count flips on the other halves."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    kept = {line["key"]: line.get("value") for line in lines if "key" in line}
    calibration, *_ = _stages(kept, "probe", cascade.stages[:1])
    judged = _stages(kept, "parity", cascade.stages)
    thresholds = path([calibration], (1.0, 1.0))
    rng = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = rng.permutation(len(judged[0]))
        chosen, others = np.array_split(order, 2)
        proof = certify([_of(s, chosen) for s in judged], thresholds, max_flips=max_flips)
        if proof.chosen is None:
            yield Split(1.0, 0.0)
            continue
        at = np.array([proof.chosen.thresholds])
        step = certify([_of(s, others) for s in judged], at, max_flips=max_flips).steps[0]
        yield Split(step.deferred[0], step.flips / len(others))


def report(tuning: Tuning, row: Row, splits: Sequence[Split]) -> str:
    """The cascade against the best exact candidate, and the splits, as a table."""
    exact = [r for r in tuning.rows if r.candidate.exact and r.main]
    run, cascade = row.main, row.cascade
    assert run
    assert cascade
    assert cascade.proof.chosen
    rival = min(exact, key=lambda r: r.main.total.mean_s if r.main else np.inf)
    over = speed_up(rival.main, run, seed=0)
    allowed = tuning.settings.max_flips
    kept = sum(split.flips <= allowed for split in splits)
    predicted = run.predicted_s / run.total.mean_s if run.predicted_s else float("nan")
    cells = {
        "cascade": content.short(row.candidate),
        "texts/s": f"{run.texts_per_s:,.1f}",
        "x best exact": content.interval(over) if over else "",
        "x eager PyTorch, one text at a time": content.interval(row.ratio_to_baseline)
        if row.ratio_to_baseline
        else "",
        "predicted / measured": f"{predicted:.2f}",
        "deferred": content.percent(cascade.proof.chosen.deferred[0]),
        "flips": f"{cascade.proof.chosen.flips}/{cascade.proof.compared}",
        f"splits with at most {content.percent(allowed)}": f"{kept}/{len(splits)}",
        "most flips in a split": content.percent(max(split.flips for split in splits)),
    }
    return "\n".join(
        [
            f"| {' | '.join(cells)} |",
            f"|---|{'---:|' * (len(cells) - 1)}",
            f"| {' | '.join(cells.values())} |",
        ]
    )


def _stages(kept: dict[str, Any], what: str, candidates: Sequence[Candidate]) -> list[StageAnswers]:
    found = []
    for candidate in candidates:
        prefix = f"reading:{what}:{candidate.label}:"
        readings = [from_json(Reading, kept[key]) for key in kept if key.startswith(prefix)]
        texts = [str(number) for number in range(len(readings[0].sureness))]
        found.append(worst(readings, texts))
    return found


def _of(stage: StageAnswers, rows: np.ndarray[Any, np.dtype[np.int64]]) -> StageAnswers:
    return StageAnswers(stage.sureness[rows], stage.least[rows], stage.flipped[rows])


def _command(name: str, work: Path, texts: int) -> list[str]:
    chosen = subject("minilm" if name == "demo" else name, work / "models")
    if name == "demo":
        data, columns = demo.prepare(None).texts_file, ["--label-column", "label"]
    else:
        data, columns = work / f"{name}.txt", []
        data.write_text("\n".join(sentences(name, texts)) + "\n", encoding="utf-8")
    start = [sys.executable, "-m", "hasten", "tune", str(chosen.model), "--data", str(data)]
    return [*start, *columns, "--max-texts", str(texts)]


def _reasons(tuning: Tuning) -> str:
    rows = [row for row in tuning.rows if row.candidate.then]
    return "; ".join(f"{content.short(row.candidate)}: {row.reason}" for row in rows)


if __name__ == "__main__":
    main()
