from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import EngineError
from hasten.tasks import Outputs

COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=8)


def ragged(counts: list[int], width: int = 2) -> Outputs:
    total = sum(counts) * width
    return Outputs.of_counts(np.arange(total).reshape(-1, width), counts)


@given(COUNTS, st.data())
def test_selected_texts_keep_their_rows(counts: list[int], data: st.DataObject) -> None:
    outputs = ragged(counts)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    selected = outputs.select(chosen)
    assert len(selected) == len(chosen)
    for place, index in enumerate(chosen):
        np.testing.assert_array_equal(selected[place], outputs[index])


@given(st.lists(COUNTS, min_size=1, max_size=4))
def test_parts_put_together_are_all_texts_in_order(parts: list[list[int]]) -> None:
    whole = Outputs.concatenate([ragged(counts) for counts in parts])
    texts = [ragged(counts)[index] for counts in parts for index in range(len(counts))]
    assert len(whole) == len(texts)
    for index, rows in enumerate(texts):
        np.testing.assert_array_equal(whole[index], rows)


@given(COUNTS, st.data())
def test_a_number_a_row_becomes_one_a_text(counts: list[int], data: st.DataObject) -> None:
    outputs = ragged(counts)
    total = sum(counts)
    rows = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=total, max_size=total)), int)
    texts = np.split(rows, outputs.offsets[1:-1])
    assert outputs.max(rows, empty=-99).tolist() == [max(t, default=-99) for t in texts]
    assert outputs.min(rows, empty=99).tolist() == [min(t, default=99) for t in texts]
    assert outputs.any(rows > 0).tolist() == [bool((t > 0).any()) for t in texts]


def test_neighbours_become_one_text() -> None:
    whole = ragged([1, 2, 0, 1]).regrouped([0, 2, 4])
    assert whole.counts.tolist() == [3, 1]
    assert whole[1].tolist() == [[6.0, 7.0]]


def test_rows_of_different_widths_are_not_one_models() -> None:
    with pytest.raises(EngineError, match="rows of 2 and of 3 numbers"):
        Outputs.concatenate([ragged([1]), ragged([1], 3)])
