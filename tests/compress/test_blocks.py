"""A smaller model computes what the original does without the parts that were taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.compress import blocks
from hasten.errors import ModelError
from tests.tiny import FAMILIES, tiny_model

INPUTS = {
    "input_ids": torch.tensor([[2, 9, 17, 30, 3], [2, 40, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**INPUTS).logits
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_cut_by_hand_computes_the_same(family: str) -> None:
    """By hand: the last block passed by, and the units' weights set to zero."""
    model = tiny_model(family)
    found = blocks.find(model)
    assert (found.count, found.width) == (2, 64)
    kept = [3, 5, 8, 63]
    student = blocks.cut(model, [1], [kept])
    by_hand = tiny_model(family)
    layers: Any = by_hand.get_submodule(found.path)
    layers[0] = layers[1]
    del layers[1]
    dropped = [unit for unit in range(64) if unit not in kept]
    with torch.no_grad():
        down: Any = found.block(by_hand, 0).get_submodule(found.down)
        down.weight[:, dropped] = 0.0
    # The same sums, with zeros in between: another order of adding, at most.
    torch.testing.assert_close(logits(student), logits(by_hand), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(student), logits(model), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_is_an_ordinary_folder(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    student = blocks.cut(tiny_model(family), [0], [list(range(16))])
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(student))
    assert blocks.find(loaded).width == 16
    count = sum(p.numel() for p in loaded.parameters())
    assert count < sum(p.numel() for p in tiny_model(family).parameters())


def test_what_cannot_be_taken_apart_is_told() -> None:
    with pytest.raises(ModelError, match="Sequential cannot be pruned") as caught:
        blocks.find(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert "CamemBERT" in str(caught.value.fix)
