"""Links between pages work on a forge and in the site, and the site has every page."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import hasten

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Links and headings inside code are neither.
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The pages that a page links to, and the anchors there."""
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match("https?:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def headings(page: Path) -> Iterator[str]:
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    yield from re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def forge_anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_anchor(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def listed(entry: Any) -> Iterator[str]:
    """The pages below an entry of the site's navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from listed(part)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.is_file(), target
        if page.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"the site has no {target}"
        if anchor:
            assert anchor in set(map(forge_anchor, headings(target))), f"a forge has no #{anchor}"
            assert anchor in set(map(site_anchor, headings(target))), f"the site has no #{anchor}"


def test_the_site_has_every_page_once() -> None:
    settings = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    pages = sorted(page.relative_to(DOCS).as_posix() for page in PAGES)
    assert sorted(listed(settings["nav"])) == pages


def test_every_public_name_is_documented() -> None:
    """Checked here as well as by the site's builder, which `make setup` does not install."""
    named = re.findall(r"^::: (.+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"hasten.{name}" for name in hasten.__all__ if name != "__version__"} <= set(named)
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__
