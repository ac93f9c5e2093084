"""``hasten predict``: files in, files out, nothing lost."""

from __future__ import annotations

import glob
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import IO, Unpack

from hasten.bulk import cluster
from hasten.bulk import plan as plans
from hasten.bulk import target as targets
from hasten.bulk.flow import flow
from hasten.bulk.model import Answered, Model, Work
from hasten.bulk.plan import Job, refuse_errors
from hasten.bulk.progress import Meter
from hasten.bulk.source import PIPE, Input
from hasten.bulk.store import Store
from hasten.bulk.target import Target
from hasten.errors import ChoiceError, InputError, StorageError
from hasten.options import PredictOptions, choose, documented
from hasten.records import Event, Progress, Receipt, Stats, Summary
from hasten.runtime.predictor import Predictor, verified
from hasten.runtime.watch import unlike


@documented(PredictOptions)
def predict_file(
    bundle: str | PathLike[str],
    input: str | PathLike[str],  # noqa: A002 - what it is called on the command line
    output: str | PathLike[str],
    *,
    pipes: tuple[IO[bytes], IO[bytes]] | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    **options: Unpack[PredictOptions],
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
        pipes: what stands for standard input and output.
        on_event: is told about progress.

    Returns:
        How many rows there were, and how long they took.

    Raises:
        InputError: the input cannot be read, or a row in it.
        ChoiceError: an option that cannot be.
        BundleError: the bundle cannot be used.
        Unavailable: its engine is not installed; or Ray, if that was asked for.
        EngineError: the engine failed on a row.
        ResumeError: ``output`` was begun from another input or bundle, or with other options.
        StorageError: ``output`` cannot be written, or already exists.
    """
    options = choose("hasten.predict_file", PredictOptions, options)
    ray = options["ray"]
    job = _planned(bundle, input, output, options, pipes)
    if job.target.path is None:
        with _loaded(job, on_event) as (model, meter):
            _to_pipe(job, model, meter, pipes[1] if pipes else _standard_output())
        return _summary(job, meter)
    path, dataset = job.target.path, job.target.dataset
    with Store(path, dataset=dataset, restart=options["restart"]) as store:
        done = store.begin(job.plan)
        if ray is not None:
            meter = cluster.run(job, store, done, ray, on_event, trust=options["trust"])
        else:
            with _loaded(job, on_event) as (model, meter):
                _to_store(job, model, meter, store, done)
        store.finish(job.plan)
    return _summary(job, meter)


def _planned(
    bundle: str | PathLike[str],
    input: str | PathLike[str],  # noqa: A002 - as above
    output: str | PathLike[str],
    options: PredictOptions,
    pipes: tuple[IO[bytes], IO[bytes]] | None,
) -> Job:
    """What is to be done, with all that can be refused before the first row refused."""
    for what, name in ("BUNDLE", bundle), ("INPUT", input), ("-o", output):
        if not str(name):
            raise ChoiceError(f"{what} is empty", fix="Is a shell variable unset?")
    input_format, ray = options["input_format"], options["ray"]
    if input_format and str(input) != PIPE:
        raise ChoiceError(
            "--input-format is for standard input only; a file's extension names its format",
            fix="Leave it out, or give the file as standard input: - < FILE",
        )
    if ray is not None:
        cluster.check(ray, str(input), str(output))
    pipe = (pipes[0] if pipes else _standard_input()) if str(input) == PIPE else None
    given = Input(str(input), _dotted(input_format), pipe)
    target = targets.decide(str(output), _dotted(options["output_format"]), given)
    _refuse_inside(Path(input), target)
    describe = verified if ray is None else cluster.described
    return plans.decide(describe(bundle, trust=options["trust"]), given, target, options)


@contextmanager
def _loaded(job: Job, on_event: Callable[[Event], None]) -> Iterator[tuple[Model, Meter]]:
    began_s = time.perf_counter()
    on_event(Progress("load", "the model", 0.0, None))
    with Predictor(job.bundle) as predictor:
        load_s = time.perf_counter() - began_s
        yield Model(predictor), Meter(job.given.extent(), on_event, load_s=load_s)


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
    with closing(flow(_works(job, model, done), model.streams, meter.ran)) as finished:
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


def _summary(job: Job, meter: Meter) -> Summary:
    path = job.target.path
    return Summary(
        output=PIPE if path is None else str(path),
        total=meter.total,
        kept_rows=meter.kept.rows,
        shards=meter.shards,
        seconds=meter.seconds,
        load_s=meter.load_s,
        unlike=unlike(Stats(meter.total.stages), [stage.hands_on for stage in job.bundle.stages]),
    )


def _standard_input() -> IO[bytes]:
    """Standard input, by a reader of its own.

    A thread may be waiting for more of it when the process ends. The interpreter would then want
    to close its own reader, find that thread in it, and abort.
    """
    if sys.stdin is None:
        raise ChoiceError("standard input is closed", fix="Give a file, or something to read from.")
    try:
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
    except io.UnsupportedOperation:  # somebody put an object in its place
        return sys.stdin.buffer


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise ChoiceError("standard output is closed", fix="Give -o a file.")
    return sys.stdout.buffer


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
    if target.path.exists() and given.exists() and target.path.samefile(given):
        raise InputError(f"{target.path} is the input itself", fix="Choose another -o.")
    if inside:
        raise InputError(
            f"the output {target.path} would lie in the input {given}", fix="Choose another -o."
        )
