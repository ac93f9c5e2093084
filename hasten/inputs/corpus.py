"""Texts and labels from a file, and how long the texts are.

:mod:`hasten.inputs.formats` reads the rows; here a column is chosen and its values become texts and
labels, in the same way for all formats. ``docs/text.md`` is this module's page for users.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError, InputError
from hasten.inputs import formats
from hasten.inputs.formats import Reader
from hasten.inputs.formats.base import HEAD_ROWS
from hasten.inputs.formats.records import decoded
from hasten.inputs.formats.values import whole
from hasten.records import LengthProfile, Place, Text

TEXT_COLUMNS = ("text", "texte", "sentence", "content", "review", "comment", "body", "document")
"""Names by which a text column is known without asking, in any mixture of capitals."""


TAUGHT = "taught.json"
"""In a student's folder: digests of the texts that it was made with."""


SAMPLE = Path(__file__).with_name("sample_texts.txt")
"""Built-in texts in some thirty languages, one a line, from one word to a paragraph."""


_WRITE_AGAIN = (
    "Write the column again as UTF-8; if its bytes are Latin-1, value.decode('latin-1') reads them."
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts or pairs in the file's order, with one label each if labels were asked for."""

    texts: tuple[Text, ...]
    labels: tuple[str, ...] | None
    source: str


def read(
    path: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """Read texts, and labels if ``label_column`` is given, from one file.

    The extension names the format: ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson``, ``.json`` (JSON
    Lines), ``.parquet`` and ``.txt`` (one text per line), each also with ``.gz`` or ``.zst`` behind
    it.
    A missing text (null, an absent key) is the empty text, so that rows are neither lost nor
    moved; lone surrogates, which only JSON escapes can bring in, become U+FFFD.

    Args:
        path: the file.
        text_column: which column holds the texts; two with a comma between them for pairs.
            Without it: the only one that holds text, or else the only one of those whose name is
            among :data:`TEXT_COLUMNS`.
        label_column: which column holds the labels. Numbers become their decimal notation.
        limit: read the first ``limit`` rows only; the rest of a long file is not looked at.

    Raises:
        InputError: the file cannot be found or read, a column is missing or ambiguous, a
            row is malformed, or every text is blank.
        ChoiceError: ``limit`` is below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ChoiceError(f"the number of texts to read must be at least 1, not {limit}")
    kind = _format_of(path)
    try:
        with formats.opened(path) as stream:
            reader = kind.read(stream, str(path), Place(), None)
            text = text_column_of(reader, path, text_column, label_column)
            texts, labels = _collect(reader, path, text, label_column, limit)
    except formats.UNREADABLE as error:
        raise unreadable(path, error) from error
    if not any("".join(text).strip() for text in texts):
        raise InputError(
            f"{path}: the column {text!r} is blank in every row ({len(texts)} read)",
            fix=f"Columns: {_listed(reader.columns)}. Choose another with --text-column NAME.",
        )
    return Corpus(texts, labels, str(path))


def singles(texts: Sequence[Text]) -> list[str]:
    """Texts where pairs have no place.

    Raises:
        InputError: there is a pair.
    """
    single = [text for text in texts if isinstance(text, str)]
    if len(single) < len(texts):
        raise InputError(
            "these are pairs of texts, and students are trained on single ones",
            fix="Give one column: --text-column NAME.",
        )
    return single


def sample_texts() -> tuple[str, ...]:
    """The built-in texts, for checks that have none of the user's."""
    return tuple(SAMPLE.read_text(encoding="utf-8").splitlines())


def profile(
    lengths: NDArray[np.int64],
    truncated: NDArray[np.bool_],
    max_length: int,
    *,
    given: int | None = None,
) -> LengthProfile:
    """Summarise how long texts are.

    Args:
        lengths: int64 [n], tokens per text after truncation, special tokens included.
        truncated: bool [n], whether the text was longer than the model takes.
        max_length: the most tokens that the model takes.
        given: how many texts there are, where these are a sample of them.

    Returns:
        A profile whose percentiles are lengths that occur: ``p95`` is the smallest length that
        at least 95 % of the texts do not exceed (the inverse of the distribution function, type 1
        in Hyndman and Fan, Sample Quantiles in Statistical Packages, 1996).

    Raises:
        ValueError: there are no texts, or the arrays differ in shape.

    >>> profile(np.array([3, 4, 8, 8]), np.array([False, False, False, True]), 8).p50
    4
    """
    if lengths.ndim != 1 or lengths.shape != truncated.shape or not lengths.size:
        raise ValueError(f"need [n] and [n] with n > 0, not {lengths.shape}, {truncated.shape}")
    p5, p25, p50, p75, p95 = np.percentile(lengths, (5, 25, 50, 75, 95), method="inverted_cdf")
    return LengthProfile(
        texts=lengths.size,
        tokens=int(lengths.sum()),
        mean=float(lengths.mean()),
        p5=int(p5),
        p25=int(p25),
        p50=int(p50),
        p75=int(p75),
        p95=int(p95),
        longest=int(lengths.max()),
        truncated=int(truncated.sum()),
        max_length=max_length,
        given=lengths.size if given is None else given,
    )


def stratified_sample(lengths: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Choose texts whose lengths are distributed as those of all texts.

    Systematic sampling (Cochran, Sampling Techniques, chapter 8): along the texts in order of
    length, every ``len(lengths) / n``-th from a random start. The k-th of ``n`` equal slices of
    that order gives exactly one text, and every text is equally likely to be taken.

    Args:
        lengths: int64 [texts].
        n: how many to choose, at least 1.
        seed: the same seed gives the same sample.

    Returns:
        int64 [min(n, texts)], distinct indices into ``lengths`` in ascending order.

    Raises:
        ValueError: ``n`` is below 1.

    >>> lengths = np.array([9, 1, 9, 1, 9, 1])
    >>> lengths[stratified_sample(lengths, 2, seed=0)]
    array([9, 1])
    """
    if n < 1:
        raise ValueError(f"a sample needs at least 1 text, not {n}")
    total = lengths.size
    if n >= total:
        return np.arange(total, dtype=np.int64)
    rng = np.random.default_rng(seed)
    # Equal lengths are shuffled: a file that alternates between two kinds of text would else
    # beat in time with the fixed step, and one kind would be missed.
    order = np.lexsort((rng.random(total), lengths))
    # In integers, floor((start + k * total) / n) is exact and never reaches `total`.
    places = (rng.integers(total) + np.arange(n, dtype=np.int64) * total) // n
    return np.sort(order[places]).astype(np.int64)


def digest(text: Text) -> str:
    """A text's SHA-256, shortened: to know it again without keeping it.

    >>> digest("a text")
    '734194ede5b063e6'
    """
    whole_text = text if isinstance(text, str) else "\0".join(text)
    return hashlib.sha256(whole_text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def unreadable(path: Path, error: Exception) -> InputError:
    """A foreign error from reading ``path``, in our words."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return InputError(
        f"{path} cannot be read: {reason}",
        fix="Check its permissions, and that it is complete; else write it again.",
    )


def no_such_file(path: Path) -> InputError:
    """Say that ``path`` does not exist, and what is there that is called nearly so."""
    folder = path.parent
    there = [p.name for p in sorted(folder.iterdir())] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=3)
    return InputError(
        f"{path} does not exist" + ("" if folder.is_dir() else f", nor does its folder {folder}"),
        fix=f"Did you mean {' or '.join(close)}?" if close else None,
    )


def _format_of(path: Path) -> formats.Format:
    if path.is_dir():
        known = formats.by_extension()
        files = [p.name for p in sorted(path.iterdir()) if formats.extension(p) in known]
        raise InputError(
            f"{path} is a folder, and a file with texts is wanted",
            fix=f"Name one of its files: {', '.join(files[:5])}" if files else None,
        )
    if not path.exists():
        raise no_such_file(path)
    return formats.named(path)


def text_column_of(
    reader: Reader, path: Path, wanted: str | None, label_column: str | None = None
) -> str:
    """The column of a file that holds the texts: the one that is wanted, or that is clear.

    Raises:
        InputError: the column does not exist, or several could be it.
    """
    if not reader.columns:
        raise _no_rows(path)
    text_columns = [name for name in reader.text_columns if name != label_column]
    _refuse_missing(str(path), reader.columns, "--label-column", label_column, reader.columns)
    return choose_text_column(str(path), reader.columns, text_columns, wanted)


def choose_text_column(
    name: str, columns: Sequence[str], text_columns: Sequence[str], wanted: str | None
) -> str:
    """The column that holds the texts: the one that is wanted, or the one that is clear.

    Args:
        name: of the file, for messages.
        columns: all of its columns.
        text_columns: those that hold text.
        wanted: what the user named, if anything.

    Raises:
        InputError: the column does not exist, or several could be it.
    """
    if len(set(columns)) < len(columns):
        raise InputError(
            f"{name}: two columns share a name: {_listed(columns)}",
            fix="Give every column a name of its own.",
        )
    likely = text_columns or columns
    _refuse_missing(name, columns, "--text-column", wanted, likely)
    if wanted is not None:
        return wanted
    known = [column for column in text_columns if column.lower() in TEXT_COLUMNS]
    for found in (text_columns, known):
        if len(found) == 1:
            return found[0]
    raise InputError(
        f"{name}: {'several columns hold' if text_columns else 'no column holds'} text, so which "
        f"one to read cannot be told; columns: {_listed(columns)}",
        fix=_as_in("--text-column", likely),
    )


def _refuse_missing(
    name: str, columns: Sequence[str], option: str, wanted: str | None, likely: Sequence[str]
) -> None:
    if wanted is not None and not set(pair_of(wanted, columns)) <= set(columns):
        close = difflib.get_close_matches(wanted, columns, n=1)
        raise InputError(
            f"{name} has no column {wanted!r}; it has: {_listed(columns)}",
            fix=f"{option} {shlex.quote(close[0])}" if close else _as_in(option, likely),
        )


def pair_of(name: str, columns: Sequence[str]) -> tuple[str, ...]:
    """The column of that name, or the two that are named with a comma between them.

    >>> pair_of("a,b", ["a", "b"]), pair_of("a,b", ["a,b", "a"])
    (('a', 'b'), ('a,b',))
    """
    first, comma, second = name.partition(",")
    return (first, second) if comma and name not in columns else (name,)


def _as_in(option: str, columns: Sequence[str]) -> str:
    return f"Name one of them, as in: {option} {shlex.quote(columns[0]) if columns else 'NAME'}"


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(whole(name) or "''" for name in columns)


def _collect(
    reader: Reader, path: Path, text: str, label: str | None, limit: int | None
) -> tuple[tuple[Text, ...], tuple[str, ...] | None]:
    texts: list[Text] = []
    labels: list[str] = []
    names = pair_of(text, reader.columns)
    for where, values in _rows(reader, names if label is None else (*names, label), limit):
        texts.append(as_input(values[: len(names)], where, names))
        if label is not None:
            labels.append(_as_label(values[-1], where, label))
    if not texts:
        raise _no_rows(path)
    return tuple(texts), tuple(labels) if label is not None else None


def _rows(
    reader: Reader, columns: tuple[str, ...], limit: int | None
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Where each row is, and its values; the first broken one is raised."""
    left = limit
    while left is None or left > 0:
        taken = reader.take(HEAD_ROWS if left is None else min(left, HEAD_ROWS), None, columns)
        if not len(taken):
            return
        rows = zip(*(taken.column(name) for name in columns), strict=True)
        for index, values in enumerate(rows):
            if index in taken.errors:
                raise taken.errors[index]
            yield taken.where(index), values
        left = None if left is None else left - len(taken)


def as_input(values: Sequence[object], where: str, columns: Sequence[str]) -> Text:
    """Values of the text columns as a text, or as a pair; see :func:`as_text`."""
    parts = [as_text(v, where, column) for v, column in zip(values, columns, strict=True)]
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def as_text(value: object, where: str, column: str) -> str:
    """A value of the text column as text; a missing one is the empty text.

    Args:
        value: as :meth:`hasten.inputs.formats.Rows.column` gives it.
        where: file and row, for the message.
        column: its name.

    Raises:
        InputError: it is not text, or not UTF-8.
    """
    if value is None:
        return ""
    if isinstance(value, bytes):
        return decoded(value, f"{where}, column {column!r}", _WRITE_AGAIN)
    if isinstance(value, str):
        return whole(value)
    raise InputError(
        f"{where}: the text column {column!r} holds {str(value)[:60]}, which is not text",
        fix="Choose another column with --text-column NAME.",
    )


def _as_label(value: object, where: str, column: str) -> str:
    if isinstance(value, bytes):
        return as_text(value, where, column)
    label = label_text(value)
    if label is None:
        raise InputError(
            f"{where}: the label column {column!r} holds {str(value)[:60]}, and a label is text, a "
            "number, or a list of texts",
            fix="Correct the labels, or leave --label-column out.",
        )
    return label


def label_text(value: object) -> str | None:
    """A label, or the list of a text's labels, as text; None if it is neither.

    A missing label is the empty text: whether every text needs one depends on the task.

    >>> label_text(2.5), label_text(["spam", "urgent"]), label_text(None)
    ('2.5', 'spam,urgent', '')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # as data frames have it
        return ""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list | tuple):
        parts = [label_text(one) for one in value]
        return None if None in parts else ",".join(map(str, parts))
    if isinstance(value, dict):
        return None
    return str(value)


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path} has no rows", fix="Name a file with texts, one a row.")
