"""The output while it grows: a plan, parts, and a receipt for each.

A folder holds the parts; ``_hasten`` in it holds the books: ``plan.json``, a lock, and
``receipts/``. A shard is done when its receipt exists, and the receipt is written after the part.
So whenever a run ends, by whatever cause, the next one knows what is done. ``_SUCCESS`` appears
when all parts have been read back and are what the receipts say.

Parts and receipts get ready in ``_hasten/desk-DIGEST``, named by the plan's digest, and are then
linked to their names. A run with another plan removes that folder first: whoever is still at work
for the old plan, on whatever machine, can then give nothing a name any more.

Where the output is to be one file, this folder stands beside it as ``OUTPUT.parts``, and the file
is put together at the end.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO

import filelock

from hasten.bulk.source import BOOKS, PARTS
from hasten.errors import InputError, ResumeError, StorageError
from hasten.inputs import formats
from hasten.plain import from_json, to_json
from hasten.records import BulkPlan, Place, Receipt, Shard, Source, Tally
from hasten.storage import durable

SUCCESS = "_SUCCESS"
_OPTIONS = {
    "input_format": "--input-format",
    "text_column": "--text-column",
    "answers": "--columns",
    "output_format": "--output-format",
    "packing": "the packing",
    "dataset": "a folder of parts",
    "on_error": "--on-error",
    "shard_rows": "--shard-rows",
    "shard_bytes": "the most bytes of a shard",
}
"""How a user says what a plan holds; the rest follows from these."""

_DESK = "desk-"
_DIGEST_LETTERS = 16

_RESTART = "--restart throws away what was done and starts over."


class Store:
    """One run's output. A context manager: its lock is held inside.

    Attributes:
        folder: where the parts are.
        output: what the user asked for: that folder, or a file.
    """

    def __init__(self, output: Path, *, dataset: bool, restart: bool = False) -> None:
        """Name what is to be written.

        Args:
            output: a file, or a folder that will hold the parts.
            dataset: it is a folder.
            restart: replace what is there, whatever it is the output of.
        """
        self.output = output
        self._restart = restart
        self.folder = output if dataset else output.with_name(f"{output.name}{PARTS}")
        self._dataset = dataset
        self._books = self.folder / BOOKS
        self._receipts = self._books / "receipts"
        self._plan = self._books / "plan.json"
        self._lock = filelock.FileLock(self._books / "lock")
        self._digest = ""

    def __enter__(self) -> Store:
        """Take the lock.

        Raises:
            StorageError: somebody else has it, the output is complete already, or the folder
                cannot be made or is not ours.
        """
        self._refuse_foreign()
        if self.output.is_file() and not self.folder.exists() and not self._restart:
            self._tidy()
            raise self._complete()
        with durable.storing(self.folder):
            durable.make_folder(self._receipts)
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout:
                raise StorageError(
                    f"another run is writing {self.output} now",
                    fix="Wait until it has ended, or choose another -o.",
                ) from None
        if self.output.is_file() and not self._plan.exists() and not self._restart:
            # Another run was at its end when we looked, and took its folder away before we had
            # the lock: this folder is a new one, and has nothing in it.
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()
            raise self._complete()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _refuse_foreign(self) -> None:
        # One look, as another run may be making the folder: the books are the first thing in it.
        there = _names(self.folder)
        if there and BOOKS not in there:
            raise StorageError(
                f"{self.folder} exists and is not the output of such a run",
                fix="Choose another -o, or move it away.",
            )
        if not self._dataset and self.output.is_dir():
            raise StorageError(
                f"{self.output} is a folder, and its name is that of a file",
                fix="Choose another -o, or move it away.",
            )

    def begin(self, plan: BulkPlan) -> dict[int, Receipt]:
        """Fix the plan, or find out what an earlier run with the same plan has done.

        Raises:
            ResumeError: what is there belongs to another plan; the message says what differs.
            StorageError: the output is complete already.
        """
        if self._restart:
            self._clear()
        with durable.storing(self.folder):
            durable.sweep(self.folder, self._receipts, self._books)
            # Beside the output are other runs' outputs, which may be growing now.
            durable.sweep(self.output.parent, of=self.output.name)
        self._tidy()
        self.join(plan)
        stored = _read_plan(self._plan)
        if stored is None:
            durable.write(self._plan, json.dumps(to_json(plan), indent=1).encode())
            with durable.storing(self._desk):
                durable.make_folder(self._desk)
            return {}
        _refuse_others(stored, plan, self.output)
        if (self.folder / SUCCESS).exists():
            raise self._complete()
        with durable.storing(self._desk):
            durable.make_folder(self._desk)
            durable.sweep(self._desk)
        done = self.receipts()
        self._refuse_cut(done.values())
        return done

    def join(self, plan: BulkPlan) -> None:
        """Take part in a run that was begun, here or elsewhere, with this plan."""
        text = json.dumps(to_json(plan), sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LETTERS]

    @property
    def _desk(self) -> Path:
        """Where files of this plan get ready."""
        return self._books / f"{_DESK}{self._digest}"

    def _refuse_cut(self, done: Iterable[Receipt]) -> None:
        """Look at the sizes of all parts now; digests, which take long, come at the end."""
        for receipt in done:
            path = self.folder / receipt.part
            if not path.is_file() or path.stat().st_size != receipt.size_bytes:
                raise self._altered(receipt)

    def _altered(self, receipt: Receipt) -> StorageError:
        part = self.folder / receipt.part
        note = self._receipt(receipt.shard.number)
        return StorageError(
            f"{part} is missing or has been altered",
            fix=f"To have it made again: rm -f '{part}' '{note}', and the same command. {_RESTART}",
        )

    def _receipt(self, number: int) -> Path:
        return self._receipts / f"{number:05}.json"

    def _complete(self) -> StorageError:
        return StorageError(
            f"{self.output} already exists",
            fix="Choose another -o; or --restart, which replaces it.",
        )

    def _clear(self) -> None:
        """Remove what earlier runs left; killed at any moment, what remains can be continued.

        First go the desks, so that nothing of an earlier plan gets a name from now on. Then
        whatever says that something is there goes before it does, and the plan, by which
        everything is understood, goes last.
        """
        with durable.storing(self.folder):
            self._close_desks()
            (self.folder / SUCCESS).unlink(missing_ok=True)
            durable.sync_folder(self.folder)
            for folder, pattern in (self._receipts, "*.json"), (self.folder, "part-*"):
                for path in folder.glob(pattern):
                    path.unlink()
                durable.sync_folder(folder)
            self._plan.unlink(missing_ok=True)

    def _close_desks(self) -> None:
        """From now on, nothing that is still getting ready anywhere can be given its name."""
        for desk in self._books.glob(f"{_DESK}*"):
            # Renamed first: a folder in which somebody writes cannot always be removed at once.
            desk.rename(desk.with_name(f".{desk.name}.{secrets.token_hex(4)}"))
        durable.sync_folder(self._books)
        for closed in self._books.glob(f".{_DESK}*"):
            shutil.rmtree(closed, ignore_errors=True)

    @property
    def _done(self) -> Path:
        """What the folder is called while it is being removed."""
        return self.folder.with_name(f".{self.folder.name}.done")

    def _tidy(self) -> None:
        """Remove what a run left that was killed when its output already existed."""
        if not self._dataset and self._done.exists():
            shutil.rmtree(self._done, ignore_errors=True)

    def receipts(self) -> dict[int, Receipt]:
        """What is done, by the shards' numbers.

        Raises:
            StorageError: a receipt cannot be read.
        """
        found = {}
        for path in self._receipts.glob("[!.]*.json"):
            receipt = self._read_receipt(path)
            if receipt is not None:
                found[receipt.shard.number] = receipt
        return found

    def _read_receipt(self, path: Path) -> Receipt | None:
        """A receipt of this plan; None if there is none, or it was never finished."""
        try:
            text = path.read_text()
            receipt = from_json(Receipt, json.loads(text)) if text else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be read: {error}", fix=_RESTART) from error
        return receipt if receipt and receipt.plan in ("", self._digest) else None

    def put(
        self, plan: BulkPlan, shard: Shard, end: Place | None, tally: Tally, part: bytes
    ) -> Receipt:
        """Store a shard's part, and then its receipt. Done twice, the first one stays.

        Raises:
            StorageError: it cannot be written, or a run with another plan has taken over.
        """
        name = f"part-{shard.number:05}{plan.output_format}{plan.packing}"
        digest = hashlib.sha256(part).hexdigest()
        receipt = Receipt(shard, end, tally, name, len(part), digest, self._digest)
        try:
            return self._stored(receipt, part)
        except StorageError as error:
            if self._desk.is_dir():
                raise
            raise StorageError(f"another run has taken over {self.output}") from error

    def _stored(self, receipt: Receipt, part: bytes) -> Receipt:
        path, note = self.folder / receipt.part, self._receipt(receipt.shard.number)
        if not durable.create(path, part, self._desk):
            there = _sha256(path)
            first = self._read_receipt(note)
            if first is not None and first.sha256 == there:
                return first
            # Without a receipt it may be of any run: it counts only if it has the same bytes.
            if there != receipt.sha256:
                durable.write(path, part, self._desk)
        text = json.dumps(to_json(receipt)).encode()
        if not durable.create(note, text, self._desk) and self._read_receipt(note) != receipt:
            durable.write(note, text, self._desk)
        return receipt

    def finish(self, plan: BulkPlan) -> list[Receipt]:
        """Check that everything is there, and make it the output.

        Returns:
            All receipts in order.

        Raises:
            StorageError: a part is missing or altered, or the output cannot be written.
        """
        with durable.storing(self._books):
            self._close_desks()
        receipts = [receipt for _, receipt in sorted(self.receipts().items())]
        self._check(receipts)
        _refuse_changed(plan)
        with durable.storing(self.folder):
            durable.sweep(self.folder, self._receipts)
        if self._dataset:
            durable.write(self.folder / SUCCESS, b"")
            return receipts
        durable.replace(self.output, lambda whole: self._join(plan, receipts, whole))
        with durable.storing(self.folder):
            # Renamed first: half a folder must not look like a run that can be continued.
            self._tidy()
            self.folder.rename(self._done)
            self._tidy()
        return receipts

    def _check(self, receipts: list[Receipt]) -> None:
        for number, receipt in enumerate(receipts):
            if receipt.shard.number != number:
                raise StorageError(f"{self.folder}: shard {number} is missing", fix=_RESTART)
        for one, other in pairwise(receipts):
            if one.shard.source == other.shard.source and one.end != other.shard.begin:
                raise StorageError(
                    f"{self.folder}: shard {other.shard.number} does not begin where the one "
                    "before it ends",
                    fix=_RESTART,
                )
        for receipt in receipts:
            path = self.folder / receipt.part
            if _sha256(path) != receipt.sha256:
                raise self._altered(receipt)

    def _join(self, plan: BulkPlan, receipts: list[Receipt], whole: IO[bytes]) -> None:
        def parts() -> Iterator[IO[bytes]]:
            for receipt in receipts:
                with (self.folder / receipt.part).open("rb") as part:
                    yield part

        formats.by_extension()[plan.output_format].join(parts(), whole)


def _refuse_changed(plan: BulkPlan) -> None:
    """Make sure that the input still is what was read."""
    for source in plan.sources:
        if source.size_bytes is None:
            continue
        try:
            status = Path(source.path).stat()
        except OSError as error:
            raise InputError(f"{source.path} can no longer be read: {error.strerror}") from error
        now = Source(source.path, status.st_size, status.st_mtime_ns)
        for what in _changed(source.path, source, now):
            raise InputError(f"the input changed while it was read: {what}", fix=_RESTART)


def _names(folder: Path) -> set[str]:
    """What is in a folder; nothing if there is none."""
    with durable.storing(folder):
        try:
            return {path.name for path in folder.iterdir()}
        except FileNotFoundError:
            return set()


def _sha256(path: Path) -> str | None:
    """A file's digest, if it is there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _read_plan(path: Path) -> BulkPlan | None:
    try:
        return from_json(BulkPlan, json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ResumeError(
            f"{path} was written by another version of hasten, or is damaged", fix=_RESTART
        ) from error


def _refuse_others(then: BulkPlan, now: BulkPlan, output: Path) -> None:
    if then == now and all(source.size_bytes is not None for source in then.sources):
        return
    if then == now:
        raise ResumeError(
            f"{output} was started from a pipe, which cannot be read again", fix=_RESTART
        )
    what = "; ".join(_differences(then, now))
    raise ResumeError(
        f"{output} was started with other options: {what}",
        fix=f"Repeat the original command to continue, or choose another -o. {_RESTART}",
    )


def _differences(then: BulkPlan, now: BulkPlan) -> Iterator[str]:
    old, new = ({source.path: source for source in plan.sources} for plan in (then, now))
    for path in sorted(old.keys() | new.keys()):
        yield from _changed(path, old.get(path), new.get(path))
    if then.bundle != now.bundle:
        yield "the bundle is another one"
    for field in fields(BulkPlan):
        before, after = getattr(then, field.name), getattr(now, field.name)
        option = _OPTIONS.get(field.name)
        if option and before != after:
            yield f"{option} was {_shown(before)} and is {_shown(after)}"
    if then.version != now.version:
        yield f"the plan's version was {then.version} and is {now.version}"
    if then.schema != now.schema:
        yield "the input has other columns"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{what}={name}" for what, name in value.items())
    return str(value)


def _changed(path: str, then: Source | None, now: Source | None) -> Iterator[str]:
    if then is None or now is None:
        yield f"{path} is {'new' if then is None else 'no longer there'}"
    elif then.size_bytes != now.size_bytes:
        yield f"{path} had {then.size_bytes:,} bytes and has {now.size_bytes:,}"
    elif then.modified_ns != now.modified_ns:
        before, after = _time(then.modified_ns), _time(now.modified_ns)
        yield f"{path} was modified at {after}, and its last change had been at {before}"


def _time(nanoseconds: int | None) -> str:
    return datetime.fromtimestamp((nanoseconds or 0) / 1e9, UTC).isoformat(timespec="milliseconds")
