"""Records survive JSON, and refuse what makes no sense."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.plain import from_json, to_json
from hasten.records import (
    Candidate,
    CostTable,
    Hardware,
    Interval,
    Measurement,
    Plan,
    Strategy,
)

PLAN = Plan(
    Candidate("openvino", "bf16", "cpu", 1, 2),
    Strategy("token_budget", 64, 512),
    CostTable((1, 8), (16, 32), ((0.1, None), (0.4, 0.8))),
)


def test_a_record_survives_json() -> None:
    assert from_json(Plan, json.loads(json.dumps(to_json(PLAN)))) == PLAN


@given(
    st.builds(
        Hardware,
        cpu_model=st.text(),
        usable_cores=st.integers(1, 512),
        instruction_sets=st.lists(st.text()).map(tuple),
        memory_bytes=st.integers(0, 2**50),
    )
)
def test_hardware_survives_json(hardware: Hardware) -> None:
    assert from_json(Hardware, json.loads(json.dumps(to_json(hardware)))) == hardware


@pytest.mark.parametrize(
    "change",
    [
        {"candidate": None, "plan": 1},
        {"strategy": {"name": "psychic", "batch_size": 1, "token_budget": None}},
        {"strategy": {"name": "sorted", "batch_size": "1", "token_budget": None}},
        {"candidate": {"engine": "openvino"}},
        {"strategy": []},
    ],
)
def test_stored_nonsense_is_a_value_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        from_json(Plan, {**to_json(PLAN), **change})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Candidate("x", "fp7", "cpu", 1),
        lambda: Candidate("x", "fp32", "tpu", 1),
        lambda: Candidate("x", "fp32", "cpu", 0),
        lambda: Strategy("sorted", 0),
        lambda: Strategy("token_budget", 8),
        lambda: Strategy("sorted", 8, 512),
        lambda: Measurement(()),
        lambda: Measurement((0.0,)),
        lambda: Interval(2.0, 1.5, 1.0),
        lambda: CostTable((1, 1), (8,), ((0.1,), (0.1,))),
        lambda: CostTable((1,), (8,), ((None,),)),
        lambda: CostTable((1,), (8, 16), ((0.1,),)),
        lambda: Hardware("x", 0, (), 0),
    ],
)
def test_impossible_records_are_refused(make: object) -> None:
    with pytest.raises(ValueError):
        make()  # type: ignore[operator]


def test_the_spread_tells_a_quiet_machine_from_a_noisy_one() -> None:
    assert Measurement((1.0, 1.0, 1.0)).spread == 0.0
    assert Measurement((1.0, 2.0, 3.0)).spread == pytest.approx(0.5)
    assert Measurement((1.0,)).spread == 0.0
