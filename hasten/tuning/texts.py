"""Which of the user's texts judge, which calibrate, and on which candidates are looked at first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten import tasks
from hasten.errors import InputError
from hasten.inputs.corpus import digest, label_text, profile, stratified_sample
from hasten.inputs.tokenization import Tokens
from hasten.models import ModelFolder
from hasten.options.choices import FEWEST_CALIBRATION
from hasten.records import LengthProfile, Settings, Text
from hasten.runtime import probes
from hasten.tuning import candidates

# The length profile of more texts than this would not differ, and takes longer to count.
_MOST_PROFILED = 20_000
_LONG_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts that are judged, with what is known about all of them.

    ``calibration`` are others, held apart from those, to set the ranges of int8 candidates, and
    ``taught`` is how many there were, copies included, that a student was made with.
    """

    texts: tuple[Text, ...]
    gold: tuple[str, ...] | None
    tokens: Tokens
    profile: LengthProfile
    calibration: tuple[Text, ...] = ()
    calibration_lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    taught: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over texts and gold labels."""
        content = json.dumps([self.texts, self.gold, self.calibration]).encode()
        return hashlib.sha256(content).hexdigest()


def choose_texts(
    reference: ModelFolder,
    texts: Sequence[Text],
    labels: Sequence[str] | None,
    settings: Settings,
    taught: Set[str] = frozenset(),
) -> Texts:
    """Tokenize, profile, and take a stratified sample of the texts to be judged.

    ``taught`` are the digests of texts that may calibrate and must not judge.

    Raises:
        InputError: there are no texts, not one label for each, or none that may judge.
    """
    if not len(texts):
        raise InputError("texts is empty", fix="Give texts of the kind the model will see.")
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"there are {len(texts)} texts and {len(labels)} labels")
    task = tasks.of(reference.info)
    _require_kind(task, texts)
    rng = np.random.default_rng(settings.seed)
    known = np.arange(len(texts), dtype=np.int64)
    if len(texts) > _MOST_PROFILED:
        known = np.sort(rng.choice(len(texts), _MOST_PROFILED, replace=False))
    tokenizer = reference.tokenizer(settings.threads)
    looked_at = [texts[int(index)] for index in known]
    tokens = task.encode(tokenizer, looked_at)
    seen = np.array([bool(taught) and digest(text) in taught for text in looked_at], np.bool_)
    if seen.all():
        raise InputError(
            f"all {len(seen):,} texts were used to make the student, so none of them can judge it",
            fix="Give the whole file that it was made with, of which two in ten were left out, "
            "or other texts.",
        )
    apart, rest = _held_apart(looked_at, tokens.lengths, settings, seen)
    calibration = tuple(texts[int(known[place])] for place in apart)
    sample = rest[stratified_sample(tokens.lengths[rest], settings.texts, settings.seed)]
    indices = [int(known[place]) for place in sample]
    return Texts(
        texts=tuple(texts[index] for index in indices),
        gold=None if labels is None else tuple(_gold(labels[index]) for index in indices),
        tokens=tokens.select(sample),
        profile=profile(
            tokens.longest, tokens.truncated, reference.info.max_length, given=len(texts)
        ),
        calibration=calibration,
        calibration_lengths=tokens.longest[apart],
        taught=int(seen.sum()),
    )


def _require_kind(task: tasks.Task, texts: Sequence[Text]) -> None:
    """Refuse single texts for a model of pairs, and pairs for one of texts."""
    pairs = not isinstance(texts[0], str)
    readers = [name for name, kind in tasks.discover().items() if kind.takes == "pairs"]
    if pairs and task.takes == "texts":
        raise InputError(
            f"a {task.name} model reads one text at a time, and these are pairs",
            fix="Give one column: --text-column NAME. Of a model that reads pairs, --task says so: "
            f"{' or '.join(readers)}.",
        )
    if not pairs and task.takes == "pairs":
        raise InputError(
            f"a {task.name} model reads pairs of texts, and these are single ones",
            fix="Name both columns, as in --text-column FIRST,SECOND, or give tuples of two str.",
        )


def _gold(label: object) -> str:
    """A label as the task reads it.

    Raises:
        InputError: it is neither a label nor a list of labels.
    """
    text = label_text(label)
    if text is None:
        raise InputError(
            f"labels holds {str(label)[:60]}",
            fix="A label is text, a number, or a list of texts.",
        )
    return text


def _held_apart(
    texts: Sequence[Text],
    lengths: NDArray[np.int64],
    settings: Settings,
    seen: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the texts calibrate, and which are left to judge.

    Texts that made the student (``seen``) calibrate first, since they judge nothing anyway. Where
    they are fewer than would be held apart of texts that are all new, a stratified sample of the
    others joins them. Copies count once, and those of a calibration text are left out altogether:
    what set the ranges must not judge them. None calibrate where there are too few different texts.
    """
    judging = np.flatnonzero(~seen)
    if not candidates.tries_int8(settings):
        return judging[:0], judging
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    different = np.array(sorted(first.values()), np.int64)

    def draw(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        if count <= 0:
            return places[:0]
        return places[stratified_sample(lengths[places], count, settings.seed)]

    apart = draw(different[seen[different]], settings.calibration)
    wanted = min(settings.calibration, int(candidates.CALIBRATION_SHARE * len(different)))
    joining = draw(different[~seen[different]], wanted - len(apart))
    joined = {texts[place] for place in joining.tolist()}
    rest = np.array([p for p in judging.tolist() if texts[p] not in joined], np.int64)
    # Where most are copies of a few, too little would be left of what the user's texts are like.
    if 2 * len(rest) < len(judging):
        joining, rest = joining[:0], judging
    apart = np.sort(np.concatenate([apart, joining]))
    if len(apart) < FEWEST_CALIBRATION:
        return judging[:0], judging
    return apart, rest


def looks(chosen: Texts, seed: int) -> dict[str, Any]:
    """Calibration texts on which candidates are looked at before the proof.

    A few of all lengths, others longer than the mean for candidates that cut long texts, and the
    rest for the thresholds of cascades.
    """
    lengths = chosen.calibration_lengths
    if not chosen.calibration:
        return {}
    first = stratified_sample(lengths, probes.TEXTS, seed)
    long = np.setdiff1d(np.flatnonzero(lengths > lengths.mean()), first)
    if len(long):
        long = long[stratified_sample(lengths[long], _LONG_TEXTS, seed)]
    rest = np.setdiff1d(np.arange(len(lengths)), np.concatenate([first, long]))
    parts = {"first_look": first, "long_look": long, "last_look": rest}
    return {
        **{n: tuple(chosen.calibration[int(i)] for i in places) for n, places in parts.items()},
        "look_lengths": lengths[np.concatenate(list(parts.values()))],
    }
