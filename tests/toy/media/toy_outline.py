"""The report's headings, one a line."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.report.document import Document
from hasten.report.media import Medium


def _render(document: Document, pictures: Mapping[str, str]) -> bytes:
    headings = [document.title, *(f"- {section.title}" for section in document.sections)]
    return "".join(f"{heading}\n" for heading in headings).encode()


MEDIA = (Medium("outline", _render),)
