"""What every engine promises, tried on every engine that is found; one added is covered as it is.

Compiling takes half a minute per thread layout, so that torch.compile is tried in one of them and
on one model family.
"""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hasten import hardware
from hasten.engines import discover
from hasten.engines.base import Engine, Session
from hasten.errors import EngineError
from hasten.models import ModelFolder, prepare
from hasten.records import PRECISIONS, Candidate, Gpu, Hardware
from tests.tiny import FAMILIES, MAX_LENGTH, save_tiny, tiny_texts

ROOT = Path(__file__).parents[2]
ENGINES = discover()
HERE = hardware.detect()
SLOW = {"torch_compile"}
TRACING = ("onnx_runtime", "openvino", "torchscript")
FRAMEWORKS = ("onnx", "onnxruntime", "openvino", "safetensors", "torch", "transformers")
# Logits of the tiny models are of size 1 to 10.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.3, "fp16": 0.05, "int8": 3.0}
# How far an answer may move with the neighbours of its text, where it does not depend on them:
# sums in another order, which may round another way once.
ALONE = {**TOLERANCE, "int8": 0.05}
MACHINES = {
    "plain": Hardware("AMD EPYC 7763", 2, ("avx2", "fma"), 8 << 30),
    "bf16": Hardware("AMD EPYC 9R14", 2, ("avx2", "avx512f", "avx512_bf16"), 8 << 30),
}
SHAPES = ((1, 2), (1, 3), (2, 31), (1, 32), (3, 32), (2, 33), (1, MAX_LENGTH), (5, MAX_LENGTH))

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    engine: Engine
    candidate: Candidate
    reference: ModelFolder
    module: nn.Module
    artifact: Path
    session: Session

    def inputs(self, batch: Batch) -> tuple[np.ndarray, ...]:
        return batch[: len(self.reference.info.input_names)]

    def run(self, batch: Batch) -> np.ndarray:
        names = self.reference.info.input_names
        outputs = self.session.run(dict(zip(names, batch, strict=False)))
        assert list(outputs) == list(self.reference.info.output_names)
        return outputs["logits"]

    def truth(self, batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            logits = self.module(*map(torch.from_numpy, self.inputs(batch)))
        return np.asarray(logits)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.candidate.precision]


def make_batch(lengths: list[int], seed: int = 0) -> Batch:
    """Random texts of these lengths, padded to the longest; 0 pads, as in BERT."""
    numbers = np.random.default_rng(seed)
    ids = np.zeros((len(lengths), max(lengths)), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = numbers.integers(4, 100, length)
        mask[row, :length] = 1
    return ids, mask, np.zeros_like(ids)


def spread(batch: int, length: int) -> Batch:
    """``batch`` texts, the first of ``length`` tokens, the others shorter."""
    return make_batch([max(2, length - 7 * row) for row in range(batch)], seed=length)


def sound_recipes(engine: Engine, precision: str) -> list[str]:
    """Without those that overflow on a CPU without VNNI, as they do with the tiny models."""
    recipes = engine.recipes(precision, HERE) or tuple(engine.not_worth_trying(precision, HERE))
    return [recipe for recipe in recipes if f"{recipe}-reduced" not in recipes]


def all_candidates() -> Iterator[Any]:
    """What an engine runs on some machine; where it is not this one, the tests are skipped."""
    for name, engine in ENGINES.items():
        for streams, threads in ((2, 1),) if name in SLOW else ((1, 2), (2, 1), (2, 2)):
            for precision in PRECISIONS:
                for recipe in sound_recipes(engine, precision):
                    candidate = Candidate(name, precision, "cpu", threads, streams, recipe)
                    if engine.supports(candidate, MACHINES["bf16"]) is None:
                        yield candidate
        for precision in PRECISIONS:
            candidate = Candidate(name, precision, "cuda", 1)
            if engine.supports(candidate, MACHINES["bf16"]) == "no GPU on this machine":
                yield pytest.param(candidate, marks=pytest.mark.gpu)


def ready(candidate: Candidate) -> Engine:
    engine = ENGINES[candidate.engine]
    missing = engine.missing() or engine.missing_to_export(candidate.recipe)
    if reason := missing or engine.supports(candidate, HERE):
        pytest.skip(str(reason))
    return engine


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def reference_of(family: str, workshop: Path) -> ModelFolder:
    folder = workshop / f"reference-{family}"
    if folder.exists():
        return ModelFolder.open(folder)
    reference = prepare(save_tiny(workshop / family, family), folder)
    reference.keep_calibration(tiny_texts(32, seed=7))
    return reference


def artifact_of(engine: Engine, candidate: Candidate, reference: ModelFolder, root: Path) -> Path:
    folder = root / f"{reference.folder.name}-{engine.artifact_name(candidate)}"
    if not folder.exists():
        folder.mkdir()
        engine.export(reference, candidate, folder)
    return folder


def make_case(candidate: Candidate, family: str, workshop: Path) -> Case:
    engine = ready(candidate)
    reference = reference_of(family, workshop)
    artifact = artifact_of(engine, candidate, reference, workshop)
    session = engine.load(artifact, candidate)
    return Case(engine, candidate, reference, reference.module(), artifact, session)


@pytest.fixture(scope="module", params=all_candidates(), ids=lambda candidate: candidate.label)
def case(request: pytest.FixtureRequest, workshop: Path) -> Iterator[Case]:
    made = make_case(request.param, "bert", workshop)
    yield made
    made.session.close()
    made.session.close()  # once more does no harm


# Answers


def test_outputs_are_the_originals_at_every_shape(case: Case) -> None:
    for shape in SHAPES:
        batch = spread(*shape)
        with torch.compiler.set_stance("fail_on_recompile"):  # no shape is compiled for again
            logits = case.run(batch)
        assert logits.dtype == np.float32
        assert logits.shape == (shape[0], 3)
        np.testing.assert_allclose(
            logits, case.truth(batch), atol=case.tolerance, rtol=0, err_msg=str(shape)
        )


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(2, 40), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_padding_and_neighbours_do_not_change_answers(
    case: Case, lengths: list[int], seed: int
) -> None:
    ids, mask, types = make_batch(lengths, seed)
    tolerance = ALONE[case.candidate.precision]
    if case.engine.depends_on_batch(case.candidate):
        # Copies alone leave the ranges of a batch as they are.
        tolerance = case.tolerance
        lengths = lengths[:1] * len(lengths)
        ids, mask, types = (
            np.repeat(each[:1, : lengths[0]], len(lengths), axis=0) for each in (ids, mask, types)
        )
    together = case.run((ids, mask, types))
    for row, length in enumerate(lengths):
        cut = np.s_[row : row + 1, :length]
        alone = case.run((ids[cut], mask[cut], types[cut]))
        np.testing.assert_allclose(together[row], alone[0], atol=tolerance, rtol=0)


def test_what_is_said_to_depend_on_the_batch_does(case: Case) -> None:
    if not case.engine.depends_on_batch(case.candidate):
        pytest.skip("it is said not to, and held to it above")
    ids, mask, types = make_batch([5, 40, 12, 33], seed=1)
    together = case.run((ids, mask, types))
    alone = case.run((ids[:1, :5], mask[:1, :5], types[:1, :5]))
    assert np.abs(together[0] - alone[0]).max() > 10 * ALONE["fp32"]


def test_read_only_and_strided_arrays_are_taken(case: Case) -> None:
    batch = spread(3, 20)
    wide = tuple(np.repeat(array, 2, axis=1)[:, ::2] for array in batch)
    for array in wide:
        array.flags.writeable = False
    np.testing.assert_allclose(case.run(wide), case.run(batch), atol=case.tolerance, rtol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(set(ENGINES) - SLOW))
def test_every_family_can_be_exported(name: str, family: str, workshop: Path) -> None:
    case = make_case(Candidate(name, "fp32", "cpu", 2), family, workshop)
    for shape in ((1, 2), (4, 33)):
        ids, mask, types = spread(*shape)
        ids[mask == 0] = case.reference.info.pad_token_id
        np.testing.assert_allclose(
            case.run((ids, mask, types)), case.truth((ids, mask, types)), atol=1e-4, rtol=0
        )


# Running


def test_as_many_calls_at_once_as_streams_answer_as_one_by_one(case: Case) -> None:
    batches = [spread(1 + number % 4, 5 + 3 * number) for number in range(24)]
    one_by_one = [case.run(batch) for batch in batches]
    streams = case.candidate.streams
    together = threading.Barrier(streams, timeout=60)

    def stream(first: int) -> list[np.ndarray]:
        together.wait()
        return [case.run(batch) for batch in batches[first::streams]]

    with ThreadPoolExecutor(streams) as pool:
        found = list(pool.map(stream, range(streams)))
    for first in range(streams):
        for expected, got in zip(one_by_one[first::streams], found[first], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_outputs_belong_to_the_caller(case: Case) -> None:
    batch, other = spread(2, 12), spread(2, 13)
    first = case.run(batch)
    kept = first.copy()
    assert not np.array_equal(case.run(other), kept)
    np.testing.assert_array_equal(first, kept)
    first[:] = 7
    np.testing.assert_allclose(case.run(batch), kept, atol=1e-6)


def test_a_failing_batch_is_told_with_its_shape_and_leaves_the_session_whole(case: Case) -> None:
    ids, mask, types = spread(3, 20)
    before = case.run((ids, mask, types))
    for _ in range(case.candidate.streams + 1):
        with pytest.raises(EngineError, match=r"could not run a batch of 3x20x1: \w+") as caught:
            case.run((ids[:, :, None], mask, types))
        assert caught.value.message.startswith(case.engine.title)
        assert caught.value.__cause__ is not None
        assert "\n" not in caught.value.message
    np.testing.assert_allclose(case.run((ids, mask, types)), before, atol=1e-6)


# Artifacts


def test_a_damaged_artifact_is_an_engine_error(case: Case, tmp_path: Path) -> None:
    if case.engine.name in SLOW:
        pytest.skip("loads as torch_eager does")
    originals = [path for path in case.artifact.rglob("*") if path.is_file()]
    weights = max(originals, key=lambda path: path.stat().st_size)
    for number, share in enumerate((0, 0.5, 0.99)):
        # A copy, and never in place: artifacts may share their files with the reference.
        broken = shutil.copytree(case.artifact, tmp_path / str(number))
        damaged = broken / weights.relative_to(case.artifact)
        content = damaged.read_bytes()
        damaged.write_bytes(content[: int(share * len(content))])
        with pytest.raises(EngineError, match="could not load") as caught:
            case.engine.load(broken, case.candidate)
        assert caught.value.__cause__ is not None
    with pytest.raises(EngineError, match="could not load"):
        case.engine.load(tmp_path, case.candidate)


def test_an_artifact_names_no_other_folder(case: Case) -> None:
    for path in case.artifact.rglob("*"):
        if path.is_file():
            assert not path.is_symlink()
            assert str(case.reference.folder).encode() not in path.read_bytes()


LIGHT = """
    import importlib.abc, json, sys
    from pathlib import Path

    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {absent!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Absent())
    import numpy as np
    from hasten.engines import get
    from hasten.records import Candidate

    session = get({name!r}).load(Path("artifact"), Candidate({name!r}, "fp32", "cpu", 1))
    names = ("input_ids", "attention_mask", "token_type_ids")
    outputs = session.run(dict(zip(names, np.load("batch.npy"))))
    np.save("outputs.npy", outputs["logits"])
    leaked = [name for name in sys.modules if "telemetry" in name and "stub" not in name]
    assert "openvino_telemetry" not in leaked, leaked
"""


@pytest.mark.parametrize(
    "name", sorted(n for n in ENGINES if "transformers" not in ENGINES[n].requires)
)
def test_an_artifact_runs_elsewhere_with_nothing_but_what_is_required(
    name: str, workshop: Path, tmp_path: Path
) -> None:
    candidate = Candidate(name, "fp32", "cpu", 1)
    engine = ready(candidate)
    reference = reference_of("bert", workshop)
    shutil.copytree(artifact_of(engine, candidate, reference, workshop), tmp_path / "artifact")
    batch = spread(3, 17)
    np.save(tmp_path / "batch.npy", np.stack(batch))
    absent = set(FRAMEWORKS) - set(engine.requires)
    script = textwrap.dedent(LIGHT).format(absent=absent, name=name)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        truth = reference.module()(*map(torch.from_numpy, batch)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), truth, atol=1e-4, rtol=0)
    left_behind = {path.name for path in tmp_path.iterdir()} - {".cache"}
    assert left_behind == {"artifact", "batch.npy", "outputs.npy"}


class Unexportable(nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\n  no kernel for this\n  at line 3\n")


@pytest.mark.parametrize("name", TRACING)
def test_a_model_that_cannot_be_exported_is_one_readable_line(
    name: str, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelFolder, "module", lambda *_: Unexportable())
    engine = ready(Candidate(name, "fp32", "cpu", 1))
    with pytest.raises(EngineError) as caught:
        engine.export(reference_of("bert", workshop), Candidate(name, "fp32", "cpu", 1), tmp_path)
    message = caught.value.message
    assert "\n" not in message
    assert message.startswith(engine.title)
    assert "BertForSequenceClassification" in message
    assert "no kernel for this" in message
    assert caught.value.__cause__ is not None


# What an engine says about itself


@pytest.mark.parametrize("name", ENGINES)
def test_what_cannot_run_has_a_reason_of_one_sentence(name: str) -> None:
    engine = ENGINES[name]
    for machine in MACHINES.values():
        for precision, device in itertools.product(PRECISIONS, ("cpu", "cuda")):
            for recipe in engine.recipes(precision, machine):
                candidate = Candidate(name, precision, device, 1, recipe=recipe)
                reason = engine.supports(candidate, machine)
                expected = device == "cpu" and (
                    precision == "fp32"
                    or (precision == "bf16" and machine.has_bf16 and name != "onnx_runtime")
                    or (recipe != "" and (machine.has_bf16 or not recipe.endswith("-bf16")))
                )
                assert (reason is None) == expected, (candidate.format, reason)
                if reason is not None:
                    assert reason == reason.strip().rstrip(".")
                    assert 10 < len(reason) < 120
                    assert "\n" not in reason


def test_the_reason_names_what_is_missing() -> None:
    engine = ENGINES["torch_eager"]
    reason = engine.supports(Candidate("torch_eager", "bf16", "cpu", 1), MACHINES["plain"])
    assert "bf16 instructions" in str(reason)
    assert "avx512_bf16" in str(reason)
    reason = engine.supports(Candidate("torch_eager", "fp16", "cuda", 1), MACHINES["plain"])
    assert reason == "no GPU on this machine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ENGINES)
def test_a_gpu_that_the_framework_cannot_use_is_told(name: str) -> None:
    machine = Hardware("any", 2, (), 8 << 30, gpus=(Gpu("NVIDIA T4", 16 << 30),))
    reason = ENGINES[name].supports(Candidate(name, "fp32", "cuda", 1), machine)
    assert reason is not None
    assert "CUDA" in reason


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_engine_tells_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ENGINES[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    missing = engine.missing()
    assert missing is not None
    assert missing.fix == f"pip install 'hasten[{engine.extra}]'"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    provided = {line.partition(">")[0] for line in extras[engine.extra]}
    assert set(engine.requires.values()) <= provided


@pytest.mark.parametrize("name", ENGINES)
def test_versions_are_those_of_what_runs_an_artifact(name: str) -> None:
    engine = ENGINES[name]
    if engine.missing():
        pytest.skip(str(engine.missing()))
    versions = engine.versions()
    assert len(versions) == len(engine.requires)
    assert all(version[0].isdigit() for version in versions.values())


def test_engines_differ_in_name_and_simplicity() -> None:
    assert all(engine.name == name for name, engine in ENGINES.items())
    ranks = [engine.simplicity for engine in ENGINES.values()]
    assert sorted(ranks) == list(range(len(ranks)))
    assert len({engine.title for engine in ENGINES.values()}) == len(ENGINES)


def test_discovery_loads_no_framework() -> None:
    script = (
        "import sys; from hasten.engines import discover; discover(); "
        f"assert not set({FRAMEWORKS!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
