"""What the engines do on a GPU, as far as a stand-in for one can show it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hasten.engines import _torch
from hasten.engines.onnx_runtime import ENGINE
from hasten.errors import EngineError
from hasten.records import Candidate, Gpu, Hardware, Settings
from hasten.tuning import candidates

ON_GPU = Candidate("onnx_runtime", "fp32", "cuda", 1)


class Runtime:
    """ONNX Runtime as its package for GPUs shows itself; ``got`` is what it was asked for."""

    class GraphOptimizationLevel:
        ORT_ENABLE_ALL = 99

    class ExecutionMode:
        ORT_SEQUENTIAL = 0

    class SessionOptions(SimpleNamespace):
        def add_session_config_entry(self, key: str, value: str) -> None:
            setattr(self, key, value)

    def __init__(self, *, starts: bool = True) -> None:
        self.got: list[Any] = []
        self.preloaded = False
        self._starts = starts

    def disable_telemetry_events(self) -> None:
        pass

    def preload_dlls(self) -> None:
        self.preloaded = True

    def InferenceSession(self, path: str, opened: Any, providers: list[Any]) -> Any:  # noqa: N802
        del path, opened
        self.got = providers
        asked = [each if isinstance(each, str) else each[0] for each in providers]
        running = asked if self._starts else ["CPUExecutionProvider"]
        return SimpleNamespace(get_providers=lambda: running, get_outputs=list)


def start(monkeypatch: pytest.MonkeyPatch, candidate: Candidate, runtime: Runtime) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    ENGINE.open(Path("folder"), candidate, ENGINE.session_options(candidate))


def test_fp32_on_a_gpu_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    start(monkeypatch, ON_GPU, runtime)
    assert runtime.got == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    assert runtime.preloaded
    start(monkeypatch, Candidate("onnx_runtime", "fp32", "cpu", 1), runtime)
    assert runtime.got == ["CPUExecutionProvider"]


def test_a_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="could not start its CUDA provider"):
        start(monkeypatch, ON_GPU, Runtime(starts=False))


@pytest.mark.parametrize("capability", ["7.5", "8.0"])
def test_the_parent_asks_the_driver_and_not_cuda(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    def opens_a_context(**_: Any) -> bool:
        raise AssertionError("CUDA was asked in the parent")

    for question in ("is_available", "is_bf16_supported", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, question, opens_a_context)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine = Hardware("any", 2, (), 8 << 30, (Gpu("a card", 16 << 30, capability),))
    reasons = {
        precision: _torch.supports("PyTorch", Candidate("x", precision, "cuda", 1), machine)
        for precision in ("fp32", "fp16", "bf16")
    }
    assert (reasons["fp32"], reasons["fp16"]) == (None, None)
    assert (reasons["bf16"] is None) == (capability == "8.0")


def test_a_launch_is_no_part_of_a_gpus_ceiling() -> None:
    """At 1 PFLOP/s the largest product takes a hundred times as long as a launch of ten us."""
    flops = [2 * rows * inner * columns for rows, inner, columns in _torch._MATRIX_SHAPES["cuda"]]
    assert max(flops) / 1e15 > 100 * 10e-6


def test_the_baseline_is_on_the_device_that_is_measured() -> None:
    machine = Hardware("any", 2, (), 8 << 30, (Gpu("a card", 16 << 30),))
    devices = {
        device: candidates.baseline(machine, Settings(device=device)).label
        for device in ("cpu", "auto", "cuda")
    }
    assert devices == {
        "cpu": "torch_eager-fp32-cpu-1x2",
        "auto": "torch_eager-fp32-cpu-1x2",
        "cuda": "torch_eager-fp32-cuda-1x1",
    }
