"""The seam between a report and the forms in which it is written to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hasten.report.document import Document, Figure


@dataclass(frozen=True, slots=True)
class Medium:
    """A form in which reports are written. It has one of the two functions.

    Attributes:
        name: what ``--format`` calls it, and the extension of its files.
        render: the one file of a report, from the document and the names of the pictures that are
            written beside it, by their figures.
        draw: a file of each figure.
    """

    name: str
    render: Callable[[Document, Mapping[str, str]], bytes] | None = None
    draw: Callable[[Figure], bytes] | None = None
