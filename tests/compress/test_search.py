"""Which sizes reach a speed, in made-up seconds."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.compress.search import Shape, Speeds
from hasten.errors import ChoiceError

WHOLE = Shape(12, 1024)
LENGTHS = np.full(100, 20)


def seconds(shape: Shape, batch_size: int, length: int) -> float:
    """A fifth of a block is not in its units; what is around the blocks costs as much as one."""
    block_s = 0.2 + 0.8 * shape.ffn_width / 1024
    return 1e-6 * batch_size * length * (1 + shape.layers * block_s)


def predicted(shape: Shape) -> float:
    return Speeds(WHOLE, LENGTHS, seconds).of(shape)


def test_speeds_of_shapes_that_nobody_measured() -> None:
    assert predicted(WHOLE) == pytest.approx(1.0)
    assert predicted(Shape(6, 1024)) == pytest.approx(13 / 7)
    assert predicted(Shape(12, 512)) == pytest.approx(13 / (1 + 12 * 0.6))
    assert predicted(Shape(3, 256)) == pytest.approx(13 / (1 + 3 * 0.4))


def test_the_largest_that_are_fast_enough() -> None:
    speeds = Speeds(WHOLE, LENGTHS, seconds)
    found = speeds.reaching(2.0)
    assert found == [Shape(5, 1024), Shape(6, 768), Shape(9, 512), Shape(12, 256)]
    assert all(speeds.of(shape) >= 2.0 for shape in found)


def test_what_nothing_reaches_is_refused_with_what_can_be_reached() -> None:
    with pytest.raises(ChoiceError, match="no student should be 20 times as fast") as caught:
        Speeds(WHOLE, LENGTHS, seconds).reaching(20.0)
    assert "--target 9.2x" in str(caught.value.fix)


def test_a_disturbance_changes_nothing() -> None:
    calls = 0

    def disturbed(shape: Shape, batch_size: int, length: int) -> float:
        nonlocal calls
        calls += 1
        return seconds(shape, batch_size, length) * (50 if calls in {1, 9} else 1)

    speeds = Speeds(WHOLE, LENGTHS, disturbed)
    assert speeds.of(Shape(6, 1024)) == pytest.approx(13 / 7)


@pytest.mark.parametrize("lengths", [[1], [5, 5, 300]])
def test_one_block_is_one_block(lengths: list[int]) -> None:
    speeds = Speeds(Shape(1, 1024), np.array(lengths), seconds)
    assert speeds.reaching(1.1) == [Shape(1, 768)]
    assert speeds.of(Shape(1, 256)) == pytest.approx(2 / 1.4)
