"""How much faster a model becomes: against PyTorch one text at a time, and at its own best.

    python benchmarks/speed.py minilm                # the demo's real classifier
    python benchmarks/speed.py mpnet --budget 6m     # a base-size classifier with real weights
    python benchmarks/speed.py camembert             # CamemBERT-base's shape, random weights

One ``hasten tune`` over 1,000 news sentences makes a bundle. Then the bundle, eager PyTorch with
one text at a time, and eager PyTorch with the fastest of its thread layouts and batch plans take
turns over the same texts, each in a process of its own; only tuning is not in the figures.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import contender
import figures
from models import NAMES, SHAPES, exported_pipeline, sentences, subject

import hasten
from hasten import hardware
from hasten.judging.stats import ratio_interval
from hasten.models import ModelFolder, prepare
from hasten.plain import to_json
from hasten.records import Candidate, Strategy, Tuning
from hasten.report import content, headline

ONE_BY_ONE = Strategy("arrival", 1)
PLANS = (
    Strategy("sorted", 8),
    Strategy("sorted", 32),
    Strategy("token_budget", 64, 512),
    Strategy("token_budget", 64, 2048),
)


class Layout(NamedTuple):
    """How eager PyTorch uses the cores."""

    streams: int
    threads: int

    def __str__(self) -> str:
        return f"{content.count(self.streams, 'stream')} x {content.count(self.threads, 'thread')}"


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    parser = figures.parser(__doc__)
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--texts", type=int, default=1000, help="to tune on")
    parser.add_argument("--timed-texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        name = "tiny" if options.quick else options.model
        model, tokenizer, random_weights = subject(name, folder)
        texts = sentences(name, options.texts)
        tuning = hasten.tune(
            model,
            texts,
            tokenizer=tokenizer,
            random_weights=random_weights,
            output=folder / "bundle",
            budget=options.budget,
            max_texts=options.texts,
            restart=(folder / "bundle").exists(),
            on_event=figures.Stages(),
            engines=["onnx_runtime"] if options.quick else None,
            precisions=["fp32"] if options.quick else None,
            batch_sizes=[1, 8] if options.quick else None,
            threads=1 if options.quick else None,
        )
        reference = folder / "reference"
        if not reference.exists():
            prepare(model, reference, tokenizer=tokenizer, random_weights=random_weights)
        timed = texts[: options.timed_texts]
        samples_s, best = _measure(folder, reference, timed, options.rounds)
    block = _block(tuning, samples_s, best, options)
    data = {"samples_s": samples_s, "tuning": to_json(tuning)}
    figures.publish(options.result, {f"speed-{options.model}": block}, data)


def _measure(
    folder: Path, reference: Path, texts: list[str], rounds: int
) -> tuple[dict[str, list[float]], str]:
    """Seconds of the three, and which layout and plan were PyTorch's best."""
    given = folder / "texts.json"
    given.write_text(json.dumps(texts), encoding="utf-8")
    cores = hardware.detect().usable_cores
    layouts = dict.fromkeys((Layout(1, cores), Layout(cores, 1)))
    eager = {
        layout: contender.Contender(sys.executable, __file__, "eager", reference, given, *layout)
        for layout in layouts
    }
    ours = contender.Contender(sys.executable, __file__, "hasten", folder / "bundle", given)
    tried_s = {
        (layout, plan): eager[layout].ask(to_json(plan)) for layout, plan in product(eager, PLANS)
    }
    layout, plan = min(tried_s, key=tried_s.__getitem__)
    entries = [
        ("one by one", eager[Layout(1, cores)], to_json(ONE_BY_ONE)),
        ("at its best", eager[layout], to_json(plan)),
        ("hasten", ours, True),
    ]
    samples_s = contender.take_turns(entries, rounds)
    for each in (*eager.values(), ours):
        each.close()
    return samples_s, f"{layout}, {_plan(plan)}"


def _plan(plan: Strategy) -> str:
    if plan.token_budget:
        return f"sorted batches of {plan.token_budget:,} tokens"
    return f"sorted batches of {plan.batch_size}"


def _block(tuning: Tuning, samples_s: dict[str, list[float]], best: str, options: Any) -> str:
    """The sentence with both baselines, and a row for each of the three."""
    one_by_one, at_its_best = (
        ratio_interval(samples_s[name], samples_s["hasten"], seed=0)
        for name in ("one by one", "at its best")
    )
    against_each_other = ratio_interval(samples_s["one by one"], samples_s["at its best"], seed=0)
    texts = min(options.timed_texts, options.texts)
    title, parity = content.title(tuning.plan.candidate), tuning.chosen.parity
    cores = hardware.detect().usable_cores
    rows = [
        (f"PyTorch, one text at a time ({Layout(1, cores)})", "one by one", "1"),
        (f"PyTorch at its best ({best})", "at its best", figures.interval(against_each_other)),
        (f"hasten's choice ({title})", "hasten", figures.interval(one_by_one)),
    ]
    about = f"{_subject(tuning, options.model)}, {texts:,} news sentences"
    lines = [
        f"{about} of mean {tuning.profile.mean:.0f} tokens, {figures.machine()}:",
        "",
        (
            f"> **{title}: {headline.faster(one_by_one, 'PyTorch one text at a time')}, "
            f"{headline.faster(at_its_best, 'PyTorch at its best')}.** "
            f"{content.agreement(parity) if parity else ''}"
        ),
        "",
        "| | texts/s | speed-up (95 %) |",
        "| --- | ---: | ---: |",
    ]
    for name, key, ratio in rows:
        rate = texts / statistics.median(samples_s[key])
        lines.append(f"| {name} | {rate:.1f} | {ratio} |")
    lines += ["", f"`python benchmarks/speed.py {options.model} --budget {options.budget}`"]
    return "\n".join(lines)


def _subject(tuning: Tuning, model: str) -> str:
    count = tuning.model.parameter_count / 1e6
    kind = "random weights" if model in SHAPES else "parameters"
    return f"{tuning.model.name} ({count:.1f} M {kind})"


def _contend(who: str, model: str, given: str, streams: str = "1", threads: str = "1") -> None:
    texts: list[str] = json.loads(Path(given).read_text(encoding="utf-8"))
    if who == "hasten":
        predictor = hasten.load(model)
        contender.answer(lambda _: predictor.outputs(texts))
        return
    candidate = Candidate("torch_eager", "fp32", "cpu", int(threads), int(streams))
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = exported_pipeline(ModelFolder.open(Path(model)), candidate, Path(scratch))
    contender.answer(lambda plan: pipeline.run(texts, Strategy(**plan)))


if __name__ == "__main__":
    main()
