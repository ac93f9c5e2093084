"""Every claim of the README and the docs has a test, and what can be counted is counted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from hasten.engines import discover
from hasten.records import Hardware

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLAIMS = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Every line that names a test, with the tests."""
    for page in pages():
        for line in page.read_text(encoding="utf-8").splitlines():
            if named := NAMED.findall(line):
                yield line, named


@cache
def functions(path: str) -> dict[str, bool]:
    """The tests of a file, and whether each is part of a long campaign alone."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name: any("mark.faults" in ast.unparse(each) for each in decorators(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    """All but those that mark single parameters."""
    return [each for each in node.decorator_list if "parametrize" not in ast.unparse(each)]


def test_every_test_that_a_document_names_exists() -> None:
    named = [each for _, tests in rows() for each in tests]
    assert named
    for path, name in named:
        assert name in functions(path), f"{path}::{name}"


def test_every_claim_has_a_test_that_runs_each_time() -> None:
    for line, named in rows():
        assert not all(functions(path)[name] for path, name in named), line


def test_every_row_of_claims_names_a_test() -> None:
    table = [line for line in CLAIMS.splitlines() if line.startswith("| ")]
    assert not [line for line in table if line != "| claim | test |" and not NAMED.search(line)]


def test_every_promise_of_the_readme_has_its_claims() -> None:
    section = README.partition("## What you can rely on\n")[2].partition("\n## ")[0]
    promises = re.findall(r"^- \*\*(.+?)\.\*\*", section, re.MULTILINE)
    assert promises
    assert set(promises) <= set(re.findall(r"^## (.+)$", CLAIMS, re.MULTILINE))


def test_int8_is_tried_in_as_many_ways_as_the_readme_says() -> None:
    said = re.search(r"int8 is tried in up to (\w+) ways \((\w+) without VNNI\)", README)
    assert said
    assert [ways("avx512_vnni", "avx512_bf16"), ways()] == list(map(NUMBERS.index, said.groups()))


def ways(*instructions: str) -> int:
    """How many int8 recipes are tried on a CPU with AVX2 and these."""
    machine = Hardware("A CPU", 2, ("avx2", "fma", *instructions), 8 << 30)
    return sum(
        recipe != ""
        for name, engine in discover().items()
        if name != "fake"
        for recipe in engine.recipes("int8", machine)
    )


def test_the_largest_dependencies_are_those_that_the_readme_names() -> None:
    said = re.search(r"`(\w+)`, `(\w+)` and `(\w+)` are the largest", README)
    assert said
    required = metadata.requires("hasten") or []
    base = [re.split(r"[^\w-]", each)[0] for each in required if "extra ==" not in each]
    assert set(sorted(base, key=size, reverse=True)[:3]) == set(said.groups())


def size(name: str) -> int:
    """Bytes that a distribution takes on the disk."""
    files = metadata.files(name)
    if not files:
        pytest.skip(f"nothing says which files are those of {name}")
    return sum(file.size or 0 for file in files)
