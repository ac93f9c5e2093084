"""Do two runs of one command agree? How often one run's interval holds the mean of the others.

    python benchmarks/repeat.py                            # the demo's classifier, ten tunes
    python benchmarks/repeat.py mpnet --runs 5 --budget 4m
    python benchmarks/repeat.py minilm -- --engines onnx_runtime --precisions fp32

Every tune is a command of its own; what follows ``--`` is handed to ``hasten tune``. Finished runs
in the ``--work`` folder are kept and an interrupted one continues, so that the same command goes on
after whatever stopped it. At least nine intervals of ten should hold the mean.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import figures
from models import NAMES, sentences, subject

from hasten.plain import to_json
from hasten.records import Interval, Tuning
from hasten.report import content
from hasten.runtime import bundle
from hasten.runtime.manifest import MANIFEST

_GOAL = 0.9


def main() -> None:
    own, passed_on = _split(sys.argv[1:])
    parser = figures.parser(__doc__)
    parser.add_argument("model", nargs="?", choices=NAMES, default="minilm")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budget", default="2m", help="of each run")
    parser.add_argument("--texts", type=int, default=500)
    options = parser.parse_args(own)
    name, runs, texts = options.model, options.runs, options.texts
    if options.quick:
        name, runs, texts = "tiny", 2, 40
    work = options.work or Path("repeat-results") / name
    work.mkdir(parents=True, exist_ok=True)
    command = [*_command(name, work, texts), "--budget", options.budget, *passed_on]
    tunings = [_run(command, work, number) for number in range(1, runs + 1)]
    shown = " ".join(["hasten tune", "--budget", options.budget, *passed_on])
    figures.publish(
        options.result,
        {"repeat": f"`{shown}` over {texts} texts, {figures.machine()}:\n\n{report(tunings)}"},
        [_kept(tuning) for tuning in tunings],
    )


def held(ratios: list[Interval]) -> list[bool]:
    """For each run, whether its interval holds the geometric mean of the others' estimates."""
    logs = [math.log(ratio.estimate) for ratio in ratios]
    others = [math.exp((sum(logs) - own) / (len(logs) - 1)) for own in logs]
    return [ratio.holds(mean) for ratio, mean in zip(ratios, others, strict=True)]


def report(tunings: list[Tuning]) -> str:
    """One line for each run, and how many intervals hold the mean of the other runs."""
    timed = [(tuning, ratio) for tuning in tunings if (ratio := tuning.chosen.ratio_to_baseline)]
    holds = held([ratio for _, ratio in timed])
    lines = [
        "| run | chosen | speed-up (95 %) | processes | holds the others' mean | first answer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, ((tuning, ratio), held_it) in enumerate(zip(timed, holds, strict=True), start=1):
        main_run = tuning.chosen.main
        cells = (
            str(number),
            content.short(tuning.plan.candidate),
            content.interval(ratio),
            str(main_run.process_count if main_run else 0),
            "yes" if held_it else "no",
            _first(tuning),
        )
        lines.append(f"| {' | '.join(cells)} |")
    mean = math.exp(fmean(math.log(ratio.estimate) for _, ratio in timed))
    chosen = len({tuning.plan.candidate for tuning, _ in timed})
    verdict = "reached" if sum(holds) >= _GOAL * len(holds) else "missed"
    winners = f"{chosen} different winners" if chosen > 1 else "the same winner in all"
    summary = (
        f"{sum(holds)} of {len(holds)} intervals hold the mean of the other runs (goal: 9 of 10, "
        f"{verdict}); mean speed-up {mean:.2f}, {winners}."
    )
    return "\n".join([*lines, "", summary])


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What is for this script, and what follows ``--``."""
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def _command(name: str, work: Path, texts: int) -> list[str]:
    found = subject(name, work)
    data = work / "texts.txt"
    if not data.exists():
        lines = (" ".join(text.split()) for text in sentences(name, texts))
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "hasten", "tune", str(found.model), "--data", str(data)]
    if found.random_weights:
        command.append("--random-weights")
    if found.tokenizer:
        command += ["--tokenizer", str(found.tokenizer)]
    return command


def _run(command: list[str], work: Path, number: int) -> Tuning:
    """The result of one run: the one that is there, or that of the command, begun or continued."""
    folder = work / f"run-{number:02d}"
    if not (folder / MANIFEST).exists():
        print(f"run {number}: {folder}", file=sys.stderr, flush=True)
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, "-o", str(folder), "--json"], stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise SystemExit(f"run {number} ended with status {done.returncode}")
    return bundle.read_tuning(folder)


def _first(tuning: Tuning) -> str:
    """When the first answer stood, and how far behind the final choice it is."""
    first = tuning.first_answer
    if first is None:
        return "none"
    behind = f", {first.behind.estimate:.2f}x the final time" if first.behind else ""
    return f"after {first.at_s / tuning.settings.budget_s:.0%}{behind}"


def _kept(tuning: Tuning) -> dict[str, object]:
    ratio, first = tuning.chosen.ratio_to_baseline, tuning.first_answer
    return {
        "chosen": tuning.plan.candidate.label,
        "ratio": to_json(ratio),
        "first_answer": to_json(first),
        "elapsed_s": tuning.elapsed_s,
    }


if __name__ == "__main__":
    main()
