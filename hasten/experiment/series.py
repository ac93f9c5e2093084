"""Interleaved rounds of an experiment, of which only what shares a round is compared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.plain import to_json
from hasten.tuning.context import Context
from hasten.tuning.trial import Trial
from hasten.tuning.worker import RunTexts


@dataclass(frozen=True)
class Heat:
    """One entry of every round: a candidate, and what it runs in the round of a given number."""

    trial: Trial
    message: Callable[[int], RunTexts]
    expected_s: float

    @property
    def key(self) -> str:
        """Unique among the heats; the journal knows them by it."""
        message = self.message(0)
        return f"{self.trial.label} {_name(message)} {len(message.indices)}"


@dataclass
class Series:
    """Rounds of some heats. Each round is one line of the journal.

    An interrupted round is run again as a whole. Heats that an earlier start did not have, or did
    not run as often, get further rounds, in which the first heat takes part as well: it is what
    the others are compared with, and never in a round of another hour.
    """

    context: Context
    name: str
    heats: Sequence[Heat]
    rounds: int
    measure_more: Callable[[], Mapping[str, Any]] = dict
    """Measured at the beginning of a round, and kept with it."""
    _done: Counter[str] = field(default_factory=Counter)

    def run(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The number of each round, and what was measured beside it; runs what is missing."""
        number, journal = 0, self.context.journal
        while (key := self._key(number)) in journal or (due := self._due()):
            found = journal.once(key, lambda: self._measure(number, due))  # noqa: B023
            yield number, self._take(number, found)
            number += 1

    def missing(self) -> dict[str, int]:
        """How many rounds each heat still has to run, by its key."""
        done = Counter(key for found in self._stored() for key in found["runs"])
        lacking = {heat.key: max(0, self.rounds - done[heat.key]) for heat in self.heats}
        if lacking:
            lacking[self.heats[0].key] = max(lacking.values())
        return lacking

    def _stored(self) -> Iterator[dict[str, Any]]:
        number = 0
        while (key := self._key(number)) in self.context.journal:
            yield self.context.journal.once(key, dict)
            number += 1

    def _due(self) -> list[Heat]:
        running = [heat for heat in self.heats if heat.trial.in_play]
        lacking = [heat for heat in running if self._done[heat.key] < self.rounds]
        if not lacking:
            return []
        return [heat for heat in running if heat in lacking or heat is self.heats[0]]

    def _measure(self, number: int, due: Sequence[Heat]) -> dict[str, Any]:
        more, runs = self.measure_more(), dict[str, Any]()
        turn = number % len(due)
        for heat in (*due[turn:], *due[:turn]):
            # The baseline may be a format as well, which then runs once for both.
            if heat.trial.in_play and heat.key not in runs:
                message = heat.message(number)
                what = f"{heat.trial.label}, {message.strategy.label}"
                self.context.budget.tell(self.name, f"run {number + 1}: {what}")
                runs[heat.key] = heat.trial.attempt(message, heat.expected_s)
        return {"more": more, "runs": runs}

    def _take(self, number: int, found: Mapping[str, Any]) -> Mapping[str, Any]:
        self._done.update(found["runs"].keys())
        for heat in self.heats:
            if heat.key in found["runs"]:
                strategy = heat.message(number).strategy
                heat.trial.take(strategy, found["runs"][heat.key], number, process=0)
        more: Mapping[str, Any] = found["more"]
        return more

    def _key(self, number: int) -> str:
        return f"round:{self.name}:{number}"


def _name(message: RunTexts) -> str:
    """A name that no other way of batching has: the table that an optimal plan rests on counts."""
    strategy = message.strategy
    name = "single" if message.one_by_one else f"{strategy.name}-{strategy.batch_size}"
    if strategy.name != "optimal":
        return name
    table = json.dumps(to_json(message.cost_table)).encode()
    return f"{name}-{hashlib.sha256(table).hexdigest()[:8]}"
