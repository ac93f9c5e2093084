"""Which sizes reach a speed, predicted before anything is trained.

A forward pass takes a constant time, and for each block a constant and a part in proportion to the
width of its feed-forward products. Three models, measured over a few batch shapes, tell all of
these; what a student of any other shape takes for the user's texts is then predicted as ``tune``
predicts it, by a cost model over the best batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError
from hasten.records import CostTable
from hasten.runtime.batching import CostModel, best_strategy, plan, predict_s

Seconds = Callable[["Shape", int, int], float]
"""Runs a batch of so many texts of so many tokens through a model of a shape, and times it."""

MULTIPLE = 16
"""Engines like widths of whole vectors."""

RUNGS = (1.5, 2.0, 3.0, 4.0, 6.0)
"""Speeds that are tried one after the other, from mild to strong."""

_BATCH_SIZES = (1, 8, 32)
_VISITS = 3
_WIDTHS = (1.0, 0.75, 0.5, 0.25)
_SHORTEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model's stack of blocks."""

    layers: int
    ffn_width: int

    def holds(self, other: Shape) -> bool:
        """Whether ``other`` is no larger in anything, and smaller in something."""
        larger = self.layers >= other.layers and self.ffn_width >= other.ffn_width
        return larger and self != other


class Speeds:
    """How many times as fast as the whole model smaller ones are, predicted."""

    def __init__(self, whole: Shape, lengths: NDArray[np.int64], seconds: Seconds) -> None:
        """Measure what the prediction needs.

        Args:
            whole: the original's shape.
            lengths: of the user's texts in tokens, int64 [texts].
            seconds: how a batch is timed; the first run of each model warms it up.
        """
        self.whole, self._lengths = whole, lengths
        self._at = tuple(sorted({max(int(np.percentile(lengths, p)), 1) for p in (50, 95)}))
        thin = Shape(whole.layers, max(whole.ffn_width // 2, 1))
        self._parts = _parts(
            whole, thin, self._measured((whole, Shape(1, whole.ffn_width), thin), seconds)
        )
        self._whole_s = self._pass_s(whole)

    def of(self, shape: Shape) -> float:
        """How many times as fast as the whole model a model of ``shape`` should be."""
        return self._whole_s / self._pass_s(shape)

    def reaching(self, speed: float) -> list[Shape]:
        """The shapes that should be ``speed`` times as fast, and of these the largest.

        None of them holds another: each has more of something than every other one.

        Raises:
            ChoiceError: nothing is as fast.
        """
        shapes = list(_shapes(self.whole))
        fast = [shape for shape in shapes if self.of(shape) >= speed]
        if not fast:
            smallest = min(shapes, key=lambda shape: (shape.layers, shape.ffn_width))
            most = math.floor(10 * self.of(smallest)) / 10
            raise ChoiceError(
                f"no student should be {speed:g} times as fast: what is left with one block of "
                f"{smallest.ffn_width} units takes its time too",
                fix=f"At most --target {most:g}x." if most > 1.0 else "--int8 may make it faster.",
            )
        return [shape for shape in fast if not any(other.holds(shape) for other in fast)]

    def _measured(
        self, shapes: Iterable[Shape], seconds: Seconds
    ) -> dict[Shape, NDArray[np.float64]]:
        """The median time of each batch shape, interleaved: float64 [batch sizes, lengths]."""
        shapes, cells = list(dict.fromkeys(shapes)), list(product(_BATCH_SIZES, self._at))
        samples_s: dict[Shape, list[list[float]]] = {shape: [] for shape in shapes}
        for _ in range(_VISITS + 1):
            for shape in shapes:
                samples_s[shape].append([seconds(shape, *cell) for cell in cells])
        return {
            shape: np.array(
                [statistics.median(cell) for cell in zip(*visits[1:], strict=True)]
            ).reshape(len(_BATCH_SIZES), len(self._at))
            for shape, visits in samples_s.items()
        }

    def _pass_s(self, shape: Shape) -> float:
        """Seconds for all texts, in the best batches."""
        fixed_s, block_s, unit_s = self._parts
        latency_s = fixed_s + shape.layers * (block_s + unit_s * shape.ffn_width)
        rows = tuple(tuple(map(float, row)) for row in np.maximum(latency_s, _SHORTEST_S))
        cost = CostModel(CostTable(_BATCH_SIZES, self._at, rows))
        strategy = best_strategy(self._lengths, cost, _BATCH_SIZES)
        return predict_s(self._lengths, plan(self._lengths, strategy, cost), cost)


def _parts(
    whole: Shape, thin: Shape, measured_s: dict[Shape, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What is always there, what each block adds, and each unit of it; none below zero."""
    all_s, one_s = measured_s[whole], measured_s[Shape(1, whole.ffn_width)]
    more = whole.layers - 1
    each_s = np.maximum(all_s - one_s, 0.0) / more if more else all_s
    units = whole.layers * (whole.ffn_width - thin.ffn_width)
    saved_s = np.maximum(all_s - measured_s[thin], 0.0)
    unit_s = np.minimum(saved_s / max(units, 1), each_s / whole.ffn_width)
    fixed_s = np.maximum(one_s - each_s, 0.0)
    return fixed_s, each_s - unit_s * whole.ffn_width, unit_s


def _shapes(whole: Shape) -> Iterable[Shape]:
    """Smaller shapes that are worth a thought."""
    widths = {
        whole.ffn_width if share == 1.0 else rounded(int(share * whole.ffn_width))
        for share in _WIDTHS
    }
    for layers, width in product(range(1, whole.layers + 1), sorted(widths)):
        shape = Shape(layers, width)
        if whole.holds(shape):
            yield shape


def rounded(width: int) -> int:
    """The next width below that engines like; at least one vector.

    >>> rounded(1000), rounded(5)
    (992, 16)
    """
    return max(MULTIPLE, width // MULTIPLE * MULTIPLE)
