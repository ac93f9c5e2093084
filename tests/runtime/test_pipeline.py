"""Texts go in in any order, outputs come back in theirs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.engines.base import Session
from hasten.engines.fake import FakeSession, Script, VirtualClock
from hasten.errors import EngineError
from hasten.models import ModelFolder
from hasten.records import CostTable, Strategy
from hasten.runtime.batching import CostModel
from hasten.runtime.pipeline import Pipeline, Streams
from tests.scripted import INFO, save_reference
from tests.tiny import tiny_texts

TABLE = CostTable((1, 8), (4, 64), ((0.001, 0.004), (0.004, 0.03)))
STRATEGIES = [
    Strategy("arrival", 1),
    Strategy("arrival", 7),
    Strategy("sorted", 8),
    Strategy("token_budget", 16, 100),
    Strategy("optimal", 16),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return save_reference(tmp_path_factory.mktemp("reference") / "r")


def pipeline(
    reference: ModelFolder, streams: int = 1, session: Session | None = None
) -> tuple[Pipeline, VirtualClock]:
    clock = VirtualClock()
    session = session or FakeSession(Script(call_s=0.5, token_s=0.0), 3, ["logits"], clock)
    side_by_side = Streams(session, streams, INFO, clock)
    return Pipeline(reference.tokenizer(), side_by_side, clock=clock), clock


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.label)
def test_outputs_are_those_of_each_text_alone(
    reference: ModelFolder, strategy: Strategy, streams: int
) -> None:
    texts = tiny_texts(50, seed=3)
    alone, _ = pipeline(reference)
    runs = [alone.run([text], Strategy("arrival", 1)) for text in texts]
    expected = np.concatenate([run.outputs.values for run in runs])
    together, _ = pipeline(reference, streams)
    run = together.run(texts, strategy, CostModel(TABLE))
    np.testing.assert_array_equal(run.outputs.values, expected)
    assert run.texts == 50
    together.streams.close()


def test_times_are_the_clocks(reference: ModelFolder) -> None:
    subject, _ = pipeline(reference)
    run = subject.run(tiny_texts(10), Strategy("sorted", 4))
    assert run.batch_latency_s == (0.5, 0.5, 0.5)
    assert run.total_s == 1.5
    assert run.predicted_s is None
    one_by_one = subject.run_one_by_one(tiny_texts(4))
    assert one_by_one.batch_latency_s == (0.5,) * 4
    assert one_by_one.padding_share == 0.0


def test_a_shape_costs_the_wall_time_of_all_streams_divided_among_them(
    reference: ModelFolder,
) -> None:
    clock = VirtualClock()
    barrier = threading.Barrier(2)

    class Parallel(FakeSession):
        def run(self, inputs: Any) -> Any:
            # Both streams must be inside at once, or the barrier breaks.
            if barrier.wait(timeout=30) == 0:
                clock.advance(3.0)
            barrier.wait(timeout=30)
            return {"logits": np.zeros((len(inputs["input_ids"]), 3), dtype=np.float32)}

    session = Parallel(Script(), 3, ["logits"], clock)
    streams = Streams(session, 2, INFO, clock)
    assert streams.time_shape(4, 8) == 1.5
    streams.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_failing_batch_ends_the_run_and_leaves_the_rest_out(
    reference: ModelFolder, streams: int
) -> None:
    class Failing(FakeSession):
        calls = 0

        def run(self, inputs: Any) -> Any:
            Failing.calls += 1
            if Failing.calls == 3:
                raise EngineError("scripted")
            return super().run(inputs)

    session = Failing(Script(), 3, ["logits"], VirtualClock())
    subject, _ = pipeline(reference, streams, session)
    with pytest.raises(EngineError, match="scripted"):
        subject.run(tiny_texts(40), Strategy("arrival", 1))
    assert Failing.calls <= 3 + streams
    subject.streams.close()


def test_token_types_go_only_to_models_that_take_them(reference: ModelFolder) -> None:
    seen: list[Any] = []

    class Spy(FakeSession):
        def run(self, inputs: Any) -> Any:
            seen.append(list(inputs))
            return super().run(inputs)

    session = Spy(Script(), 3, ["logits"], VirtualClock())
    subject, _ = pipeline(reference, session=session)
    subject.run(["ba ke"], Strategy("arrival", 1))
    assert seen == [["input_ids", "attention_mask"]]


def test_the_fake_engine_writes_what_it_loads(reference: ModelFolder, tmp_path: Path) -> None:
    from hasten.engines.fake import ENGINE
    from hasten.records import Candidate

    candidate = Candidate("fake", "fp32", "cpu", 1)
    ENGINE.export(reference, candidate, tmp_path)
    ids = np.array([[2, 5]], dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    outputs = ENGINE.load(tmp_path, candidate).run(inputs)
    assert outputs["logits"].shape == (1, 3)
    assert outputs["logits"].dtype == np.float32
