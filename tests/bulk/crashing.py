"""Predicts in forked processes, each of which is struck at one step later than the one before.

A step is a call by which files or names on disk change. A process is killed there, or the call
fails; then the same command is given again. A line of JSON tells what came of every step::

    python tests/bulk/crashing.py FOLDER KIND EVERY BUNDLE INPUT OUTPUT [OPTION ...]

KIND is ``before`` or ``after`` (killed then), ``torn`` (killed while bytes go to the disk: half of
them are there), or the name of an error, such as ``ENOSPC``. EVERY is 1 for all steps, 2 for every
second one. A folder ``FOLDER/ready`` is copied to
begin each attempt with.

Forking spares starting Python two hundred times: here nothing has run yet but imports, so there are
no threads that a fork would lose.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

STEPS = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")


class Strike:
    """Stands in for the functions of ``os``, and strikes at one of their calls, from 0."""

    def __init__(self, number: int, kind: str, note: Path) -> None:
        self._left, self._kind, self._note = number, kind, note
        for name in STEPS:
            setattr(os, name, self._hooked(name, getattr(os, name)))

    def _hooked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def hook(*arguments: Any, **options: Any) -> Any:
            # Bytes go to the disk at a file's fsync; nothing else can be torn.
            if self._kind == "torn" and not _is_file(name, arguments):
                return real(*arguments, **options)
            self._left -= 1
            if self._left != -1:
                return real(*arguments, **options)
            self._note.write_text(name)
            if self._kind == "torn":
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
            elif self._kind == "after":
                with suppress(OSError):  # a call that finds all as it wants it is a step as well
                    real(*arguments, **options)
            elif self._kind != "before":
                number = getattr(errno, self._kind)
                raise OSError(number, os.strerror(number))
            die()

        return hook


def _is_file(name: str, arguments: tuple[Any, ...]) -> bool:
    return name == "fsync" and stat.S_ISREG(os.fstat(arguments[0]).st_mode)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody gets here")


def forked(command: list[str], said: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """Run the command in a process of its own; its exit status, or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 99
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from hasten import cli

        prepare()
        cli.app(["predict", *command])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def content(output: Path) -> dict[str, str]:
    """What is beside the output, and in it, by name; without a dataset's books."""
    found = (p for p in output.parent.rglob("*") if p.is_file())
    return {
        str(p.relative_to(output.parent)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in found
        if "_hasten" not in p.parts
    }


def attempt(
    folder: Path, number: int, kind: str, command: list[str], output: str
) -> dict[str, Any]:
    """Strike once, then give the same command until it has nothing to do."""
    work, note = folder / "work", folder / "note"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "ready", work)
    note.unlink(missing_ok=True)
    target = work / output.rstrip("/")
    whole = [*command, "-o", str(work) + "/" + output]
    struck = forked(whole, folder / "said", lambda: Strike(number, kind, note))
    told = (folder / "said").read_text()
    parts = target if output.endswith("/") else target.with_name(target.name + ".parts")
    receipts = list(parts.glob("_hasten/receipts/[!.]*.json"))
    kept = sum(json.loads(p.read_text())["tally"]["rows"] for p in receipts)
    unsure = len(list(parts.glob("part-*"))) - len(receipts)
    there = content(target).get(target.name)
    resumed = forked([a for a in whole if a != "--restart"], folder / "again")
    return {
        "step": note.read_text() if note.exists() else None,
        "struck": struck,
        "said": told,
        "there": there,
        "stored": kept,
        "unsure": unsure,
        "resumed": resumed,
        "again": (folder / "again").read_text(),
        "content": content(target),
    }


def warm_up(folder: Path, command: list[str]) -> None:
    """Import whatever a run imports, so that no fork has to."""
    loaded = folder / "modules"

    def tell() -> None:
        atexit = os._exit

        def leave(status: int) -> NoReturn:
            loaded.write_text("\n".join(sys.modules))
            atexit(status)

        os._exit = leave

    forked([*command, "-o", str(folder / "warm" / "out.csv")], folder / "said", tell)
    shutil.rmtree(folder / "warm", ignore_errors=True)
    for name in loaded.read_text().split():
        with suppress(Exception):
            import_module(name)


def main() -> None:
    folder, kind, every, bundle, given, output, *options = sys.argv[1:]
    (Path(folder) / "ready").mkdir(exist_ok=True)
    warm_up(Path(folder), [bundle, given, *options])
    for number in count(0, int(every)):
        made = attempt(Path(folder), number, kind, [bundle, given, *options], output)
        print(json.dumps({"number": number, **made}), flush=True)  # noqa: T201
        if made["step"] is None:
            return


if __name__ == "__main__":
    main()
