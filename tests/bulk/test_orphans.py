"""What a run of the past still writes, on whatever machine it was stalled, does no harm."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.bulk import cluster
from hasten.bulk import target as targets
from hasten.bulk.plan import decide
from hasten.bulk.source import Input
from hasten.bulk.store import Store
from hasten.errors import StorageError
from hasten.options import PredictOptions, choose
from hasten.records import BulkPlan, Receipt, Tally
from hasten.storage import durable
from tests.tiny import tiny_texts

STALE = b'{"text":"of the old plan"}\n'


def plan_of(bundle: Path, given: Path, output: str, shard_rows: int) -> BulkPlan:
    source = Input(str(given))
    return decide(
        cluster.described(bundle, trust=False),
        source,
        targets.decide(output, None, source),
        choose("predict_file", PredictOptions, PredictOptions(shard_rows=shard_rows)),
    ).plan


def write(path: Path, rows: int = 20) -> Path:
    path.write_text("".join(f'{{"text":"{text}"}}\n' for text in tiny_texts(rows)))
    return path


@dataclass(frozen=True)
class Stalled:
    """A worker of a run whose plan had smaller shards, about to store one of them."""

    bundle: Path
    output: Path
    store: Store
    plan: BulkPlan

    def put(self, number: int, part: bytes = STALE) -> Receipt:
        shard, rows = list(Input(self._given).shards(self.plan, {}))[number]
        return self.store.put(self.plan, shard, rows.end, Tally(rows=5), part)

    def restart(self, output: Path | None = None) -> list[tuple[str, bytes]]:
        """What the new plan makes of the same input, here or elsewhere."""
        output = output or self.output
        hasten.predict_file(self.bundle, self._given, output, restart=True, shard_rows=8)
        files = sorted(output.glob("[!_.]*")) if output.is_dir() else [output]
        return [(path.name, path.read_bytes()) for path in files]

    def right(self) -> list[tuple[str, bytes]]:
        """The same, undisturbed."""
        elsewhere = self.output.parent / "right" / self.output.name
        (elsewhere if self.output.is_dir() else elsewhere.parent).mkdir(parents=True)
        return self.restart(elsewhere)

    @property
    def _given(self) -> str:
        return self.plan.sources[0].path


@pytest.fixture(params=["file", "dataset"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "dataset":
        (tmp_path / "out").mkdir()
        return tmp_path / "out"
    return tmp_path / "out.jsonl"


@pytest.fixture(params=["links", "no links"], autouse=True)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def refuse(*names: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def stalled(scripted_bundle: Path, output: Path, tmp_path: Path) -> Stalled:
    given = write(tmp_path / "in.jsonl")
    plan = plan_of(scripted_bundle, given, str(output), 5)
    with Store(output, dataset=output.is_dir()) as begun:
        begun.begin(plan)
    store = Store(output, dataset=output.is_dir())  # as a node makes it: without the lock
    store.join(plan)
    return Stalled(scripted_bundle, output, store, plan)


def before_each_part(
    monkeypatch: pytest.MonkeyPatch,
    orphan: Store,
    action: Callable[[], object],
    parts: int = 99,
) -> None:
    """Do something when the new run is about to store each of its first parts."""
    put, left = Store.put, iter(range(parts))

    def puts(self: Store, *arguments: Any) -> Receipt:
        if self is not orphan and next(left, None) is not None:
            action()
        return put(self, *arguments)

    monkeypatch.setattr(Store, "put", puts)


def test_a_stalled_part_lands_after_a_restart_and_before_the_new_one(
    stalled: Stalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = stalled.right()

    def late() -> None:
        with pytest.raises(StorageError, match="another run has taken over"):
            stalled.put(0)

    before_each_part(monkeypatch, stalled.store, late)
    assert stalled.restart() == right


def test_a_stalled_part_lands_after_the_end(stalled: Stalled) -> None:
    right = stalled.right()
    assert stalled.restart() == right
    with pytest.raises(StorageError, match="another run has taken over"):
        stalled.put(3)  # the new plan has three shards, so no part of it has this name
    assert stalled.restart() == right


def test_a_part_that_is_stalled_before_it_gets_its_name(
    stalled: Stalled, file_system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are on the disk, and the last look at the fence was long ago."""
    call = "link" if file_system == "links" else "replace"
    real, right, made = getattr(os, call), stalled.right(), []

    def slow(*names: Any) -> None:
        monkeypatch.setattr(os, call, real)
        made.append(stalled.restart())
        real(*names)

    monkeypatch.setattr(os, call, slow)
    with pytest.raises(StorageError, match="another run has taken over"):
        stalled.put(0)
    assert made == [right]
    assert not list(stalled.output.parent.rglob("*.jsonl.parts"))


def test_what_another_plan_stored_counts_for_nothing(
    stalled: Stalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a part and its receipt have the right names."""
    right = stalled.right()
    part = stalled.store.folder / stalled.put(0).part
    note = stalled.store.folder / "_hasten" / "receipts" / "00000.json"
    receipt = note.read_bytes()

    def late() -> None:
        part.write_bytes(STALE)
        note.write_bytes(receipt)

    before_each_part(monkeypatch, stalled.store, late, parts=1)
    assert stalled.restart() == right


def test_the_same_shard_twice_keeps_the_first(stalled: Stalled) -> None:
    first = stalled.put(0)
    assert stalled.put(0, b"last digits of another CPU") == first
    assert (stalled.store.folder / first.part).read_bytes() == STALE


def test_a_part_without_a_receipt_counts_only_if_it_is_the_same(stalled: Stalled) -> None:
    (stalled.store.folder / "part-00000.jsonl").write_bytes(b"whoever wrote this")
    receipt = stalled.put(0)
    assert (stalled.store.folder / receipt.part).read_bytes() == STALE


def test_of_several_writers_the_first_wins(tmp_path: Path) -> None:
    desk, path = tmp_path / "desk", tmp_path / "file"
    desk.mkdir()
    barrier = threading.Barrier(8)
    won: list[bytes] = []

    def contend(content: bytes) -> None:
        barrier.wait()
        if durable.create(path, content, desk):
            won.append(content)

    writers = [threading.Thread(target=contend, args=(bytes([i]) * 99,)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert won == [path.read_bytes()]
    durable.sweep(desk)
    assert not durable.create(path, b"too late", desk)
    assert won == [path.read_bytes()]


def test_a_receipt_of_an_older_version_is_read(stalled: Stalled) -> None:
    receipt = stalled.put(0)
    note = stalled.store.folder / "_hasten" / "receipts" / "00000.json"
    note.write_text(note.read_text().replace(f', "plan": "{receipt.plan}"', ""))
    assert stalled.store.receipts()[0].sha256 == receipt.sha256
