"""A bulk run: what was asked, which rows go together, and their outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a row begins in a file.

    ``offset`` counts the bytes of the unpacked file, or the rows of a Parquet file; ``number`` is
    the line or row there, from 1.
    """

    offset: int = 0
    number: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the input, and by what a change of it is noticed; nothing of a pipe."""

    path: str
    size_bytes: int | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True)
class BulkPlan:
    """Everything that the output's bytes depend on, fixed before the first row is read.

    ``bundle`` is its digest. ``schema`` holds the input's columns (serialized Arrow, base 64).
    ``answers`` names the column of the output for each that the task gives. A shard ends behind
    ``shard_rows`` rows or the row that completes ``shard_bytes`` bytes, and with its file. Where
    somebody waits for the first answers, the first shard has ``first_rows``, and each further one
    twice as many, up to that.
    """

    version: int
    bundle: str
    sources: tuple[Source, ...]
    input_format: str
    text_column: str
    schema: str
    answers: Mapping[str, str]
    output_format: str
    packing: str
    dataset: bool
    on_error: Literal["stop", "record"]
    shard_rows: int
    shard_bytes: int
    first_rows: int

    def rows_of(self, number: int) -> int:
        """How many rows the shard of this number has at most."""
        return min(self.first_rows << min(number, 40), self.shard_rows)


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows that are read, planned, answered and stored together: where they begin."""

    number: int
    source: int
    begin: Place


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcome of rows.

    ``tokens`` went into the model, ``padded_tokens`` with their padding; ``duplicates`` are rows
    whose tokens another row of their shard had, ``errors`` those without an answer. ``stages`` are
    the rows that each stage of the bundle answered; empty where it has one.
    """

    rows: int = 0
    errors: int = 0
    duplicates: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    stages: tuple[int, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.rows + other.rows,
            self.errors + other.errors,
            self.duplicates + other.duplicates,
            self.tokens + other.tokens,
            self.padded_tokens + other.padded_tokens,
            tuple(map(sum, zip_longest(self.stages, other.stages, fillvalue=0))),
        )

    @property
    def padding_share(self) -> float:
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """A shard that is done: its part exists under its name, with these bytes.

    ``end`` is where the next shard of its file begins; None if nothing more can be read of it.
    ``plan`` is the digest of the run's plan; empty in receipts of older versions.
    """

    shard: Shard
    end: Place | None
    tally: Tally
    part: str
    size_bytes: int
    sha256: str
    plan: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a bulk run did.

    ``kept_rows`` of ``total.rows`` were done by an earlier, interrupted run. ``seconds`` go from
    the first row read to the finished output; the model was loaded before, in ``load_s``.
    ``unlike`` says how the texts differ from those that proved the bundle, where they do.
    """

    output: str
    total: Tally
    kept_rows: int
    shards: int
    seconds: float
    load_s: float
    unlike: str | None = None

    @property
    def rows_per_s(self) -> float:
        return (self.total.rows - self.kept_rows) / self.seconds if self.seconds else 0.0
