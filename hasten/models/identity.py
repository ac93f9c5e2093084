"""What tells one torch module from another, in every process."""

from __future__ import annotations

import hashlib
import inspect
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def identity(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's weights, attributes, and the files that define its classes.

    The same in every process, as the pickle is not: it holds addresses and the order of sets.
    Where something decides the answers that cannot be told apart, a number that is never the
    same again: results are then measured again, which is better than taking another module's.
    """
    import torch

    try:
        digest = hashlib.sha256()
        for name, part in module.named_modules():
            digest.update(f"{name} {_code(type(part))} {_attributes(part)}\n".encode())
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    # Without source, or without bytes: sparse tensors.
    except (NotFingerprintable, OSError, TypeError, RuntimeError):
        return uuid.uuid4().hex
    return digest.hexdigest()


class NotFingerprintable(Exception):
    """A value that has no stable digest, so that a cached result cannot be matched to it."""


def _code(kind: type) -> str:
    """Names and files of a class and its bases, helper functions beside them included."""
    parts = []
    for base in kind.__mro__:
        parts.append(f"{base.__module__}.{base.__qualname__}")
        # What is installed changes with its version, which is compared on its own.
        if base.__module__.partition(".")[0] not in ("builtins", "torch", "transformers"):
            path = inspect.getsourcefile(base)
            if path is None:
                raise NotFingerprintable
            parts.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return " ".join(parts)


def _attributes(part: nn.Module) -> str:
    from torch import nn

    own = vars(part).keys() - vars(nn.Module()).keys()
    return json.dumps({name: _plain(vars(part)[name]) for name in sorted(own)}, sort_keys=True)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it, kinds told apart."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_plain, value)]
    if isinstance(value, dict):
        return {f"{key!r}": _plain(item) for key, item in value.items()}
    if hasattr(value, "to_dict"):  # transformers' configurations
        return _plain(value.to_dict())
    raise NotFingerprintable
