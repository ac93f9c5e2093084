"""Attention heads are really taken out, and every way to load such a model takes them out too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten import engines
from hasten.compress import blocks, importance
from hasten.errors import ModelError
from hasten.models import heads, prepare, sources
from hasten.models.module import Attention, pretrained
from hasten.records import Candidate
from tests.compress.test_blocks import INPUTS, logits
from tests.tiny import FAMILIES, save_tiny_tokenizer, tiny_model

UNITS = [list(range(64))] * 2


def without(family: str, kept: list[list[int]]) -> Any:
    """By hand: the untouched model, in which nothing comes from the other heads."""
    model = tiny_model(family)
    found = heads.find(model)
    assert found is not None
    assert (found.head_size, found.heads) == (16, ((0, 1), (0, 1)))
    layers: list[Any] = found.out_layers(model)
    for layer, some in zip(layers, kept, strict=True):
        with torch.no_grad():
            for head in {0, 1} - set(some):
                layer.weight[:, 16 * head : 16 * (head + 1)] = 0.0
    return model


def heads_of(model: Any) -> tuple[tuple[int, ...], ...]:
    found = heads.find(model)
    assert found is not None
    return found.heads


def save(student: Any, folder: Path, family: str = "bert") -> Path:
    student.save_pretrained(folder)
    return save_tiny_tokenizer(folder, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_without_heads_computes_what_one_with_silent_heads_does(
    family: str, attention: Attention, tmp_path: Path
) -> None:
    kept = [[1], [0]]
    student = blocks.cut(tiny_model(family), [0, 1], UNITS, kept)
    by_hand = without(family, kept)
    torch.testing.assert_close(logits(student), logits(by_hand), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(student), logits(tiny_model(family)), atol=1e-3)
    assert student.config.num_attention_heads == 2  # it still decides their size
    student.save_pretrained(tmp_path)
    loaded = pretrained(tmp_path, attention).eval()
    assert type(loaded) is type(by_hand)
    torch.testing.assert_close(logits(loaded), logits(by_hand), rtol=1e-5, atol=1e-5)
    assert heads_of(loaded) == ((1,), (0,))
    assert sum(p.numel() for p in loaded.parameters()) == sum(
        p.numel() for p in by_hand.parameters()
    ) - 2 * (3 * (16 * 32 + 16) + 16 * 32)


def test_a_model_that_lacks_heads_can_be_cut_again() -> None:
    once = blocks.cut(tiny_model(), [0, 1], UNITS, [[1], [0, 1]])
    again = blocks.cut(once, [1], [UNITS[0]])
    assert heads_of(again) == ((0, 1),)
    last = blocks.cut(once, [0], [UNITS[0]])
    assert heads_of(last) == ((1,),)
    assert last.config.pruned_heads == {0: [0]}
    by_hand = blocks.cut(without("bert", [[1], [0, 1]]), [0], [UNITS[0]])
    torch.testing.assert_close(logits(last), logits(by_hand), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_are_gone_already_are_not_taken_out_again(family: str) -> None:
    """transformers 4 acts on ``pruned_heads`` by itself, while the model is built."""
    model = tiny_model(family)
    model.config.pruned_heads = {"0": [0]}
    heads.narrow(model)
    once = logits(model)
    torch.testing.assert_close(once, logits(without(family, [[1], [0, 1]])), rtol=1e-5, atol=1e-5)
    heads.narrow(model)
    assert torch.equal(logits(model), once)
    found = heads.find(model)
    assert found is not None
    assert [layer.in_features for layer in found.out_layers(model)] == [16, 32]


def test_the_head_that_changes_the_answers_most_is_the_most_important() -> None:
    """By hand: the effect of a head that is made nearly silent is its first-order estimate."""
    model = tiny_model()
    found = heads.find(model)
    assert found is not None
    given = importance.of_heads(model, "softmax", found, [INPUTS])
    assert given.shape == (2, 2)
    small = 1e-3
    layers: list[Any] = found.out_layers(model)
    for block, layer in enumerate(layers):
        for head in range(2):
            where = slice(16 * head, 16 * (head + 1))
            before = surprise(model)
            with torch.no_grad():
                kept = layer.weight[:, where].clone()
                layer.weight[:, where] *= 1.0 - small
                change = (before - surprise(model, before=model_decisions())).abs() / small
                layer.weight[:, where] = kept
            np.testing.assert_allclose(given[block, head], change.mean(), rtol=0.05)


def model_decisions() -> torch.Tensor:
    return logits(tiny_model()).argmax(1)


def surprise(model: Any, before: torch.Tensor | None = None) -> torch.Tensor:
    answers = logits(model).double()
    decided = answers.argmax(1) if before is None else before
    return torch.nn.functional.cross_entropy(answers, decided, reduction="none")


@pytest.mark.parametrize("engine", ["onnx_runtime", "openvino", "torch_eager", "torchscript"])
def test_every_engine_takes_it(engine: str, tmp_path: Path) -> None:
    student = blocks.cut(tiny_model(), [0, 1], UNITS, [[1], [0]])
    reference = prepare(save(student, tmp_path / "student"), tmp_path / "reference")
    whole = prepare(save(tiny_model(), tmp_path / "whole"), tmp_path / "other")
    assert reference.info.parameter_count < whole.info.parameter_count
    assert reference.info.architecture == "BertForSequenceClassification"
    # Half of the attention's products: 4 of them by token, and 2 by pair of tokens.
    assert whole.info.flops_per_token - reference.info.flops_per_token == pytest.approx(
        2 * 2 * 4 * 32 * 16
    )
    assert reference.info.flops_per_token_squared == pytest.approx(
        whole.info.flops_per_token_squared / 2
    )
    runs = engines.get(engine)
    if runs.missing():
        pytest.skip(str(runs.missing()))
    candidate = Candidate(engine, "fp32", "cpu", 1)
    (tmp_path / "artifact").mkdir()
    runs.export(reference, candidate, tmp_path / "artifact")
    session = runs.load(tmp_path / "artifact", candidate)
    inputs = {name: tensor.numpy() for name, tensor in INPUTS.items()}
    given = session.run({**inputs, "token_type_ids": np.zeros_like(inputs["input_ids"])})
    np.testing.assert_allclose(
        given["logits"], logits(without("bert", [[1], [0]])).numpy(), rtol=1e-3, atol=1e-3
    )


def test_a_model_in_memory_keeps_its_heads_out(tmp_path: Path) -> None:
    student = blocks.cut(tiny_model(), [0, 1], UNITS, [[1], [0]])
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    reference = prepare(student, tmp_path / "reference", tokenizer=tokenizer)
    assert reference.kind == "huggingface"
    # One whose configuration does not tell is its own only truth.
    student.config.pruned_heads = {}
    told = prepare(student, tmp_path / "told", tokenizer=tokenizer)
    assert told.kind == "pickle"
    assert told.info.parameter_count == reference.info.parameter_count


def test_a_model_in_memory_is_recognized_where_building_it_takes_heads_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = blocks.cut(tiny_model(), [0, 1], UNITS, [[1], [0]])
    usual = type(student).post_init

    def as_transformers_4_does(model: Any) -> None:
        usual(model)
        if model.config.pruned_heads:  # there is nothing to find on the meta device
            model.classifier.weight.nonzero()

    monkeypatch.setattr(type(student), "post_init", as_transformers_4_does)
    assert sources._is_unmodified_classifier(student)
    assert student.config.pruned_heads == {0: [0], 1: [1]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"7": [0]}, "block 7"),
        ({"0": [0, 1]}, "one must stay"),
        ({"0": [5]}, "heads 5 out of block 0"),
        ({"0": 3}, "damaged"),
    ],
)
def test_heads_that_are_not_there_are_told(tmp_path: Path, entry: Any, message: str) -> None:
    save(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pruned_heads": entry}))
    with pytest.raises(ModelError) as caught:
        prepare(tmp_path, tmp_path / "reference")
    assert message in str(caught.value)


def test_a_family_whose_heads_cannot_be_told_apart_is_told(tmp_path: Path) -> None:
    from transformers import MPNetConfig, MPNetForSequenceClassification

    config = MPNetConfig(
        vocab_size=150,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    config.num_labels = 3
    model = MPNetForSequenceClassification(config).eval()
    assert blocks.find(model).count == 2
    assert heads.find(model) is None
    save(model, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "pruned_heads": {"0": [0]}}))
    with pytest.raises(ModelError, match="MPNetForSequenceClassification") as caught:
        prepare(tmp_path, tmp_path / "reference")
    assert "CamemBERT" in str(caught.value.fix)
