"""Phrases that readers stumble over, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRITTEN = (
    *(ROOT / "hasten").rglob("*.py"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
)
BETTER = {
    r"(is|was|are) there already": "already exists",
    r"\banew\b": "again, starts over",
    r"is no (duration|bundle|tie|product|share)": "is not a ...",
    r"[Tt]here is no (folder|file|engine|experiment|task) ": "X does not exist, unknown X",
    r"became of": "the outcome of",
    r"[Nn]obody (asked|knows|expects)": "say what does not happen",
    r"\blearnt\b": "trained",
    r"\buntaught\b": "untrained",
    r"(that|texts|which) (teach|taught)\b": "trained on, used for training",
    r"[Cc]hanged answers|answers (that )?changed": "flipped labels",
    r"layers? spared": "layers kept in fp32",
    r"of which nobody": "name what cannot be done",
    r"would lead back": "cannot help",
    r"keep_quiet|_Untold": "ignore_event, NotFingerprintable",
    r"Use .{5,40}: \d\S* .{0,20}as fast as": "Fastest: X. 1.83x faster than Y",
}


def read(path: Path) -> str:
    """A file's text on one line, with the parts of a long string joined."""
    joined = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
    return " ".join(re.sub(r"\n\s*#", "", joined).split())


def test_the_known_bad_phrases_are_gone() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r} (better: {better})"
        for path in WRITTEN
        for phrase, better in BETTER.items()
        for match in re.finditer(phrase, read(path))
    ]
    assert found == []
