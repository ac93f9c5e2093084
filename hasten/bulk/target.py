"""The output: a file, a folder of parts, or a pipe; and in which format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasten.bulk.source import PIPE, Input
from hasten.errors import ChoiceError
from hasten.inputs import formats


@dataclass(frozen=True, slots=True)
class Target:
    """Where answers go. ``path`` is None for standard output; ``format`` an extension."""

    path: Path | None
    dataset: bool
    format: str
    packing: str


def decide(output: str, wanted: str | None, given: Input) -> Target:
    """Tell what the user means.

    Args:
        output: a file's name; a folder's, which ends with a slash, exists, or has no extension;
            or :data:`PIPE`.
        wanted: the format, as an extension.
        given: what is read; its format is taken where there is nothing else to go by.

    Raises:
        ChoiceError: the format is unknown, contradicts the name, or has no place for answers.
        InputError: the file's extension is unknown.
    """
    usual = given.extension if given.format.holds_answers else ".jsonl"
    if output == PIPE:
        return Target(None, False, _known(wanted or usual, pipe=True), "")
    path = Path(output)
    if path.is_symlink():  # what it points to becomes the output, and it stays a link
        path = path.resolve()
    if output.endswith("/") or path.is_dir() or not path.suffix:
        return Target(path, True, _known(wanted or usual), "")
    kind = formats.named(path)
    extension = formats.extension(path)
    if wanted and formats.by_extension().get(wanted) is not kind:
        raise ChoiceError(
            f"{output} and the format {wanted.removeprefix('.')} contradict each other",
            fix="Leave --output-format out, or give -o another extension.",
        )
    packing = formats.packing(path)
    if packing and kind.seeks:
        raise ChoiceError(
            f"{output}: {extension} packs its columns itself",
            fix=f"Leave {packing} out.",
        )
    return Target(path, False, _known(extension), packing)


def _known(extension: str, *, pipe: bool = False) -> str:
    allowed = [
        known
        for known, kind in formats.by_extension().items()
        if kind.holds_answers and not (pipe and kind.seeks)
    ]
    if extension not in allowed:
        where = "to standard output" if pipe else "with answers"
        raise ChoiceError(
            f"{extension.removeprefix('.')} cannot be written {where}",
            fix=f"Formats: {', '.join(e.removeprefix('.') for e in allowed)}.",
        )
    return extension
