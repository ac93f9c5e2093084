"""Raw results, one JSON line each, appended as they come.

The journal is what makes a run resumable: whatever has a line is not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hasten.errors import EndedEarly, EngineError, ResumeError, StorageError
from hasten.plain import to_json

VERSION = 4
_DIGEST = 64  # hexadecimal digits of a SHA-256

T = TypeVar("T")
Clock = Callable[[], float]


class Journal:
    """An append-only file of keyed results.

    The first line is the header: what was asked, of which model, over which texts, on which
    machine. A journal with another header belongs to another run and is refused.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        clock: Clock = time.monotonic,
        begin_s: float | None = None,
        *,
        complete: bool = False,
        binding: str | None = None,
    ) -> None:
        """Open ``path``, or begin it.

        Args:
            path: the file; what it holds already is taken up.
            header: what must be the same for stored results to mean the same.
            clock: tells the time in seconds.
            begin_s: when the present run began, by ``clock``; now, if it is not given.
            complete: take what is there for all there will be.
            binding: the key from whose result on no other header may follow; before it, another
                header discards the results. By default, any result binds.

        Raises:
            ResumeError: the file has another header.
            StorageError: it cannot be written.
        """
        self.path = path
        self._header = {"version": VERSION, **header}
        self._known: dict[str, Any] = {}
        self._complete = complete
        self._clock = clock
        self._begin_s = clock() if begin_s is None else begin_s
        lines = _whole_lines(path)
        stored = next(lines, None)
        if stored is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.clear()
            return
        spent_s = 0.0
        for line in lines:
            self._known[line["key"]] = line
            spent_s = line["at_s"]
        changes = _changes(stored, self._header)
        if changes and (binding in self._known if binding else self._known):
            raise ResumeError(
                f"{path.parent} holds the results of another run ({changes})",
                fix="Use --restart to throw them away, or another -o to keep them.",
            )
        if changes or not self._known:
            self.clear()
            return
        self._begin_s -= spent_s
        _cut_torn_line(path)

    @property
    def resumed(self) -> bool:
        """Whether there are results already."""
        return bool(self._known)

    @property
    def spent_s(self) -> float:
        """Seconds since the run began, the time between an interruption and a resume left out."""
        return self._clock() - self._begin_s

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __iter__(self) -> Iterator[str]:
        """The keys of all results."""
        return iter(self._known)

    def clear(self) -> None:
        """Forget all results, so that any other run may begin here."""
        self._known.clear()
        self._append(self._header, mode="w")

    def once(self, key: str, measure: Callable[[], T]) -> T:
        """The stored result for ``key``, or else what ``measure`` returns, stored.

        A failure of the engine is a result too: it is stored, and raised again on a resume.
        JSON keeps no tuples and no records; what comes back from the file is plain, and what
        comes back from ``measure`` is made plain in the same way, so that callers see one form.

        Raises:
            EngineError: ``measure`` raised it, now or in the run that is being resumed.
            EndedEarly: there is none, and the journal is taken for complete.
        """
        if key not in self._known:
            if self._complete:
                raise EndedEarly
            try:
                self._store({"key": key, "value": to_json(measure())})
            except EngineError as error:
                failure = {"error": type(error).__name__, "message": error.message}
                self._store({"key": key, **failure, "fix": error.fix})
                raise
        line = self._known[key]
        if "error" in line:
            raise EngineError(line["message"], fix=line["fix"])
        value: T = line["value"]
        return value

    def _store(self, line: dict[str, Any]) -> None:
        self._append({**line, "at_s": round(self.spent_s, 3)}, mode="a")
        self._known[line["key"]] = line

    def _append(self, line: dict[str, Any], *, mode: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path}: {error.strerror}",
                fix="Free some space, or choose another folder with -o. What was measured so "
                "far is kept; the same command continues.",
            ) from error


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The journal's lines, without a last one that a crash left unfinished."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _changes(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two headers; empty if nothing does."""
    wanted = json.loads(json.dumps(to_json(wanted)))
    different = sorted(
        key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key)
    )
    return "; ".join(_difference(k, stored.get(k), wanted.get(k)) for k in different)


def _difference(key: str, before: Any, now: Any) -> str:
    """What has changed, as far as it can be read: a digest says only that it has."""
    if _is_digest(before) and _is_digest(now):
        return f"other {key}" if key.endswith("s") else f"another {key}"
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
        return ", ".join(f"{n} was {before.get(n)}, is {now.get(n)}" for n in names)
    return f"{key} was {before}, is {now}"


def _is_digest(value: Any) -> bool:
    """Whether it is a SHA-256, or stands for the lack of one."""
    return value is None or (isinstance(value, str) and len(value) == _DIGEST)
