"""How many threads a process has after it ran a model that was given one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hasten import engines
from hasten.inputs.tokenization import TextTokenizer
from hasten.models import ModelFolder, prepare
from hasten.plain import to_json
from hasten.records import Candidate
from hasten.tuning.process import WorkerProcess
from tests.tiny import save_tiny, save_tiny_tokenizer, tiny_texts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")

ENGINES = ("onnx_runtime", "openvino", "torch_eager", "torchscript")
# More than any test machine has cores: a library that is left to these shows itself.
POOLS = {"RAYON_NUM_THREADS": "7", "OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": "5"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("reference")
    return prepare(save_tiny(folder / "tiny", "bert"), folder / "prepared", seed=0)


_RUN = """
import json, os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy
from pathlib import Path
from hasten import engines
from hasten.runtime.pipeline import Pipeline, Streams
from hasten.records import Candidate, ModelInfo, Strategy
from hasten.plain import from_json
from hasten.inputs.tokenization import TextTokenizer

folder, tokenizer, info, name, threads, streams, texts = json.loads(sys.argv[1])
candidate = Candidate(name, "fp32", "cpu", threads, streams)
info = from_json(ModelInfo, info)
engine = engines.get(name)
session = engine.load(Path(folder), candidate)
pipeline = Pipeline(
    TextTokenizer.load(tokenizer, info.max_length, candidate.threads),
    Streams(session, candidate.streams, info),
)
pipeline.run(texts, Strategy("sorted", 8))
names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
print(json.dumps(names))
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_one_thread_starts_no_pool(engine: str, reference: ModelFolder, tmp_path: Path) -> None:
    engines.get(engine).export(reference, Candidate(engine, "fp32", "cpu", 1), tmp_path)
    tokenizer = str(reference.folder / "tokenizer.json")
    question = [str(tmp_path), tokenizer, to_json(reference.info), engine, 1, 1, tiny_texts(40)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(question)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **POOLS},
    )
    assert done.returncode == 0, done.stderr
    # The main thread, and what an engine or the allocator does its housekeeping with.
    assert len(json.loads(done.stdout)) <= 3


def test_no_more_texts_are_given_to_the_tokenizers_pool_than_there_are_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = tiny_texts(9)
    path = save_tiny_tokenizer(tmp_path) / "tokenizer.json"
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    free = TextTokenizer.load(path, 64).encode(texts)
    for threads, calls in ((1, []), (2, [2, 2, 2, 2, 1]), (7, [9]), (8, [9])):
        tokenizer = TextTokenizer.load(path, 64, threads)
        watched = _Watched(tokenizer.library)
        tokenizer.library = watched  # type: ignore[assignment]
        tokens = tokenizer.encode(texts)
        assert watched.sizes == calls
        assert tokens.ids.tolist() == free.ids.tolist()
        assert tokens.offsets.tolist() == free.offsets.tolist()


class _Watched:
    """A tokenizer that keeps how many texts each call had."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.sizes: list[int] = []

    def encode(self, text: str) -> Any:
        return self._tokenizer.encode(text)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.sizes.append(len(texts))
        return self._tokenizer.encode_batch_fast(texts)


def test_a_workers_pools_have_the_threads_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    started: list[dict[str, str]] = []

    def start(*_: Any, env: dict[str, str], **__: Any) -> Any:
        started.append(env)
        raise OSError

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(OSError):
        WorkerProcess("worker", tmp_path / "log", 3)
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    assert {started[0][pool] for pool in pools} == {"3"}
    assert os.environ["OMP_NUM_THREADS"] == "5"
