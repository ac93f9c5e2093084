"""Rows of a ``datasets.Dataset``, which need not be imported to be recognized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.errors import InputError
from hasten.records import Text

_PAIRS = (("text", "text_pair"), ("question", "context"))


def is_dataset(data: object) -> bool:
    """Whether ``data`` is a ``datasets.Dataset``, or looks exactly like one."""
    return all(hasattr(data, name) for name in ("column_names", "with_format", "iter"))


def texts_of(data: Any) -> Sequence[Text]:
    """The texts or pairs of a dataset, by the usual names of its columns; other data as it is.

    Raises:
        InputError: its columns have other names.
    """
    if not is_dataset(data):
        given: Sequence[Text] = data
        return given
    names = set(data.column_names)
    for first, second in _PAIRS:
        if names >= {first, second}:
            return list(zip(data[first], data[second], strict=True))
    if "text" in names:
        return list(data["text"])
    raise InputError(
        f"the dataset has the columns {', '.join(data.column_names)}, and none is called text",
        fix="Give the texts alone: dataset['NAME'], or for pairs "
        "list(zip(dataset['FIRST'], dataset['SECOND'])).",
    )
