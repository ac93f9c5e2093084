"""Load ``module/`` and give every model the same face: fp32, tensors by position in and out."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hasten import tasks
from hasten.errors import ModelError
from hasten.models import heads, pooling, sentence
from hasten.models.configuration import open_config
from hasten.records import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

Attention = Literal["sdpa", "eager"]
"""Which of transformers' two forms of attention a model is built with.

``sdpa`` calls torch's fused kernel, or is ``eager`` in architectures without it; ``eager`` spells
the matrix products out, as an exporter may want them. A model that is code decides itself."""


_SHORTEST_COUNTED = 8
"""Tokens of the shortest text whose work is counted: Funnel fails on one of a single token."""


def load_module(folder: Path, info: ModelInfo, attention: Attention = "sdpa") -> nn.Module:
    """Load a ``module/`` folder as the fp32 original.

    Args:
        folder: ``module/`` of a reference, or a copy of it. One that holds ``module.pkl`` runs
            the code in it.
        info: the model's; its ``input_names`` decide what forward is called with.
        attention: the form of attention, where transformers builds the model.

    Returns:
        A module in eval mode, without gradients, whose forward takes exactly
        ``info.input_names`` by position (int64 [batch, length] each) and returns those of
        ``info.output_names`` (float32, batch first): a tuple, or where there is only one, the
        tensor itself. ``torch.jit.trace``, the ONNX exporter
        and ``openvino.convert_model`` accept it, with any batch size and length.

    Raises:
        ModelError: the folder is damaged, or what it names cannot be imported here.
    """
    return with_face(load_original(folder, attention), info.input_names, info.output_names)


def load_original(folder: Path, attention: Attention = "sdpa") -> nn.Module:
    """What ``module/`` holds, with its own forward; fp32, without gradients.

    Raises:
        ModelError: as for :func:`load_module`.
    """
    if (folder / "factory.json").exists():
        module = _load_factory(folder)
    elif (folder / "module.pkl").exists():
        module = _load_pickle(folder / "module.pkl")
    else:
        module = _load_huggingface(folder, attention)
    return module.float().requires_grad_(False)


def _load_huggingface(folder: Path, attention: Attention) -> nn.Module:
    import torch

    # safetensors alone: a pickle in the folder would be code that nobody agreed to.
    model: Any = pretrained(folder, attention, dtype=torch.float32, use_safetensors=True)
    # A decoder keeps keys and values for the next token, which a classifier never reads; what it
    # keeps them in cannot be converted for OpenVINO.
    model.config.use_cache = False
    module: nn.Module = model
    follows = sentence.stored(folder)
    return pooling.complete(module, follows, folder) if follows else module


def pretrained(
    folder: Path, attention: Attention = "sdpa", config: Any = None, **options: Any
) -> Any:
    """The folder's model, as the task loads it that claims it, every weight accounted for.

    Args:
        folder: of weights, and of a configuration unless one is given.
        attention: the form of attention.
        config: as :func:`hasten.models.configuration.open_config` gives it.
        options: further arguments of transformers' ``from_pretrained``.

    Raises:
        ModelError: it cannot be loaded, or its files lack some of its weights.
    """
    with quiet():
        try:
            config = config or described(folder)
            lacking = heads.pruned(config)
            kind = automatic(config)
            if lacking:
                kind = heads.without_heads(family(config))
            model, loading = kind.from_pretrained(
                folder,
                config=config,
                attn_implementation=implementation(attention),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in words of our own
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
        except ModelError:
            raise
        except Exception as error:  # whatever the many architectures raise
            raise ModelError(f"{folder} cannot be loaded: {_alone(error)}") from error
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, built = mismatched[0]
        raise ModelError(
            f"{folder} does not fit its config.json: {len(mismatched)} weights have another size "
            f"there, such as {name}: {list(stored)} stored, {list(built)} by config.json",
            fix="Give the config.json that was saved with these weights.",
        )
    # transformers fills gaps with random numbers and a warning; such answers mean nothing.
    missing = sorted(loading["missing_keys"])
    if getattr(config, "sentence", None) is not None:
        missing = _without_pooler(model, missing)
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the weights of {type(model).__name__}: "
            f"{', '.join(missing[:3])}",
            fix="Was it fine-tuned for its task? To measure the shape alone, use --random-weights.",
        )
    return heads.as_usual(model) if lacking else model


def described(folder: Path) -> Any:
    """The configuration of a ``module/``."""
    follows = sentence.stored(folder)
    return open_config(folder, sentence.as_fields(follows) if follows else None)


def _without_pooler(model: Any, missing: list[str]) -> list[str]:
    """Take out the architecture's own pooling, which sentences do not use and often lack."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return [name for name in missing if not name.startswith("pooler.")]


def automatic(config: Any) -> Any:
    """The class of transformers that loads what this configuration describes."""
    import transformers

    return getattr(transformers, tasks.claiming(config.to_dict()).model_class)


def family(config: Any) -> Any:
    """The class of the architecture itself, such as ``BertForSequenceClassification``.

    Raises:
        KeyError: transformers has none for this configuration.
    """
    import transformers

    head = tasks.claiming(config.to_dict()).model_class.removeprefix("AutoModel")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", f"Model{head}").upper()
    mapping: Any = getattr(transformers, f"{words}_MAPPING")
    found: Any = mapping[type(config)]
    return found


def _alone(error: Exception) -> str:
    """A message of transformers without its reference to a report that is not shown."""
    return str(error).partition("For details look at")[0].strip()


def implementation(attention: Attention) -> str | None:
    """What transformers is told: None lets it take sdpa, or eager where there is no sdpa."""
    return None if attention == "sdpa" else attention


def _load_factory(folder: Path) -> nn.Module:
    from safetensors.torch import load_model

    name = json.loads((folder / "factory.json").read_text(encoding="utf-8"))["factory"]
    module = build(name)
    try:
        load_model(module, folder / "weights.safetensors", strict=True)
    except Exception as error:  # safetensors and torch raise their own and RuntimeError
        raise ModelError(
            f"{name} no longer builds the module that its stored weights belong to: {error}"
        ) from error
    return module


def runs_code(module_folder: Path) -> bool:
    """Whether :func:`load_module` would run code that the folder holds or names."""
    return any((module_folder / name).exists() for name in ("module.pkl", "factory.json"))


def _load_pickle(path: Path) -> nn.Module:
    with importable_here():
        try:
            # Kept behind runs_code: only bundles that are trusted get here.
            module: nn.Module = pickle.loads(path.read_bytes())  # noqa: S301
        except Exception as error:  # unpickling runs code of any kind
            raise ModelError(
                f"the module cannot be unpickled here: {type(error).__name__}: {error}",
                fix="The files that define its classes must be importable where it is loaded.",
            ) from error
    return module


def build(name: str) -> nn.Module:
    """Call the factory ``package.module:function``.

    Raises:
        ModelError: it cannot be imported, fails, or returns something else than a module.
    """
    from torch import nn

    location, _, attribute = name.partition(":")
    with importable_here():
        try:
            factory: Any = importlib.import_module(location)
            for part in attribute.split("."):
                factory = getattr(factory, part)
            module = factory()
        except Exception as error:  # user's code
            raise ModelError(
                f"{name} cannot be built: {type(error).__name__}: {error}",
                fix="It should name a function without arguments that returns the nn.Module; "
                f"looked for in {Path.cwd()} and the installed packages.",
            ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} returned {type(module).__name__}, not a torch.nn.Module")
    return module


@contextmanager
def importable_here() -> Iterator[None]:
    """Let the working folder's files be imported, as ``python -m`` does; commands do not."""
    before, here = list(sys.path), str(Path.cwd())
    if here not in before:
        sys.path.append(here)
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' warnings and progress bars off the screen."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging  # untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def with_face(
    original: nn.Module, input_names: tuple[str, ...], output_names: tuple[str, ...]
) -> nn.Module:
    """Wrap ``original``: inputs by position, and these of its outputs, one of them bare."""
    return _wrapper()(original, input_names, output_names).eval()


@cache
def _wrapper() -> Callable[[nn.Module, tuple[str, ...], tuple[str, ...]], nn.Module]:
    from torch import nn

    class Face(nn.Module):
        def __init__(
            self, original: nn.Module, input_names: tuple[str, ...], output_names: tuple[str, ...]
        ) -> None:
            super().__init__()
            self.original = original
            self.input_names, self.output_names = input_names, output_names

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor,
            token_type_ids: Tensor | None = None,
        ) -> Tensor | tuple[Tensor, ...]:
            inputs = (input_ids, attention_mask, token_type_ids)
            outputs = self.original(**dict(zip(self.input_names, inputs, strict=False)))
            if len(self.output_names) == 1:
                return _only_output(outputs, self.output_names[0])
            return _outputs(outputs, self.output_names)

    return Face


def _only_output(outputs: Any, name: str) -> Tensor:
    """The one of that name, else ``logits``, else the first of them, or the tensor itself."""
    if isinstance(outputs, Mapping):
        found = next((outputs[n] for n in (name, "logits") if n in outputs), None)
        outputs = next(iter(outputs.values())) if found is None else found
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0]
    tensor: Tensor = outputs
    return tensor


def _outputs(outputs: Any, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Those of these names, or where they have none, the first ones."""
    if isinstance(outputs, Mapping):
        return tuple(outputs[name] for name in names)
    return tuple(outputs)[: len(names)]


def count_flops(
    module: nn.Module, inputs: int, longest: int, example: Callable[[int], list[int]]
) -> tuple[float, float]:
    """``(a, b)`` such that one text of ``n`` tokens takes ``a*n + b*n*n`` operations.

    Counted by ``torch.utils.flop_counter`` (matrix products and attention, a multiply-add is
    two) at three lengths up to ``longest`` and solved; what does not depend on the length, such
    as the head's few operations on the first token, is left out. ``example`` gives the ids of a
    text of some length.

    Raises:
        ModelError: the model fails on one of these lengths.
    """
    shortest = max(1, min(_SHORTEST_COUNTED, longest // 3))
    step = max(1, (longest - shortest) // 2)
    lengths = [shortest + i * step for i in range(3)]
    try:
        first, second, third = (_flops(module, inputs, example(length)) for length in lengths)
    except Exception as error:  # the model's own code
        raise ModelError(
            f"the model fails on a text of {' or '.join(map(str, lengths))} tokens: "
            f"{type(error).__name__}: {error}",
        ) from error
    quadratic = (third - 2 * second + first) / (2 * step * step)
    return (second - first) / step - quadratic * (2 * shortest + step), quadratic


def _flops(module: nn.Module, inputs: int, example: list[int]) -> int:
    import torch
    from torch.utils import flop_counter

    def attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> Any:
        two_products: Any = flop_counter.sdpa_flop_count  # untyped
        return two_products(query, key, value)

    # The counter itself knows the attention kernels of GPUs only.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping={kernel: attention})
    ids = torch.tensor([example])
    with torch.no_grad(), counter:
        module(*(ids, torch.ones_like(ids), torch.zeros_like(ids))[:inputs])
    return int(counter.get_total_flops())
