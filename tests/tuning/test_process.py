"""Real worker processes, with the fake engine failing in them as scripted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.engines.fake import SCRIPT
from hasten.errors import EngineError, WorkerCrashed, WorkerHung
from hasten.records import Candidate, Strategy
from hasten.tuning.process import WorkerProcess
from hasten.tuning.worker import Export, Load, RunTexts, TimeShape
from tests.scripted import save_reference

CANDIDATE = Candidate("fake", "fp32", "cpu", 1)
PATIENCE_S = 60.0


class Bench:
    def __init__(self, folder: Path, script: dict[str, Any]) -> None:
        self.reference = save_reference(folder / "reference")
        (self.reference.folder / SCRIPT).write_text(json.dumps({"*": script}))
        self.worker = WorkerProcess("subject", folder / "logs" / "subject.log", threads=1)
        self.artifact = folder / "artifact"
        self.log = folder / "logs" / "subject.log"

    def export(self) -> Any:
        message = Export(self.reference.folder, CANDIDATE, self.artifact)
        return self.worker.call(message, PATIENCE_S)

    def load(self) -> Any:
        tokenizer = self.reference.folder / "tokenizer.json"
        texts = ("ba ke", "li", "mo nu po")
        message = Load(self.artifact, CANDIDATE, tokenizer, self.reference.info, texts)
        return self.worker.call(message, PATIENCE_S)


def test_a_worker_exports_loads_and_measures(tmp_path: Path) -> None:
    ballast = np.ones(400 * 2**20, dtype=np.uint8)
    bench = Bench(tmp_path, {"call_s": 0.25, "token_s": 0.0})
    bench.export()
    start_up = bench.load()
    # Its own memory, and not this process's, which a child's getrusage would include.
    assert 10 * 2**20 < start_up.peak_bytes < 300 * 2**20
    assert bench.worker.call(TimeShape(2, 8), PATIENCE_S) == (0.25,)
    strategy = Strategy("arrival", 1)
    run = bench.worker.call(RunTexts((2, 0), strategy, outputs=True), PATIENCE_S)
    assert run.outputs.values.shape == (2, 3)
    assert run.batch_latency_s == (0.25, 0.25)
    assert ballast.all()
    bench.worker.close()


def test_a_crash_is_told_apart_from_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"fail": "exit", "when": "load"})
    bench.export()
    with pytest.raises(WorkerCrashed, match="exited with status 11") as caught:
        bench.load()
    assert str(bench.log) in (caught.value.fix or "")
    with pytest.raises(WorkerCrashed):
        bench.load()  # the pipe is broken; still a crash, not a traceback
    bench.worker.close()


def test_a_killed_worker_names_the_signal(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    bench.worker.kill()
    with pytest.raises(WorkerCrashed, match="killed by signal 9"):
        bench.export()
    bench.worker.close()


def test_a_hang_is_ended_after_the_patience(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"fail": "hang", "when": "load"})
    bench.export()
    message = Load(
        bench.artifact,
        CANDIDATE,
        bench.reference.folder / "tokenizer.json",
        bench.reference.info,
        (),
    )
    with pytest.raises(WorkerHung, match="no answer within 1 s"):
        bench.worker.call(message, 1.0)
    bench.worker.close()


def test_errors_cross_the_border_and_the_worker_lives_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"fail": "raise", "when": "load"})
    bench.export()
    for _ in range(2):
        with pytest.raises(EngineError, match="scripted failure at load"):
            bench.load()
    assert "scripted failure" in bench.log.read_text()
    bench.worker.close()


def test_foreign_exceptions_are_wrapped_and_logged_with_their_traceback(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"unknown": 1})
    with pytest.raises(EngineError, match="TypeError"):
        bench.export()
    assert "Traceback" in bench.log.read_text()
    bench.worker.close()
