"""How the texts are shared out: most train, some watch the training, some judge the result."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hasten.compress.runner import Lot
from hasten.compress.schedule import FEWEST_TEXTS
from hasten.errors import InputError
from hasten.inputs.tokenization import TextTokenizer

_JUDGING = (0.2, 1000)
"""Share of the texts that judge the result, and how many at most."""

_WATCHING = (0.1, 300)
"""Share of the texts by which training is watched, and blocks are chosen."""


@dataclass(frozen=True, slots=True)
class Lots:
    """The texts that watch, by which is chosen and stopped, and those that judge."""

    watch: Lot
    judge: Lot

    def read_by(self, tokenizer: TextTokenizer) -> Lots:
        """The same texts as another tokenizer reads them."""
        watch, judge = (
            replace(lot, tokens=tokenizer.encode(lot.texts)) for lot in (self.watch, self.judge)
        )
        return Lots(watch, judge)


def split(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Split the texts into training, watching (early stopping) and judging.

    Raises:
        InputError: there are too few.

    >>> train, watch, judge = split(1000, seed=0)
    >>> len(train), len(watch), len(judge), len(set(train) | set(watch) | set(judge))
    (700, 100, 200, 1000)
    """
    if count < FEWEST_TEXTS:
        raise InputError(
            f"there are {count} different texts, and a student needs at least {FEWEST_TEXTS}",
            fix="Give more; they need no labels.",
        )
    order = np.random.default_rng(seed).permutation(count)
    judging, watching = _apart(count)
    return order[judging + watching :], order[judging : judging + watching], order[:judging]


def _apart(count: int) -> tuple[int, int]:
    """Of ``count`` texts, how many judge and how many watch."""
    judging, watching = (min(int(share * count), most) for share, most in (_JUDGING, _WATCHING))
    return judging, watching


def corpus_of(teaching: int) -> int:
    """Largest corpus whose training split has at most ``teaching`` texts.

    >>> corpus_of(700), corpus_of(20_000)
    (998, 21300)
    """
    return next(n for n in itertools.count(teaching) if n + 1 - sum(_apart(n + 1)) > teaching)
