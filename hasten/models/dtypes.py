"""Which dtype a checkpoint's weights have; the original is their copy in float32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL = "float32"

_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def of(tensors: Iterable[Tensor]) -> str:
    """The dtypes of the floating-point tensors among these, such as "bfloat16, float32"."""
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return _joined(str(dtype).removeprefix("torch.") for dtype in floating)


def in_files(paths: Iterable[Path]) -> str:
    """The same of the weights in .safetensors files or state dicts, which stay on the disk.

    Raises:
        ModelError: a file is damaged.
    """
    found: set[str] = set()
    for path in paths:
        try:
            found.update(_in_safetensors(path) if path.suffix == ".safetensors" else _in_bin(path))
        except Exception as error:  # safetensors, torch, pickle and zipfile have their own
            raise ModelError(f"{path} cannot be loaded: {error}") from error
    return _joined(found)


def notice(dtype: str) -> tuple[str, ...]:
    """What to say about a checkpoint of this dtype; nothing where it is the original's."""
    if dtype in ("", ORIGINAL):
        return ()
    text = (
        f"The checkpoint's weights are {dtype}. The original, with which all answers are compared, "
        f"is these weights converted to {ORIGINAL} and computed in {ORIGINAL}; transformers "
        f"computes the same if it is given dtype=torch.{ORIGINAL}."
    )
    return (text,)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _in_safetensors(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        codes = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    return {_SAFETENSORS[code] for code in codes if code in _SAFETENSORS}


def _in_bin(path: Path) -> set[str]:
    import torch

    state: dict[str, Any] = torch.load(path, map_location="meta", weights_only=True)
    return {of([value]) for value in state.values() if torch.is_tensor(value)} - {""}
