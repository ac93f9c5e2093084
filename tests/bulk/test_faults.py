"""What is left of a bulk run when it is killed, refused, or runs out of disk; real processes."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import hasten
from hasten import hardware
from hasten.bulk.store import Store
from tests.scripted import Lab, save_bundle
from tests.tiny import save_tiny, tiny_texts

HARNESS = Path(__file__).with_name("crashing.py")
PATIENCE_S = 60.0  # for what should have happened long before


def write_csv(path: Path, rows: int) -> Path:
    texts = tiny_texts(rows, seed=rows)
    lines = (f"{i},{text},é{i:06}\n" for i, text in enumerate(texts))
    path.write_text("id,text,code\n" + "".join(lines), encoding="utf-8")
    return path


def receipts(output: Path) -> dict[str, int]:
    """The rows of each shard that is done, by its receipt's name."""
    folder = output if output.is_dir() else output.with_name(f"{output.name}.parts")
    found = {}
    for path in folder.glob("_hasten/receipts/[!.]*.json"):
        found[path.name] = json.loads(path.read_text())["tally"]["rows"]
    return found


@dataclass(frozen=True)
class Desk:
    """A bundle, and the command in processes whose cache is their own."""

    bundle: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {f"XDG_{kind}_HOME": str(self.folder / kind) for kind in ("CACHE", "DATA")}
        return {**os.environ, **own}

    def command(self, given: object, output: object, *options: object) -> list[str]:
        words = ["predict", self.bundle, given, "-o", output, "--shard-rows", 8, *options]
        return [sys.executable, "-m", "hasten", *map(str, words)]

    def start(
        self,
        given: object,
        output: object,
        *options: object,
        before: tuple[str, ...] = (),
        **how: Any,
    ) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [*before, *self.command(given, output, *options)]
        return subprocess.Popen(command, env=self.environment, **{**pipes, **how})

    def run(
        self,
        given: object,
        output: object,
        *options: object,
        patience_s: float = PATIENCE_S,
        **how: Any,
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(given, output, *options, **how)
        try:
            said, complained = process.communicate(timeout=patience_s)
        finally:
            process.kill()
        assert "Traceback" not in (complained or "")
        return subprocess.CompletedProcess(process.args, process.returncode, said, complained)

    def expected(self, given: Path, output: Path) -> bytes:
        """What an undisturbed run makes, bytes of a file or of all parts."""
        hasten.predict_file(self.bundle, given, output, shard_rows=8)
        return whole(output)


def whole(output: Path) -> bytes:
    parts = sorted(output.glob("part-*")) if output.is_dir() else [output]
    return b"".join(part.read_bytes() for part in parts)


@pytest.fixture
def desk(scripted_bundle: Path, tmp_path: Path) -> Desk:
    return Desk(scripted_bundle, tmp_path)


def until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for a condition, or for the process to end."""
    limit_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < limit_s
        try:
            process.wait(timeout=0.005)
            return
        except subprocess.TimeoutExpired:
            continue


def begun(desk: Desk, given: Path, output: Path, shards: int = 2, **options: Any) -> None:
    """A run that was interrupted after its first shards."""
    put = Store.put
    left = iter(range(shards))

    def puts(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return put(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", puts)
        with pytest.raises(KeyboardInterrupt):
            hasten.predict_file(desk.bundle, given, output, shard_rows=8, **options)


def strike(
    desk: Desk, kind: str, given: Path, output: str, *options: object, every: int = 1
) -> list[dict[str, Any]]:
    """One forked run for each step at which something is struck; see crashing.py."""
    words = [HARNESS, desk.folder / "forks", kind, every, desk.bundle, given, output, *options]
    (desk.folder / "forks").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def contents(output: Path) -> set[str]:
    """Names below the output's folder, without a dataset's books."""
    found = output.parent.rglob("*")
    return {
        str(p.relative_to(output.parent)) for p in found if p.is_file() and "_hasten" not in p.parts
    }


# --- killed -----------------------------------------------------------------------------------


STEPS = [
    (kind, output)
    for kind in ("before", "after", "torn")
    for output in ("out.csv.gz", "out/", "out.parquet")
]


def check_every_crash(desk: Desk, kind: str, output: str, every: int, fewest: int) -> None:
    given, rows = write_csv(desk.folder / "in.csv", 20), 20
    right = desk.folder / "right" / output.rstrip("/")
    right.parent.mkdir()
    if output.endswith("/"):
        right.mkdir()
    desk.expected(given, right)
    wanted = contents(right)
    *struck, untouched = strike(desk, kind, given, output, "--shard-rows", 8, "--json", every=every)
    assert untouched["struck"] == 0
    assert len(struck) >= fewest
    for attempt in struck:
        where = f"{attempt['number']} {attempt['step']}"
        assert attempt["struck"] == -signal.SIGKILL, where
        assert set(attempt["content"]) == wanted, where
        assert attempt["unsure"] <= 1, where
        if attempt["resumed"]:
            # It was killed after its last word: there is nothing to continue.
            assert "already exists" in attempt["again"], where
        else:
            summary = json.loads(attempt["again"].splitlines()[-1])
            assert summary["total"]["rows"] == rows, where
            assert summary["kept_rows"] == attempt["stored"], where
        for name, digest in attempt["content"].items():
            assert digest == untouched["content"][name], where
    assert sum(attempt["resumed"] == 0 for attempt in struck) > len(struck) / 2


def test_a_run_killed_at_any_step_is_continued_to_the_same_bytes(desk: Desk) -> None:
    check_every_crash(desk, "before", "out.csv", 5, 10)  # every fifth; all of them below


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "output"), STEPS)
def test_whatever_the_output_and_the_step_are(desk: Desk, kind: str, output: str) -> None:
    check_every_crash(desk, kind, output, 1, 7)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("output", ["out.csv", "out/"])
@pytest.mark.parametrize("other", [(), ("--columns", "label")])
def test_a_run_killed_while_it_throws_an_earlier_one_away_harms_nothing(
    desk: Desk, output: str, other: tuple[str, ...]
) -> None:
    """What is left belongs to one of the two runs, never to both."""
    given = write_csv(desk.folder / "in.csv", 12)
    ready = desk.folder / "forks" / "ready"
    ready.mkdir(parents=True)
    # The harness begins with a copy of this, and a plan does not say where its output is.
    target = ready / output.rstrip("/")
    if output.endswith("/"):
        target.mkdir()
    begun(desk, given, target, 1, columns=["label"] if other else None)
    *struck, untouched = strike(
        desk, "before", given, output, "--shard-rows", 8, "--format", "csv", "--restart", "--json"
    )
    assert untouched["struck"] == 0
    for attempt in struck:
        where = f"{attempt['number']} {attempt['step']}"
        if attempt["resumed"]:
            assert re.search("already exists|was started with other options", attempt["again"]), (
                where
            )
        else:
            for name, digest in attempt["content"].items():
                assert digest == untouched["content"][name], where


def check_random_kills(
    desk: Desk, given: Path, output: Path, kills: int, wait: Callable[[subprocess.Popen[str]], None]
) -> None:
    expected = desk.expected(given, desk.folder / f"right{output.suffix}")
    for _ in range(kills):
        before = receipts(output)
        process = desk.start(given, output)
        wait(process)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert not output.is_file()
        assert before.items() <= receipts(output).items()
    stored = receipts(output)
    done = desk.run(given, output, "--json")
    if done.returncode:
        assert "already exists" in done.stderr
    else:
        assert json.loads(done.stdout)["kept_rows"] == sum(stored.values())
    assert output.read_bytes() == expected
    assert not list(output.parent.glob(f"*{output.name}.*"))


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(desk: Desk) -> None:
    output = desk.folder / "out.csv"
    wanted = iter((1, 6, 12))

    def some_shards(process: subprocess.Popen[str]) -> None:
        goal = next(wanted)
        until(lambda: len(receipts(output)) >= goal, process)

    check_random_kills(desk, write_csv(desk.folder / "in.csv", 160), output, 3, some_shards)


def any_moment(output: Path, dice: random.Random) -> Callable[[subprocess.Popen[str]], None]:
    def wait(process: subprocess.Popen[str]) -> None:
        if dice.random() < 0.5:  # while it starts, or soon after
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=dice.uniform(0, 3))
            return
        goal = len(receipts(output)) + dice.randint(1, 40)
        until(lambda: len(receipts(output)) >= goal, process)

    return wait


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_fifty_kills_at_random_moments(desk: Desk) -> None:
    output = desk.folder / "out.csv"
    given = write_csv(desk.folder / "in.csv", 20_000)
    check_random_kills(desk, given, output, 50, any_moment(output, random.Random(0)))


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_fifty_kills_of_a_real_engine(desk: Desk) -> None:
    bundle = desk.folder / "bundle"
    model = save_tiny(desk.folder / "model", "bert")
    hasten.tune(
        model,
        texts=tiny_texts(40),
        output=bundle,
        engines=["onnx_runtime"],
        batch_sizes=[1, 8],
        threads=1,
        budget=60,
    )
    output = desk.folder / "out.jsonl"
    given = write_csv(desk.folder / "in.csv", 20_000)
    real = Desk(bundle, desk.folder)
    check_random_kills(real, given, output, 50, any_moment(output, random.Random(1)))


# --- names and bytes --------------------------------------------------------------------------


def test_a_name_is_given_only_to_bytes_that_are_on_the_disk(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the folder that holds the name follows before anything else is done."""
    durable_bytes: dict[int, int] = {}
    open_folder: list[Path] = []
    named: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def on_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        durable_bytes[status.st_ino] = status.st_size
        fsync(descriptor)
        if open_folder and open_folder[0].stat().st_ino == status.st_ino:
            open_folder.clear()

    def on_name(real: Callable[..., None]) -> Callable[..., None]:
        def hook(old: Any, new: Any) -> None:
            assert not open_folder
            status = Path(old).stat()
            assert durable_bytes[status.st_ino] == status.st_size
            real(old, new)
            open_folder.append(Path(new).parent)
            named.append(Path(new).name)

        return hook

    monkeypatch.setattr(os, "fsync", on_fsync)
    monkeypatch.setattr(os, "link", on_name(link))
    monkeypatch.setattr(os, "replace", on_name(replace))
    desk.expected(write_csv(desk.folder / "in.csv", 20), desk.folder / "new" / "out.csv")
    shards = [name for n in range(3) for name in (f"part-{n:05}.csv", f"{n:05}.json")]
    assert named == ["plan.json", *shards, "out.csv"]
    assert not open_folder
    folders = [desk.folder, desk.folder / "new"]
    assert all(folder.stat().st_ino in durable_bytes for folder in folders)


def test_what_another_run_is_writing_beside_it_is_left_alone(desk: Desk) -> None:
    given = write_csv(desk.folder / "in.csv", 8)
    theirs = [desk.folder / f".{name}.0123abcd.unfinished" for name in ("b.csv", "a.csv.gz")]
    for path in theirs:
        path.touch()
    ours = desk.folder / ".a.csv.0123abcd.unfinished"
    ours.touch()
    desk.expected(given, desk.folder / "a.csv")
    assert not ours.exists()
    assert all(path.exists() for path in theirs)


def test_a_file_system_without_links_names_by_renaming(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_csv(desk.folder / "in.csv", 20)
    expected = desk.expected(given, desk.folder / "right.csv")

    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert desk.expected(given, desk.folder / "out.csv") == expected


# --- no space, no disk ------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "name",
    [
        "out.csv",
        pytest.param("out", marks=pytest.mark.faults),
        pytest.param("out.parquet", marks=pytest.mark.faults),
    ],
)
def test_a_full_disk_stops_it_and_space_lets_it_go_on(
    desk: Desk, small_disk: Path, name: str
) -> None:
    given = write_csv(desk.folder / "in.csv", 3000)
    options = ("--shard-rows", 500)
    (desk.folder / "right").mkdir()
    right = desk.folder / "right" / name
    hasten.predict_file(desk.bundle, given, right, shard_rows=500)
    output = small_disk / name
    ballast = small_disk / "ballast"
    # Room for the books and about half of the parts; a page is 4 KiB.
    ballast.write_bytes(bytes((8 << 20) - (70 << 10)))
    done = desk.run(given, output, *options, patience_s=10)
    assert done.returncode not in {0, -signal.SIGKILL}
    assert str(small_disk) in done.stderr
    assert "No space left on device" in done.stderr
    assert not output.is_file()
    assert not (output / "_SUCCESS").exists()
    assert not list(small_disk.rglob("*.unfinished"))
    ballast.unlink()
    again = desk.run(given, output, *options)
    assert again.returncode == 0, again.stderr
    assert whole(output) == whole(right)


def check_every_error(desk: Desk, error: str, output: str, every: int) -> None:
    given = write_csv(desk.folder / "in.csv", 20)
    *struck, untouched = strike(
        desk, error, given, output, "--shard-rows", 8, "--json", every=every
    )
    assert untouched["struck"] == 0
    assert len(struck) * every > 30
    text = os.strerror(getattr(errno, error))
    for attempt in struck:
        where = f"{attempt['number']} {attempt['step']}: {attempt['said']}"
        assert "Traceback" not in attempt["said"], where
        if attempt["struck"]:
            assert text in attempt["said"], where
            assert str(desk.folder / "forks" / "work") in attempt["said"], where
        name = output.rstrip("/")
        # There is no output but the right one, whatever the exit status.
        assert attempt["there"] in {None, untouched["content"].get(name)}, where
        assert attempt["resumed"] == 0 or "already exists" in attempt["again"], where
        assert attempt["content"] == untouched["content"], where
    assert sum(attempt["struck"] != 0 for attempt in struck) > len(struck) / 2


def test_a_disk_that_fails_at_any_step_is_told_and_can_be_mended(desk: Desk) -> None:
    check_every_error(desk, "ENOSPC", "out.csv", 7)  # every seventh; all of them below


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("output", ["out.csv", "out/", "out.parquet"])
def test_whatever_the_output_and_the_error_are(desk: Desk, output: str, error: str) -> None:
    check_every_error(desk, error, output, 1)


def traced(*injected: str) -> tuple[str, ...]:
    """The command's prefix that makes the kernel itself fail a call."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    calls = ",".join(one.split(":")[0] for one in injected)
    words = [word for one in injected for word in ("-e", f"inject={one}")]
    return ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", *words)


def check_kernel_error(desk: Desk, given: Path, expected: bytes, *injected: str) -> bool:
    output = desk.folder / "out.csv"
    done = desk.run(given, output, before=traced(*injected), patience_s=60)
    if done.returncode:
        assert re.search("No space left|Input/output error", done.stderr)
        assert str(output) in done.stderr
        assert not output.exists() or output.read_bytes() == expected
        again = desk.run(given, output)
        assert again.returncode == 0 or "already exists" in again.stderr
    assert output.read_bytes() == expected
    output.unlink()
    return done.returncode != 0


@pytest.mark.faults
def test_the_kernel_refuses_to_make_bytes_durable(desk: Desk) -> None:
    given = write_csv(desk.folder / "in.csv", 20)
    expected = desk.expected(given, desk.folder / "right.csv")
    assert check_kernel_error(desk, given, expected, "fsync:error=EIO:when=7")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_kernel_refuses_anything(desk: Desk) -> None:
    given = write_csv(desk.folder / "in.csv", 20)
    expected = desk.expected(given, desk.folder / "right.csv")
    calls = {"fsync:error=EIO": 17, "link:error=ENOSPC": 7, "rename:error=EIO": 2}
    failed = {
        call: sum(
            check_kernel_error(desk, given, expected, f"{call}:when={n}")
            for n in range(1, most + 1)
        )
        for call, most in calls.items()
    }
    assert failed == calls


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_the_kernel_refuses_to_write(desk: Desk, error: str) -> None:
    """Only files: strace is told their names by those of the folder, which a run makes first."""
    given = write_csv(desk.folder / "in.csv", 20)
    expected = desk.expected(given, desk.folder / "right.csv")
    # Which write is which is found by trying: some go to the terminal, and harm nothing on disk.
    outcomes = []
    for n in range(1, 16):
        output = desk.folder / "out.csv"
        process = desk.start(given, output, before=traced(f"write:error={error}:when={n}"))
        process.communicate(timeout=PATIENCE_S)
        outcomes.append(process.returncode)
        assert not output.exists() or output.read_bytes() == expected
        again = desk.run(given, output)
        assert again.returncode == 0 or "already exists" in again.stderr
        assert output.read_bytes() == expected
        output.unlink()
    assert sum(code != 0 for code in outcomes) >= 7


def test_standard_output_that_cannot_be_written_is_an_error(desk: Desk) -> None:
    given = write_csv(desk.folder / "in.csv", 20)
    with Path("/dev/full").open("wb") as full:
        done = desk.run(given, "-", stdout=full)
    assert done.returncode == 2
    assert "cannot write to standard output: No space left on device" in done.stderr


# --- two at once ------------------------------------------------------------------------------


RACE = """
import os, sys
bundle, given, output, report, racers = sys.argv[1:]
from hasten import cli, predict_file
import pyarrow.parquet, pandas, tokenizers, hasten.engines.fake
begin, go = os.pipe()
children = []
for number in range(int(racers)):
    child = os.fork()
    if not child:
        os.close(go)
        os.dup2(os.open(f"{report}.{number}", os.O_WRONLY | os.O_CREAT), 2)
        os.read(begin, 1)
        status = 0
        try:
            cli.app(["predict", bundle, given, "-o", output, "--shard-rows", "8"])
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 99
        sys.stderr.flush()
        os._exit(status)
    children.append(child)
os.close(go)  # they all read the end of it at once
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def race(desk: Desk, given: Path, output: Path, racers: int) -> None:
    report = desk.folder / "said"
    words = [desk.bundle, given, output, report, racers]
    done = subprocess.run(
        [sys.executable, "-c", RACE, *map(str, words)],
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = [int(code) for code in done.stdout.split("\n")[-2].split()]
    said = [Path(f"{report}.{number}").read_text() for number in range(racers)]
    assert sorted(codes) == [0] + [2] * (racers - 1), said
    losers = [text for text, code in zip(said, codes, strict=True) if code]
    assert all(re.search("another run is writing|already exists", text) for text in losers), said


@pytest.mark.parametrize("name", ["out.csv", pytest.param("out", marks=pytest.mark.faults)])
def test_of_several_runs_into_one_output_one_wins(desk: Desk, name: str) -> None:
    given = write_csv(desk.folder / "in.csv", 40)
    (desk.folder / "right").mkdir()
    expected = desk.expected(given, desk.folder / "right" / name)
    race(desk, given, desk.folder / name, 4)
    assert whole(desk.folder / name) == expected


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_however_often_they_race(desk: Desk, name: str) -> None:
    given = write_csv(desk.folder / "in.csv", 8)
    (desk.folder / "right").mkdir()
    expected = desk.expected(given, desk.folder / "right" / name)
    for attempt in range(25):
        folder = desk.folder / str(attempt)
        race(desk, given, folder / name, 8)
        assert whole(folder / name) == expected
        assert sorted(path.name for path in folder.iterdir()) == [name]


def test_a_second_run_says_that_the_first_is_writing(desk: Desk) -> None:
    given = write_csv(desk.folder / "in.csv", 4000)
    output = desk.folder / "out.csv"
    first = desk.start(given, output)
    until(lambda: receipts(output), first)
    assert first.returncode is None
    second = desk.run(given, output)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"another run is writing {output} now" in second.stderr


# --- changed meanwhile ------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["touched", "longer", "bundle", "option", "columns", "shards"])
def test_a_run_is_not_continued_with_something_else(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory, change: str
) -> None:
    given, output = write_csv(desk.folder / "in.csv", 40), desk.folder / "out.csv"
    begun(desk, given, output)
    stored = receipts(output)
    how: dict[str, Any] = {"shard_rows": 8}
    bundle, message = desk.bundle, ""
    if change == "touched":
        os.utime(given, ns=(1, given.stat().st_mtime_ns + 1_000_000))
        message = r"in.csv was modified at .*, and its last change had been at"
    elif change == "longer":
        size, when = given.stat().st_size, given.stat().st_mtime_ns
        with given.open("ab") as file:
            file.write(b"\n")
        os.utime(given, ns=(when, when))
        message = f"in.csv had {size:,} bytes and has {size + 1:,}"
    elif change == "bundle":
        lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {"shift": 0.5}}, precisions=("fp32",))
        lab.hardware = hardware.detect()
        bundle = save_bundle(desk.folder / "other", lab, lab.tune())
        message = "the bundle is another one"
    elif change == "option":
        how["on_error"], message = "record", "--on-error was stop and is record"
    elif change == "columns":
        how["columns"], message = (
            ["label"],
            "--columns was label=label,score=score and is label=label",
        )
    else:
        how["shard_rows"], message = 16, "--shard-rows was 8 and is 16"
    with pytest.raises(hasten.errors.ResumeError, match=message):
        hasten.predict_file(bundle, given, output, **how)
    assert receipts(output) == stored
    assert not output.exists()


def test_the_command_says_what_has_changed(desk: Desk) -> None:
    given, output = write_csv(desk.folder / "in.csv", 40), desk.folder / "out.csv"
    begun(desk, given, output)
    given.write_text(given.read_text() + "40,ba,x\n")
    done = desk.run(given, output)
    assert done.returncode == 2
    assert re.search(rf"{given} had [\d,]+ bytes and has [\d,]+", done.stderr)
    assert "--restart" in done.stderr


@pytest.mark.parametrize("damage", ["part", "receipt", "plan"])
def test_what_was_stored_is_checked_before_it_becomes_the_output(desk: Desk, damage: str) -> None:
    given, output = write_csv(desk.folder / "in.csv", 40), desk.folder / "out.csv"
    begun(desk, given, output)
    parts = output.with_name("out.csv.parts")
    books = parts / "_hasten"
    path = {
        "part": parts / "part-00001.csv",
        "receipt": books / "receipts" / "00001.json",
        "plan": books / "plan.json",
    }[damage]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(hasten.HastenError, match=re.escape(str(path))) as caught:
        hasten.predict_file(desk.bundle, given, output, shard_rows=8)
    assert "--restart" in (caught.value.fix or "")
    assert not output.exists()
    hasten.predict_file(desk.bundle, given, output, shard_rows=8, restart=True)
    assert output.read_bytes() == desk.expected(given, desk.folder / "right.csv")


# --- interrupted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)]
)
def test_a_run_that_is_asked_to_end_ends_and_goes_on(desk: Desk, sent: signal.Signals) -> None:
    given, output = write_csv(desk.folder / "in.csv", 200), desk.folder / "out.csv"
    process = desk.start(given, output)
    until(lambda: len(receipts(output)) > 2, process)
    process.send_signal(sent)
    said = process.communicate(timeout=10)[1]
    assert "Traceback" not in said
    if sent is signal.SIGINT:
        assert process.returncode == 130
        assert "Finished work is kept; the same command continues." in said
    assert process.returncode != 0
    stored = receipts(output)
    done = desk.run(given, output, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["kept_rows"] == sum(stored.values()) > 0
    assert output.read_bytes() == desk.expected(given, desk.folder / "right.csv")


def test_a_pipe_from_which_nothing_comes_does_not_keep_it_from_ending(desk: Desk) -> None:
    """The rows that came are answered at once, and Ctrl-C is obeyed while it waits for more."""
    process = desk.start("-", "-", "--input-format", "txt", stdin=subprocess.PIPE, bufsize=1)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("ba ke\n" * 2000)
    process.stdin.flush()
    # All shards that are full: behind them there are 1 row and an open end.
    assert all(process.stdout.readline() for _ in range(1999))
    process.send_signal(signal.SIGINT)
    held, process.stdin = process.stdin, None
    said = process.communicate(timeout=10)[1]
    held.close()
    assert process.returncode == 130, said
    assert "Interrupted" in said
    assert "Fatal" not in said


def test_who_has_read_enough_ends_it_quietly(desk: Desk) -> None:
    given = write_csv(desk.folder / "in.csv", 3000)
    command = " ".join(desk.command(given, "-"))
    done = subprocess.run(
        f"{command} | head -n 1",
        shell=True,
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout == "id,text,code,label,score\n"
    assert done.stderr == "load: the model\n"


# --- memory -----------------------------------------------------------------------------------


PEAK = """
import re, sys, pathlib, hasten
bundle, given, output = sys.argv[1:]
hasten.predict_file(bundle, given, output, shard_rows=4096)
status = pathlib.Path("/proc/self/status").read_text()
print(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1))
"""


def peak_bytes(desk: Desk, rows: int, extension: str) -> int:
    given = desk.folder / f"{rows}{extension}"
    texts = tiny_texts(20_000)
    table = pa.table({"id": range(rows), "text": [f"{texts[i % 20_000]} {i}" for i in range(rows)]})
    if extension == ".parquet":
        parquet.write_table(table, given, row_group_size=10_000)
    else:
        given.write_text(
            "id,text\n" + "".join(f"{r['id']},{r['text']}\n" for r in table.to_pylist())
        )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PEAK,
            str(desk.bundle),
            str(given),
            str(desk.folder / f"{rows}.out{extension}"),
        ],
        env=desk.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout) * 1024


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extension", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_input(desk: Desk, extension: str) -> None:
    few, many = peak_bytes(desk, 20_000, extension), peak_bytes(desk, 200_000, extension)
    assert many - few < 150 << 20
