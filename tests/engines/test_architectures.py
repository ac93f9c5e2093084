"""Architectures whose graphs are not BERT's: they run in every engine, or the reason is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hasten import engines
from hasten.engines.base import Engine
from hasten.errors import EngineError
from hasten.models import ModelFolder, prepare
from hasten.records import Candidate
from tests.families import LENGTH, save_family

TRACING = ("onnx_runtime", "openvino", "torchscript")


def reference_of(family: str, folder: Path) -> ModelFolder:
    return prepare(save_family(family, folder / "model"), folder / "reference")


def padded_batch(reference: ModelFolder, lengths: tuple[int, ...]) -> dict[str, NDArray[np.int64]]:
    ids = np.full((len(lengths), max(lengths)), reference.info.pad_token_id)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = reference.info.example(1, length)[0]
        mask[row, :length] = 1
    named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: named[name] for name in reference.info.input_names}


def exported(engine: Engine, reference: ModelFolder, folder: Path) -> Candidate:
    candidate = Candidate(engine.name, "fp32", "cpu", 1)
    folder.mkdir()
    engine.export(reference, candidate, folder)
    return candidate


@pytest.mark.parametrize("family", ["bart", "gpt2", "modernbert"])
def test_openvino_answers_as_the_original_where_padding_sees_only_padding(
    family: str, tmp_path: Path
) -> None:
    """A token of padding far from the text, or before all of it, may look at nothing."""
    reference, engine = reference_of(family, tmp_path), engines.get("openvino")
    candidate = exported(engine, reference, tmp_path / "artifact")
    session = engine.load(tmp_path / "artifact", candidate)
    for lengths in ((LENGTH, 3, 20), (5,), (2, 33)):
        batch = padded_batch(reference, lengths)
        (found,) = session.run(batch).values()
        with torch.inference_mode():
            truth = reference.module()(*map(torch.from_numpy, batch.values())).numpy()
        np.testing.assert_allclose(found, truth, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trace_that_holds_for_one_shape_alone_is_refused(tmp_path: Path) -> None:
    reference = reference_of("funnel", tmp_path)
    for name in TRACING:
        engine = engines.get(name)
        with pytest.raises(EngineError) as caught:
            exported(engine, reference, tmp_path / name)
        message = caught.value.message
        assert message.startswith(f"{engine.title} cannot run FunnelForSequenceClassification")
        assert "holds for batches of 2x7" in message
        assert "torch_eager" in (caught.value.fix or "")
