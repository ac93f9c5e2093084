"""``hasten predict``: files in, files out, nothing lost."""

from __future__ import annotations

import glob
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import IO

from hasten import bundle as bundles
from hasten import formats, tasks
from hasten.batching import CostModel
from hasten.bulk import target as targets
from hasten.bulk.columns import Naming, choose
from hasten.bulk.flow import flow
from hasten.bulk.model import Answered, Model, Work
from hasten.bulk.progress import Meter
from hasten.bulk.source import PIPE, Input, schema_of, schema_text
from hasten.bulk.store import Store
from hasten.bulk.target import Target
from hasten.errors import ChoiceError, HastenError, InputError, StorageError
from hasten.predictor import Predictor, verified
from hasten.records import ON_ERROR, BulkPlan, Event, Progress, Receipt, Summary

_VERSION = 1

_SHARD_S = 20.0
"""What a shard should take: so much is lost at most when a run is killed."""

_SHARD_ROWS = (512, 16384)
"""Fewer leave too little choice for batches without padding; more gain nothing."""

_FIRST_ROWS = 32
"""Of the first shard, where a pipe's other end waits for it."""

_SHARD_BYTES = 32 << 20
"""Where texts are large, fewer rows make a shard: a few shards must fit into memory."""

_TYPICAL = (32, 32)
"""Batch size and tokens a text by which a shard's time is guessed, before any text is seen."""


def predict_file(
    bundle: str | PathLike[str],
    input: str | PathLike[str],  # noqa: A002 - what it is called on the command line
    output: str | PathLike[str],
    *,
    text_column: str | None = None,
    columns: Sequence[str] | None = None,
    input_format: str | None = None,
    output_format: str | None = None,
    on_error: str = "stop",
    restart: bool = False,
    trust: bool = False,
    shard_rows: int | None = None,
    ray: str | None = None,
    pipes: tuple[IO[bytes], IO[bytes]] | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Summary:
    """Answer every row of ``input``, and write the rows with their answers to ``output``.

    All columns are kept, and there is one row for each, in the input's order. A run that was
    interrupted, by whatever cause, continues when it is called again.

    Args:
        bundle: what ``hasten tune`` made.
        input: a file (.csv, .tsv, .jsonl, .parquet, .txt, also with .gz or .zst), a folder or a
            glob pattern of such; ``-`` for standard input.
        output: a file, whose extension names the format; a folder, if it ends with a slash, is
            one, or has no extension, for parts with ``_SUCCESS`` when all are there; ``-`` for
            standard output.
        text_column: the column with the texts, if it is not clear.
        columns: answers to add, each as ``"label"`` or ``"label=topic"`` for another name.
        input_format: of standard input, such as ``"jsonl"``.
        output_format: of a folder or standard output; the input's, if that can hold answers.
        on_error: ``"stop"`` at a row that cannot be read or answered, or ``"record"`` why in a
            column of its own.
        restart: throw away what an interrupted run has done, and replace an earlier output.
        trust: accept a bundle whose artifact can run code, whoever made it.
        shard_rows: rows that are read, planned and stored together; a guess at 20 seconds' work
            by default.
        ray: the address of a Ray cluster over which shards are spread, as ``"HEAD:6379"`` or
            ``"auto"``; ``"local"`` starts one on this machine. Bundle, input and output must then
            lie where all its nodes see them.
        pipes: what stands for standard input and output.
        on_event: is told about progress.

    Raises:
        InputError: the input cannot be read, or a row in it.
        ChoiceError: an option that cannot be.
        BundleError: the bundle cannot be used.
        Unavailable: its engine is not installed; or Ray, if that was asked for.
        EngineError: the engine failed on a row.
        ResumeError: ``output`` was begun from another input or bundle, or with other options.
        StorageError: ``output`` cannot be written, or is there already.
    """
    from hasten.bulk import cluster  # it builds on this module

    if ray is not None:
        cluster.check(ray, str(input), str(output))
    pipe = (pipes[0] if pipes else _standard_input()) if str(input) == PIPE else None
    given = Input(str(input), _dotted(input_format), pipe)
    target = targets.decide(str(output), _dotted(output_format), given)
    _refuse_inside(Path(input), target)
    describe = verified if ray is None else cluster.described
    job = plan(
        describe(bundle, trust=trust),
        given,
        target,
        text_column=text_column,
        columns=columns,
        on_error=on_error,
        shard_rows=shard_rows,
    )
    if target.path is None:
        with _loaded(job, on_event) as (model, meter):
            _to_pipe(job, model, meter, pipes[1] if pipes else sys.stdout.buffer)
        return _summary(job, meter)
    with Store(target.path, dataset=target.dataset, restart=restart) as store:
        done = store.begin(job.plan)
        if ray is not None:
            meter = cluster.run(job, store, done, ray, on_event, trust=trust)
        else:
            with _loaded(job, on_event) as (model, meter):
                _to_store(job, model, meter, store, done)
        store.finish(job.plan)
    return _summary(job, meter)


@contextmanager
def _loaded(job: Job, on_event: Callable[[Event], None]) -> Iterator[tuple[Model, Meter]]:
    began_s = time.perf_counter()
    on_event(Progress("load", "the model", 0.0, None))
    with Predictor(job.bundle) as predictor:
        load_s = time.perf_counter() - began_s
        yield Model(predictor), Meter(job.given.extent(), on_event, load_s=load_s)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, decided: the input, where the output goes, and the plan."""

    bundle: bundles.Bundle
    given: Input
    target: Target
    plan: BulkPlan
    naming: Naming

    def encode(self, answered: Answered) -> bytes:
        """A shard with its answers, as its part holds it."""
        written = formats.BY_EXTENSION[self.plan.output_format]
        head = self.plan.dataset or answered.shard.number == 0
        raw = written.write(answered.rows, answered.table, schema_of(self.plan), head=head)
        return formats.packed(raw, self.plan.packing)


def plan(
    bundle: bundles.Bundle,
    given: Input,
    target: Target,
    *,
    text_column: str | None,
    columns: Sequence[str] | None,
    on_error: str,
    shard_rows: int | None,
) -> Job:
    """Decide everything that the output depends on.

    Raises:
        InputError: the input's columns cannot be told.
        ChoiceError: an option that cannot be.
    """
    if on_error not in ON_ERROR:
        raise ChoiceError(f"on_error is {on_error!r}", fix=f"One of: {', '.join(ON_ERROR)}.")
    if shard_rows is not None and shard_rows < 1:
        raise ChoiceError(f"a shard has at least 1 row, not {shard_rows}")
    found = given.columns(text_column)
    task = tasks.get(bundle.model.task)
    record = on_error == "record"
    most = shard_rows or _rows_of_a_shard(bundle)
    naming = choose(columns, task, bundle.model, found.schema.names, record_errors=record)
    decided = BulkPlan(
        version=_VERSION,
        bundle=bundle.digest,
        sources=given.sources,
        input_format=given.extension,
        text_column=found.text_column,
        schema=schema_text(found.schema),
        answers=naming.names,
        output_format=target.format,
        packing=target.packing,
        dataset=target.dataset,
        on_error="record" if record else "stop",
        shard_rows=most,
        shard_bytes=_SHARD_BYTES,
        first_rows=_FIRST_ROWS if target.path is None else most,
    )
    return Job(bundle, given, target, decided, naming)


def _rows_of_a_shard(bundle: bundles.Bundle) -> int:
    """A power of two, by what the bundle's cost table says; the same whenever it is asked."""
    table = bundle.plan.cost_table
    fewest, most = _SHARD_ROWS
    if table is None:
        return most
    batch, length = _TYPICAL
    row_s = CostModel(table, bundle.plan.candidate.streams).cost_s(batch, length) / batch
    wanted = min(max(_SHARD_S / row_s, fewest), most)
    return 1 << (int(wanted).bit_length() - 1)


def _to_store(
    job: Job, model: Model, meter: Meter, store: Store, done: Mapping[int, Receipt]
) -> None:
    meter.keep(done.values())
    for answered in _answers(job, model, meter, done):
        store.put(job.plan, answered.shard, answered.rows.end, answered.tally, job.encode(answered))
        meter.stored(answered.tally)


def _to_pipe(job: Job, model: Model, meter: Meter, pipe: IO[bytes]) -> None:
    for answered in _answers(job, model, meter, {}):
        raw = job.encode(answered)
        try:
            pipe.write(raw)
            pipe.flush()
        except BrokenPipeError:
            raise  # who reads has enough: the shell's way to end what comes before `head`
        except OSError as error:
            raise StorageError(f"cannot write to standard output: {error.strerror}") from error
        meter.stored(answered.tally)


def _answers(
    job: Job, model: Model, meter: Meter, done: Mapping[int, Receipt]
) -> Iterator[Answered]:
    """All shards that are not done, with their answers, in order."""
    streams = model.predictor.streams.count
    with closing(flow(_works(job, model, done), streams, meter.ran)) as finished:
        for work in finished:
            answered = work.finish(job.naming)
            refuse_errors(answered.errors, job.plan)
            yield answered


def _works(job: Job, model: Model, done: Mapping[int, Receipt]) -> Iterator[Work]:
    with closing(job.given.shards(job.plan, done)) as shards:
        for shard, rows in shards:
            work = model.prepare(shard, rows, job.plan.text_column)
            refuse_errors(work.unread, job.plan)
            yield work


def refuse_errors(errors: Mapping[int, HastenError], plan: BulkPlan) -> None:
    """Raise the first error, unless errors are recorded."""
    if plan.on_error == "stop" and errors:
        first = errors[min(errors)]
        raise type(first)(
            first.message,
            fix=f"{first.fix or ''}\nOr give such rows an error instead of an answer: "
            "--on-error record (with --restart, if rows were answered already).".strip(),
        ) from first


def _summary(job: Job, meter: Meter) -> Summary:
    path = job.target.path
    return Summary(
        output=PIPE if path is None else str(path),
        total=meter.total,
        kept_rows=meter.kept.rows,
        shards=meter.shards,
        seconds=meter.seconds,
        load_s=meter.load_s,
    )


def _standard_input() -> IO[bytes]:
    """Standard input, by a reader of its own.

    A thread may be waiting for more of it when the process ends. The interpreter would then want
    to close its own reader, find that thread in it, and abort.
    """
    try:
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
    except io.UnsupportedOperation:  # somebody put an object in its place
        return sys.stdin.buffer


def _dotted(name: str | None) -> str | None:
    return name and f".{name.lower().removeprefix('.')}"


def _refuse_inside(given: Path, target: Target) -> None:
    """An output among the input's files would be read by the next run."""
    if target.path is None:
        return
    inside = given.is_dir() and target.path.absolute().is_relative_to(given.absolute())
    # Generous: here a star stands for slashes as well, and two for no folder at all.
    pattern = str(given.absolute()).replace("**/", "*")
    inside |= glob.has_magic(pattern) and fnmatch(str(target.path.absolute()), pattern)
    same = target.path.exists() and given.exists() and target.path.samefile(given)
    if inside or same:
        raise InputError(
            f"the output {target.path} would lie in the input {given}", fix="Choose another -o."
        )
