"""Sentence-transformers' folders, read as data.

``modules.json`` names what turns texts into vectors: an encoder, then pooling, then any number of
dense layers and normalizations. Each must be one of those that :mod:`hasten.models.pooling` builds;
no class that a file names is ever imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError
from hasten.models import pooling
from hasten.models.folder import storing_weights
from hasten.models.sentence import (
    ACTIVATIONS,
    POOLING,
    SPARSE,
    STORED,
    WEIGHTS,
    Dense,
    Sentence,
    as_fields,
)
from hasten.storage.durable import write_json

if TYPE_CHECKING:
    from torch import Tensor

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_ENCODER_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_OTHERWISE = "Give such a model as package.module:factory with --task tensors."


@dataclass(frozen=True, slots=True)
class Found:
    """A folder's description, where its encoder lies, and the folders of its dense layers."""

    sentence: Sentence
    encoder: Path
    dense: tuple[Path, ...] = ()


def find(source: Path) -> Found | None:
    """Read a folder that sentence-transformers saved; None where it holds none of its models.

    Raises:
        ModelError: it is damaged, or does something that is not supported.
    """
    if not (source / "modules.json").is_file():
        return None
    settings = _json(source / "config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind == "CrossEncoder":
        return None
    if kind == "SparseEncoder":
        return _sparse(source, settings)
    if kind != "SentenceTransformer":
        raise ModelError(f"{source} holds a {kind} of sentence-transformers", fix=_OTHERWISE)
    modules = _modules(source)
    encoder = modules[0][1]
    dense = tuple(folder for name, folder in modules if name == "Dense")
    after = tuple(_step(name, folder) for name, folder in modules[2:])
    reads = _encoder_settings(encoder)
    sentence = Sentence(
        pooling=_pooling(modules[1][1]),
        after=after,
        truncate_dim=settings.get("truncate_dim"),
        max_length=reads.get("max_seq_length"),
        lowercase=bool(reads.get("do_lower_case")),
        settings=_task_settings(settings),
    )
    return Found(sentence, encoder, dense)


def _sparse(source: Path, settings: Mapping[str, Any]) -> Found:
    """A folder of SPLADE: a head of masked words, whose numbers become weights."""
    listed = _json(source / "modules.json", list)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in listed]
    if len(kinds) != 2 or kinds[1] != "SpladePooling":
        raise ModelError(
            f"{source} has the modules {', '.join(kinds) or 'none'}; of sparse encoders, a model "
            "of masked words with SpladePooling is supported",
            fix=_OTHERWISE,
        )
    encoder, pooling_folder = (source / str(module.get("path", "")) for module in listed)
    config = _json(pooling_folder / "config.json")
    how = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if how != ("max", "relu"):
        raise ModelError(
            f"{pooling_folder} pools by {how[0]} of {how[1]}; supported is max of relu",
            fix=_OTHERWISE,
        )
    reads = _json(encoder / _ENCODER_SETTINGS[0])
    sentence = Sentence(
        pooling=(SPARSE,),
        max_length=reads.get("max_seq_length"),
        lowercase=bool(reads.get("do_lower_case")),
        settings=_task_settings(settings),
    )
    return Found(sentence, encoder)


def write(found: Found, target: Path, *, allow_pickle: bool) -> None:
    """Store the description, and the weights of the dense layers, in ``module/``.

    Raises:
        ModelError: the weights are missing, or do not fit.
        StorageError: they cannot be written.
    """
    if found.dense:
        _store_weights(found, target / WEIGHTS, allow_pickle=allow_pickle)
    write_json(target / STORED, as_fields(found.sentence))


def _store_weights(found: Found, path: Path, *, allow_pickle: bool) -> None:
    """Collect the weights of the dense layers in one file.

    Raises:
        ModelError: they are missing, pickled, or do not fit.
        StorageError: they cannot be written.
    """
    from safetensors.torch import load_file, save_file

    weights: dict[str, Tensor] = {}
    places = [place for place, step in enumerate(found.sentence.after) if step]
    for place, folder in zip(places, found.dense, strict=True):
        if (folder / "model.safetensors").is_file():
            state = load_file(folder / "model.safetensors")
        else:
            state = _pickled(folder / "pytorch_model.bin", allow_pickle=allow_pickle)
        weights |= {f"{place}.{name}": tensor.float() for name, tensor in state.items()}
    with storing_weights(path):
        save_file(weights, path)
    pooling.load(pooling.steps_of(found.sentence), path)


def _pickled(path: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    import torch

    if not path.is_file():
        raise ModelError(f"{path.parent} holds no weights: looked for model.safetensors")
    if not allow_pickle:
        raise ModelError(
            f"{path.parent} holds its weights only as {path.name}; pickled weights can carry code",
            fix="If you trust who made them, pass --allow-pickle (allow_pickle=True).",
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _modules(source: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, the encoder first."""
    listed = _json(source / "modules.json", list)
    try:
        named = [(str(module["type"]), str(module["path"])) for module in listed]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{source / 'modules.json'} is damaged: {error!r}") from error
    kinds = [_kind(source, name) for name, _ in named]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise ModelError(
            f"{source} has the modules {', '.join(kinds) or 'none'}; supported are Transformer, "
            "Pooling, and then Dense and Normalize in any order",
            fix=_OTHERWISE,
        )
    folders = [source / path for _, path in named]
    for folder in folders:
        if not folder.resolve().is_relative_to(source.resolve()):
            raise ModelError(f"modules.json of {source} names a folder outside it: {folder}")
    return list(zip(kinds, folders, strict=True))


def _kind(source: Path, name: str) -> str:
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or kind not in _MODULES:
        raise ModelError(
            f"{source} uses the module {name}, which is not imported; supported are "
            f"sentence-transformers' {', '.join(_MODULES)}",
            fix=_OTHERWISE,
        )
    return kind


def _encoder_settings(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _ENCODER_SETTINGS if (folder / name).is_file()), None)
    settings: dict[str, Any] = _json(path) if path else {}
    task = settings.get("transformer_task", "feature-extraction")
    changed = [
        name for name in ("config_args", "config_kwargs", "processing_kwargs") if settings.get(name)
    ]
    if task != "feature-extraction" or changed:
        what = f"the task {task}" if task != "feature-extraction" else ", ".join(changed)
        raise ModelError(f"{path} sets {what}, which is not supported", fix=_OTHERWISE)
    return settings


def _pooling(folder: Path) -> tuple[str, ...]:
    config = _json(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _LEGACY.items() if config.get(name)] or ["mean"]
    chosen = (modes,) if isinstance(modes, str) else tuple(modes)
    if unknown := [mode for mode in chosen if mode not in POOLING]:
        raise ModelError(
            f"{folder} pools by {unknown[0]!r}; supported are {', '.join(POOLING)}", fix=_OTHERWISE
        )
    if not config.get("include_prompt", True):
        raise ModelError(
            f"{folder} leaves the prompt's tokens out of pooling (include_prompt is false), which "
            "is not supported",
            fix=_OTHERWISE,
        )
    return chosen


def _step(kind: str, folder: Path) -> Dense | None:
    config = _json(folder / "config.json")
    _check_names(folder, config)
    return _dense(folder, config) if kind == "Dense" else None


def _dense(folder: Path, config: Mapping[str, Any]) -> Dense:
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    package, _, activation = named.rpartition(".")
    if not package.startswith("torch.nn") or activation not in ACTIVATIONS:
        raise ModelError(
            f"{folder} has the activation {named}, which is not imported; supported are torch.nn's "
            f"{', '.join(ACTIVATIONS)}",
            fix=_OTHERWISE,
        )
    try:
        sizes = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} is damaged: {error!r}") from error
    bias, residual = bool(config.get("bias", True)), bool(config.get("use_residual", False))
    return Dense(*sizes, bias, activation, residual)


def _check_names(folder: Path, config: Mapping[str, Any]) -> None:
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise ModelError(
                f"{folder} has the {name} {config[name]!r}; supported is sentence_embedding alone",
                fix=_OTHERWISE,
            )


def _task_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompts", "default_prompt_name", "similarity_fn_name")
    given = {name: settings[name] for name in names if settings.get(name)}
    if prompts := given.get("prompts"):
        given["prompts"] = {name: prompt for name, prompt in prompts.items() if prompt}
    return {name: value for name, value in given.items() if value}


def _json(path: Path, kind: type[Any] = dict) -> Any:
    """What a file holds, or nothing where there is none."""
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ModelError(f"{path} is damaged: it holds a {type(value).__name__}")
    return value
