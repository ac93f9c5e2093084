"""``make bench``: everything that the README and the docs quote, measured and put into them.

    python benchmarks/bench.py                       # the README's figures
    python benchmarks/bench.py --list                # what there is, and how long each part takes
    python benchmarks/bench.py exhaustive student    # these parts alone
    python benchmarks/bench.py --quick               # tiny models; no page is changed

Each part is a script of its own. What it found is kept in ``bench-results``, so that an
interrupted run continues at the part that it was in. When all parts are done, their results
replace those in ``benchmarks/results``, and the pages are rendered from there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import figures

WORK = figures.ROOT / "bench-results"


@dataclass(frozen=True)
class Part:
    """One script with its arguments; ``quick`` are further ones for a smoke run.

    ``command`` may name ``{demo}``, the bundle that the part ``demo`` made, and ``{peer}``, an
    interpreter with sentence-transformers and Optimum: without one, the part is left out.
    """

    name: str
    title: str
    minutes: float
    command: str
    quick: str = ""
    by_default: bool = True


PARTS = (
    Part("demo", "what `make demo` shows", 6, "first_run.py"),
    Part(
        "speed-minilm",
        "the demo's classifier against PyTorch",
        6,
        "speed.py minilm --budget 3m --timed-texts 250",
        "--budget 20m --texts 16 --timed-texts 8 --rounds 2",
    ),
    Part(
        "speed-mpnet",
        "a base-size classifier against PyTorch",
        8,
        "speed.py mpnet --budget 4m --timed-texts 100",
        "--budget 20m --texts 16 --timed-texts 8 --rounds 2",
    ),
    Part(
        "peers",
        "beside sentence-transformers",
        6,
        "peers.py --texts 500 --rounds 4 --budget 60s --batch-sizes 8 32 "
        "--backends torch onnx openvino --peer-python {peer}",
        "--texts 20 --rounds 2 --backends onnx --budget 20m",
    ),
    *(
        Part(
            f"peers-{task}",
            f"beside the library of the task: {task}",
            4,
            f"task_peers.py {task} {how} --peer-python {{peer}}",
            "--texts 20 --rounds 2 --budget 20m",
            by_default=False,
        )
        for task, how in (
            ("pairs", "--backends torch onnx"),
            ("tokens", ""),
            ("embeddings", "--precisions fp32,int8 --backends torch onnx openvino"),
        )
    ),
    Part(
        "bulk-peers",
        "beside the loops that people write",
        5,
        "bulk_peers.py --sentences 350 --articles 50 --rounds 4 --budget 90s --peer-python {peer}",
        "--sentences 20 --articles 2 --rounds 2 --budget 20m",
    ),
    Part(
        "bulk",
        "files of many rows",
        3,
        "bulk.py throughput {demo} --rows 12000 --files 4",
        "--rows 200 --files 2",
    ),
    Part(
        "repeat",
        "whether ten runs agree",
        25,
        "repeat.py --texts 400",
        by_default=False,
    ),
    Part(
        "serving",
        "the server beside its bundle",
        4,
        "serving.py {demo}",
        "--texts 40 --single 5 --rounds 2",
        by_default=False,
    ),
    Part("startup", "what importing and loading cost", 1, "startup.py {demo}", "--runs 2"),
    Part(
        "int8-minilm",
        "int8 recipes on the demo's classifier",
        4,
        "int8.py minilm --recipes token,static-reduced",
        "--texts 8 --timed 8 --rounds 2",
        by_default=False,
    ),
    Part(
        "int8-mpnet",
        "int8 recipes on a base-size classifier",
        8,
        "int8.py mpnet --recipes token --timed 100 --rounds 4",
        "--texts 8 --timed 8 --rounds 2",
        by_default=False,
    ),
    *(
        Part(
            f"cascade-{name}",
            f"a cascade against the best exact candidate: {what}",
            minutes,
            f"cascades.py {name}",
            by_default=False,
        )
        for name, what, minutes in (
            ("demo", "the demo's texts", 5),
            ("minilm", "news sentences", 4),
            ("mpnet", "a base-size classifier", 8),
            ("articles", "whole news articles", 9),
            ("latency", "one text at a time", 5),
            ("student", "a student in three stages", 17),
        )
    ),
    Part(
        "attention",
        "the form of attention that is exported",
        2,
        "attention.py --shapes 8x128,1x512 --rounds 10",
        "--shapes 1x16 --rounds 2",
        by_default=False,
    ),
    Part(
        "spinning",
        "threads that spin between single texts; needs idle cores",
        1,
        "spinning.py",
        "--shapes 1x16 --rounds 2",
        by_default=False,
    ),
    Part(
        "exhaustive",
        "the choice against an exhaustive search",
        12,
        "exhaustive.py",
        "--texts 20 --rounds 2 --budget 20m",
        by_default=False,
    ),
)


def main() -> None:
    options = _parse()
    parts = chosen(options.parts)
    if options.list:
        _show(PARTS)
        return
    work: Path = options.work
    if options.restart and work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    if not options.peer_python:
        left_out = [part for part in parts if "{peer}" in part.command]
        parts = [part for part in parts if part not in left_out]
        for part in left_out:
            print(f"left out: {part.name}; name an environment by --peer-python OTHER/bin/python")
    todo = [part for part in parts if not result_of(part, work).exists()]
    _show(todo)
    for number, part in enumerate(todo, 1):
        print(f"bench {number}/{len(todo)}  {part.title} ({part.minutes:g} minutes)", flush=True)
        run(part, work, options)
    if not options.quick:
        keep(parts, work, figures.RESULTS)
        for path in figures.render_pages(figures.RESULTS, figures.ROOT):
            print(f"rendered {path.relative_to(figures.ROOT)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny models, minutes in all")
    parser.add_argument("--restart", action="store_true", help="forget an unfinished run")
    parser.add_argument("--peer-python", help="an environment with sentence-transformers, Optimum")
    parser.add_argument("--work", type=Path, default=WORK)
    return parser.parse_args()


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of these names; without any, those for the README."""
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no part {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or [part for part in PARTS if part.by_default]


def result_of(part: Part, work: Path) -> Path:
    """Where a part's result is kept until all parts are done."""
    return work / f"{part.name}.json"


def command(part: Part, work: Path, *, quick: bool, peer_python: str | None) -> list[str]:
    """What runs a part."""
    given = {"demo": work / "demo" / "bundle", "peer": peer_python or sys.executable}
    script, *words = (word.format_map(given) for word in part.command.split())
    more = ["--quick", *part.quick.split()] if quick else []
    kept = ["--result", str(result_of(part, work)), "--work", str(work / part.name)]
    return [sys.executable, str(Path(__file__).parent / script), *words, *more, *kept]


def run(part: Part, work: Path, options: argparse.Namespace) -> None:
    """Run a part to its end.

    Raises:
        SystemExit: it failed, or was interrupted; what is done stays.
    """
    if "{demo}" in part.command and not (work / "demo" / "bundle").exists():
        raise SystemExit(f"{part.name} measures the demo's bundle; name the part demo before it")
    begin = time.monotonic()
    words = command(part, work, quick=options.quick, peer_python=options.peer_python)
    try:
        done = subprocess.run(words, check=False)  # noqa: S603 - scripts of this folder
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted in {part.name}; the same command continues") from None
    if done.returncode:
        raise SystemExit(f"{part.name} ended with status {done.returncode}; see above")
    print(f"{part.name} took {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)


def keep(parts: Sequence[Part], work: Path, results: Path) -> None:
    """Put the parts' results in the place of older ones, and forget their working files."""
    results.mkdir(parents=True, exist_ok=True)
    for part in parts:
        shutil.move(result_of(part, work), results / f"{part.name}.json")
        shutil.rmtree(work / part.name, ignore_errors=True)
    if not any(work.iterdir()):
        work.rmdir()


def _show(parts: Sequence[Part]) -> None:
    for part in parts:
        print(f"  {part.name:16} {part.minutes:3g} min  {part.title}")
    print(f"  {'in all':16} {sum(part.minutes for part in parts):3g} min", flush=True)


if __name__ == "__main__":
    main()
