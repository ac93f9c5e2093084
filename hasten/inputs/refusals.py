"""Why texts cannot be tokenized."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.errors import InputError
from hasten.records import Text


def check_types(texts: Sequence[object], pairs: bool) -> None:
    """Refuse what is not a str, or with ``pairs`` not a tuple of two.

    Raises:
        InputError: it names the first such text.
    """
    # The library would take either for the other.
    for index, text in enumerate(texts):
        if pairs and not _is_pair(text):
            raise InputError(
                f"text {index} is {type(text).__name__}, not a pair of str",
                fix="This model reads pairs: give tuples (text, text_pair).",
            )
        if not pairs and not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, not str")


def _is_pair(text: object) -> bool:
    return isinstance(text, tuple) and [type(part) for part in text] == [str, str]


def failure(texts: Sequence[Text], error: Exception) -> InputError:
    """Why the library cannot encode these texts."""
    for index, text in enumerate(texts):
        surrogate = next((c for c in "".join(text) if "\ud800" <= c <= "\udfff"), None)
        if surrogate is not None:
            return InputError(
                f"text {index} holds a lone surrogate (U+{ord(surrogate):04X}), "
                "which is half a character and has no UTF-8 form",
                fix="Replace it: text.encode('utf-8', 'replace').decode('utf-8').",
            )
    return InputError(f"the tokenizer cannot encode these texts: {error}")
