"""What the PyTorch engines share and the contract does not cover."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.engines import _torch, get
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate, Hardware
from tests.tiny import save_tiny

ONES = np.ones((2, 9), np.int64)
BATCH = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ONES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("torch")
    return prepare(save_tiny(folder / "model"), folder / "reference")


@pytest.mark.parametrize("name", ["torch_eager", "torchscript"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_calling_thread_gets_the_candidates_threads(
    name: str, threads: int, reference: ModelFolder, tmp_path: Path
) -> None:
    candidate = Candidate(name, "fp32", "cpu", threads, streams=2)
    get(name).export(reference, candidate, tmp_path)
    session = get(name).load(tmp_path, candidate)

    def used_by_a_thread_set_otherwise(_: int) -> int:
        torch.set_num_threads(3)
        session.run(BATCH)
        return torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(used_by_a_thread_set_otherwise, range(4))) == [threads] * 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_compute_in_theirs_and_return_float32(
    precision: str, reference: ModelFolder
) -> None:
    exact = reference.module()(*map(torch.from_numpy, (ONES, ONES, ONES)))
    module = _torch.in_precision(reference.module(), precision)
    assert {p.dtype for p in module.parameters()} == {_torch.dtype(precision)}
    rounded = module(*map(torch.from_numpy, (ONES, ONES, ONES)))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.3


def test_eager_and_compiled_share_one_artifact_for_all_precisions() -> None:
    names = {
        get(name).artifact_name(Candidate(name, precision, "cpu", 1))
        for name in ("torch_eager", "torch_compile")
        for precision in ("fp32", "bf16")
    }
    assert len(names) == 1


def test_traces_and_pickles_run_code_and_plain_weights_do_not(tmp_path: Path) -> None:
    (tmp_path / "module").mkdir()
    assert get("torchscript").runs_code(tmp_path)
    for name in ("torch_eager", "torch_compile"):
        assert not get(name).runs_code(tmp_path)
    (tmp_path / "module" / "module.pkl").touch()
    for name in ("torch_eager", "torch_compile"):
        assert get(name).runs_code(tmp_path)
    assert not get("onnx_runtime").runs_code(tmp_path)
    assert not get("openvino").runs_code(tmp_path)


def test_without_a_compiler_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Hardware("any", 2, (), 8 << 30)
    candidate = Candidate("torch_compile", "fp32", "cpu", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    reason = get("torch_compile").supports(candidate, machine)
    assert reason is not None
    assert "C++ compiler" in reason
    assert get("torch_eager").supports(candidate, machine) is None


def test_example_inputs_are_padded_and_follow_the_models_inputs(reference: ModelFolder) -> None:
    ids, mask, types = _torch.example_inputs(reference.info)
    assert ids.shape == mask.shape == types.shape == (2, 7)
    assert (ids[mask == 0] == reference.info.pad_token_id).all()
    assert (ids[mask == 1] != reference.info.pad_token_id).all()
    assert 0 < (mask == 0).sum() < mask.numel()


def test_int8_has_no_ceiling() -> None:
    candidate = Candidate("torch_eager", "int8", "cpu", 1, recipe="dynamic")
    assert get("torch_eager").ceiling_flops_per_s(candidate) is None


def test_the_ceiling_is_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "_CEILING_S", 0.02)
    engine = get("torch_eager")
    one = engine.ceiling_flops_per_s(Candidate("torch_eager", "fp32", "cpu", 1))
    assert one is not None
    assert 1e8 < one < 1e13
    seconds = iter([4.0, 2.0, 8.0, 16.0])
    monkeypatch.setattr(_torch, "_fastest_s", lambda product, wait: next(seconds))
    monkeypatch.setattr(_torch, "detect", lambda: Hardware("any", 2, (), 8 << 30))
    both = engine.ceiling_flops_per_s(Candidate("torch_eager", "fp32", "cpu", 1, streams=2))
    assert both == 2 * 512 * 768 * 3072 / 2.0
    assert (
        get("torchscript").ceiling_flops_per_s(Candidate("torchscript", "fp32", "cpu", 1)) is None
    )
