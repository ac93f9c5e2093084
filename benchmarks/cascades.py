"""Cascades against the best exact candidate, and whether they keep their promise.

    python benchmarks/cascades.py demo minilm          # these parts alone; all by default
    python benchmarks/cascades.py --list               # what there is, and how long each part takes
    python benchmarks/cascades.py mpnet --work results # continues there if it was interrupted

``hasten tune`` runs once for each part, with interleaved rounds. Of the best cascade: its speed
over the best exact candidate, its predicted time over the measured one, and the share of deferred
texts. Then, from the answers that the run has kept, its thresholds are chosen anew on a random half
of the judged texts, twenty times, and flips are counted on the other half, which takes no part in
the choice.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import figures
import numpy as np
from models import quiet, sentences, subject

from hasten.demo import assets as demo
from hasten.inputs import corpus
from hasten.judging.cascade import StageAnswers, certify, cut_factor, path, worst
from hasten.judging.stats import percentile, speed_up
from hasten.percent import percent
from hasten.plain import from_json
from hasten.records import Candidate, EndToEnd, Reading, Row, Tuning
from hasten.report import content
from hasten.runtime import bundle

SPLITS = 20


@dataclass(frozen=True)
class Part:
    """One model over one kind of texts; ``options`` are those of ``hasten tune``."""

    minutes: float
    model: str
    texts: str
    options: str = ""


ONE_ENGINE = "--engines onnx_runtime --precisions fp32,int8"
PARTS = {
    "demo": Part(5, "minilm", "demo", "--budget 4m"),
    "minilm": Part(4, "minilm", "sentences", f"--budget 3m {ONE_ENGINE}"),
    "mpnet": Part(8, "mpnet", "sentences", f"--budget 7m {ONE_ENGINE}"),
    "articles": Part(9, "minilm", "articles", f"--budget 8m {ONE_ENGINE}"),
    "latency": Part(5, "minilm", "demo", f"--budget 4m {ONE_ENGINE} --objective latency"),
    "student": Part(17, "minilm", "demo", f"--budget 5m {ONE_ENGINE} --stages 3"),
}
STUDENT = "--layers 3 --ffn-width 768 --budget 10m"


class Split(NamedTuple):
    """One random split: texts deferred and flipped of those that took no part in the choice."""

    deferred: float
    flips: float


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--list", action="store_true", help="show the parts and stop")
    options = parser.parse_args()
    if options.list:
        for name, part in PARTS.items():
            print(f"{name:<9} {part.minutes:>3.0f} min  {part.texts} with {part.model}")
        return
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    work = options.work or Path("cascade-results")
    work.mkdir(parents=True, exist_ok=True)
    blocks, data = {}, {}
    for name in options.parts or PARTS:
        blocks[f"cascade-{name}"], data[name] = measure(
            name, PARTS[name], work, quick=options.quick
        )
        figures.publish(options.result, blocks, data)


def measure(name: str, part: Part, work: Path, *, quick: bool) -> tuple[str, list[Split]]:
    """Tune, unless that is done, and say what the best cascade gives."""
    folder = work / name
    if not folder.exists():
        asked = [*shlex.split(part.options), *(["--budget", "20m"] if quick else [])]
        command = [*_command(name, part, work, 60 if quick else 1000), *asked, "-o", str(folder)]
        subprocess.run(command, check=True)  # noqa: S603 - our own
    tuning = bundle.read_tuning(folder)
    rows = [row for row in tuning.rows if row.candidate.then and row.runs]
    if not rows:
        return f"No cascade was run: {tuning.no_cascade or _reasons(tuning)}.", []
    best = min(rows, key=lambda row: row.main.total.mean_s if row.main else np.inf)
    splits = list(resplit(folder / "results.jsonl", best, tuning.settings.max_flips))
    return report(tuning, best, splits), splits


def resplit(journal: Path, row: Row, max_flips: float) -> Iterable[Split]:
    """Choose the thresholds on random halves, and count flips on the other halves."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    kept = {line["key"]: line.get("value") for line in lines if "key" in line}
    stages = row.candidate.stages
    assert row.cascade
    calibration = [_readings(kept, "calibration", each)[0] for each in stages[:-1]]
    factors = [*map(cut_factor, calibration), 1.0]
    first = [_answers([r], factor) for r, factor in zip(calibration, factors, strict=False)]
    thresholds = path(first, row.cascade.alone_s)
    judged = [
        _answers(_readings(kept, "parity", each), factor)
        for each, factor in zip(stages, factors, strict=True)
    ]
    rng = np.random.default_rng(0)
    for _ in range(SPLITS):
        chosen, others = np.array_split(rng.permutation(len(judged[0])), 2)
        proof = certify([_of(s, chosen) for s in judged], thresholds, max_flips=max_flips)
        if proof.chosen is None:
            yield Split(1.0, 0.0)
            continue
        at = np.array([proof.chosen.thresholds])
        step = certify([_of(s, others) for s in judged], at, max_flips=max_flips).steps[0]
        yield Split(step.deferred[0], step.flips / len(others))


def report(tuning: Tuning, row: Row, splits: Sequence[Split]) -> str:
    """The cascade against the best exact candidate, and the splits, as a table."""
    run, cascade = row.main, row.cascade
    assert run
    assert cascade
    assert cascade.proof.chosen
    exact = [r.main for r in tuning.rows if r.candidate.exact and r.main]
    rival = min(exact, key=lambda run: run.total.mean_s)
    allowed, step = tuning.settings.max_flips, cascade.proof.chosen
    kept = sum(split.flips <= allowed for split in splits)
    predicted = run.predicted_s / run.total.mean_s if run.predicted_s else float("nan")
    over, eager = speed_up(rival, run, seed=0), row.ratio_to_baseline
    cells = {
        "cascade": content.short(row.candidate),
        **(_latencies(run, rival) if tuning.settings.objective == "latency" else {}),
        "texts/s": f"{run.texts_per_s:,.1f}",
        "x best exact": content.interval(over) if over else "",
        "x eager PyTorch, one text at a time": content.interval(eager) if eager else "",
        "predicted / measured": f"{predicted:.2f}",
        "deferred": ", ".join(map(percent, step.deferred)),
        "flips": f"{step.flips}/{cascade.proof.compared}",
        f"splits with at most {percent(allowed)}": f"{kept}/{len(splits)}",
        "most flips in a split": percent(max(split.flips for split in splits)),
    }
    return "\n".join(
        [
            f"| {' | '.join(cells)} |",
            f"|---|{'---:|' * (len(cells) - 1)}",
            f"| {' | '.join(cells.values())} |",
        ]
    )


def _latencies(run: EndToEnd, rival: EndToEnd) -> dict[str, str]:
    """Of the cascade and of the best exact candidate, one text at a time."""

    def both(q: float) -> str:
        ours, theirs = (percentile(each.batch_latency_s, q) for each in (run, rival))
        return f"{content.milliseconds(ours)} ({content.milliseconds(theirs)})"

    return {f"p{q} (best exact)": both(q) for q in (50, 99)}


def _readings(kept: dict[str, Any], what: str, candidate: Candidate) -> list[Reading]:
    for name in (what, "probe") if what == "calibration" else (what,):
        prefix = f"reading:{name}:{candidate.label}:"
        found = [from_json(Reading, kept[key]) for key in kept if key.startswith(prefix)]
        if found:
            return found
    raise KeyError(f"{candidate.label} has no reading of {what} texts")


def _answers(readings: Sequence[Reading], factor: float) -> StageAnswers:
    texts = [str(number) for number in range(len(readings[0].sureness))]
    return worst(readings, texts, factor)


def _of(stage: StageAnswers, rows: np.ndarray[Any, np.dtype[np.int64]]) -> StageAnswers:
    return StageAnswers(stage.sureness[rows], stage.least[rows], stage.flipped[rows])


def _command(name: str, part: Part, work: Path, count: int) -> list[str]:
    """The ``hasten tune`` of a part, but for its options; a student is made first."""
    hasten = [sys.executable, "-m", "hasten"]
    model = subject(part.model, work / "models").model
    data = work / f"{part.texts}-{part.model}.jsonl"
    texts = _texts(part, 1000)[:count]
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    if name != "student":
        return [*hasten, "tune", str(model), "--data", str(data)]
    student, teaching = work / "student-model", work / "teaching.jsonl"
    lines = [json.dumps({"text": text}) for text in demo.training_texts()]
    teaching.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not student.exists():
        made = [*hasten, "compress", str(model), "--data", str(teaching), "-o", str(student)]
        subprocess.run([*made, *shlex.split(STUDENT)], check=True)  # noqa: S603 - our own
    return [*hasten, "tune", str(student), "--reference", str(model), "--data", str(data)]


def _texts(part: Part, count: int) -> Sequence[str]:
    if part.texts == "demo":
        file = demo.prepare(None, quiet).texts_file
        return [str(text) for text in corpus.read(file, label_column="label").texts]
    if part.texts == "articles":
        articles = demo.shuffled(demo.news_articles(), "cascades")
        return [article.text for article in articles[:count]]
    return sentences(part.model, count)


def _reasons(tuning: Tuning) -> str:
    rows = [row for row in tuning.rows if row.candidate.then]
    return "; ".join(f"{content.short(row.candidate)}: {row.reason}" for row in rows)


if __name__ == "__main__":
    main()
