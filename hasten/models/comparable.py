"""Whether the answers of a student can be held against those of the model named as its original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.errors import ChoiceError, ModelError
from hasten.models.folder import ModelFolder
from hasten.records import LengthProfile, ModelInfo, Text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_FIX = "Give the model that the student was made from, with --reference."
_CHARACTERS_PER_TOKEN = 16
"""How much of a long text is looked at, per token that the model takes."""
_SHOWN = 3
_CONTEXT_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token of a text, or a whole word's, and the characters ``[begin, end)`` it stands for."""

    token: str
    begin: int
    end: int
    known: bool
    is_word: bool = False


def require_comparable(
    original: ModelFolder, student: ModelFolder, texts: Sequence[Text], profile: LengthProfile
) -> None:
    """Refuse a pair of models whose answers mean different things, before anything is measured.

    The student's tokens may have other ids, and may be fewer: it has to split the texts into the
    same tokens, but for those that it does not know. Where its vocabulary is a part of the
    original's, the same words of the same characters are enough: how it reads a word that it lacks
    is its own loss, which its answers show.

    Args:
        original: the model that was named as the reference.
        student: the model that is tuned.
        texts: those that will be run.
        profile: the lengths of all texts, as the original's tokenizer counts them.

    Raises:
        ChoiceError: both are the same model.
        ModelError: task, outputs, labels, longest text or tokenizer differ; it says which and how.
    """
    if original.same_as(student):
        raise ChoiceError(
            f"--reference names {original.info.name}, which is the very model that is tuned",
            fix="Leave --reference out: answers are compared with that model's own anyway. It is "
            "for a student that `hasten compress` made of another model.",
        )
    _require_same_answers(original.info, student.info)
    _require_same_window(original.info, student.info, profile)
    _require_same_tokens(original, student, texts)


def _require_same_answers(original: ModelInfo, student: ModelInfo) -> None:
    ours, theirs = _called(original, student)
    if original.task != student.task or original.task_settings != student.task_settings:
        raise ModelError(
            "a student can only be compared with a model of the same task: "
            f"{ours} is {original.task}, {theirs} {student.task}",
            fix=f"{_FIX} --task says what both are, where a model does not say it right.",
        )
    if original.output_width != student.output_width:
        raise ModelError(
            f"{ours} gives {original.output_width} numbers a text, {theirs} "
            f"{student.output_width}: there is nothing to compare",
            fix=_FIX,
        )
    differing = [
        f"output {place} is {one!r} in {ours} and {other!r} in {theirs}"
        for place, (one, other) in enumerate(zip(original.labels, student.labels, strict=True))
        if one != other
    ]
    if differing:
        more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        order = " (the same labels in another order)" if _same_set(original, student) else ""
        raise ModelError(
            f"the labels differ{order}: {'; '.join(differing[:_SHOWN])}{more}",
            fix=f"{_FIX} If only the names differ, make id2label in both config.json the same.",
        )


def _called(original: ModelInfo, student: ModelInfo) -> tuple[str, str]:
    # Folders of both are often called the same.
    return f"the original ({original.name})", f"the student ({student.name})"


def _same_set(original: ModelInfo, student: ModelInfo) -> bool:
    return sorted(original.labels) == sorted(student.labels)


def _require_same_window(original: ModelInfo, student: ModelInfo, profile: LengthProfile) -> None:
    """Both must read all of a text, or the same part of it."""
    ours, theirs = _called(original, student)
    limits = original.max_length, student.max_length
    is_cut = profile.longest > min(limits) or (profile.truncated and limits[0] < limits[1])
    if limits[0] != limits[1] and is_cut:
        raise ModelError(
            f"{ours} reads up to {limits[0]} tokens of a text and {theirs} {limits[1]}, and some "
            f"texts are longer than {min(limits)}: they would be compared on different parts",
            fix=f"Give texts of up to {min(limits)} tokens, or set model_max_length in both "
            "tokenizer_config.json to the same.",
        )


def _require_same_tokens(
    original: ModelFolder, student: ModelFolder, texts: Sequence[Text]
) -> None:
    files = [reference.folder / "tokenizer.json" for reference in (original, student)]
    if files[0].read_bytes() == files[1].read_bytes():
        return
    longest = _CHARACTERS_PER_TOKEN * original.info.max_length
    parts = chain.from_iterable((text,) if isinstance(text, str) else text for text in texts)
    heads = [part[:longest] for part in parts]
    names = _called(original.info, student.info)
    tokenizers = [_unlimited(file) for file in files]
    has_fewer = _is_part(*tokenizers)
    encoded = (tokenizer.encode_batch(heads) for tokenizer in tokenizers)
    for head, *both in zip(heads, *encoded, strict=True):
        by_word = has_fewer and _normalized(tokenizers[0], head) == _normalized(tokenizers[1], head)
        ours, theirs = (
            list(_words(tokenizer, encoding) if by_word else _pieces(tokenizer, encoding))
            for tokenizer, encoding in zip(tokenizers, both, strict=True)
        )
        places = _first_difference(ours, theirs)
        if places is not None:
            place, other = places
            raise ModelError(
                f"the tokenizers split a text differently: {names[0]} reads "
                f"{_quoted(ours, place)}, {names[1]} {_quoted(theirs, other)} in "
                f"{_excerpt(head, ours, place)!r}",
                fix=f"{_FIX} A student may lack some of its tokens, and have other ids, but "
                "everything else in tokenizer.json has to be the same.",
            )


def _unlimited(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _is_part(original: Tokenizer, student: Tokenizer) -> bool:
    """Whether the student has some of the original's tokens, and no others."""
    ours, theirs = (set(each.get_vocab(with_added_tokens=True)) for each in (original, student))
    return theirs < ours


def _normalized(tokenizer: Tokenizer, text: str) -> str:
    normalizer = tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _pieces(tokenizer: Tokenizer, encoding: Encoding) -> Iterator[_Piece]:
    unknown = getattr(tokenizer.model, "unk_token", None)
    named = zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True)
    for token, number, offsets in named:
        # Unigram models give an unknown token the text's own characters as its name.
        known = token != unknown and tokenizer.token_to_id(token) == number
        yield _Piece(token, *offsets, known)


def _words(tokenizer: Tokenizer, encoding: Encoding) -> Iterator[_Piece]:
    """What the tokens of each word are together; those that belong to none stand for themselves."""
    tokens = zip(encoding.word_ids, _pieces(tokenizer, encoding), strict=True)
    for word, group in groupby(tokens, key=lambda named: named[0]):
        pieces = [piece for _, piece in group]
        if word is None:
            yield from pieces
            continue
        yield _Piece(
            " ".join(piece.token for piece in pieces),
            min(piece.begin for piece in pieces),
            max(piece.end for piece in pieces),
            any(piece.known for piece in pieces),
            is_word=True,
        )


def _first_difference(ours: list[_Piece], theirs: list[_Piece]) -> tuple[int, int] | None:
    """The places in both at which they part; what the student does not know counts as the same."""
    place = 0
    for other, piece in enumerate(theirs):
        if not piece.known:
            while place < len(ours) and _within(ours[place], piece):
                place += 1
        elif place == len(ours) or not _alike(ours[place], piece):
            return place, other
        else:
            place += 1
    return None if place == len(ours) else (place, len(theirs))


def _alike(ours: _Piece, theirs: _Piece) -> bool:
    same_word = ours.is_word and (ours.begin, ours.end) == (theirs.begin, theirs.end)
    return ours.token == theirs.token or (same_word and theirs.is_word)


def _within(piece: _Piece, unknown: _Piece) -> bool:
    # Tokens without characters of their own, such as the last one, are nobody's part.
    return piece.begin < piece.end and unknown.begin <= piece.begin and piece.end <= unknown.end


def _quoted(pieces: list[_Piece], place: int) -> str:
    tokens = [piece.token for piece in pieces[place : place + _SHOWN]]
    return repr(" ".join(tokens)) if tokens else "nothing more"


def _excerpt(text: str, pieces: list[_Piece], place: int) -> str:
    begin = pieces[place].begin if place < len(pieces) else len(text)
    return text[max(begin - _CONTEXT_CHARACTERS, 0) : begin + _CONTEXT_CHARACTERS]
