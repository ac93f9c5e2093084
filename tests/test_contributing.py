from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten import engines, hardware
from hasten.engines.base import Engine
from hasten.errors import EngineError
from hasten.models import prepare
from hasten.records import Candidate
from tests.tiny import save_tiny, tiny_texts

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
NAME = "torch_export"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine from the page, put where engines are found."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / f"{NAME}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    yield engines.discover()[NAME]
    sys.modules.pop(f"hasten.engines.{NAME}")


def test_the_engine_from_the_page_is_found_and_gives_the_originals_answers(
    engine: Engine, tmp_path: Path
) -> None:
    import torch

    candidate = Candidate(NAME, "fp32", "cpu", torch.get_num_threads())
    assert engine.missing() is None
    assert engine.supports(candidate, hardware.detect()) is None
    reference = prepare(save_tiny(tmp_path / "model"), tmp_path / "reference")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    engine.export(reference, candidate, artifact)
    session = engine.load(artifact, candidate)

    tokens = reference.tokenizer().encode(tiny_texts(7))
    original = reference.module()
    for batch in (range(7), [0], [3, 1]):
        ids, mask = tokens.pad(batch, reference.info.pad_token_id)
        arrays = ids, mask, np.zeros_like(ids)
        with torch.inference_mode():
            expected = original(*map(torch.from_numpy, arrays)).numpy()
        inputs = dict(zip(reference.info.input_names, arrays, strict=True))
        outputs = session.run(inputs)
        assert outputs["logits"].dtype == np.float32
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    with pytest.raises(EngineError, match="run a batch of"):
        session.run({**inputs, "input_ids": ids[:, :, None]})


def test_the_engine_from_the_page_says_what_it_cannot_do(engine: Engine) -> None:
    here = hardware.detect()
    for candidate in (
        Candidate(NAME, "int8", "cpu", 1),
        Candidate(NAME, "fp32", "cuda", 1),
        Candidate(NAME, "fp32", "cpu", 1, streams=2),
    ):
        reason = engine.supports(candidate, here)
        assert reason is not None
        assert reason.startswith("torch.export")


def test_commands_on_the_page_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")
    makefile = (PAGE.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", page))
    assert named <= targets
    assert {"setup", "test", "check", "demo", "bench"} <= named
