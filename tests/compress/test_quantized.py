"""Quantization-aware training: it rounds, it learns, and what was trained reaches the engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hasten import api, engines
from hasten.cli.display import show_student
from hasten.compress import distil, quantized
from hasten.errors import ChoiceError, EngineError, ModelError, Unavailable
from hasten.inputs import corpus
from hasten.models import ModelFolder, load_trained, prepare
from hasten.models.folder import TRAINED_RANGES
from hasten.records import Candidate, Hardware, Settings
from hasten.tuning import candidates
from tests.tiny import save_tiny, tiny_model, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(400)
MACHINE = Hardware("AMD EPYC 7763", 2, ("avx2", "fma"), 8 << 30)
QUERY = "bert.encoder.layer.0.attention.self.query"


def batch_of(family: str, count: int = 32) -> dict[str, torch.Tensor]:
    tokenizer = tiny_tokenizer(family)
    tokenizer.enable_padding(pad_id=tiny_model(family).config.pad_token_id)
    encoded = tokenizer.encode_batch(TEXTS[:count])
    return {
        "input_ids": torch.tensor([each.ids for each in encoded]),
        "attention_mask": torch.tensor([each.attention_mask for each in encoded]),
    }


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**batch).logits
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps everywhere, however fast the machine is."""
    monkeypatch.setattr(distil, "time_steps", lambda lesson, count: 100.0)


@pytest.fixture(scope="module")
def student(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that ``hasten compress --int8`` made, and its record."""
    folder = tmp_path_factory.mktemp("compressed") / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil, "time_steps", lambda lesson, count: 100.0)
        return folder, api.compress(model, TEXTS, output=folder, int8=True, budget=4000.0)


@pytest.fixture(scope="module")
def reference(student: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return prepare(student[0], tmp_path_factory.mktemp("prepared") / "reference")


# --- rounding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_fake_quantizers_round_and_what_was_learnt_computes_the_same(family: str) -> None:
    exact, batch = tiny_model(family), batch_of(family)
    rounding = quantized.quantizable(exact, [batch])
    truth, rounded = logits(exact, batch), logits(rounding, batch)
    off = (truth - rounded).abs().mean()
    assert 1e-4 < off < 0.3 * truth.std()
    torch.testing.assert_close(
        logits(quantized.settled(rounding), batch), rounded, rtol=1e-4, atol=1e-4
    )
    assert len(quantized.layers_of(rounding)) == 2 * 6  # without the head
    assert torch.equal(logits(exact, batch), truth)


def test_weights_have_seven_bits_and_query_key_and_value_share_their_range() -> None:
    rounding = quantized.quantizable(tiny_model(), [batch_of("bert")])
    layers = quantized.layers_of(rounding)
    largest = max(int(layer.weight.abs().max()) for layer in layers.values())
    assert largest == 63
    ranges = [name for name, _ in rounding.named_parameters() if name.endswith("inputs.ends")]
    assert len(ranges) == 2 * 4
    key = layers[QUERY.replace("query", "key")]
    assert layers[QUERY].input_scale == key.input_scale


def test_gradients_are_those_of_the_formula() -> None:
    """Against PyTorch's own derivative of the formula, the rounding passed straight through."""

    def by_hand(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        levels = (values / scale + zero).clamp(0, 255)
        levels = levels + (levels.round() - levels).detach()
        return (levels - zero) * scale

    source = torch.Generator().manual_seed(0)
    found = []
    for rounding in (lambda *given: quantized._rounding().apply(*given, (0, 255)), by_hand):
        values = torch.linspace(-2.0, 3.0, 301).requires_grad_()
        scale, zero = torch.tensor(0.013, requires_grad=True), torch.tensor(100.0)
        weights = torch.rand(301, generator=source.manual_seed(1))
        (rounding(values, scale, zero) * weights).sum().backward()
        found.append((values.grad, scale.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-2)


# --- the folder and the record ----------------------------------------------------------------


def test_the_folder_is_an_ordinary_one_with_the_original_in_fp32(model: Path, student: Any) -> None:
    folder, record = student
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    original = AutoModelForSequenceClassification.from_pretrained(model).eval()
    # Nothing was left out, so that there was nothing to train in floating point.
    assert torch.equal(logits(plain, batch_of("bert")), logits(original, batch_of("bert")))
    assert (record.steps, record.after.flips, record.agreements) == (0, 0, ())
    assert record.int8_steps > 0
    assert max(record.int8_closeness) > record.int8_closeness[0]
    assert record.int8_before.compared == record.int8_after.compared == len(set(TEXTS)) // 5
    small, large = (folder / TRAINED_RANGES), (folder / "model.safetensors")
    assert small.stat().st_size < large.stat().st_size


def test_a_person_sees_both_int8_models(student: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, record = student
    show_student(record, folder, "hasten tune student", as_json=False)
    shown = capsys.readouterr().out
    assert f"in {record.int8_steps} steps" in shown
    for ranges, parity in (
        ("calibrated only", record.int8_before),
        ("after training (QAT)", record.int8_after),
    ):
        assert f"int8, {ranges}: {parity.flips:,} labels flipped" in shown
    assert "before:" not in shown  # nothing was trained in floating point


def test_teaching_brings_the_int8_answers_nearer(student: Any) -> None:
    record = student[1]
    assert record.int8_after.mean_abs_difference < record.int8_before.mean_abs_difference


@pytest.mark.usefixtures("quick")
def test_an_interrupted_run_ends_with_the_same_integers(model: Path, tmp_path: Path) -> None:
    def compress(name: str, **options: Any) -> None:
        given = {"int8": True, "layers": 1, "budget": 12_000.0, **options}
        api.compress(model, TEXTS, output=tmp_path / name, **given)

    def stop(event: Any) -> None:
        # A checkpoint is kept every third step of these.
        if event.stage == "train int8" and "step 8 " in event.message:
            raise KeyboardInterrupt

    compress("whole")
    with pytest.raises(KeyboardInterrupt):
        compress("student", on_event=stop)
    compress("student")
    for name in ("model.safetensors", TRAINED_RANGES):
        whole, resumed = (tmp_path / each / name for each in ("whole", "student"))
        assert whole.read_bytes() == resumed.read_bytes(), name


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [{"layers": 1, "ffn_width": 32, "heads": 1}, {}])
def test_fewer_heads_and_words_are_learnt_with_integers_too(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    texts = [text.replace("b", "k") for text in TEXTS]
    folder = tmp_path / "student"
    record = api.compress(
        model, texts, output=folder, int8=True, embeddings=True, budget=20_000.0, **options
    )
    assert bool(record.steps) == bool(options)
    assert record.int8_steps
    assert record.vocabulary < record.of_vocabulary
    reference = prepare(folder, tmp_path / "reference")
    trained = load_trained(reference)
    original: Any = trained.original
    assert original.get_input_embeddings().num_embeddings == record.vocabulary
    tokens = reference.tokenizer().encode(texts[:40])
    ids, mask = map(torch.from_numpy, tokens.pad(range(40), reference.info.pad_token_id))
    inputs = ids, mask, torch.zeros_like(ids)
    exact, rounded = reference.module()(*inputs), trained(*inputs)
    assert (exact - rounded).abs().mean() < 0.3 * exact.std()
    # The embeddings are frozen, also while integers are trained.
    exact_original: Any = reference.module().original
    tables = [each.get_input_embeddings().weight for each in (exact_original, original)]
    assert torch.equal(*tables)
    for name in ("openvino", "onnx_runtime"):
        run(
            engines.get(name),
            reference,
            Candidate(name, "int8", "cpu", 1, recipe="trained"),
            tmp_path / name,
        )


@pytest.mark.usefixtures("quick")
def test_without_int8_there_must_be_something_to_leave_out(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ChoiceError) as caught:
        api.compress(model, TEXTS, output=tmp_path / "student")
    assert "--int8" in str(caught.value.fix)
    assert not (tmp_path / "student").exists()


def test_what_is_missing_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    with pytest.raises(Unavailable) as caught:
        api.compress(model, TEXTS, output=tmp_path / "student", int8=True)
    assert caught.value.fix == "pip install 'hasten[compress]'"


# --- the engines ------------------------------------------------------------------------------


def run(engine: Any, reference: ModelFolder, candidate: Candidate, folder: Path) -> np.ndarray:
    folder.mkdir()
    engine.export(reference, candidate, folder)
    session = engine.load(folder, candidate)
    rows = []
    tokens = reference.tokenizer().encode(tiny_texts(40, seed=5))
    for chosen in ([0], range(1, 8), range(8, 40)):  # other shapes than the traced one
        inputs = tokens.batch(chosen).inputs(reference.info.input_names, 0)
        rows.append(session.run(inputs)["logits"])
    session.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("name", ["openvino", "onnx_runtime"])
def test_an_artifact_answers_as_the_model_that_was_taught(
    name: str, reference: ModelFolder, tmp_path: Path
) -> None:
    engine = engines.get(name)
    (recipe,) = engine.trained_recipes
    candidate = Candidate(name, "int8", "cpu", 1, recipe=recipe)
    assert engine.base(candidate) is None
    outputs = run(engine, reference, candidate, tmp_path / "artifact")
    tokens = reference.tokenizer().encode(tiny_texts(40, seed=5))
    ids, mask = map(torch.from_numpy, tokens.pad(range(40), reference.info.pad_token_id))
    truth = load_trained(reference)(ids, mask, torch.zeros_like(ids)).numpy()
    # A number at the middle between two levels may fall on either, and what follows with it.
    assert np.abs(outputs - truth).mean() < 0.01 * truth.std()
    assert outputs.dtype == np.float32
    exact = reference.module()(ids, mask, torch.zeros_like(ids)).numpy()
    assert np.abs(outputs - truth).mean() < 0.3 * np.abs(outputs - exact).mean()


@pytest.mark.parametrize("name", ["openvino", "onnx_runtime"])
def test_spared_layers_stay_in_floating_point(
    name: str, reference: ModelFolder, tmp_path: Path
) -> None:
    few = Candidate(name, "int8", "cpu", 1, recipe="trained", spared=(QUERY,))
    engine = engines.get(name)
    outputs = run(engine, reference, few, tmp_path / "artifact")
    whole = run(
        engine, reference, Candidate(name, "int8", "cpu", 1, recipe="trained"), tmp_path / "a"
    )
    assert not np.array_equal(outputs, whole)


def test_weights_are_stored_as_integers(reference: ModelFolder, tmp_path: Path) -> None:
    import onnx

    candidate = Candidate("onnx_runtime", "int8", "cpu", 1, recipe="trained")
    run(engines.get("onnx_runtime"), reference, candidate, tmp_path / "artifact")
    model = onnx.load(str(tmp_path / "artifact" / "model.onnx"))
    kinds = [tensor.data_type for tensor in model.graph.initializer]
    assert sum(kind == onnx.TensorProto.INT8 for kind in kinds) >= 2 * 6
    quantized_products = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert len(quantized_products) >= 2 * 6


# --- tune -------------------------------------------------------------------------------------


def recipes(models: Sequence[str], trained: Sequence[str]) -> set[tuple[str, str, str]]:
    possible, _ = candidates.enumerate_rows(
        MACHINE,
        Settings(precisions=("int8",)),
        engines.discover(),
        64,
        models,
        trained=trained,
    )
    labels = [candidate.label for candidate in possible]
    assert len(labels) == len(set(labels))
    return {(candidate.model, candidate.engine, candidate.recipe) for candidate in possible}


@pytest.mark.parametrize("models", [("original",), ("original", "student")])
def test_tune_has_a_row_only_for_models_with_trained_ranges(models: Sequence[str]) -> None:
    whose = models[-1]
    more = {(whose, "openvino", "trained"), (whose, "onnx_runtime", "trained")}
    assert recipes(models, [whose]) - recipes(models, []) == more
    assert not recipes(models, []) & more


def test_a_student_s_ranges_are_its_own(
    student: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def stop(context: Any) -> None:
        found.append(context)
        raise KeyboardInterrupt

    monkeypatch.setattr("hasten.tuning.contest.run", stop)
    for source, reference in ((student[0], model), (student[0], None), (model, None)):
        with pytest.raises(KeyboardInterrupt):
            api.tune(source, texts=TEXTS, output=tmp_path / str(len(found)), reference=reference)
    assert [context.trained for context in found] == [("student",), ("original",), ()]
    # What trained the integers does not judge them; the model that they came from has none.
    made = set(json.loads((student[0] / corpus.TAUGHT).read_text(encoding="utf-8"))["texts"])
    for context in found[:2]:
        assert context.taught_texts
        assert not made & set(map(corpus.digest, context.texts))
    assert not found[2].taught_texts


def test_trained_ranges_travel_with_the_reference(
    student: Any, model: Path, reference: ModelFolder, tmp_path: Path
) -> None:
    folder, _ = student
    assert reference.trained_ranges.read_bytes() == (folder / TRAINED_RANGES).read_bytes()
    bare = prepare(model, tmp_path / "bare")
    assert not bare.trained_ranges.exists()
    assert bare.fingerprint() != reference.fingerprint()
    # Other weights: they are not those that the ranges belong to.
    other = prepare(folder, tmp_path / "other", random_weights=True)
    assert not other.trained_ranges.exists()


def test_a_damaged_file_is_told(reference: ModelFolder, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "model", labels=4)
    (other / "int8").mkdir()
    (other / TRAINED_RANGES).write_bytes(reference.trained_ranges.read_bytes())
    strange = prepare(other, tmp_path / "reference")
    with pytest.raises(ModelError, match="does not belong"):
        load_trained(strange)
    engine = engines.get("openvino")
    with pytest.raises((ModelError, EngineError)):
        engine.export(strange, Candidate("openvino", "int8", "cpu", 1, recipe="trained"), tmp_path)
