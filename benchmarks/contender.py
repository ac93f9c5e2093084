"""Processes that take turns: each loads one model, and times itself when it is asked to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Entry(NamedTuple):
    """One row of what is measured; ``batch_size`` 0 leaves the batches to the contender."""

    who: str
    backend: str
    batch_size: int


class Contender:
    """A process of a script that was started with ``--contender`` and these arguments."""

    def __init__(
        self,
        python: str,
        script: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - one of these scripts
            [python, script, "--contender", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ask(None)

    def ask(self, order: Any) -> float:
        """Send an order, and wait for the seconds that it took."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self.close()
            raise SystemExit(f"a contender ended with status {self._process.wait()}; see above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def answer(run: Callable[[Any], object]) -> None:
    """In a contender's process: run every order on standard input, and answer with its seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the answers stay clean
    for line in sys.stdin:
        order, begin = json.loads(line), time.perf_counter()
        if order is not None:
            run(order)
        print(time.perf_counter() - begin, file=answers, flush=True)


def take_turns(
    entries: Iterable[tuple[Key, Contender, Any]], rounds: int
) -> dict[Key, list[float]]:
    """Seconds of every entry's order, one a round, interleaved; a first round is not counted."""
    entries, samples_s = list(entries), defaultdict(list)
    for number in range(rounds + 1):
        for key, contender, order in entries:
            took_s = contender.ask(order)
            if number:
                samples_s[key].append(took_s)
    return dict(samples_s)
