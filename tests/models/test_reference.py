from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

import hasten
from hasten.errors import ChoiceError, ModelError, StorageError
from hasten.inputs.corpus import TAUGHT, digest
from hasten.models import ModelFolder, load_module, prepare, runs_code
from tests.tiny import (
    FAMILIES,
    HIDDEN,
    MAX_LENGTH,
    save_tiny,
    save_tiny_tokenizer,
    tiny_model,
    tiny_texts,
    tiny_tokenizer,
)

FACTORY = """
import torch
from torch import nn

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(200, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))

def build():
    return Bag()

def broken():
    raise RuntimeError("no such file: weights.bin")

def wrong():
    return {"a": 1}
"""


class Own(nn.Module):
    """A user's own encoder; ``shape`` says what its forward returns."""

    def __init__(
        self,
        shape: str = "tensor",
        labels: int = 3,
        positions: int | None = None,
        config: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(200, 8)
        self.positions = nn.Embedding(positions, 8) if positions else None
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, labels)
        self.shape = shape
        self.config = config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        hidden = self.embedding(input_ids)
        if self.positions:
            hidden = hidden + self.positions(torch.arange(input_ids.shape[1]))
        mask = attention_mask.unsqueeze(-1).float()
        logits = self.head(self.dropout((hidden * mask).sum(1) / mask.sum(1)))
        shapes = {
            "tensor": logits,
            "dict": {"hidden": hidden, "logits": logits},
            "tuple": (logits, hidden),
            "tokens": hidden,
            "integers": logits.argmax(-1),
            "none": None,
        }
        return shapes[self.shape]


class Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Own()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> Any:
        return self.inner(input_ids + token_type_ids, attention_mask)


class Unnamed(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        raise AssertionError("its inputs have no names that the tokenizer knows")


def batch(reference: ModelFolder, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    ids, mask = (
        reference.tokenizer().encode(texts).pad(np.arange(len(texts)), reference.info.pad_token_id)
    )
    every = (torch.tensor(ids), torch.tensor(mask), torch.zeros(ids.shape, dtype=torch.int64))
    return every[: len(reference.info.input_names)]


def logits_of(reference: ModelFolder, texts: Sequence[str]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = reference.module()(*batch(reference, texts))
    return logits


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products lose more by waking a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def prepared(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return prepare(bert, tmp_path_factory.mktemp("reference"))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A working folder with a user's own code; the name of its module."""
    folder = tmp_path / "code"
    folder.mkdir()
    name = f"bag_{tmp_path.name}"
    (folder / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(folder)
    yield name
    sys.modules.pop(name, None)


# ------------------------------------------------------------------------ Hugging Face folders


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "texts.csv"])
def test_a_file_given_as_a_model_names_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(ModelError) as caught:
        prepare(str(folder / name), tmp_path / "reference")
    assert caught.value.message == f"{folder / name} is a file, and a model is a folder"
    ours = name != "texts.csv"
    assert (f"Give its folder: '{folder}'" == caught.value.fix) is ours


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folders_answers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    reference = prepare(save_tiny(tmp_path / "model", family), tmp_path / "reference")
    ids, mask, *_ = batch(reference, tiny_texts(20))
    with torch.no_grad():
        expected = tiny_model(family)(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits_of(reference, tiny_texts(20)), expected)
    assert len(set(expected.argmax(1).tolist())) == 3

    info = reference.info
    assert reference.kind == "huggingface"
    assert not runs_code(reference.folder / "module")
    assert info.architecture.endswith("ForSequenceClassification")
    assert (info.task, info.labels) == ("single_label", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert info.output_names == ("logits",)
    assert ("token_type_ids" in info.input_names) == (family == "bert")
    assert info.max_length == MAX_LENGTH
    assert info.pad_token_id == (0 if family in ("bert", "distilbert") else 1)
    assert info.parameter_count == sum(p.numel() for p in tiny_model(family).parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_fits_the_position_table(family: str, tmp_path: Path) -> None:
    # Without a limit in the tokenizer's settings, the model's own table has to tell.
    folder = save_tiny(tmp_path / "model", family)
    (folder / "tokenizer_config.json").unlink()
    reference = prepare(folder, tmp_path / "reference")
    assert reference.info.max_length == MAX_LENGTH
    assert logits_of(reference, ["babbab " * 200]).isfinite().all()
    assert ("token_type_ids" in reference.info.input_names) == (family == "bert")


def test_work_is_that_of_the_matrix_products(prepared: ModelFolder) -> None:
    layers, inner = 2, 64
    weights = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * inner
    assert prepared.info.flops_per_token == 2 * layers * weights
    assert prepared.info.flops_per_token_squared == 4 * layers * HIDDEN


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_module_can_be_traced_for_every_batch_and_length(family: str, tmp_path: Path) -> None:
    reference = prepare(save_tiny(tmp_path / "model", family), tmp_path / "reference")
    module = reference.module()
    with warnings.catch_warnings():
        # Deprecated, but what the TorchScript engine and both converters use; tracing also reads
        # transformers' deprecated properties. What counts is compared below.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, batch(reference, tiny_texts(2)))
    for texts in (["bab"], tiny_texts(7, seed=2)):
        inputs = batch(reference, texts)
        torch.testing.assert_close(traced(*inputs), module(*inputs))


def test_the_module_is_exact_and_still(prepared: ModelFolder) -> None:
    module = prepared.module()
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("labels", "problem_type", "task"),
    [
        (3, "multi_label_classification", "multi_label"),
        (1, "regression", "regression"),
        (2, "single_label_classification", "single_label"),
    ],
)
def test_the_task_is_what_the_config_says(
    labels: int, problem_type: str, task: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model", labels=labels, problem_type=problem_type)
    reference = prepare(folder, tmp_path / "reference")
    assert reference.info.task == task
    assert len(reference.info.labels) == labels


def test_the_task_can_be_overruled(bert: Path, tmp_path: Path) -> None:
    reference = prepare(bert, tmp_path, task="multi_label")
    assert reference.info.task == "multi_label"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    with pytest.raises(ChoiceError, match="multilabel"):
        prepare(bert, tmp_path / "other", task="multilabel")


def test_labels_keep_the_order_of_the_columns(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"2": "c", "0": "a", "1": "b"}
    (folder / "config.json").write_text(json.dumps(config))
    assert prepare(folder, tmp_path / "reference").info.labels == ("a", "b", "c")


def test_shards_are_taken_along(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, max_shard_size="40KB")
    save_tiny_tokenizer(folder)
    assert not (folder / "model.safetensors").exists()
    reference = prepare(folder, tmp_path / "reference")
    shutil.rmtree(folder)
    assert logits_of(reference, ["bab"]).shape == (1, 3)


def test_an_index_that_leaves_its_folder_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    index = {"weight_map": {"a": "../weights.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not in its folder"):
        prepare(folder, tmp_path / "reference")
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="damaged"):
        prepare(folder, tmp_path / "reference")


def test_training_on_does_not_change_the_reference(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    reference = prepare(folder, tmp_path / "reference")
    before = reference.fingerprint()
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-64, os.SEEK_END)
        stream.write(b"\1" * 64)
    assert reference.fingerprint() == before


def test_other_architectures_are_refused_with_the_list_of_those_supported(
    bert: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for architecture in ("BertForMultipleChoice", "BertModel"):
        (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
        with pytest.raises(ModelError, match=rf"{architecture}; supported .* CamemBERT"):
            prepare(folder, tmp_path / "reference")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mine"}))
    with pytest.raises(ModelError, match="no model that transformers knows"):
        prepare(folder, tmp_path / "reference")


def test_code_that_comes_with_a_model_is_never_run(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    (folder / "config.json").write_text(json.dumps(config))
    prepare(folder, tmp_path / "reference")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(ModelError):
        prepare(folder, tmp_path / "other")
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_the_head_are_refused(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 .* classifier\.weight"):
        prepare(folder, tmp_path / "reference")


def test_damaged_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        prepare(folder, tmp_path / "reference")


def test_no_report_is_referred_to_that_is_not_shown(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("Two weights differ in size. For details look at the above report!")

    monkeypatch.setattr("transformers.AutoModelForSequenceClassification.from_pretrained", fail)
    with pytest.raises(ModelError) as caught:
        prepare(bert, tmp_path / "reference")
    assert caught.value.message.endswith("cannot be loaded: Two weights differ in size.")


# ------------------------------------------------------------------------------ pickled weights


@pytest.fixture
def pickled(bert: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(bert, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_need_permission(
    pickled: Path, prepared: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"pytorch_model\.bin") as caught:
        prepare(pickled, tmp_path / "reference")
    assert "--allow-pickle" in str(caught.value.fix)
    reference = prepare(pickled, tmp_path / "reference", allow_pickle=True)
    assert (reference.folder / "module" / "model.safetensors").exists()
    assert torch.equal(logits_of(reference, ["bab keb"]), logits_of(prepared, ["bab keb"]))


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def test_pickled_code_is_not_run_even_with_permission(pickled: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps({"a": Bomb(str(tmp_path / "ran"))})
    (pickled / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(ModelError):
        prepare(pickled, tmp_path / "reference", allow_pickle=True)
    (tmp_path / "state.pt").write_bytes(bomb)
    with pytest.raises(ModelError, match="cannot be read as a state dict"):
        prepare(pickled, tmp_path / "reference", weights=tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_told_so(pickled: Path, tmp_path: Path) -> None:
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no weights"):
        prepare(pickled, tmp_path / "reference", allow_pickle=True)


# ------------------------------------------------------------------------------- state dicts


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_replaces_the_weights(suffix: str, bert: Path, tmp_path: Path) -> None:
    other = tiny_model(seed=5)
    path = tmp_path / f"state{suffix}"
    (torch.save if suffix == ".pt" else save_file)(other.state_dict(), path)
    reference = prepare(bert, tmp_path / "reference", weights=path)
    stored = load_file(tmp_path / "reference" / "module" / "model.safetensors")
    assert torch.equal(stored["classifier.weight"], other.classifier.weight)
    assert not reference.info.random_weights


def test_a_state_dict_that_does_not_fit_names_a_few_keys(bert: Path, tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    state["head.weight"] = state.pop("classifier.weight")
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ModelError, match=r"1 missing: classifier.weight; 1 unexpected: head"):
        prepare(bert, tmp_path / "reference", weights=tmp_path / "state.pt")
    torch.save(tiny_model(labels=5).state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelError, match="size mismatch"):
        prepare(bert, tmp_path / "reference", weights=tmp_path / "state.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "state.pt")
    with pytest.raises(ModelError, match="not a state dict"):
        prepare(bert, tmp_path / "reference", weights=tmp_path / "state.pt")


# ----------------------------------------------------------------------------- random weights


def test_random_weights_need_only_a_config(bert: Path, tmp_path: Path) -> None:
    shutil.copy(bert / "config.json", tmp_path)
    references = [
        prepare(tmp_path, tmp_path / str(i), tokenizer=bert, random_weights=True, seed=seed)
        for i, seed in enumerate([7, 7, 8])
    ]
    first, same, other = (logits_of(reference, ["bab keb"]) for reference in references)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    info = references[0].info
    assert (info.task, info.labels, info.output_names) == ("tensors", (), ("output",))
    assert info.random_weights


def test_random_weights_leave_the_random_state_alone(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prepare(bert, tmp_path, random_weights=True)
    assert torch.equal(torch.rand(1), expected)


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(ModelError, match=r"up to 169, .* 100 rows"):
        prepare(tmp_path, tmp_path / "reference", tokenizer=bert, random_weights=True)


# ------------------------------------------------------------------------------------ the hub


def test_what_cannot_be_found_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str, allow_patterns: list[str]) -> NoReturn:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"not a local folder.*hub.*service not known"):
        prepare("org/name", tmp_path / "reference")
    with pytest.raises(ModelError, match=r"\./missing does not exist") as caught:
        prepare("./missing", tmp_path / "reference")
    assert "package.module:factory" in str(caught.value)
    with pytest.raises(ModelError, match=r"missing does not exist"):
        prepare(tmp_path / "missing", tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_hub_id_is_downloaded_without_code_and_unasked_pickles(
    allow_pickle: bool, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    reference = prepare("org/name", tmp_path, allow_pickle=allow_pickle)
    assert reference.info.name == "org/name"
    assert not any(pattern.endswith(".py") or pattern == "*" for pattern in asked)
    assert any(pattern.startswith("pytorch_model") for pattern in asked) == allow_pickle
    assert "model*.safetensors" in asked

    assert TAUGHT in asked

    asked.clear()
    prepare("org/name", tmp_path / "random", allow_pickle=allow_pickle, random_weights=True)
    assert not any("safetensors" in pattern or "pytorch" in pattern for pattern in asked)
    assert {"config.json", "tokenizer.json", "*.model"} <= set(asked)


def test_what_a_student_was_taught_with_comes_along(bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(bert, tmp_path / "model")
    assert prepare(model, tmp_path / "none").taught() == frozenset()
    (model / TAUGHT).write_text(json.dumps({"texts": [digest("a"), digest("b")]}))
    reference = prepare(model, tmp_path / "reference")
    shutil.rmtree(model)
    assert ModelFolder.open(reference.folder).taught() == {digest("a"), digest("b")}
    # It says nothing about the answers.
    assert reference.same_as(ModelFolder.open(tmp_path / "none"))


def test_what_taught_another_does_not_stay_from_an_interrupted_run(
    bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / TAUGHT).write_text(json.dumps({"texts": [digest("a")]}))
    assert prepare(bert, tmp_path / "reference").taught() == frozenset()


# ----------------------------------------------------------------------------- modules of one's own


@pytest.mark.parametrize("shape", ["tensor", "dict", "tuple"])
def test_a_module_in_memory_keeps_its_answers(shape: str, bert: Path, tmp_path: Path) -> None:
    module = Own(shape, config={"id2label": {0: "no", 1: "maybe", 2: "yes"}})
    reference = prepare(module, tmp_path, tokenizer=bert)
    assert module.training, "the user's own module was changed"
    expected = Own().eval()(*batch(reference, tiny_texts(5)))
    assert torch.equal(logits_of(reference, tiny_texts(5)), expected)
    assert reference.kind == "pickle"
    assert runs_code(reference.folder / "module")
    assert reference.info.labels == ("no", "maybe", "yes")
    assert reference.info.task == "single_label"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}


def test_labels_have_plain_names_where_the_module_gives_none(bert: Path, tmp_path: Path) -> None:
    assert prepare(Own(), tmp_path, tokenizer=bert).info.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ModelError, match="3 numbers a text, but its config names 2"):
        prepare(Own(config={"id2label": {0: "a", 1: "b"}}), tmp_path / "other", tokenizer=bert)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("tokens", "classifier returns"),
        ("integers", r"returns torch.int64 \[2\], not a float tensor"),
        ("none", "NoneType"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(
    shape: str, message: str, bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        prepare(Own(shape), tmp_path, tokenizer=bert)
    assert not (tmp_path / "reference.json").exists()


def test_outputs_of_any_shape_can_be_compared_as_tensors(bert: Path, tmp_path: Path) -> None:
    reference = prepare(Own("tokens"), tmp_path, tokenizer=bert, task="tensors")
    assert reference.info.output_names == ("output",)
    assert logits_of(reference, ["bab keb"]).shape == (1, 4, 8)


def test_segments_are_given_to_a_forward_that_needs_them(bert: Path, tmp_path: Path) -> None:
    reference = prepare(Segments(), tmp_path, tokenizer=bert / "tokenizer.json")
    assert reference.info.input_names == ("input_ids", "attention_mask", "token_type_ids")


def test_a_forward_with_other_inputs_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes \(x, y\)"):
        prepare(Unnamed(), tmp_path, tokenizer=bert)


def test_texts_longer_than_the_module_takes_are_found_out_now(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{MAX_LENGTH} tokens") as caught:
        prepare(Own(positions=100), tmp_path, tokenizer=bert)
    assert "model_max_length" in str(caught.value)


@pytest.mark.parametrize("edit", [None, "bfloat16", "head"])
def test_a_transformers_model_in_memory(edit: str | None, bert: Path, tmp_path: Path) -> None:
    model = tiny_model()
    if edit == "bfloat16":
        model = model.bfloat16()
    if edit == "head":
        model.classifier = nn.Sequential(nn.Tanh(), model.classifier)
    reference = prepare(model, tmp_path, tokenizer=bert)
    # A model that was taken apart is no longer what its config says.
    assert reference.kind == ("pickle" if edit == "head" else "huggingface")
    ids, mask, segments = batch(reference, tiny_texts(5))
    expected = model.float()(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    torch.testing.assert_close(logits_of(reference, tiny_texts(5)), expected)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_checkpoint_in_half_precision_is_run_in_fp32(
    stored: str, pickled: bool, bert: Path, tmp_path: Path
) -> None:
    model = tiny_model().to(getattr(torch, stored))
    source = shutil.copytree(bert, tmp_path / "source")
    model.save_pretrained(source)
    if pickled:
        (source / "model.safetensors").unlink()
        torch.save(model.state_dict(), source / "pytorch_model.bin")
    reference = prepare(source, tmp_path / "reference", allow_pickle=pickled)
    assert json.loads((reference.folder / "config.json").read_text())["dtype"]
    assert reference.info.dtype == stored
    assert any(stored in notice for notice in reference.info.notices)
    ids, mask, segments = batch(reference, tiny_texts(5))
    expected = model.float()(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    assert torch.equal(logits_of(reference, tiny_texts(5)), expected)
    assert {p.dtype for p in reference.module().parameters()} == {torch.float32}


def test_weights_of_other_sizes_than_the_configs_are_named(bert: Path, tmp_path: Path) -> None:
    source = shutil.copytree(bert, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["vocab_size"] += 7
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"1 weights have another size .*word_embeddings"
    ) as caught:
        prepare(source, tmp_path / "reference")
    assert "report" not in str(caught.value)


def test_an_fp32_checkpoint_says_nothing_of_its_dtype(prepared: ModelFolder) -> None:
    assert prepared.info.dtype == "float32"
    assert prepared.info.notices == ()


def test_what_is_in_memory_takes_no_other_weights(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="load_state_dict"):
        prepare(Own(), tmp_path, tokenizer=bert, weights="state.pt")
    with pytest.raises(ModelError, match="a custom module"):
        prepare(Own(), tmp_path, tokenizer=bert, random_weights=True)
    with pytest.raises(ModelError, match="a dict is not a model"):
        prepare(cast("Any", {}), tmp_path, tokenizer=bert)


def test_a_module_that_cannot_be_pickled_is_told_of_factories(bert: Path, tmp_path: Path) -> None:
    module: Any = Own()
    module.stream = (tmp_path / "open").open("w")
    with pytest.raises(ModelError, match="cannot be pickled") as caught, module.stream:
        prepare(module, tmp_path, tokenizer=bert)
    assert "package.module:factory" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"training": False}, True),
        ({"temperature": 2.0}, False),
        ({"options": {"pooling": ["cls"]}}, False),
        ({"anything": object()}, False),
    ],
)
def test_a_pickled_module_is_known_by_what_it_is(
    bert: Path, tmp_path: Path, change: dict[str, object], same: bool
) -> None:
    def fingerprint(name: str, **changes: object) -> str:
        module = Own()
        for key, value in {"options": {"pooling": ["mean"]}, **changes}.items():
            setattr(module, key, value)
        return prepare(module, tmp_path / name, tokenizer=bert).fingerprint()

    assert (fingerprint("one") == fingerprint("two", **change)) == same


def test_buffers_that_are_not_saved_count_as_well(bert: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, scale: float) -> str:
        module = Own()
        module.register_buffer("scale", torch.tensor(scale), persistent=False)
        return prepare(module, tmp_path / name, tokenizer=bert).fingerprint()

    assert fingerprint("one", 1.0) != fingerprint("two", 2.0)


def test_classes_of_a_script_reach_other_processes(bert: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    body = """
    import sys, torch
    from torch import nn
    from hasten.models import prepare

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(200, 2)
        def forward(self, input_ids, attention_mask):
            return self.embedding(input_ids).sum(1) * 0 + 5

    torch.manual_seed(0)
    prepare(Mine(), sys.argv[2], tokenizer=sys.argv[1])
    """
    script.write_text(textwrap.dedent(body))
    root = str(Path(hasten.__path__[0]).parent)
    for name in ("reference", "another"):
        subprocess.run(
            [sys.executable, script, bert, tmp_path / name],
            check=True,
            env={**os.environ, "PYTHONPATH": root},
        )
    another = ModelFolder.open(tmp_path / "another")
    assert another.fingerprint() == ModelFolder.open(tmp_path / "reference").fingerprint()
    reference = ModelFolder.open(tmp_path / "reference")
    assert reference.info.architecture == "Mine"
    assert logits_of(reference, ["bab"]).tolist() == [[5.0, 5.0]]


# ---------------------------------------------------------------------------------- factories


def test_a_factory_is_called_with_its_weights(code: str, bert: Path, tmp_path: Path) -> None:
    factory = f"{code}:build"
    random = prepare(factory, tmp_path / "random", tokenizer=bert)
    assert random.kind == "factory"
    assert runs_code(random.folder / "module")
    assert torch.equal(logits_of(random, ["bab"]), logits_of(random, ["bab"]))

    built: Any = random.module().original
    state = built.state_dict()
    state["head.bias"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.save(state, tmp_path / "state.pt")
    given = prepare(factory, tmp_path / "given", tokenizer=bert, weights=tmp_path / "state.pt")
    loaded: Any = given.module().original
    assert torch.equal(loaded.head.bias, state["head.bias"])
    assert given.info.name == factory
    assert given.info.architecture == "Bag"


def test_importing_from_the_working_folder_leaves_no_trace(
    code: str, bert: Path, tmp_path: Path
) -> None:
    before = list(sys.path)
    prepare(f"{code}:build", tmp_path / "reference", tokenizer=bert)
    assert sys.path == before


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("broken", "RuntimeError: no such file"),
        ("absent", "AttributeError"),
        ("wrong", "returned dict, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_fails_is_named(
    attribute: str, message: str, code: str, bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        prepare(f"{code}:{attribute}", tmp_path / "reference", tokenizer=bert)
    assert f"{code}:{attribute}" in str(caught.value)


def test_a_factory_whose_code_changed_is_refused(
    code: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = prepare(f"{code}:build", tmp_path / "reference", tokenizer=bert)
    monkeypatch.setattr(sys.modules[code], "build", lambda: nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no longer builds"):
        reference.module()


# --------------------------------------------------------------------------------- tokenizers


def test_without_a_tokenizer_says_what_was_looked_for(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    for model in (folder, Own()):
        with pytest.raises(ModelError, match=r"looked for tokenizer\.json, vocab\.txt") as caught:
            prepare(model, tmp_path / "reference")
        assert "--tokenizer PATH" in str(caught.value)


@pytest.mark.parametrize("form", ["folder", "file", "text", "library", "transformers"])
def test_a_tokenizer_comes_in_many_forms(form: str, bert: Path, tmp_path: Path) -> None:
    given = {
        "folder": bert,
        "file": bert / "tokenizer.json",
        "text": str(bert),
        "library": tiny_tokenizer(),
        "transformers": PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer(), pad_token="[PAD]", model_max_length=50
        ),
    }[form]
    reference = prepare(Own(), tmp_path, tokenizer=given)
    expected = tiny_tokenizer().encode("bab keb,").ids
    assert reference.tokenizer().encode(["bab keb,"]).ids.tolist() == expected
    lengths = {"library": 512, "transformers": 50}
    assert reference.info.max_length == lengths.get(form, MAX_LENGTH)


def test_a_vocabulary_alone_is_converted(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    words = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in words))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = prepare(folder, tmp_path / "reference")
    expected = tiny_tokenizer().encode("bab kebx,").ids
    assert reference.tokenizer().encode(["bab kebx,"]).ids.tolist() == expected
    assert reference.info.max_length == 64


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[]"])
def test_damaged_tokenizer_files_are_named(
    name: str, content: str, bert: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=name):
        prepare(folder, tmp_path / "reference")


def test_what_is_no_tokenizer_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dict is not a tokenizer"):
        prepare(bert, tmp_path, tokenizer={"bab": 1})
    with pytest.raises(ModelError, match=r"no tokenizer in .*nowhere"):
        prepare(bert, tmp_path, tokenizer=tmp_path / "nowhere")


# -------------------------------------------------------------------------------- the folder


def test_opening_gives_what_was_prepared(prepared: ModelFolder) -> None:
    assert ModelFolder.open(prepared.folder) == prepared
    assert pickle.loads(pickle.dumps(prepared)) == prepared


@pytest.mark.parametrize("content", [None, "", "{}", '{"kind": "factory", "info": {}}', "[]"])
def test_an_incomplete_folder_is_not_opened(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "reference.json").write_text(content)
    with pytest.raises(ModelError, match="not a complete reference"):
        ModelFolder.open(tmp_path)


def test_a_finished_reference_is_not_overwritten(bert: Path, prepared: ModelFolder) -> None:
    with pytest.raises(ModelError, match="already holds a reference"):
        prepare(bert, prepared.folder)


def test_what_an_interrupted_run_left_is_no_obstacle(
    bert: Path, prepared: ModelFolder, tmp_path: Path
) -> None:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "module.pkl").write_text("half")
    reference = prepare(bert, tmp_path)
    assert replace(reference, folder=prepared.folder) == prepared
    assert reference.fingerprint() == prepared.fingerprint()


def test_a_folder_that_cannot_be_written_is_a_storage_error(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        prepare(bert, tmp_path / "file" / "reference")


@pytest.mark.parametrize(
    "name", ["reference.json", "config.json", "tokenizer.json", "module/model.safetensors"]
)
def test_any_changed_file_changes_the_fingerprint(
    name: str, prepared: ModelFolder, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    copied = replace(prepared, folder=folder)
    assert copied.fingerprint() == prepared.fingerprint()
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert copied.fingerprint() != prepared.fingerprint()


@pytest.mark.parametrize("links", [True, False])
def test_a_copied_module_runs_on_its_own(
    links: bool, prepared: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(source: Path, target: Path) -> NoReturn:
            raise OSError("another file system")

        monkeypatch.setattr(os, "link", refuse)
    module_folder = prepared.copy_module(tmp_path / "artifact")
    assert module_folder == tmp_path / "artifact" / "module"
    assert not any(path.is_symlink() for path in module_folder.iterdir())
    weights = module_folder / "model.safetensors"
    assert weights.samefile(prepared.folder / "module" / weights.name) == links
    inputs = batch(prepared, ["bab keb"])
    expected = logits_of(prepared, ["bab keb"])
    assert torch.equal(load_module(module_folder, prepared.info)(*inputs), expected)


def test_nothing_is_said_on_the_way(
    bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare(bert, tmp_path / "a")
    prepare(tiny_model(), tmp_path / "b", tokenizer=bert)
    assert capfd.readouterr() == ("", "")


def test_importing_the_package_loads_no_framework() -> None:
    code = (
        "import sys, hasten.models, hasten.inputs.tokenization;"
        "print({'torch', 'transformers', 'tokenizers', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
