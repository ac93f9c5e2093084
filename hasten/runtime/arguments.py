"""What a loaded bundle takes as texts: everything that the text-classification pipeline takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from hasten.errors import ChoiceError, InputError
from hasten.inputs.tokenization import Tokens
from hasten.records import Text

READ_AHEAD = 256
NO_TRUNCATION = (False, None, "do_not_truncate")
"""Values of the pipeline's ``truncation`` that leave texts whole."""

Sides: TypeAlias = tuple[str, str]
"""What the two texts of a pair are called."""

_TRUNCATION = (True, "longest_first", "only_first", *NO_TRUNCATION)

_TAKEN = (
    "Give a str, a dict with 'text', a sequence, array or series of these, or a generator or "
    "dataset of them."
)


def check_arguments(top_k: object, truncation: object) -> None:
    """Refuse what the pipeline would take for something else, or would not take.

    Raises:
        ChoiceError: a value that the argument cannot have.
    """
    if top_k is not None and not (isinstance(top_k, int | np.integer) and top_k >= 1):
        raise ChoiceError(f"top_k is {top_k!r}", fix="It must be at least 1, or None for all.")
    if truncation not in _TRUNCATION:
        raise ChoiceError(
            f"truncation is {truncation!r}",
            fix="It must be True, False, longest_first, only_first or do_not_truncate.",
        )


def refuse_unknown(unknown: Collection[str], call: Callable[..., object]) -> None:
    """Refuse arguments that ``call``, a method that takes texts first, does not name.

    Raises:
        ChoiceError: there are such; it names those that can be given.
    """
    if unknown:
        parameters = inspect.signature(call).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD][2:]
        raise ChoiceError(
            f"a bundle does not take {', '.join(unknown)}",
            fix=f"It takes texts and {', '.join(names)}.",
        )


def as_text(item: object, place: int | None = None, *, sides: Sides | None = None) -> Text:
    """A text, or that of ``{"text": ...}``; with ``sides`` a tuple of two texts.

    Args:
        item: what the caller gave.
        place: where it stood among others.
        sides: of a model that reads pairs, what its two texts are called in a dict.

    Raises:
        InputError: it is something else, or not what the model reads.
    """
    where = "the text" if place is None else f"text {place}"
    first, second = item, None
    if isinstance(item, Mapping):
        first, second = (item.get(name) for name in sides or ("text", "text_pair"))
    elif sides and isinstance(item, list | tuple) and len(item) == 2:
        first, second = item
    if sides:
        if not isinstance(first, str) or not isinstance(second, str):
            raise InputError(
                f"{where} is not a pair of str, which this model reads",
                fix=f"Give tuples of two str, or dicts with {sides[0]!r} and {sides[1]!r}.",
            )
        return first, second
    if second is not None:
        raise InputError(
            f"{where} is a pair, and this model reads one text at a time",
            fix="Give each text by itself.",
        )
    if not isinstance(first, str):
        raise InputError(f"{where} is {type(first).__name__}, not str", fix=_TAKEN)
    return first


def by_side(named: dict[str, Any], sides: Sides | None) -> object:
    """The texts of ``question=..., context=...``, which are taken out of ``named``.

    Each is a str or a list of them; one str beside a list belongs to each of the list.

    Raises:
        InputError: texts were given in no way, or not as many on both sides.
    """
    if not sides or not named.keys() >= set(sides):
        raise InputError("texts are missing", fix=_TAKEN)
    first, second = (named.pop(name) for name in sides)
    if isinstance(first, str) and isinstance(second, str):
        return first, second
    count = max(len(each) for each in (first, second) if not isinstance(each, str))
    lists = [[each] * count if isinstance(each, str) else each for each in (first, second)]
    if len(lists[0]) != len(lists[1]):
        raise InputError(f"{sides[0]} has {len(lists[0])} texts and {sides[1]} {len(lists[1])}")
    return list(zip(*lists, strict=True))


def listed(texts: object, *, sides: Sides | None = None) -> list[Text] | None:
    """The texts of a sequence, array or series; None for what has to be read step by step.

    Raises:
        InputError: it holds something that is not text.
    """
    if hasattr(texts, "tolist") and not hasattr(texts, "__next__"):
        texts = texts.tolist()
    if isinstance(texts, Sequence) and not isinstance(texts, str | bytes):
        return [as_text(item, place, sides=sides) for place, item in enumerate(texts)]
    return None


def streamed(texts: object, *, sides: Sides | None = None) -> Iterator[Text]:
    """The texts of a generator, an iterator or a dataset, read one at a time.

    Raises:
        InputError: it is none of these; later, an item that is not text.
    """
    items: Any = texts
    if isinstance(texts, str | bytes):
        raise InputError(f"texts are {type(texts).__name__}", fix=_TAKEN)
    if isinstance(texts, Iterable):
        source: Iterable[object] = items
    elif hasattr(texts, "__len__") and hasattr(texts, "__getitem__"):
        source = (items[place] for place in range(len(items)))  # a torch Dataset
    else:
        raise InputError(f"texts are {type(texts).__name__}", fix=_TAKEN)
    return (as_text(item, place, sides=sides) for place, item in enumerate(source))


def answered(
    texts: Iterator[Text], answers: Callable[[Sequence[Text]], list[Any]], read_ahead: int | None
) -> Iterator[Any]:
    """Answer texts as they are read, ``read_ahead`` of them at a time.

    Raises:
        ChoiceError: ``read_ahead`` is below 1.
    """
    count = READ_AHEAD if read_ahead is None else read_ahead
    if count < 1:
        raise ChoiceError(f"batch_size is {count}", fix="It must be at least 1.")

    def run() -> Iterator[Any]:
        while some := list(islice(texts, count)):
            yield from answers(some)

    return run()


def refuse_long(tokens: Tokens, begin: int) -> None:
    """Refuse texts that would be cut off; ``begin`` is the place of the first one.

    Raises:
        InputError: the first of them.
    """
    long = np.flatnonzero(tokens.truncated)
    if len(long):
        raise InputError(
            f"text {begin + int(long[0])} is longer than {int(tokens.longest[long[0]])} tokens, "
            "and truncation is off",
            fix="Pass truncation=True to read its beginning, or split it.",
        )
