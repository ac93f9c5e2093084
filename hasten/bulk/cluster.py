"""A bulk run on a Ray cluster: Ray schedules shards, and hasten owns what becomes of them.

The caller's process holds the output and its lock, reads the input once to tell the shards, and
counts receipts. A process of its own speaks with Ray (:mod:`hasten.bulk.ray_driver`). The nodes
read, answer and store shards by themselves (:mod:`hasten.bulk.node`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from hasten import __version__, hardware
from hasten.bulk.node import Order, temporary_name
from hasten.bulk.plan import Job
from hasten.bulk.progress import Meter
from hasten.bulk.ray_driver import LOCAL, Need, Ready, Start
from hasten.bulk.source import PIPE
from hasten.bulk.store import Store
from hasten.errors import ChoiceError, EngineError, Unavailable
from hasten.records import Candidate, Event, Progress, Receipt, Shard
from hasten.runtime import bundle as bundles
from hasten.storage import durable

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    "from hasten.bulk.ray_driver import main; main()"
)

_STOP_S = 10.0

_TELL_ROWS = 100_000


def check(address: str, given: str, output: str) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
        ChoiceError: standard input or output, or an address that is not of this kind.
        Unavailable: Ray is not installed.
    """
    if PIPE in {given, output}:
        what = "standard input" if given == PIPE else "standard output"
        raise ChoiceError(
            f"{what} cannot be used with --ray: the nodes read and write files",
            fix="Give files on storage that all nodes see, or leave --ray out.",
        )
    if not address or "://" in address:
        raise ChoiceError(
            f"--ray takes no address such as {address!r}: Ray's client protocol is not supported",
            fix="Run the command on a node of the cluster, and give HEAD:6379 or auto.",
        )
    # What ray[data] brings; plain `ray` comes without.
    missing = [name for name in ("ray", "pandas", "fsspec") if find_spec(name) is None]
    if missing:
        raise Unavailable(
            f"--ray needs {' and '.join(missing)}, which is not installed",
            fix="pip install 'hasten[ray]'",
        )


def described(folder: str | PathLike[str], *, trust: bool) -> bundles.Bundle:
    """A bundle as it was where it was tuned: this machine need not be able to run it.

    Raises:
        BundleError: no bundle, a damaged one, or one that is not trusted.
    """
    path = Path(folder)
    return bundles.load(path, trust=trust, here=bundles.read_tuning(path).hardware)


def run(
    job: Job,
    store: Store,
    done: Mapping[int, Receipt],
    address: str,
    on_event: Callable[[Event], None],
    *,
    trust: bool,
) -> Meter:
    """Have all shards that are not ``done`` answered and stored.

    Args:
        job: what is to be done.
        store: the output, whose lock is held.
        done: what an earlier run did.
        address: of the cluster, or :data:`~hasten.bulk.ray_driver.LOCAL`.
        on_event: is told about progress.
        trust: accept a bundle whose artifact can run code.

    Raises:
        ChoiceError: the cluster does not exist, or cannot hold the bundle's plan.
        BundleError, InputError, StorageError, Unavailable: a node cannot take part.
        InputError, EngineError, StorageError: a shard cannot be answered or stored.
    """
    began_s = time.perf_counter()
    with _fenced(job, store, trust=trust) as order, _Driver() as driver:
        on_event(Progress("cluster", "looking at every node", 0.0, None))
        driver.send(_start(job, order, address))
        shards = _shards(job, done, driver, on_event)
        ready = driver.ready()
        for text in ready.warnings:
            warnings.warn(text, stacklevel=3)
        on_event(Progress("cluster", ready.sentence(), 0.0, None))
        load_s = time.perf_counter() - began_s
        meter = Meter(job.given.extent(), on_event, load_s=load_s)
        meter.keep(done.values())
        driver.send(shards)
        for receipt in driver.receipts():
            meter.arrived(receipt)
    missing = {shard.number for shard in shards} - store.receipts().keys()
    if missing:
        raise EngineError(
            f"Ray lost {len(missing)} shards", fix="The same command does what is missing."
        )
    return meter


@contextlib.contextmanager
def _fenced(job: Job, store: Store, *, trust: bool) -> Iterator[Order]:
    """An order, and the file by which nodes know that it is still wanted."""
    fence = store.folder.absolute() / temporary_name()
    order = Order(
        version=__version__,
        bundle=str(job.bundle.folder.absolute()),
        trust=trust,
        plan=job.plan,
        output=str(store.output.absolute()),
        workdir=str(Path.cwd()),
        fence=str(fence),
        token=secrets.token_hex(16),
    )
    durable.write(fence, order.token.encode())
    try:
        yield order
    finally:
        fence.unlink(missing_ok=True)


def _start(job: Job, order: Order, address: str) -> Start:
    candidates = [stage.plan.candidate for stage in job.bundle.stages]
    need = Need(
        cpus=max(candidate.threads for candidate in candidates),  # the stages take turns
        gpus=int(any(candidate.device == "cuda" for candidate in candidates)),
        memory_bytes=_memory_bytes(job.bundle.folder, candidates),
    )
    cores = max(hardware.detect().usable_cores, need.cpus) if address == LOCAL else 0
    # Ray's own way of saying yes.
    reports = os.environ.get("RAY_USAGE_STATS_ENABLED") == "1"
    return Start(address, cores, need, order, reports)


def _memory_bytes(folder: Path, candidates: Sequence[Candidate]) -> int:
    """What processes with these candidates took at their peak; 0 for what was not measured."""
    measured = {
        row.candidate: row.start_up.peak_bytes
        for row in bundles.read_tuning(folder).rows
        if row.start_up
    }
    return sum(measured.get(candidate, 0) for candidate in dict.fromkeys(candidates))


def _shards(
    job: Job, done: Mapping[int, Receipt], driver: _Driver, on_event: Callable[[Event], None]
) -> list[Shard]:
    """Where shards begin; their rows are forgotten."""
    shards: list[Shard] = []
    rows = reported = 0
    for shard, found in job.given.shards(job.plan, done):
        driver.refuse_failure()
        shards.append(shard)
        rows += len(found)
        if rows - reported >= _TELL_ROWS:
            reported = rows
            on_event(Progress("read", f"{rows:,} rows, to tell the shards", 0.0, None))
    return shards


class _Driver:
    """The process that speaks with Ray; a context manager that ends it."""

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="hasten-ray-", suffix=".log")
        self._log, self._keep_log = Path(name), False
        # The head of a cluster decides whether it reports; what this process adds, it decides.
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        with os.fdopen(descriptor, "wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
                [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        self._replies: queue.Queue[tuple[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, name="hasten-ray", daemon=True).start()

    def __enter__(self) -> _Driver:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._keep_log:
            self._log.unlink(missing_ok=True)

    def send(self, message: object) -> None:
        """Send it; if nobody reads it any more, the next reply says why."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()

    def ready(self) -> Ready:
        """Wait until the nodes have been looked at."""
        word, value = self._reply()
        assert word == "ready", word
        found: Ready = value
        return found

    def receipts(self) -> Iterator[Receipt]:
        """Receipts as they come, until all are there."""
        while (reply := self._reply())[0] == "receipt":
            yield reply[1]

    def refuse_failure(self) -> None:
        """Raise what has gone wrong, if something has, without waiting."""
        with contextlib.suppress(queue.Empty):
            reply = self._replies.get_nowait()
            self._replies.put(self._raised(reply))

    def _reply(self) -> tuple[str, Any]:
        return self._raised(self._replies.get())

    def _raised(self, reply: tuple[str, Any]) -> tuple[str, Any]:
        word, value = reply
        if word == "error":
            raise value
        if word == "failed":
            self._keep_log = True
            raise EngineError(
                f"Ray failed: {value}",
                fix=f"What is finished is kept: the same command continues. Ray's log: {self._log}",
            )
        return reply

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stdout:
            while True:
                try:
                    self._replies.put(pickle.load(stdout))  # noqa: S301 - from our own child
                except Exception:  # noqa: BLE001 - whatever a dying process leaves in the pipe
                    self._replies.put(("failed", "its process has ended"))
                    return
