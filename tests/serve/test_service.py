"""A served bundle when things go wrong: the fake engine fails as scripted, nothing sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import hardware
from hasten.engines.fake import Script, VirtualClock
from hasten.errors import EngineError, InputError
from hasten.records import HandsOn
from hasten.serve import running
from hasten.serve.health import guarding
from hasten.serve.running import Cores, NonFinite, Ran
from hasten.serve.scheduler import Overloaded
from hasten.serve.service import DeadlineExceeded, Draining, Limits, Service
from hasten.tasks import Outputs
from tests.scripted import Lab, earlier_stage, save_cascade
from tests.tiny import tiny_texts

TEXTS = tiny_texts(40, seed=5)
DEFAULT = Limits()


class Gate:
    """Stands before the engine: a batch passes when it is open."""

    def __init__(self, service: Service) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()
        streams: Any = service.predictor.stages.first.streams
        inner = streams.forward

        def forward(*given: Any) -> Any:
            self.reached.set()
            self._open.wait()
            return inner(*given)

        streams.forward = forward

    def open(self) -> None:
        self._open.set()


def script(service: Service, **settings: Any) -> None:
    """Let the engine of a loaded bundle behave otherwise."""
    session: Any = service.predictor.stages.first.streams._session
    session._script = replace(Script(), **settings)


def token(service: Service, text: str) -> int:
    """The id of a word."""
    return int(service.predictor.stages.first.tokenizer().encode([text]).ids[1])


@contextmanager
def opened(bundle: Path, limits: Limits = DEFAULT, **options: Any) -> Iterator[Service]:
    service = Service(bundle.name, hasten.load(bundle), limits, **options)
    try:
        yield service
    finally:
        service.close()


async def settled(*answers: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*answers, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - threads change it
        await asyncio.sleep(0)


def test_a_text_on_which_the_engine_fails_fails_alone(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        expected = service.predictor.outputs(TEXTS[:6])
        gate, poisonous = Gate(service), f"{TEXTS[0]} stocks"
        script(service, poison=token(service, "stocks"))

        async def ask() -> list[Any]:
            first = asyncio.ensure_future(service.answer(["a"]))
            await until(gate.reached.is_set)
            others = [service.answer([text]) for text in [*TEXTS[:6], poisonous]]
            tasks = [asyncio.ensure_future(other) for other in others]
            await until(lambda: service.waiting == 7)
            gate.open()
            return await settled(first, *tasks)

        _, *answers, failed = asyncio.run(ask())
        assert isinstance(failed, EngineError)
        found = Outputs.concatenate([one.outputs for one in answers])
        assert np.array_equal(found.values, expected.values)


def test_an_output_that_is_not_finite_is_an_error_of_its_text_alone(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        script(service, nan_on=token(service, "stocks"))
        good, bad = asyncio.run(
            settled(service.answer(["a b"]), service.answer(["a b", "stocks fell"]))
        )
        assert len(good.outputs) == 1
        assert isinstance(bad, NonFinite)


def test_an_unexpected_error_is_logged_and_not_told(
    scripted_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(scripted_bundle) as service:

        def broken(*_: Any) -> Any:
            raise RuntimeError("secret")

        monkeypatch.setattr(service.predictor.stages.first.streams, "forward", broken)
        (failed,) = asyncio.run(settled(service.answer(["a"])))
        assert isinstance(failed, EngineError)
        assert "secret" not in str(failed)
        assert "secret" in caplog.text


def test_a_failed_batch_is_counted(scripted_bundle: Path) -> None:
    ran: list[Ran] = []
    with opened(scripted_bundle, on_batch=ran.append) as service:
        script(service, fail="raise")
        asyncio.run(settled(service.answer(["a"])))
    assert [(one.texts, one.failed) for one in ran] == [(1, True)]


def test_a_caller_who_leaves_frees_the_queue(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        gate = Gate(service)

        async def leave() -> None:
            running = asyncio.ensure_future(service.answer(["a"]))
            await until(gate.reached.is_set)
            waiting = asyncio.ensure_future(service.answer(TEXTS))
            await until(lambda: service.waiting == len(TEXTS))
            waiting.cancel()
            await settled(waiting)
            assert (service.waiting, service.backlog_s) == (0, 0.0)
            gate.open()
            assert len((await running).outputs) == 1

        asyncio.run(leave())


def test_past_its_deadline_a_request_is_given_up(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        gate = Gate(service)

        async def late() -> None:
            (late,) = await settled(service.answer(TEXTS, deadline_s=0.001))
            assert isinstance(late, DeadlineExceeded)
            assert (service.waiting, service.backlog_s) == (0, 0.0)
            gate.open()

        asyncio.run(late())


def test_what_is_being_tokenized_takes_room(
    scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(scripted_bundle, Limits(queue_s=0.03)) as service:
        tokenizing, free = service._runner.tokenizing, threading.Event()
        encode = tokenizing.encode

        def slowly(*given: Any) -> Any:
            free.wait()
            return encode(*given)

        monkeypatch.setattr(tokenizing, "encode", slowly)

        async def ask() -> list[Any]:
            tasks = [asyncio.ensure_future(service.answer(TEXTS[:8])) for _ in range(50)]
            await asyncio.sleep(0)  # all ask for room before the first is tokenized
            free.set()
            return await settled(*tasks)

        answers = asyncio.run(ask())
        refused = [one for one in answers if isinstance(one, Overloaded)]
        assert 0 < len(refused) < 50
        assert all(len(one.outputs) == 8 for one in answers if one not in refused)
        assert service.backlog_s == pytest.approx(0.0, abs=1e-12)


def test_requests_that_come_together_are_tokenized_together_and_fail_apart(
    scripted_bundle: Path,
) -> None:
    with opened(scripted_bundle) as service:
        tokenizing, calls = service._runner.tokenizing, list[int]()
        reached, free = threading.Event(), threading.Event()
        encode = tokenizing.encode

        def counted(texts: Any, stage: int = 0) -> Any:
            reached.set()
            free.wait()
            calls.append(len(texts))
            return encode(texts, stage)

        tokenizing.encode = counted  # type: ignore[method-assign]

        async def ask() -> list[Any]:
            first = asyncio.ensure_future(service.answer(["a"]))
            await until(reached.is_set)
            given = [["a b"], ["\ud800"], ["c " * 600], ["d"]]
            later = [asyncio.ensure_future(service.answer(one, truncate=False)) for one in given]
            await asyncio.sleep(0)
            free.set()
            return await settled(first, *later)

        first, fine, unreadable, long, last = asyncio.run(ask())
        assert calls == [1, 4, 1, 1, 1, 1]
        assert isinstance(unreadable, InputError)
        assert "surrogate" in str(unreadable)
        assert isinstance(long, InputError)
        assert "text 0 is longer" in str(long)
        for text, one in (("a", first), ("a b", fine), ("d", last)):
            expected = service.predictor.outputs([text])
            assert np.array_equal(one.outputs.values, expected.values)
            assert one.tokens == int(one.encoded.tokens.lengths.sum())


def test_a_request_that_is_refused_leaves_no_reservation(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        (refused,) = asyncio.run(settled(service.answer(["a " * 500], truncate=False)))
        assert isinstance(refused, InputError)
        assert service.backlog_s == 0.0


def test_texts_that_are_cut_do_not_move_the_estimate_of_their_tokens(
    scripted_bundle: Path,
) -> None:
    with opened(scripted_bundle) as service:
        estimated = service._runner.tokenizing.estimated
        before = estimated(["ba " * 100])
        asyncio.run(service.answer(["ba " * 100_000]))
        assert estimated(["ba " * 100]) == before
        for _ in range(9):
            asyncio.run(service.answer(["ba ke"]))
        assert estimated(["ba " * 100]) != before


def test_a_request_that_comes_as_the_threads_end_is_told(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        service._runner.close(Draining())
        with pytest.raises(Draining):
            asyncio.run(service.answer(["a"]))


def test_draining_answers_what_was_taken_and_refuses_the_rest(scripted_bundle: Path) -> None:
    with opened(scripted_bundle) as service:
        gate = Gate(service)

        async def drain() -> None:
            async def taken() -> Any:
                with service.held():
                    return await service.answer(TEXTS)

            request = asyncio.ensure_future(taken())
            await until(gate.reached.is_set)
            draining = asyncio.ensure_future(service.drain(60.0))
            await until(lambda: service._closing)
            with pytest.raises(Draining), service.held():
                pass
            gate.open()
            assert len((await request).outputs) == len(TEXTS)
            await draining
            with pytest.raises(Draining):
                await service.answer(["a"])

        asyncio.run(drain())


def ready(service: Service) -> bool:
    """Asked anew each time: a type checker takes an attribute for constant."""
    return service.ready


def test_a_service_that_is_silent_is_not_ready_until_its_canary_sings(
    scripted_bundle: Path,
) -> None:
    clock = VirtualClock()
    with opened(scripted_bundle, clock=clock) as service:
        assert not ready(service)
        asyncio.run(service.canary())
        assert ready(service)
        clock.advance(20.0)
        assert not ready(service)
        asyncio.run(service.canary())
        assert ready(service)
        script(service, fail="raise")
        clock.advance(20.0)
        asyncio.run(service.canary())
        assert not ready(service)


def test_a_batch_that_hangs_makes_the_service_unready(scripted_bundle: Path) -> None:
    clock = VirtualClock()
    with opened(scripted_bundle, clock=clock) as service:
        asyncio.run(service.canary())
        gate = Gate(service)

        async def hang() -> None:
            hanging = asyncio.ensure_future(service.answer(["a"]))
            await until(gate.reached.is_set)
            clock.advance(10.0)
            assert ready(service)
            clock.advance(10.0)
            assert not ready(service)
            gate.open()
            await hanging
            assert ready(service)

        asyncio.run(hang())


def test_a_batch_that_never_returns_is_told_once(scripted_bundle: Path) -> None:
    clock = VirtualClock()
    hung: list[str] = []
    with opened(scripted_bundle, clock=clock) as service:
        gate = Gate(service)

        async def hang() -> None:
            hanging = asyncio.ensure_future(service.answer(["a"]))
            await until(gate.reached.is_set)
            async with guarding({"news": service}, hung.append, every_s=0.0):
                clock.advance(service.limits.deadline_s)
                await asyncio.sleep(0)
                assert hung == []
                clock.advance(1.0)
                await until(lambda: hung)
            gate.open()
            await hanging

        asyncio.run(hang())
    assert hung == ["news"]


def test_closing_waits_once_for_all_batches_that_hang(
    scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, waited = VirtualClock(), []

    class Hung:
        def join(self, timeout: float) -> None:
            waited.append(timeout)
            clock.advance(timeout)

        def is_alive(self) -> bool:
            return True

    with opened(scripted_bundle) as service:
        runner = service._runner
        threads = runner._threads
        monkeypatch.setattr(running, "monotonic", clock)
        monkeypatch.setattr(runner, "_threads", [Hung(), Hung(), Hung()])
        assert not runner.close(Draining())
        assert not runner.close(Draining())
        assert sum(waited) == running.PATIENCE_S
        monkeypatch.undo()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage whose answers are shifted, and the original. Read only."""
    lab = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    lab.hardware = hardware.detect()
    tuning, folder = lab.tune(), tmp_path_factory.mktemp("cascade")
    first = earlier_stage(folder / "first", lab, tuning, HandsOn(0.5), shift=0.25)
    return save_cascade(folder / "b", lab, tuning, first)


def test_a_text_of_which_a_stage_is_not_sure_is_answered_by_the_next(cascade: Path) -> None:
    ran: list[Ran] = []
    with opened(cascade, on_batch=ran.append) as service:
        expected = service.predictor.stages.run(TEXTS)
        answered = asyncio.run(service.answer(TEXTS))
        assert np.array_equal(answered.outputs.values, expected.outputs.values)
        assert np.array_equal(answered.stages, expected.stages)
    later = sum(expected.stages == 1)
    assert 0 < later < len(TEXTS)
    assert sum(one.handed_on for one in ran) == later
    assert sum(one.texts for one in ran if one.stage == 1) == later


def test_a_later_stage_that_fails_fails_its_texts_alone(cascade: Path) -> None:
    with opened(cascade) as service:
        stages = service.predictor.stages.run(TEXTS).stages
        sure, unsure = TEXTS[stages.tolist().index(0)], TEXTS[stages.tolist().index(1)]
        session: Any = service.predictor.stages.loaded[1].streams._session
        session._script = Script(fail="raise")
        good, bad = asyncio.run(settled(service.answer([sure]), service.answer([unsure])))
        assert len(good.outputs) == 1
        assert isinstance(bad, EngineError)


class Streams:
    def __init__(self, count: int) -> None:
        self.count = count


def loaded(streams: int, threads: int) -> Any:
    candidate = SimpleNamespace(intra_op_num_threads=threads, threads=streams * threads)
    stage = SimpleNamespace(plan=SimpleNamespace(candidate=candidate))
    return SimpleNamespace(stage=stage, streams=Streams(streams))


def test_batches_of_two_stages_never_take_more_threads_than_there_are_cores() -> None:
    first, second = loaded(2, 1), loaded(1, 2)
    cores = Cores([first, second])
    assert (cores.most, cores.idle()) == (2, [2, 1])
    cores.take(0)
    assert cores.idle() == [1, 0]
    cores.give_back(0)
    cores.take(1)
    assert cores.idle() == [0, 0]
    cores.give_back(1)
    assert cores.idle() == [2, 1]


def test_stages_that_share_a_session_share_its_streams() -> None:
    first, second = loaded(2, 1), loaded(2, 1)
    first.streams = second.streams = Streams(2)
    cores = Cores([first, second])
    cores.take(0)
    assert cores.idle() == [1, 1]
