"""The parent's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

from hasten import engines, tasks
from hasten.errors import HastenError, WorkerCrashed, WorkerHung
from hasten.tuning.worker import Message, Worker

# The worker gets our sys.path, so that it finds the same hasten, and a user's own modules.
_BOOT = (
    "import sys, json; start = json.loads(sys.argv[1]); sys.path[:] = start['path'];"
    "from hasten.tuning.worker import main; main(start['engines'], start['tasks'])"
)


_POOLS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)


class Connection(Protocol):
    """Something that answers a worker's messages."""

    def call(self, message: Message, timeout_s: float) -> Any: ...

    def close(self) -> None: ...


class WorkerProcess:
    """A worker in a process of its own, spoken to over its standard input and output.

    What the process and its frameworks print goes to ``log``. The pools of OpenMP, MKL, OpenBLAS
    and Inductor's compiler have ``threads``: those of an export too, which sets none itself.
    """

    def __init__(self, name: str, log: Path, threads: int) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        extensible = {"engines": list(engines.__path__), "tasks": list(tasks.__path__)}
        start = json.dumps({"path": sys.path, **extensible})
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
                [sys.executable, "-c", _BOOT, start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **dict.fromkeys(_POOLS, str(threads))},
            )
        self._replies: queue.Queue[tuple[bool, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, name=f"{name}-replies", daemon=True).start()

    def call(self, message: Message, timeout_s: float) -> Any:
        """Send a message and wait for its answer.

        Raises:
            HastenError: what the worker raised.
            WorkerCrashed: the process ended instead of answering.
            WorkerHung: no answer within ``timeout_s``; the process has been killed.
        """
        assert self._process.stdin
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            reply = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.kill()
            raise WorkerHung(
                f"{self.name} gave no answer within {timeout_s:.0f} s and was ended",
                fix=f"Its log: {self._log}",
            ) from None
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise self._crash()
        ok, answer = reply
        if ok:
            return answer
        raise answer if isinstance(answer, HastenError) else TypeError(f"bad reply: {answer!r}")

    def close(self) -> None:
        """Let the process end by itself, and see to it that it does."""
        assert self._process.stdin
        # The pipe may be broken already, by a crash that has been reported.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stdout:
            while True:
                try:
                    self._replies.put(pickle.load(stdout))  # noqa: S301 - from our own child
                except Exception:  # noqa: BLE001 - whatever a dying process leaves in the pipe
                    self._replies.put(None)
                    return

    def _crash(self) -> WorkerCrashed:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        hint = " (out of memory?)" if code == -9 else ""
        return WorkerCrashed(f"{self.name} {how}{hint}", fix=f"Its log: {self._log}")


class InlineWorker:
    """A worker without a process: for fake engines, which can neither crash nor leak."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def call(self, message: Message, timeout_s: float) -> Any:
        """Answer the message here and now."""
        return self._worker.answer(message)

    def close(self) -> None:
        """Release the model."""
        self._worker.close()
