"""Where a model comes from, and how it becomes ``module/``."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten import tasks
from hasten.errors import ModelError
from hasten.inputs.corpus import TAUGHT
from hasten.models import dtypes, heads, sentence, sentence_folder
from hasten.models.configuration import open_config
from hasten.models.folder import (
    PICKLE_IDENTITY,
    TOKENIZER_FILES,
    TRAINED_RANGES,
    Kind,
    storing_weights,
)
from hasten.models.identity import identity
from hasten.models.module import automatic, build, family, implementation, pretrained, quiet
from hasten.models.tokenizer import SLOW_TOKENIZER_FILES
from hasten.storage.durable import storing, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

_TESTED = "BERT, RoBERTa, CamemBERT, XLM-RoBERTa and DistilBERT"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_DOWNLOADED = (
    *("config.json", TAUGHT, *TOKENIZER_FILES),
    *(*SLOW_TOKENIZER_FILES, "merges.txt", "added_tokens.json"),
)
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", TRAINED_RANGES)
_FORMS = (
    "A model is a local folder, a hub id (org/name), package.module:factory, or in Python a "
    "torch.nn.Module."
)
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class Options:
    """How the weights are come by; see :func:`hasten.models.prepare`."""

    weights: Path | None = None
    random_weights: bool = False
    allow_pickle: bool = False
    seed: int = 0
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A model that was found, and what it takes to write its ``module/``.

    ``folder`` is where it lies, with its tokenizer; models that are code lie in none. ``write``
    returns the dtype of the weights as they were given, such as "bfloat16". ``follows`` says what
    follows an encoder of sentences.
    """

    name: str
    kind: Kind
    folder: Path | None
    write: Callable[[Path], str]
    follows: sentence.Sentence | None = None


def find(model: object, options: Options) -> Origin:
    """Tell what ``model`` is, and check it as far as that is quick.

    Raises:
        ModelError: the model does not exist, or it is not supported.
    """
    if isinstance(model, Path):
        return _huggingface(model.absolute().name, model, options)
    if not isinstance(model, str):
        return _in_memory(model, options)
    path = Path(model).expanduser()
    if path.exists():
        return _huggingface(path.absolute().name, path, options)
    if _FACTORY.fullmatch(model):
        _refuse_random(model, options)
        return Origin(model, "factory", None, partial(_write_factory, model, options.weights))
    return _huggingface(model, _download(model, options), options)


def _refuse_random(name: str, options: Options) -> None:
    if options.random_weights:
        raise ModelError(
            f"{name} is a custom module, which sets its own weights",
            fix="--random-weights goes with a Hugging Face folder or hub id.",
        )


def _download(name: str, options: Options) -> Path:
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"{name} does not exist", fix=_FORMS)
    from huggingface_hub import snapshot_download

    patterns = list(_DOWNLOADED)
    if not (options.random_weights or options.weights):
        patterns += (*_WEIGHTS, "pytorch_model*") if options.allow_pickle else _WEIGHTS
    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's, the network's and the file system's
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{name} is not a local folder, and the hub did not return it: {reason}",
            fix="Check the spelling and the network, or download it where there is one "
            f"(`hf download {name} --local-dir FOLDER`) and give the folder.",
        ) from error


# ----------------------------------------------------------------------- Hugging Face folders


def _huggingface(name: str, folder: Path, options: Options) -> Origin:
    found = _sentence(folder, options)
    source = found.encoder if found else folder
    if not source.exists():
        raise ModelError(f"{source} does not exist", fix=_FORMS)
    if source.is_file():
        raise ModelError(
            f"{source} is a file, and a model is a folder",
            fix=f"Give its folder: {shlex.quote(str(source.parent))}"
            if source.suffix in {".json", ".safetensors", ".bin"}
            else _FORMS,
        )
    if not (source / "config.json").is_file():
        raise ModelError(
            f"{source} is not a Hugging Face folder: it holds no config.json",
            fix="Give the folder that save_pretrained wrote, or package.module:factory for a "
            "module of your own.",
        )
    if (source / "adapter_config.json").exists():
        raise ModelError(
            f"{source} holds an adapter beside the model (adapter_config.json)",
            fix="Merge it into the weights: model.merge_and_unload().save_pretrained(FOLDER).",
        )
    config = _supported_config(source, options, found)
    if options.random_weights:
        write = partial(_write_random, config, options.seed)
    elif options.weights:
        write = partial(_write_with_weights, config, options.weights)
    elif files := _safetensors(source):
        write = partial(_copy_weights, source, files)
    else:
        _check_pickled(source, options)
        write = partial(_convert_pickled, config, source)
    if found:
        write = partial(_write_sentence, found, write, allow_pickle=options.allow_pickle)
    return Origin(name, "huggingface", source, write, found.sentence if found else None)


def _sentence(folder: Path, options: Options) -> sentence_folder.Found | None:
    """What follows the encoder; where the folder does not say, what the task is known for."""
    found = sentence_folder.find(folder)
    pools = tasks.get(options.task).pools if options.task else None
    if pools is None or (found and pools):
        return found
    encoder = found.encoder if found else folder
    return sentence_folder.Found(sentence.Sentence(pooling=pools), encoder)


def _write_sentence(
    found: sentence_folder.Found, write: Callable[[Path], str], target: Path, *, allow_pickle: bool
) -> str:
    dtype = write(target)
    sentence_folder.write(found, target, allow_pickle=allow_pickle)
    return dtype


def _supported_config(source: Path, options: Options, found: sentence_folder.Found | None) -> Any:
    with quiet():
        try:
            config = open_config(source, sentence.as_fields(found.sentence) if found else None)
        except ModelError:
            raise
        except Exception as error:  # unknown types, code of its own, values of another kind
            raise ModelError(
                f"{source / 'config.json'} describes no model that transformers knows: {error}",
                fix=f"Supported are its classifiers of texts and tokens ({_TESTED} are tested). "
                "Code that comes with a model is never run: give it as package.module:factory.",
            ) from error
    named = ", ".join(config.architectures or ()) or f"no architecture ({config.model_type})"
    try:
        family(config)
    except KeyError:
        known = False
    else:
        # Where none is named, the weights tell: those of the head must be among them.
        known = options.random_weights or tasks.is_claimed(config.to_dict())
    if not known:
        raise ModelError(
            f"{source} holds {named}; supported are models with a head of transformers for "
            f"classification, token classification, question answering or masked words: {_TESTED} "
            "are tested",
            fix="Any other module can be given as package.module:factory with --task tensors, "
            "or its shape measured with --random-weights if transformers can classify with it.",
        )
    return config


def _safetensors(source: Path) -> tuple[str, ...]:
    """Names of the weight files, the index of the shards included."""
    if (source / "model.safetensors").exists():
        return ("model.safetensors",)
    index = source / "model.safetensors.index.json"
    if not index.exists():
        return ()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged: {error}") from error
    for shard in shards:
        if Path(shard).name != shard or not (source / shard).exists():
            raise ModelError(f"{index} names {shard}, which is not in its folder")
    return (index.name, *sorted(shards))


def _copy_weights(source: Path, files: tuple[str, ...], target: Path) -> str:
    # Copies, not links: training on writes into the user's files in place.
    for name in ("config.json", *files):
        with storing(target / name):
            shutil.copyfile(source / name, target / name)
    if (source / TRAINED_RANGES).exists():
        ranges = target.parent / TRAINED_RANGES
        with storing(ranges):
            ranges.parent.mkdir(exist_ok=True)
            shutil.copyfile(source / TRAINED_RANGES, ranges)
    return dtypes.in_files([target / name for name in files if name.endswith(".safetensors")])


def _check_pickled(source: Path, options: Options) -> None:
    found = next((name for name in _PICKLED if (source / name).exists()), None)
    if found is None and options.allow_pickle:
        raise ModelError(
            f"{source} holds no weights: looked for model.safetensors and {_PICKLED[0]}",
            fix="Give a complete folder, or its weights with --weights PATH, or measure the shape "
            "alone with --random-weights.",
        )
    if not options.allow_pickle:
        state = f"its weights only as {found}" if found else "no model.safetensors"
        raise ModelError(
            f"{source} holds {state}; pickled weights can carry code",
            fix="If you trust who made them, pass --allow-pickle (allow_pickle=True): they are "
            "then read without running code and kept as safetensors. Without weights, "
            "--random-weights measures the shape.",
        )


def _convert_pickled(config: Any, source: Path, target: Path) -> str:
    import torch

    model = pretrained(
        source, config=config, dtype=torch.float32, use_safetensors=False, weights_only=True
    )
    _save(model, target)
    return dtypes.in_files(sorted(source.glob("pytorch_model*.bin")))


def _write_random(config: Any, seed: int, target: Path) -> str:
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = _from_config(config)
    return _save(model, target)


def _write_with_weights(config: Any, weights: Path, target: Path) -> str:
    model = _from_config(config)
    given = load_weights(model, weights)
    _save(model, target)
    return given


def _from_config(config: Any) -> Any:
    import torch

    with quiet():
        model = automatic(config).from_config(
            config,
            dtype=torch.float32,
            attn_implementation=implementation("sdpa"),
            trust_remote_code=False,
        )
    heads.narrow(model)
    return model


def _save(model: Any, target: Path) -> str:
    with quiet(), storing_weights(target):
        model.save_pretrained(target)
    return dtypes.of(model.parameters())


# --------------------------------------------------------------------- factories and memory


def _write_factory(name: str, weights: Path | None, target: Path) -> str:
    from safetensors.torch import save_model

    module = build(name)
    given = load_weights(module, weights) if weights else dtypes.of(module.parameters())
    write_json(target / "factory.json", {"factory": name})
    with storing_weights(target):
        save_model(module, str(target / "weights.safetensors"))
    return given


def _in_memory(model: object, options: Options) -> Origin:
    from torch import nn

    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ModelError(f"a {name} is not a model", fix=_FORMS)
    _refuse_random(name, options)
    if options.weights:
        raise ModelError(
            f"{name} is in memory, weights included",
            fix="Load the other weights with its load_state_dict first.",
        )
    if _is_unmodified_classifier(model):
        return Origin(name, "huggingface", None, partial(_save, model))
    return Origin(name, "pickle", None, partial(_write_pickle, model))


def _is_unmodified_classifier(model: nn.Module) -> bool:
    """Whether config.json and the weights say all about ``model``: no layer was exchanged."""
    if not any(base.__module__ == "transformers.modeling_utils" for base in type(model).__mro__):
        return False
    import torch

    config: Any = model.config
    try:
        if family(_named_after(model)) is not type(model):
            return False
    except KeyError:
        return False
    whole = copy.deepcopy(config)
    whole.pruned_heads = {}  # transformers 4 would take them out, and needs values for it
    try:
        with quiet(), torch.device("meta"):
            fresh: Any = type(model)(whole)
            fresh.config.pruned_heads = getattr(config, "pruned_heads", None)
            heads.narrow(fresh)
    except ModelError:  # heads that config.json cannot take out: the module is its own truth
        return False
    return _structure(fresh) == _structure(model)


def _named_after(model: Any) -> Any:
    """A copy of its config that names the model's own class, as the saved one will."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return config


def _structure(model: nn.Module) -> dict[str, Any]:
    return {
        name: (type(part), [weight.shape for weight in part.parameters(recurse=False)])
        for name, part in model.named_modules()
    }


def _write_pickle(module: nn.Module, target: Path) -> str:
    import cloudpickle

    try:
        content = cloudpickle.dumps(copy.deepcopy(module).cpu())
    except Exception as error:  # pickling asks every object in the module
        raise ModelError(
            f"{type(module).__name__} cannot be pickled, so no other process could run it: {error}",
            fix="Give it as package.module:factory, with its weights in a file.",
        ) from error
    with storing(target):
        (target / "module.pkl").write_bytes(content)
        (target / PICKLE_IDENTITY).write_text(identity(module), encoding="utf-8")
    return dtypes.of(module.parameters())


def load_weights(module: nn.Module, path: Path) -> str:
    """Load a state dict that fits ``module`` exactly.

    Returns:
        The dtype of the weights in the file.

    Raises:
        ModelError: the file is not a state dict, or another module's.
    """
    state = _state_dict(path)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes that differ
        raise ModelError(f"{path} does not fit {type(module).__name__}: {error}") from error
    problems = [
        f"{len(keys)} {word}: {', '.join(keys[:3])}"
        for word, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit {type(module).__name__}; {'; '.join(problems)}",
            fix="Save the weights of the whole module: torch.save(module.state_dict(), PATH).",
        )
    return dtypes.of(state.values())


def _state_dict(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors have their own
        raise ModelError(
            f"{path} cannot be read as a state dict: {error}",
            fix="Save it with torch.save(module.state_dict(), PATH) or as .safetensors.",
        ) from error
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ModelError(
            f"{path} is not a state dict, in which every value is a tensor",
            fix="Save it with torch.save(module.state_dict(), PATH).",
        )
    return state
