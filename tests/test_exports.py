"""``hasten.export`` and the command, on a tiny model; workers run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hasten import cli, engines, exports
from hasten.engines.onnx_runtime import OnnxRuntime
from hasten.errors import ChoiceError, HastenError, NoCandidate, StorageError, Unavailable
from hasten.inputs import corpus
from hasten.models import ModelFolder
from hasten.plain import from_json, to_json
from hasten.records import Event, Exported, Progress
from hasten.tuning import study
from hasten.tuning.process import InlineWorker
from hasten.tuning.worker import Worker
from tests.tiny import save_tiny, tiny_texts

TEXTS = tiny_texts(40)
# torch.compile's artifact is PyTorch eager's; its contract tests compile it.
ENGINES = ("onnx_runtime", "openvino", "torch_eager", "torchscript")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-bert", "bert")


@pytest.fixture(scope="module", autouse=True)
def _inline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "WorkerProcess", lambda *_: InlineWorker(Worker()))
        yield


@dataclass
class Made:
    folder: Path
    result: Exported
    events: list[Event]


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @cache
    def make(engine: str) -> Made:
        folder, events = tmp_path_factory.mktemp("made") / engine, list[Event]()
        result = exports.export(
            model, texts=TEXTS, engine=engine, output=folder, on_event=events.append
        )
        return Made(folder, result, events)

    return make


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


def original_logits(model: Path, texts: list[str]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(
        texts, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(model)(**tokens).logits
    return {name: value.numpy() for name, value in tokens.items()}, logits.numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engines_export_runs_and_says_how_it_was_checked(
    engine: str, model: Path, made: Callable[[str], Made]
) -> None:
    folder, result = made(engine).folder, made(engine).result
    assert (result.candidate.engine, result.candidate.precision) == (engine, "fp32")
    assert (result.parity.compared, result.parity.flips, result.refusal) == (40, 0, None)
    inputs, logits = original_logits(model, TEXTS)
    session = engines.get(engine).load(folder, result.candidate)
    outputs = session.run(inputs)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-3)
    session.close()
    assert str(folder) in result.usage
    compile(result.usage, "usage", "exec")


def test_the_folder_has_the_names_that_other_tools_look_for(
    made: Callable[[str], Made], model: Path
) -> None:
    import onnxruntime
    from transformers import AutoConfig, AutoTokenizer

    folder, result = made("onnx_runtime").folder, made("onnx_runtime").result
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} < names
    assert AutoConfig.from_pretrained(folder).architectures == ["BertForSequenceClassification"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs, logits = original_logits(model, TEXTS[:8])
    again = AutoTokenizer.from_pretrained(folder)(
        TEXTS[:8], padding=True, truncation=True, max_length=128, return_tensors="np"
    )
    np.testing.assert_array_equal(again["input_ids"], inputs["input_ids"])
    feed = {port.name: inputs[port.name] for port in session.get_inputs()}
    np.testing.assert_allclose(session.run(["logits"], feed)[0], logits, atol=1e-3)
    assert result.files["model.onnx"] == (folder / "model.onnx").stat().st_size
    assert "ORTModelForSequenceClassification" in result.usage


def test_openvinos_usage_asks_for_the_precision_that_was_checked(
    made: Callable[[str], Made],
) -> None:
    result = made("openvino").result
    assert {"openvino_model.xml", "openvino_model.bin"} < set(result.files)
    # Where the CPU has bf16, OpenVINO's own default is another precision.
    assert '{"INFERENCE_PRECISION_HINT": "f32"}' in result.usage


def test_what_is_returned_is_stored(made: Callable[[str], Made]) -> None:
    export = made("onnx_runtime")
    folder, result, events = export.folder, export.result, export.events
    stored = json.loads((folder / exports.MANIFEST).read_text())
    assert from_json(Exported, stored) == result
    assert {"prepare", "export", "check"} == {e.stage for e in events if isinstance(e, Progress)}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_texts_the_built_in_ones_calibrate_and_judge(model: Path, tmp_path: Path) -> None:
    result = exports.export(
        model, engine="openvino", precision="int8", output=tmp_path / "int8", max_flips=1.0
    )
    assert not result.own_texts
    assert result.candidate.recipe.startswith("static")
    assert result.calibration_texts >= 32
    assert result.judged_texts + result.calibration_texts == len(corpus.sample_texts())


def test_the_built_in_texts_are_different_and_of_all_lengths() -> None:
    texts = corpus.sample_texts()
    assert len(set(texts)) == len(texts)
    assert all(text.strip() == text and text for text in texts)
    words = [len(text.split()) for text in texts]
    assert min(words) == 1
    assert max(words) >= 40


def test_a_wrong_export_is_refused_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_model(self: Any, reference: ModelFolder, *arguments: Any) -> None:
        module = reference.module()
        next(module.parameters()).data.neg_()
        with monkeypatch.context() as patch:
            patch.setattr(ModelFolder, "module", lambda *_, **__: module)
            right(self, reference, *arguments)

    right = OnnxRuntime.export
    monkeypatch.setattr(OnnxRuntime, "export", of_another_model)
    output = tmp_path / "out"
    with pytest.raises(
        NoCandidate, match="no fp32 recipe of onnx_runtime keeps the original's answers"
    ):
        exports.export(model, texts=TEXTS, engine="onnx_runtime", output=output)
    assert not list(tmp_path.iterdir())
    result = exports.export(model, texts=TEXTS, engine="onnx_runtime", output=output, force=True)
    assert result.refusal
    assert "fp32 must" in result.refusal


def test_only_an_earlier_export_is_replaced(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    exports.export(model, texts=TEXTS[:5], engine="onnx_runtime", output=folder)
    exports.export(model, texts=TEXTS[:5], engine="torch_eager", output=folder)
    assert not (folder / "model.onnx").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"did not write: notes\.txt"):
        exports.export(model, texts=TEXTS, engine="onnx_runtime", output=folder)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(StorageError, match="did not write"):
        exports.export(model, texts=TEXTS, engine="onnx_runtime", output=folder / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("asked", "kind", "told"),
    [
        ({"engine": "tensorrt"}, ChoiceError, "onnx_runtime"),
        ({"engine": "openvino", "precision": "fp8"}, ChoiceError, "fp32, bf16, fp16, int8"),
        (
            {"engine": "torchscript", "precision": "int8"},
            ChoiceError,
            "torchscript runs here: fp32",
        ),
        ({"engine": "openvino", "device": "tpu"}, ChoiceError, "cpu, cuda"),
        ({"engine": "openvino", "max_flips": 2.0}, ChoiceError, "0 to 1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_the_model_is_read(
    asked: dict[str, Any], kind: type[HastenError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        exports.export("no-such-model", output=tmp_path / "out", **asked)
    assert told in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_engine_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntime, "requires", {"no_such_module": "onnxruntime"})
    with pytest.raises(Unavailable, match="needs onnxruntime") as caught:
        exports.export("no-such-model", engine="onnx_runtime", output=tmp_path / "out")
    assert caught.value.fix == "pip install 'hasten[onnx]'"


@pytest.fixture
def shown(made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the library's one call, and keep what it was called with."""
    seen: dict[str, Any] = {}

    def export(model: Any, texts: Any, **options: Any) -> Exported:
        seen.update(options, model=model, texts=texts)
        return made("onnx_runtime").result

    monkeypatch.setattr(exports, "export", export)
    return seen


def test_the_command_shows_one_screen(shown: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text,topic\nshares fell,business\n")
    result = run("model", "--engine", "onnx_runtime", "-d", data, "--label-column", "topic")
    assert result.exit_code == 0, result.output
    assert shown["texts"] == ("shares fell",)
    assert shown["labels"] == ("business",)
    assert "onnx_runtime fp32" in result.output
    assert "0 of 40 texts of yours" in result.output
    assert "ORTModelForSequenceClassification" in result.output
    assert len(result.output.splitlines()) < 25


def test_the_command_gives_json(shown: dict[str, Any], made: Callable[[str], Made]) -> None:
    result = run("model", "--engine", "onnx_runtime", "--json")
    assert json.loads(result.stdout) == to_json(made("onnx_runtime").result)
    assert shown["texts"] == ()


@pytest.mark.parametrize("option", ["--text-column", "--label-column"])
def test_a_column_without_a_file_is_refused(option: str, tmp_path: Path) -> None:
    result = run("model", "--engine", "onnx_runtime", option, "body", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "Add --data FILE" in result.output


def test_a_column_that_is_not_there_is_told_as_in_tune(tmp_path: Path) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("text,topic\nshares fell,business\n")
    result = run("model", "--engine", "onnx_runtime", "-d", data, "--label-column", "topik")
    assert result.exit_code == 2
    assert "topic" in result.output


def test_a_refused_export_is_a_failure_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NoCandidate("nothing was written", fix="--force writes it regardless.")

    monkeypatch.setattr(exports, "export", refuse)
    result = run("model", "--engine", "onnx_runtime")
    assert result.exit_code == 1
    assert "--force" in result.output
