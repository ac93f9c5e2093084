"""Scores of logits, to the last bit as ``transformers.pipeline`` computes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError

FUNCTIONS = ("softmax", "sigmoid", "none")
"""What may make scores of outputs; the pipeline's names."""


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shares of float32 [rows, k] that sum to 1."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A probability for each number of float32 [rows, k]."""
    # The pipeline's formula, for equal bits. Far below zero exp overflows to infinity, and the
    # score is 0, as it should be.
    with np.errstate(over="ignore"):
        chances: NDArray[np.float32] = np.float32(1.0) / (np.float32(1.0) + np.exp(-values))
    return chances


def applied(function: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores, float32 [rows, k], by one of :data:`FUNCTIONS`.

    Raises:
        ChoiceError: unknown function.
    """
    name = str(getattr(function, "name", function)).lower()  # transformers has an enum of them
    if name not in FUNCTIONS:
        raise ChoiceError(
            f"function_to_apply is {function!r}", fix=f"It must be one of {', '.join(FUNCTIONS)}."
        )
    return {"softmax": softmax, "sigmoid": sigmoid}[name](values) if name != "none" else values
