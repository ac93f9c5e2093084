"""Masked words and hidden states: as the pipelines of transformers give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import hasten
from hasten import tasks
from hasten.errors import ChoiceError, InputError, ModelError
from hasten.judging.parity import compare
from hasten.serve.app import create
from hasten.serve.service import Service
from hasten.tasks import Outputs
from tests.tasks.originals import Original
from tests.tasks.readers import ODD, save_headed
from tests.tiny import save_tiny_tokenizer, tiny_model, tiny_texts

PLAIN = [*tiny_texts(6, seed=4), *ODD, "bab " * 10_000]
MASKED = [f"bab [MASK] {text}" for text in PLAIN] + ["[MASK] keb [MASK]"]


def save_masker(folder: Path) -> Path:
    """A tiny model of masked words, and a tokenizer whose last word is the mask token."""
    save_headed(folder, "MaskedLM")
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = stored["model"]["vocab"]
    number = vocabulary.pop("##z")
    vocabulary["[MASK]"] = number
    stored["added_tokens"].append({**stored["added_tokens"][0], "id": number, "content": "[MASK]"})
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text(encoding="utf-8")), "mask_token": "[MASK]"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def masker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masker(tmp_path_factory.mktemp("masker"))


def pipeline_of(kind: str, folder: Path) -> Any:
    import transformers

    pipeline: Any = transformers.pipeline
    return pipeline(kind, model=str(folder), device="cpu")


def filled(folder: Path, texts: list[str], **options: Any) -> list[Any]:
    run = pipeline_of("fill-mask", folder)
    cut = {"truncation": True, "max_length": 128}
    return [run(text, tokenizer_kwargs=cut, **options) for text in texts]


def assert_same(found: Any, expected: Any) -> None:
    """Nested lists of dicts, alike but for rounding."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        return
    assert {**found, "score": 0} == {**expected, "score": 0}
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_fills_are_those_of_the_pipeline(masker: Path, tmp_path: Path) -> None:
    original = Original(masker, tmp_path / "reference")
    assert (original.info.task, original.task.mask_token) == ("fill_mask", "[MASK]")
    assert_same(original.answers(MASKED), filled(masker, MASKED))
    assert_same(original.answers(MASKED[:3], top_k=2), filled(masker, MASKED[:3], top_k=2))
    targets = ["keb", "lib", "bab"]
    expected = filled(masker, MASKED[:3], targets=targets)
    assert_same(original.answers(MASKED[:3], targets=targets), expected)
    with pytest.raises(ChoiceError, match="targets"):
        original.answers(MASKED[:3], targets=[])


def test_a_missing_mask_token_is_taught(masker: Path, tmp_path: Path) -> None:
    original = Original(masker, tmp_path / "reference")
    with pytest.raises(InputError, match=r"'bab keb' has no mask token\nWrite \[MASK\] where"):
        original.answers(["bab [MASK]", "bab keb"])
    save_headed(tmp_path / "without", "MaskedLM")
    with pytest.raises(ModelError, match="tokenizer has no mask token"):
        Original(tmp_path / "without", tmp_path / "other")


def test_flips_are_changed_likeliest_words() -> None:
    task = tasks.get("fill_mask")
    original = Outputs.of_counts(np.eye(8, dtype=np.float32)[[0, 1, 2]] * 4, [2, 1])
    moved = Outputs.of_counts(np.eye(8, dtype=np.float32)[[0, 3, 2]] * 4, [2, 1])
    parity = compare(original, moved, task=task, labels=(), texts=["a", "b"])
    assert parity.flips == 1
    assert parity.examples[0].reference_answer == "token 0, token 1"
    assert parity.agreement["same likeliest word"] == pytest.approx(2 / 3)
    assert parity.agreement["of the likeliest 5 kept"] >= 0.6


def test_masks_go_from_tune_to_report(masker: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    tuning = hasten.tune(
        masker,
        texts=[f"bab [MASK] {text}" for text in tiny_texts(40)],
        output=bundle,
        engines=["onnx_runtime"],
        precisions=["fp32"],
        batch_sizes=[1, 8],
        rounds=5,
        threads=1,
        budget=60,
    )
    parity = tuning.chosen.parity
    assert parity is not None
    assert parity.flips == 0
    assert set(parity.agreement.values()) == {1.0}
    with hasten.load(bundle) as fill:
        assert_same(fill(MASKED), filled(masker, MASKED))
        assert_same(fill(MASKED[0]), filled(masker, MASKED[:1])[0])
        with pytest.raises(InputError, match="has no mask token"):
            fill("bab")
    with TestClient(create({"fill": Service.open("fill", bundle)})) as client:
        found = client.post("/", json={"inputs": MASKED})
        assert_same(found.json(), filled(masker, MASKED))
        refused = client.post("/", json={"inputs": "bab"})
        assert refused.status_code == 422
        assert "has no mask token" in refused.text
    given, made = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*MASKED, "bab"]))
    hasten.predict_file(bundle, given, made, on_error="record")
    lines = [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
    expected = filled(masker, MASKED)
    assert [each["words"] for each in lines[:-2]] == [[e[0]["token_str"]] for e in expected[:-1]]
    assert len(lines[-2]["words"]) == 2
    assert "has no mask token" in lines[-1]["error"]


def test_hidden_states_are_those_of_the_pipeline(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model().base_model.save_pretrained(folder)
    save_tiny_tokenizer(folder)
    original = Original(folder, tmp_path / "reference", "feature_extraction")
    run = pipeline_of("feature-extraction", folder)
    found = original.answers(PLAIN)
    for text, ours in zip(PLAIN, found, strict=True):
        theirs = np.array(run(text, truncation=True))
        assert np.shape(ours) == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert original.table(PLAIN)["features"].to_pylist() == [each[0] for each in found]
    outputs, _ = original.outputs(PLAIN)
    moved = Outputs(outputs.values[:, ::-1], outputs.offsets)
    cosines = original.task.agreement(outputs, moved, PLAIN, ())
    assert cosines["mean cosine of tokens"] < 0.9
    assert set(original.task.demanded) <= set(cosines)


def test_sparse_weights_are_log_one_plus_relu_of_the_largest_number(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = save_masker(tmp_path / "model")
    original = Original(folder, tmp_path / "reference", "sparse_embeddings")
    found = original.answers(PLAIN)
    model: Any = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for text, ours in zip(PLAIN, found, strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        weights = torch.log1p(torch.relu(logits)).amax(0).tolist()
        expected = {tokenizer.convert_ids_to_tokens(i): w for i, w in enumerate(weights) if w}
        assert ours == pytest.approx(expected, abs=1e-4)
        assert list(ours.values()) == sorted(ours.values(), reverse=True)
    rows = original.table(PLAIN)["tokens"].to_pylist()
    assert [{each["token"]: each["weight"] for each in row} for row in rows] == found
    outputs, _ = original.outputs(PLAIN)
    fewer = Outputs(np.where(outputs.values > 1, outputs.values, 0), outputs.offsets)
    figures = original.task.agreement(outputs, fewer, PLAIN, ())
    assert 0 < figures["overlap of tokens"] < 1


def test_a_sparse_encoder_of_sentence_transformers_is_recognized(tmp_path: Path) -> None:
    folder = save_masker(tmp_path / "model")
    (folder / "1_SpladePooling").mkdir()
    listed = [
        {
            "idx": 0,
            "type": "sentence_transformers.sparse_encoder.models.MLMTransformer",
            "path": "",
        },
        {
            "idx": 1,
            "type": "sentence_transformers.sparse_encoder.models.SpladePooling",
            "path": "1_SpladePooling",
        },
    ]
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    kind = {"model_type": "SparseEncoder"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(kind), encoding="utf-8")
    how = folder / "1_SpladePooling" / "config.json"
    how.write_text('{"pooling_strategy": "max", "activation_function": "relu"}', encoding="utf-8")
    original = Original(folder, tmp_path / "reference")
    assert original.info.task == "sparse_embeddings"
    how.write_text('{"pooling_strategy": "sum"}', encoding="utf-8")
    with pytest.raises(ModelError, match="pools by sum of relu; supported is max of relu"):
        Original(folder, tmp_path / "other")
