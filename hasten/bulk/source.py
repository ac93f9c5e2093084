"""The input: which files it is, their columns, and their rows in shards."""

from __future__ import annotations

import base64
import glob
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

import pyarrow as pa

from hasten.errors import ChoiceError, InputError
from hasten.inputs import formats
from hasten.inputs.corpus import no_such_file, text_column_of, unreadable
from hasten.inputs.formats import Format, Reader, Rows
from hasten.inputs.formats.records import Records
from hasten.records import BulkPlan, Place, Receipt, Shard, Source

PIPE = "-"
"""The name of standard input and output."""

BOOKS = "_hasten"
"""Where a run keeps its books, in the folder of its parts."""

PARTS = ".parts"
"""Behind the name of an output, while there are only parts of it."""

_PIPE_HEAD_ROWS = 32
"""Rows of a pipe that are waited for before the first answer: somebody may type them."""

_HIDDEN = (".", "_")  # as Spark, Arrow and others pass over such files in a dataset


@dataclass(frozen=True, slots=True)
class Columns:
    """What the rows of an input hold."""

    text_column: str
    schema: pa.Schema


class Input:
    """Files of one format, or a pipe.

    Attributes:
        sources: the files in the order in which they are read.
        format: of all of them.
        extension: by which the format is known.
    """

    def __init__(
        self, given: str, extension: str | None = None, pipe: IO[bytes] | None = None
    ) -> None:
        """Find the files.

        Args:
            given: a file, a folder, a glob pattern, or :data:`PIPE`.
            extension: the format of a pipe, such as ``.jsonl``.
            pipe: where to read from then.

        Raises:
            InputError: there are none, or of several formats.
            ChoiceError: a pipe whose format is not known or cannot be read from a pipe.
        """
        self._pipe = pipe if given == PIPE else None
        self._reader: Reader | None = None
        if self._pipe:
            self.extension, self.format = _of_pipe(extension)
            self.sources: tuple[Source, ...] = (Source(PIPE, None, None),)
            return
        paths = find(given)
        self.extension, self.format = _common_format(given, paths)
        self.sources = tuple(_source(path) for path in paths)

    def columns(self, text_column: str | None) -> Columns:
        """Look at the first rows, and tell the columns.

        Raises:
            InputError: no file has a row, the text column cannot be told, or the first file
                cannot be read.
        """
        for source in self.sources:
            path = Path(source.path)
            if self._is_empty(source) and source is not self.sources[-1]:
                continue
            try:
                with self._opened(source, Place(), None) as reader:
                    if reader.columns or source is self.sources[-1]:
                        _refuse_namesakes(source.path, reader.columns)
                        found = Columns(text_column_of(reader, path, text_column), reader.schema)
                        break
            except formats.UNREADABLE as error:
                raise unreadable(path, error) from error
        self._refuse_other_columns(found.schema)
        return found

    def _refuse_other_columns(self, schema: pa.Schema) -> None:
        """Open every file once: what does not fit is better told now than in the last hour."""
        if self._pipe:
            return
        for source in self.sources:
            if not self._is_empty(source):
                # What cannot be read at all is told when its turn comes, or recorded.
                with suppress(*formats.UNREADABLE), self._opened(source, Place(), schema):
                    pass

    def _is_empty(self, source: Source) -> bool:
        """Whether a file of several has nothing in it, not even a header."""
        return len(self.sources) > 1 and source.size_bytes == 0 and not self.format.seeks

    def extent(self) -> int | None:
        """How far all files together go, as places count; None if that cannot be told cheaply."""
        paths = [Path(source.path) for source in self.sources]
        if self._pipe or any(formats.packing(path) for path in paths):
            return None
        try:
            return sum(self.format.extent(path) for path in paths)
        except formats.UNREADABLE:
            return None

    def shards(
        self, plan: BulkPlan, done: Mapping[int, Receipt]
    ) -> Generator[tuple[Shard, Rows], None, None]:
        """The rows in shards, but for those that are ``done``; one without rows if there are none.

        Raises:
            InputError: a file cannot be read.
        """
        number, begin = 0, Place()
        source = 0
        place: Place | None = begin
        while receipt := done.get(number):
            number, source, place = number + 1, receipt.shard.source, receipt.end
        for index in range(source, len(self.sources)):
            for rows in self._rows(plan, index, place, number):
                if number not in done:
                    yield Shard(number, index, rows.begin), rows
                number += 1
            place = begin
        if number == 0:
            yield Shard(0, 0, begin), Records(self.sources[0].path, begin, [])

    def read(self, plan: BulkPlan, shard: Shard) -> Rows:
        """The rows of one shard."""
        nothing = Records(self.sources[shard.source].path, shard.begin, [])
        return next(self._rows(plan, shard.source, shard.begin, shard.number), nothing)

    def _rows(self, plan: BulkPlan, index: int, place: Place | None, number: int) -> Iterator[Rows]:
        """One file's rows from ``place`` on, shard by shard; ``number`` is the first one's."""
        source = self.sources[index]
        if place is None or self._is_empty(source):
            return
        try:
            with self._opened(source, place, schema_of(plan)) as reader:
                yield from _taken(reader, plan, source.path, number)
        except formats.UNREADABLE as error:
            problem = unreadable(Path(source.path), error)
            if not _may_record(plan, error):
                raise problem from error
            yield Records.lost(source.path, place, problem)

    @contextmanager
    def _opened(self, source: Source, begin: Place, schema: pa.Schema | None) -> Iterator[Reader]:
        if not self._pipe:
            with formats.opened(Path(source.path)) as stream:
                yield self.format.read(stream, source.path, begin, schema)
            return
        # It can be read once, so the reader that looked at its head is the one that goes on.
        self._reader = self._reader or self.format.read(
            self._pipe, source.path, begin, schema, _PIPE_HEAD_ROWS
        )
        yield self._reader


def _refuse_namesakes(name: str, columns: Sequence[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(
                f"{name} has two columns {column!r}, and one of them would be lost",
                fix="Give each a name of its own.",
            )


def _taken(reader: Reader, plan: BulkPlan, name: str, first: int) -> Iterator[Rows]:
    for number in count(first):
        most = plan.rows_of(number)
        try:
            rows = reader.take(most, plan.shard_bytes)
        except formats.UNREADABLE as error:
            if not _may_record(plan, error):
                raise
            rows = reader.give_up(unreadable(Path(name), error), most)
        if len(rows):
            yield rows
        if not len(rows) or rows.end is None:
            return


def _may_record(plan: BulkPlan, error: Exception) -> bool:
    """Whether this is damage to the file, and no trouble of the system that may pass."""
    system = isinstance(error, OSError) and error.errno is not None
    return plan.on_error == "record" and not system


def find(given: str) -> list[Path]:
    """The files that a file's name, a folder's, or a glob pattern means, in order.

    Raises:
        InputError: there are none.
    """
    path = Path(given)
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        raise InputError(
            f"{given} is not a file but a pipe or a device",
            fix=f"Let it be standard input: hasten predict BUNDLE - --input-format csv < {given}",
        )
    if path.is_dir():
        inside = (
            p for p in sorted(path.rglob("*")) if _is_data(p.relative_to(path)) and not _is_part(p)
        )
        found = [
            p for p in inside if p.is_file() and formats.extension(p) in formats.by_extension()
        ]
        problem = InputError(
            f"{given} contains no file that can be read",
            fix=f"Known: {', '.join(formats.by_extension())}",
        )
    else:
        root = Path(path.anchor)
        matching = root.glob(str(path.relative_to(root))) if glob.has_magic(given) else ()
        found = sorted(
            match
            for match in matching
            if match.is_file() and _is_data(Path(match.name)) and not _is_part(match)
        )
        problem = no_such_file(path)
        if glob.has_magic(given):
            problem = InputError(f"no file matches {given}", fix="Two stars stand for any folders.")
    if not found:
        raise problem
    return found


def _is_data(path: Path) -> bool:
    """Whether a file of a dataset holds data, and not what somebody keeps beside it."""
    return not any(part.startswith(_HIDDEN) for part in path.parts)


def _is_part(path: Path) -> bool:
    """Whether it belongs to an output that is not finished."""
    return any(parent.name.endswith(PARTS) and (parent / BOOKS).is_dir() for parent in path.parents)


def _common_format(given: str, paths: Sequence[Path]) -> tuple[str, Format]:
    kinds = {formats.named(path): formats.extension(path) for path in paths}
    if len(kinds) > 1:
        raise InputError(
            f"{given} holds files of several formats: {', '.join(sorted(kinds.values()))}",
            fix=f"Name one of them: '{Path(given) / ('*' + min(kinds.values()))}'",
        )
    (kind, extension), *_ = kinds.items()
    return extension, kind


def _of_pipe(extension: str | None) -> tuple[str, Format]:
    known = {e: kind for e, kind in formats.by_extension().items() if not kind.seeks}
    if extension not in known:
        names = ", ".join(e.removeprefix(".") for e in known)
        raise ChoiceError(
            "the format of standard input is unknown"
            if extension is None
            else f"{extension.removeprefix('.')} cannot be read from standard input",
            fix=f"Say which: --input-format, one of {names}.",
        )
    return extension, known[extension]


def _source(path: Path) -> Source:
    status = path.stat()
    return Source(str(path), status.st_size, status.st_mtime_ns)


def schema_text(schema: pa.Schema) -> str:
    """A schema as text, for a plan."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of(plan: BulkPlan) -> pa.Schema:
    """The schema that a plan holds."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(plan.schema)))
