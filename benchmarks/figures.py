"""Figures of the README and the docs: measured, kept as JSON, and put between a page's markers.

    python benchmarks/figures.py            # put the kept results into the pages

A block of a page stands between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``. Every
script of ``make bench`` writes the Markdown of its blocks, with the raw figures behind them, by
:func:`publish`; :func:`render` replaces the blocks. A block without a result stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten import hardware
from hasten.errors import HastenError
from hasten.records import Event, Hardware, Interval, Progress

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/*.md")

_BLOCK = re.compile(
    r"(?P<begin><!-- figures: (?P<name>[a-z0-9-]+) -->\n).*?(?P<end><!-- end of figures -->)",
    re.DOTALL,
)
_TELLING = {"AVX2": ("avx2",), "AVX-512": ("avx512f",), "VNNI": ("avx512_vnni", "avx_vnni")}
_TELLING["bf16"] = ("avx512_bf16", "amx_bf16", "bf16")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that ``make bench`` gives to every script."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--result", type=Path, help="a JSON file for what is found")
    made.add_argument("--work", type=Path, help="a folder to keep and continue unfinished work in")
    made.add_argument("--quick", action="store_true", help="a tiny model, to see the script run")
    return made


def publish(result: Path | None, blocks: Mapping[str, str], data: Any) -> None:
    """Print the blocks' Markdown; with ``result``, keep it there beside the raw ``data``."""
    for name, block in blocks.items():
        print(f"<!-- figures: {name} -->\n{block.strip()}\n<!-- end of figures -->")
    if result:
        stored = {"machine": machine(), "blocks": dict(blocks), "data": data}
        part = result.with_suffix(".part")
        part.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        part.rename(result)


def read(results: Path) -> dict[str, str]:
    """The blocks of all results in a folder, by name."""
    blocks: dict[str, str] = {}
    for path in sorted(results.glob("*.json")):
        blocks |= json.loads(path.read_text(encoding="utf-8"))["blocks"]
    return blocks


def render(page: str, blocks: Mapping[str, str]) -> str:
    """``page`` with each of these blocks in the place of the one that has its name."""

    def replaced(found: re.Match[str]) -> str:
        block = blocks.get(found["name"])
        return found[0] if block is None else f"{found['begin']}{block.strip()}\n{found['end']}"

    return _BLOCK.sub(replaced, page)


def names(page: str) -> list[str]:
    """The names of a page's blocks."""
    return [found["name"] for found in _BLOCK.finditer(page)]


def pages(root: Path) -> list[Path]:
    """All pages that may have blocks."""
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def render_pages(results: Path, root: Path) -> list[Path]:
    """Put the results into the pages.

    Returns:
        The pages that changed.
    """
    blocks, changed = read(results), []
    for path in pages(root):
        page = path.read_text(encoding="utf-8")
        rendered = render(page, blocks)
        if rendered != page:
            path.write_text(rendered, encoding="utf-8")
            changed.append(path)
    return changed


def machine(here: Hardware | None = None) -> str:
    """The CPU and what decides its speed, for a sentence.

    >>> machine(Hardware("AMD EPYC", 2, ("avx2", "fma"), 8 << 30))
    '2 cores of an AMD EPYC with AVX2 (no AVX-512, no VNNI, no bf16)'
    """
    here = here or hardware.detect()
    has = {name: not here_lacks(here, sets) for name, sets in _TELLING.items()}
    present = ", ".join(name for name in has if has[name]) or "none of AVX2 and later"
    absent = ", ".join(f"no {name}" for name in has if not has[name])
    cores = f"{here.usable_cores} core{'s' if here.usable_cores > 1 else ''}"
    return f"{cores} of an {here.cpu_model} with {present}" + (f" ({absent})" if absent else "")


def here_lacks(here: Hardware, sets: tuple[str, ...]) -> bool:
    """Whether the machine has none of these instruction sets."""
    return not set(sets) & set(here.instruction_sets)


def interval(value: Interval) -> str:
    """A ratio and its 95 % interval."""
    return f"{value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})"


class Stages:
    """Names each stage of a long run once, on standard error."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.stage != self._stage:
            self._stage = event.stage
            print(f"  {event.stage}", file=sys.stderr)


def main() -> None:
    try:
        for path in render_pages(RESULTS, ROOT):
            print(f"rendered {path.relative_to(ROOT)}")
    except HastenError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
