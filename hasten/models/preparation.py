"""Make a reference: find the model, store it with its tokenizer, and describe it."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten import tasks
from hasten.errors import ChoiceError, ModelError
from hasten.inputs.corpus import TAUGHT
from hasten.inputs.tokenization import Tokens
from hasten.models import dtypes
from hasten.models.folder import ModelFolder
from hasten.models.module import count_flops, load_original, with_face
from hasten.models.pooling import encoder_of
from hasten.models.sources import Options, Origin, find
from hasten.models.tokenizer import StoredTokenizer, no_tokenizer, write_tokenizer
from hasten.plain import to_json
from hasten.records import ModelInfo, example_ids
from hasten.storage.durable import storing, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_LENGTH = 512
_FLOP_LENGTH = 49


def prepare(
    model: str | Path | nn.Module,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    weights: str | os.PathLike[str] | None = None,
    task: str | None = None,
    task_settings: Mapping[str, Any] = MappingProxyType({}),
    random_weights: bool = False,
    allow_pickle: bool = False,
    seed: int = 0,
) -> ModelFolder:
    """Make the reference for ``model`` in ``folder``.

    Args:
        model: a local Hugging Face folder, a hub id (``org/name``), ``package.module:factory``,
            or a module in memory whose forward takes ``input_ids`` and ``attention_mask``.
        folder: where to write; made where it is missing. It must not hold a reference yet.
        tokenizer: a folder, a tokenizer.json, a fast ``transformers`` tokenizer or a
            ``tokenizers.Tokenizer``. A Hugging Face folder brings its own.
        weights: a state dict (.safetensors, or .pt/.bin of tensors alone) for a factory's module
            or a folder's config.json.
        task: a name of :mod:`hasten.tasks`; by default what the model's config says.
        task_settings: settings of the task, by name, instead of the usual ones.
        random_weights: build the module from config.json alone, to measure its shape.
        allow_pickle: accept weights that exist only as pytorch_model.bin.
        seed: of the random weights.

    Raises:
        ModelError: the model or its tokenizer cannot be found, loaded or used.
        ChoiceError: unknown task or setting.
        StorageError: ``folder`` cannot be written.
    """
    folder = Path(folder)
    if task is not None:
        tasks.get(task)
    if (folder / "reference.json").exists():
        raise ModelError(
            f"{folder} already holds a reference",
            fix="Open it with ModelFolder.open, or give another folder.",
        )
    options = Options(Path(weights) if weights else None, random_weights, allow_pickle, seed, task)
    origin = find(model, options)
    with storing(folder):
        for name in ("module", "int8"):  # left by a run that was interrupted
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / TAUGHT).unlink(missing_ok=True)
        (folder / "module").mkdir(parents=True)
        if origin.folder and (origin.folder / TAUGHT).is_file():
            shutil.copyfile(origin.folder / TAUGHT, folder / TAUGHT)
    source = origin.folder if tokenizer is None else tokenizer
    if source is None:
        raise no_tokenizer(f"{origin.name}, which is code")
    stored = write_tokenizer(source, folder)
    if origin.follows:
        stored = stored.for_sentences(origin.follows, folder)
    dtype = origin.write(folder / "module")
    info = _describe(
        origin,
        folder,
        stored,
        task=task,
        task_settings=task_settings,
        dtype=dtype,
        random_weights=random_weights,
        foreign_tokenizer=tokenizer is not None,
    )
    _write_config(folder, info, task)
    write_json(folder / "reference.json", {"kind": origin.kind, "info": to_json(info)})
    return ModelFolder(folder, info, origin.kind)


def _describe(
    origin: Origin,
    folder: Path,
    tokenizer: StoredTokenizer,
    *,
    task: str | None,
    task_settings: Mapping[str, Any],
    dtype: str,
    random_weights: bool,
    foreign_tokenizer: bool,
) -> ModelInfo:
    original = load_original(folder / "module")
    encoder = encoder_of(original)
    config = getattr(original, "config", None)
    if rows := _embedding_rows(original):
        tokenizer = tokenizer.without_ids_from(rows, folder)
    if foreign_tokenizer or random_weights:
        _check_vocabulary(original, tokenizer)
    pad = _field(config, "pad_token_id")
    if pad is None:
        pad = tokenizer.padding_id
        if origin.kind == "huggingface":
            _set_padding(encoder, folder / "module" / "config.json", pad)
    names = _input_names(encoder, tokenizer)
    max_length = _max_length(original, tokenizer)
    first, last = tokenizer.frame()
    example = partial(example_ids, pad_token_id=pad, first=first, last=last)
    length = min(8, max_length) if origin.kind == "huggingface" else max_length
    probed = example(length)
    (output,) = _probe(with_face(original, names, ("logits",)), len(names), probed)
    chosen = _task(task, config, output.shape[-1], random_weights, tokenizer.mask)
    module = with_face(original, names, chosen.reads)
    width = _width(chosen, _probe(module, len(names), probed), probed)
    labels = _labels(config, width, type(encoder).__name__) if chosen.has_labels else ()
    chosen = _with_settings(chosen, task_settings, labels)
    linear, quadratic = count_flops(module, len(names), min(_FLOP_LENGTH, max_length), example)
    return ModelInfo(
        name=origin.name,
        architecture=type(encoder).__name__,
        task=chosen.name,
        task_settings=to_json(chosen),
        labels=labels,
        max_length=max_length,
        input_names=names,
        output_names=chosen.reads,
        pad_token_id=int(pad),
        parameter_count=sum(parameter.numel() for parameter in original.parameters()),
        flops_per_token=linear,
        flops_per_token_squared=quadratic,
        random_weights=random_weights,
        output_width=width,
        first_ids=first,
        last_ids=last,
        dtype=dtype,
        notices=(*dtypes.notice(dtype), *tokenizer.notices),
    )


def _task(
    name: str | None, config: Any, columns: int, random_weights: bool, mask: Mapping[str, Any]
) -> tasks.Task:
    """What the user says, or else the config and how many numbers there are."""
    if random_weights:
        return tasks.as_numbers()
    whole = config.to_dict() if hasattr(config, "to_dict") else {}
    fields = {field: _field(config, field) for field in ("architectures", "problem_type")}
    fields = {**whole, **fields, **mask, "num_labels": columns}
    return tasks.claiming(fields) if name is None else tasks.named(name, fields)


def _with_settings(
    task: tasks.Task, settings: Mapping[str, Any], labels: Sequence[str]
) -> tasks.Task:
    chosen, unknown = tasks.adjusted(task, settings, labels)
    if unknown:
        known = ", ".join(to_json(task)) or "none"
        raise ChoiceError(
            f"the task {task.name} has no setting {next(iter(unknown))!r}",
            fix=f"It has: {known}.",
        )
    return chosen


def _width(task: tasks.Task, outputs: tuple[Tensor, ...], example: list[int]) -> int:
    """How many numbers a row of the task's outputs has, from those for two such texts."""
    length = len(example)
    ids, offsets = np.array(example * 2, np.int32), np.array([0, length, 2 * length])
    tokens = Tokens(ids, offsets, np.zeros(2, np.bool_))
    arrays = {name: output.numpy() for name, output in zip(task.reads, outputs, strict=True)}
    return task.gather(arrays, tokens.batch([0, 1])).width


def _set_padding(original: Any, path: Path, pad: int) -> None:
    """Name the padding token in a config that does not, as transformers' GPT-2 demands of it."""
    original.config.pad_token_id = pad
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "pad_token_id": pad})


def _field(config: Any, name: str) -> Any:
    """A field of a config, which in a user's own module may be an object or a dict."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _check_vocabulary(original: nn.Module, tokenizer: StoredTokenizer) -> None:
    rows = _embedding_rows(original)
    if rows is not None and tokenizer.size > rows:
        raise ModelError(
            f"the tokenizer gives ids up to {tokenizer.size - 1}, but the model's embedding table "
            f"has {rows} rows",
            fix="Give the tokenizer that belongs to the model.",
        )


def _embedding_rows(original: nn.Module) -> int | None:
    get = getattr(original, "get_input_embeddings", None)
    return getattr(get(), "num_embeddings", None) if get else None


def _input_names(original: nn.Module, tokenizer: StoredTokenizer) -> tuple[str, ...]:
    parameters = inspect.signature(original.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = ("input_ids", "attention_mask")
    if not anything and not set(names) <= set(parameters):
        raise ModelError(
            f"forward of {type(original).__name__} takes ({', '.join(parameters)}); it must take "
            "input_ids and attention_mask by name"
        )
    segments = parameters.get("token_type_ids")
    if segments is None:
        return names
    asked = tokenizer.input_names
    if asked is None:  # more than one segment to tell apart, as in BERT; RoBERTa has one
        wanted = (_field(getattr(original, "config", None), "type_vocab_size") or 0) > 1
    else:
        wanted = "token_type_ids" in asked
    return (*names, "token_type_ids") if wanted or segments.default is segments.empty else names


def _max_length(original: nn.Module, tokenizer: StoredTokenizer) -> int:
    positions = _positions(original)
    limits = [limit for limit in (positions, tokenizer.max_length) if limit is not None]
    return min(limits) if limits else tokenizer.truncation or _MAX_LENGTH


def _positions(original: nn.Module) -> int | None:
    """How many tokens the position embeddings reach, special tokens included."""
    from torch import nn

    for name, part in original.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(part, nn.Embedding):
            # RoBERTa and its kin count positions from padding_idx + 1: 514 rows, 512 tokens.
            skipped = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - skipped
    rows = _field(getattr(original, "config", None), "max_position_embeddings")
    return rows if isinstance(rows, int) and rows > 0 else None


def _probe(module: nn.Module, inputs: int, example: list[int]) -> tuple[Tensor, ...]:
    """The outputs for two texts of these ids."""
    import torch

    length = len(example)
    ids = torch.tensor([example, example])
    ones = torch.ones_like(ids)
    try:
        with torch.no_grad():
            outputs = module(*(ids, ones, torch.zeros_like(ids))[:inputs])
    except Exception as error:  # the model's own code
        raise ModelError(
            f"the model fails on 2 texts of {length} tokens: {type(error).__name__}: {error}",
            fix=f"If {length} tokens are too long for it, set model_max_length in the tokenizer's "
            "tokenizer_config.json.",
        ) from error
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    for output in several:
        tensor = torch.is_tensor(output)
        if not tensor or not output.is_floating_point() or output.shape[:1] != (2,):
            what = f"{output.dtype} {list(output.shape)}" if tensor else type(output)
            raise ModelError(
                f"for 2 texts the model returns {what}, not a float tensor [2, ...]",
                fix="forward must return a tensor, a tuple that starts with one, or a dict with "
                "'logits'.",
            )
    return several


def _labels(config: Any, columns: int, architecture: str) -> tuple[str, ...]:
    named = _field(config, "id2label") or {i: f"LABEL_{i}" for i in range(columns)}
    if len(named) != columns:
        raise ModelError(
            f"{architecture} returns {columns} numbers a text, but its config names "
            f"{len(named)} labels",
            fix="Let id2label name each column once.",
        )
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    if copies := sorted({label for label in labels if labels.count(label) > 1}):
        raise ModelError(
            f"id2label in the model's config.json gives several outputs the name {copies[0]!r}",
            fix="Give every label a name of its own there.",
        )
    return labels


def _write_config(folder: Path, info: ModelInfo, task: str | None) -> None:
    stored = folder / "module" / "config.json"
    if stored.exists():
        config = json.loads(stored.read_text(encoding="utf-8"))
    else:
        config = {
            "architectures": [info.architecture],
            "id2label": {str(i): label for i, label in enumerate(info.labels)},
            "label2id": {label: i for i, label in enumerate(info.labels)},
        }
    problem_type = tasks.of(info).problem_type
    if problem_type and (task or not stored.exists()):
        config["problem_type"] = problem_type
    write_json(folder / "config.json", config)
