"""Phrases that readers stumble over, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    r"[Tt]here is no (such )?(folder|file|engine|experiment|task)\b": "unknown X, X does not exist",
    r"[Tt]here is no such (function|cluster|column|model)\b": "unknown X, X does not exist",
    r"bec[ao]me of": "the outcome of",
    r"[Nn]obody (asked|knows|expects)": "say what does not happen",
    r"\blearnt\b": "trained",
    r"\buntaught\b": "untrained",
    r"(that|texts|which) (teach|taught)\b": "trained on, used for training",
    r"[Cc]hanged answers|answers (that )?chang(ed?|es)\b": "flipped labels",
    r"[Cc]hang(es|ed) (more |fewer |no )?(your |the )?(answers|labels)\b": "flips more labels",
    r"layers? spared": "layers kept in fp32",
    r"of which nobody": "name what cannot be done",
    r"would lead back": "cannot help",
    r"keep_quiet|_Untold": "ignore_event, NotFingerprintable",
    r"Use [^.]{5,120}: \d\S* .{0,40}as fast as": "Fastest: X. 1.83x faster than Y",
}


MEASURED = re.compile(r"<!-- figures: .*?<!-- end of figures -->", re.DOTALL)
"""What a command printed when it was measured, quoted as it came out."""


def flat(text: str) -> str:
    """A text on one line, with the parts of a long string joined, without measured blocks."""
    joined = re.sub(r'"\s*\n\s*[fr]*"', "", MEASURED.sub("", text))
    return " ".join(re.sub(r"\n\s*#", "", joined).split())


def bad_phrases(text: str) -> list[str]:
    return [
        f"{match[0]!r} (better: {better})"
        for phrase, better in BETTER.items()
        for match in re.finditer(phrase, flat(text))
    ]


def test_the_known_bad_phrases_are_gone() -> None:
    found = {
        str(path.relative_to(ROOT)): bad
        for path in WRITTEN
        if (bad := bad_phrases(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "ChoiceError: there is no such task.",
        "There is no folder: x",
        'f"There is no "\n    rf"file: {path}"',
        "Use ONNX Runtime fp32, optimal batches of the texts: 3.12x (2.89 to 3.38) as fast as it",
        "what has become of it",
        "most answers change: 13",
    ],
)
def test_bad_phrases_are_found_beside_colons_and_line_breaks(text: str) -> None:
    assert bad_phrases(text)
    measured = f"<!-- figures: x -->\n{text}\n<!-- end of figures -->"
    assert not bad_phrases(measured)
