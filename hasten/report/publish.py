"""From stored results to a report's files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

from hasten.errors import ChoiceError
from hasten.records import Bench, Tuning
from hasten.report import comparison, compose, media, stored
from hasten.report.document import Document
from hasten.report.media import Medium
from hasten.runtime.manifest import MANIFEST
from hasten.storage import durable


def read(path: Path, other: Path | None) -> tuple[list[Tuning | Bench], Document]:
    """One result, or two to be compared, and the report about them.

    Raises:
        InputError: there are no results.
        BundleError: a bundle that has been altered.
    """
    results = [stored.read(folder) for folder in (path, other) if folder]
    if other is None:
        return results, compose.of(results[0])
    sides = zip(stored.labels(path, other), results, strict=True)
    return results, comparison.of(*(comparison.Side(*side) for side in sides))


def base(path: Path, other: Path | None, output: str | PathLike[str] | None) -> Path:
    """What the files of a report are called, without their endings.

    A bench's report stands among its results. A bundle holds what its manifest lists and nothing
    else, so its report stands beside it, under its name.
    """
    folder = path if path.is_dir() else path.parent
    name = "report" if other is None else "comparison"
    if output is not None:
        return Path(output) / name
    if other is not None:
        return Path(name)
    if (folder / MANIFEST).exists():
        # Resolved: "." has a name and a parent too.
        folder = folder.resolve()
        return folder.with_name(f"{folder.name}.{name}")
    return folder / name


def write(document: Document, base: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write a report as ``base`` with the ending of each of ``formats``, pictures first.

    Pictures are called ``<base>-<figure>.png``, and Markdown shows those written with it.

    Returns:
        The files, as they were written.

    Raises:
        ChoiceError: a format that does not exist.
        Unavailable: the extra ``report`` is not installed, and the format needs it.
        StorageError: a file cannot be written.
    """
    known = media.discover()
    for name in formats:
        if name not in known:
            raise ChoiceError(
                f"unknown report format {name!r}", fix=f"Choose from: {', '.join(known)}."
            )
    with durable.storing(base):
        base.parent.mkdir(parents=True, exist_ok=True)
        return tuple(_write(document, base, [known[name] for name in sorted(set(formats))]))


def _write(document: Document, base: Path, wanted: Sequence[Medium]) -> Iterator[Path]:
    shown: dict[str, str] = {}
    for name, draw in ((each.name, each.draw) for each in wanted if each.draw):
        for figure in document.figures:
            path = base.with_name(f"{base.name}-{figure.name}.{name}")
            durable.write(path, draw(figure))
            shown.setdefault(figure.name, path.name)
            yield path
    for name, render in ((each.name, each.render) for each in wanted if each.render):
        path = base.with_name(f"{base.name}.{name}")
        durable.write(path, render(document, shown))
        yield path
