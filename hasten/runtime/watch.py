"""Notices when texts in use are unlike those that proved a bundle: by how many are handed on."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.judging.stats import clopper_pearson_lower, clopper_pearson_upper
from hasten.percent import percent
from hasten.records import HandsOn, Interval, Stats

FEWEST = 200
"""Texts from which on a share is worth comparing."""

_CONFIDENCE = 0.999
"""Of each interval. A run is looked at each time its texts have doubled, about ten times in all."""

_MOST = 200 * 2**12
"""Texts after which nothing more is compared: the interval is then narrower than any drift."""


class Watch:
    """Counts which stage answered, and says once when a stage hands on another share than proved.

    Not to be called from several threads at once.
    """

    def __init__(self, hands_on: Sequence[HandsOn | None]) -> None:
        self._hands_on = hands_on
        self._due = FEWEST
        self._warned = False
        self.stats = Stats((0,) * len(hands_on))

    def count(self, answered: Sequence[int]) -> str | None:
        """Count texts by the stage that answered them; a sentence where they are unlike, once."""
        both = zip(self.stats.answered, answered, strict=True)
        self.stats = Stats(tuple(old + new for old, new in both))
        if self._warned or not self._due <= self.stats.texts <= _MOST:
            return None
        while self._due <= self.stats.texts:
            self._due *= 2
        warning = unlike(self.stats, self._hands_on)
        self._warned = warning is not None
        return warning


def unlike(stats: Stats, hands_on: Sequence[HandsOn | None]) -> str | None:
    """How the share of texts that a stage hands on differs from the proved one, in a sentence.

    It differs where the exact (Clopper-Pearson) intervals of the two shares, at 99.9 % confidence
    each, have no point in common. None where they have, where the proof counted nothing, and where
    fewer than 200 texts came to the stage.
    """
    for number, rule in enumerate(hands_on):
        come, handed = stats.reached(number), stats.reached(number + 1)
        if rule is None or not rule.texts or come < FEWEST:
            continue
        here, proved = _interval(handed, come), _interval(rule.handed, rule.texts)
        if here.low > proved.high or here.high < proved.low:
            return (
                f"stage {number + 1} handed on {handed:,} of {come:,} texts "
                f"({percent(here.estimate)}), and {percent(proved.estimate)} of those that "
                "proved it. These texts are unlike those: more answers may "
                "differ from the original's than was proved. Tune again with texts like these."
            )
    return None


def _interval(successes: int, trials: int) -> Interval:
    each = (1 + _CONFIDENCE) / 2
    return Interval(
        clopper_pearson_lower(successes, trials, each),
        successes / trials,
        clopper_pearson_upper(successes, trials, each),
    )
