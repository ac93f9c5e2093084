"""Artifacts of ONNX Runtime and OpenVINO answer in Optimum as in hasten, without a conversion.

Optimum needs another version of transformers than hasten's tests: ``make test-interop`` names an
interpreter of an environment that has it in ``PEER_PYTHON``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from tests.tasks.originals import Original
from tests.tasks.readers import QUESTIONS, save_headed
from tests.tasks.test_masks import MASKED, save_masker
from tests.tasks.test_token_classification import save_tagger
from tests.tiny import save_tiny, tiny_texts

pytestmark = pytest.mark.interop

TEXTS = [*tiny_texts(6), "bab \U0001f600 keb", ""]
CASES: dict[str, tuple[Callable[[Path], Path], list[Any]]] = {
    "SequenceClassification": (save_tiny, TEXTS),
    "TokenClassification": (save_tagger, TEXTS),
    "QuestionAnswering": (partial(save_headed, head="QuestionAnswering"), [*QUESTIONS[:6]]),
    "MaskedLM": (save_masker, MASKED[:6]),
}
PREFIXES = {"onnx_runtime": "ORT", "openvino": "OV"}


def theirs(how: str, folder: Path, texts: Any) -> Any:
    python = os.environ.get("PEER_PYTHON")
    if not python:
        pytest.fail("PEER_PYTHON names no interpreter of an environment with Optimum")
    given, out = folder.parent / "texts.json", folder.parent / "theirs.json"
    given.write_text(json.dumps(texts), encoding="utf-8")
    script = Path(__file__).with_name("theirs.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, script, how, folder, given, out], check=True, env=environment)
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", list(PREFIXES))
@pytest.mark.parametrize("task", list(CASES))
def test_an_artifact_answers_in_optimum(engine: str, task: str, tmp_path: Path) -> None:
    save, texts = CASES[task]
    model = save(tmp_path / "model")
    hasten.export(model, texts=texts * 4, engine=engine, output=tmp_path / "exported")
    found = theirs(f"{PREFIXES[engine]}ModelFor{task}", tmp_path / "exported", texts)
    original = Original(model, tmp_path / "reference")
    for text, numbers in zip(texts, found, strict=True):
        outputs, encoded = original.outputs([text])
        ours = outputs.values[:, : len(numbers) if task == "QuestionAnswering" else None]
        stacked = (
            np.stack(numbers, axis=-1) if task == "QuestionAnswering" else np.array(numbers[0])
        )
        if task == "MaskedLM":
            stacked = stacked[encoded.tokens.ids == original.task.mask_token_id]
        elif stacked.ndim > 1:
            assert encoded.tokens.special is not None
            stacked = stacked[~encoded.tokens.special]
        np.testing.assert_allclose(ours, stacked.reshape(ours.shape), atol=1e-4)


def test_transformers_4_reads_the_tokenizer(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[SEP]"]}
    path.write_text(json.dumps(settings), encoding="utf-8")
    original = Original(model, tmp_path / "reference")
    found = theirs("tokenizer", tmp_path / "reference", TEXTS)
    assert found == [original.outputs([text])[1].tokens.ids.tolist() for text in TEXTS]
