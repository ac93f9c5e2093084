"""A model's config.json says what the model is; it never chooses code, and nothing is fetched."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import dynamic_module_utils, fusion_mapping
from transformers.integrations import hub_kernels

from hasten.errors import ModelError
from hasten.models import prepare
from hasten.models.module import load_original
from tests.tiny import save_tiny

KERNEL = "evil/kernel"
IGNORED: list[dict[str, Any]] = [
    {"attn_implementation": KERNEL},
    {"attn_implementation": {"": KERNEL}},
    {"attn_implementation": "flash_attention_2"},
    {"attn_implementation": f"paged|{KERNEL}"},
    {"_attn_implementation": KERNEL},
    {"_attn_implementation_internal": KERNEL},
    {"attribute_map": {"nickname": "_attn_implementation_internal"}, "nickname": KERNEL},
    {"experts_implementation": KERNEL},
    {"_experts_implementation": KERNEL},
    {"_experts_implementation_internal": KERNEL},
    {"use_kernels": True, "kernel_config": {"kernel_mapping": {"LayerNorm": KERNEL}}},
    {"fusion_config": {"patch_embeddings": True}},
    {"distributed_config": {"tp_plan": "auto", "tp_size": 2}},
    {"base_model_tp_plan": {"evil": "evil"}},
    {"auto_map": {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}},
    {"auto_map": {"AutoConfig": "evil/code--evil.C"}},
    {"custom_pipelines": {"text-classification": {"impl": "evil.Pipeline", "pt": ["evil"]}}},
    {"_auto_class": "AutoModelForSequenceClassification"},
    {"_commit_hash": "evil"},
    {"_name_or_path": KERNEL, "name_or_path": KERNEL},
    {"tokenizer_class": "evil.Tokenizer", "processor_class": "evil.Processor"},
    {"transformers_weights": "adapter_model.bin"},
    {"transformers_weights": "other.safetensors"},
    {"to_dict": "evil", "validate": "evil", "get_text_config": "evil", "save_pretrained": "evil"},
    {"gguf_file": "evil.gguf", "adapter_kwargs": {"_adapter_model_path": KERNEL}},
    {"quantization_config": None},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quantization_config": {"quant_method": "evil"}}, "is quantized already"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantized already"),
    ({"dtype": "_import_dotted_name"}, "gives the dtype"),
    ({"torch_dtype": "onnx"}, "gives the torch_dtype"),
    ({"torch_dtype": ["float32"]}, "gives the torch_dtype"),
    ({"text_config": {"dtype": "onnx"}}, "gives the dtype"),
    ({"configuration_files": ["config.4.0.0.json"]}, "other files"),
    ({"model_type": "evil"}, "no model that transformers knows"),
    ({"model_type": "gemma3", "vision_config": {"model_type": "timm_wrapper"}}, "takes images"),
    ({"backbone": "hf-hub:evil/backbone"}, "takes images"),
]


def _name(value: Any) -> str:
    return json.dumps(value)[:60]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was imported, fetched or patched although nothing of the kind was to be."""
    tried: list[str] = []

    def record(name: str) -> Any:
        def attempt(*arguments: Any, **_: Any) -> None:
            tried.append(f"{name}{arguments[:1]}")
            raise OSError(name)

        return attempt

    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "evil.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setattr(socket, "getaddrinfo", record("getaddrinfo"))
    monkeypatch.setattr(socket.socket, "connect", record("connect"))
    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", record("attention kernel"))
    monkeypatch.setattr(
        transformers.modeling_utils, "lazy_import_flash_attention", record("attention kernel")
    )
    monkeypatch.setattr(hub_kernels, "get_kernel", record("kernel"))
    monkeypatch.setattr(dynamic_module_utils, "get_class_in_module", record("class from a file"))
    monkeypatch.setattr(fusion_mapping, "register_fusion_patches", record("fusion"))
    return tried


def _hostile(plain: Path, folder: Path, fields: dict[str, Any]) -> Path:
    shutil.copytree(plain, folder)
    (folder / "evil.py").write_text("raise SystemExit('the code of the model ran')")
    state = {"evil": torch.zeros(1)}
    torch.save(state, folder / "adapter_model.bin")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize("fields", IGNORED, ids=_name)
def test_fields_that_would_choose_code_are_ignored(
    fields: dict[str, Any], plain: Path, tmp_path: Path, attempts: list[str]
) -> None:
    folder = _hostile(plain, tmp_path / "model", fields)
    reference = prepare(folder, tmp_path / "reference")
    hostile, harmless = load_original(reference.folder / "module"), load_original(plain)
    assert attempts == []
    assert "evil" not in sys.modules
    assert hostile.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    ids = torch.tensor([[2, 9, 8, 3]])
    assert torch.equal(hostile(ids).logits, harmless(ids).logits)


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=_name)
def test_fields_that_cannot_be_ignored_are_refused(
    fields: dict[str, Any], reason: str, plain: Path, tmp_path: Path, attempts: list[str]
) -> None:
    folder = _hostile(plain, tmp_path / "model", fields)
    with pytest.raises(ModelError, match=reason):
        prepare(folder, tmp_path / "reference")
    # As a bundle brings it, which no preparation has seen.
    reference = prepare(plain, tmp_path / "bundle")
    shutil.copyfile(folder / "config.json", reference.folder / "module" / "config.json")
    with pytest.raises(ModelError):
        reference.module()
    assert attempts == []
    assert "evil" not in sys.modules


HOSTILE_TOKENIZERS: list[dict[str, Any]] = [
    {"auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}},
    {"auto_map": {"AutoTokenizer": "evil/code--evil.Fast"}, "tokenizer_class": "Fast"},
    {"tokenizer_class": "evil.Tokenizer"},
    {"tokenizer_class": "AutoTokenizer"},
    {"tokenizer_class": ["evil", "Tokenizer"]},
    {"processor_class": "evil.Processor", "fast_tokenizer_files": ["tokenizer.evil.json"]},
    {"backend": "evil", "name_or_path": KERNEL, "_commit_hash": "evil"},
    {"tokenizer_file": "/evil.json", "vocab_file": KERNEL, "gguf_file": "evil.gguf"},
    {"backend_tokenizer": "evil", "tokenizer_object": "evil", "from_slow": True},
    {"chat_template": "{{ cycler.__init__.__globals__.os.system('exit 1') }}"},
    {"extra_special_tokens": {"evil": {"__type": "AddedToken", "content": "evil"}}},
]


@pytest.mark.parametrize("fields", HOSTILE_TOKENIZERS, ids=_name)
def test_the_settings_of_a_tokenizer_choose_no_code(
    fields: dict[str, Any], plain: Path, tmp_path: Path, attempts: list[str]
) -> None:
    folder = _hostile(plain, tmp_path / "model", {})
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with contextlib.suppress(ModelError):  # what cannot be ignored is refused
        read = prepare(folder, tmp_path / "reference").tokenizer().encode(["bab keb"])
        harmless = prepare(plain, tmp_path / "harmless").tokenizer().encode(["bab keb"])
        assert read.ids.tolist() == harmless.ids.tolist()
    assert attempts == []
    assert "evil" not in sys.modules


def test_random_weights_ignore_them_too(plain: Path, tmp_path: Path, attempts: list[str]) -> None:
    folder = _hostile(plain, tmp_path / "model", {"attn_implementation": KERNEL})
    prepare(folder, tmp_path / "reference", random_weights=True)
    assert attempts == []


def test_an_adapter_beside_the_weights_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = _hostile(plain, tmp_path / "model", {})
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": KERNEL}))
    with pytest.raises(ModelError, match="adapter") as caught:
        prepare(folder, tmp_path / "reference")
    assert "merge_and_unload" in str(caught.value.fix)


@pytest.mark.parametrize("content", ["[]", "{", "null"])
def test_a_damaged_file_is_refused(content: str, plain: Path, tmp_path: Path) -> None:
    folder = _hostile(plain, tmp_path / "model", {})
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be read"):
        prepare(folder, tmp_path / "reference")


def test_attention_can_be_asked_for(plain: Path, tmp_path: Path) -> None:
    reference = prepare(plain, tmp_path / "reference")
    sdpa, eager = reference.module(), reference.module("eager")
    assert sdpa.original.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert eager.original.config._attn_implementation == "eager"  # type: ignore[union-attr]
    ids = torch.tensor([[2, 9, 8, 3]])
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    torch.testing.assert_close(sdpa(*inputs), eager(*inputs))


def test_architectures_without_sdpa_are_eager(plain: Path, tmp_path: Path) -> None:
    importlib.import_module("transformers.models.megatron_bert")
    config = json.loads((plain / "config.json").read_text())
    shape = {**config, "model_type": "megatron-bert"}
    shape["architectures"] = ["MegatronBertForSequenceClassification"]
    folder = _hostile(plain, tmp_path / "model", shape)
    reference = prepare(folder, tmp_path / "reference", random_weights=True)
    module: Any = reference.module()
    assert module.original.config._attn_implementation == "eager"
