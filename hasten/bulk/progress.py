"""How far a bulk run has come, and how fast it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from hasten.bulk.model import Batch, Work
from hasten.percent import percent
from hasten.records import Event, Place, Progress, Receipt, Tally

_TELL_S = 0.5

_SURE_S = 3.0
"""Before that, nothing is said of the time that is left."""


class Meter:
    """Counts, and tells a callback twice a second. May be called from several threads."""

    def __init__(
        self,
        extent: int | None,
        report: Callable[[Event], None],
        clock: Callable[[], float] = time.perf_counter,
        *,
        load_s: float = 0.0,
    ) -> None:
        """Begin at nothing.

        Args:
            extent: how far all files together go, as places count, if that is known.
            report: the callback.
            clock: seconds.
            load_s: what loading the model took.
        """
        self._extent, self._report, self._clock = extent, report, clock
        self._lock = threading.Lock()
        self._begin_s = self._told_s = clock()
        self._passed = self._kept_passed = 0.0
        self._rows = self._tokens = 0.0
        self.total = self.kept = Tally()
        self.shards = 0
        self.load_s = load_s

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._clock() - self._begin_s

    def keep(self, receipts: Iterable[Receipt]) -> None:
        """Count what an earlier run has done."""
        for receipt in receipts:
            self.kept += receipt.tally
            self._passed += _distance(receipt.shard.begin, receipt.end)
            self.shards += 1
        self.total = self.kept
        self._kept_passed = self._passed

    def ran(self, work: Work, batch: Batch) -> None:
        """A batch has run."""
        share = work.share_of(batch)
        with self._lock:
            self._tokens += work.tokens_of(batch)
            self._rows += share * len(work.rows)
            self._passed += share * _distance(work.rows.begin, work.rows.end)
            self._tell()

    def stored(self, tally: Tally) -> None:
        """A shard is done."""
        with self._lock:
            self.total += tally
            self.shards += 1

    def arrived(self, receipt: Receipt) -> None:
        """A shard is done elsewhere."""
        with self._lock:
            self.total += receipt.tally
            self.shards += 1
            self._tokens += receipt.tally.tokens
            self._rows += receipt.tally.rows
            self._passed += _distance(receipt.shard.begin, receipt.end)
            self._tell()

    def _tell(self) -> None:
        now_s = self._clock()
        if now_s - self._told_s < _TELL_S:
            return
        self._told_s = now_s
        seconds = now_s - self._begin_s
        total = self.total
        parts = (
            f"{self.kept.rows + round(self._rows):,} rows",
            f"{self._rows / seconds:,.0f} rows/s",
            f"{self._tokens / seconds:,.0f} tokens/s",
            f"{percent(total.padding_share)} padding" if total.padded_tokens else "",
            _counted(total.duplicates, "duplicate"),
            _counted(total.errors, "error"),
        )
        done, left_s = self._left(seconds)
        self._report(Progress("predict", ", ".join(filter(None, parts)), done, left_s))

    def _left(self, seconds: float) -> tuple[float, float | None]:
        """Share of the input that is behind, and seconds for the rest; unknown of a pipe."""
        now = self._passed - self._kept_passed
        if not self._extent or now <= 0:
            return 0.0, None
        if seconds < _SURE_S:  # the first batches wait for all before them
            return min(self._passed / self._extent, 1.0), None
        left = max(self._extent - self._passed, 0.0)
        return min(self._passed / self._extent, 1.0), seconds * left / now


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count > 1 else ''}" if count else ""


def _distance(begin: Place, end: Place | None) -> int:
    return end.offset - begin.offset if end else 0
