"""Read a model's config.json as data: it may say what the model is, never what code runs it.

transformers acts on more of this file than sizes and labels. ``attn_implementation`` and
``experts_implementation`` can name a kernel on the hub, ``auto_map`` a Python file,
``transformers_weights`` another file of weights, ``fusion_config`` patches to its classes,
``dtype`` any attribute of torch, and a key that begins with an underscore, or names a method, its
own internals. The first group is dropped here, before transformers sees the file: without these
fields it builds the same model from its own code. What cannot be dropped without changing the
model is refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hasten.errors import ModelError

_DROPPED = frozenset(
    {
        "attn_implementation",
        "experts_implementation",
        "attribute_map",
        "auto_map",
        "custom_pipelines",
        "distributed_config",
        "fusion_config",
        "kernel_config",
        "name_or_path",
        "processor_class",
        "sentence",
        "transformers_weights",
        "use_kernels",
    }
)
_QUANTIZED = (
    "is quantized already; the answers to keep are those of the fp32 original",
    "Give the folder it was quantized from.",
)
_VERSIONED = (
    "keeps its configuration in other files (configuration_files)",
    "Load and save it once with your version of transformers, which writes one config.json.",
)
_NOT_TEXT = (
    "takes images or sound besides text",
    "Only text models are run. Save the text part alone, or give it as package.module:factory.",
)
_REFUSED: Mapping[str, tuple[str, str]] = {
    "quantization_config": _QUANTIZED,
    "configuration_files": _VERSIONED,
    "vision_config": _NOT_TEXT,
    "audio_config": _NOT_TEXT,
    "backbone_config": _NOT_TEXT,
    "backbone": _NOT_TEXT,
}
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_DAMAGED = "Copy the model's folder again."
_LABELS = ("id2label", "label2id")


def open_config(folder: Path, sentence: Mapping[str, Any] | None = None) -> Any:
    """The folder's configuration as transformers reads it, without what would select code.

    Args:
        folder: which holds ``config.json``.
        sentence: of a model of sentence-transformers, what the configuration has under this name;
            see :func:`hasten.models.sentence.as_fields`.

    Raises:
        ModelError: the file is damaged, names no architecture that transformers knows, or says
            something that cannot be ignored.
    """
    from transformers import AutoConfig

    stored = _read(folder / "config.json")
    _refuse(stored, folder)
    # A copy in a folder of its own: transformers follows names to other files beside config.json.
    with tempfile.TemporaryDirectory() as scratch:
        fields = _cleaned(stored) | ({} if sentence is None else {"sentence": sentence})
        (Path(scratch) / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        config = AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
    config.name_or_path = str(folder)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", fix=_DAMAGED) from error
    if not isinstance(stored, dict):
        raise ModelError(f"{path} cannot be read: it holds no JSON object", fix=_DAMAGED)
    return stored


def _refuse(stored: Mapping[str, Any], folder: Path) -> None:
    for name, value in _fields(stored):
        if name in _REFUSED and value is not None:
            what, fix = _REFUSED[name]
            raise ModelError(f"{folder} {what}", fix=fix)
        if name in ("dtype", "torch_dtype") and value not in (None, *_DTYPES):
            raise ModelError(
                f"{folder / 'config.json'} gives the {name} {value!r}",
                fix=f"It can be {', '.join(_DTYPES)}; the model is run in fp32 whatever it says.",
            )


def _fields(stored: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All fields, those of nested configurations included."""
    for name, value in stored.items():
        yield name, value
        if isinstance(value, dict) and name not in _LABELS:
            yield from _fields(value)


def _cleaned(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say what the model is."""
    from transformers import PretrainedConfig

    return {
        name: _cleaned(value) if isinstance(value, dict) and name not in _LABELS else value
        for name, value in stored.items()
        if name not in _DROPPED
        and name not in _REFUSED
        and not name.startswith("_")
        and not callable(getattr(PretrainedConfig, name, None))
    }
