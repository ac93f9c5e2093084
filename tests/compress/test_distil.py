"""What is trained, and what becomes of a lesson that cannot go on."""

from __future__ import annotations

import errno
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.compress import blocks, distil, relations
from hasten.compress.batches import Order
from hasten.compress.lesson import Lesson, Look, Taught
from hasten.compress.objective import loss
from hasten.errors import StorageError
from hasten.inputs.tokenization import TextTokenizer
from tests.compress.test_blocks import INPUTS
from tests.tiny import MAX_LENGTH, tiny_model, tiny_texts, tiny_tokenizer

UNITS = list(range(64))


def lesson(**options: Any) -> Lesson:
    original = tiny_model().requires_grad_(False)
    tokens = TextTokenizer(tiny_tokenizer(), MAX_LENGTH).encode(tiny_texts(96))
    given = {
        "original": original,
        "student": blocks.cut(original, [1], [UNITS], [[0]]),
        "layers": [1],
        "tokens": tokens,
        "pad_token_id": 0,
        "gold": None,
        "objective": "softmax",
        "look": lambda student: Look(0.5, 0.5),
        "steps": 6,
        "seed": 0,
        **options,
    }
    return Lesson(**given)


def teach(what: Lesson, folder: Path, tell: Any = lambda step, look: None) -> Taught:
    return distil.teach(what, folder, tell)


def test_a_resumed_lesson_teaches_what_an_undisturbed_one_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid a pass over the texts, and with a look that is always the best: no weight is older."""
    seen: list[float] = []

    def watched(what: Lesson, student: Any, inputs: dict[str, Any]) -> Any:
        seen.append(inputs["input_ids"].sum().item())
        return loss(what, student, inputs)

    monkeypatch.setattr(distil, "loss", watched)

    def stop(step: int, look: Look | None) -> None:
        del look
        if step == 6:  # the last checkpoint is of step 4, and a pass has 3
            raise KeyboardInterrupt

    looks = {"look": lambda student: Look(0.5, time.monotonic()), "steps": 20}
    whole, resumed = lesson(**looks), lesson(**looks)
    teach(whole, tmp_path / "whole")
    undisturbed = list(seen)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        teach(resumed, tmp_path / "resumed", stop)
    again = lesson(**looks)
    seen.clear()
    teach(again, tmp_path / "resumed")
    assert seen == undisturbed[-len(seen) :]
    assert len(set(undisturbed[:9])) == 9  # each pass has an order of its own
    taught = whole.student.state_dict()
    assert all(torch.equal(taught[name], w) for name, w in again.student.state_dict().items())


def test_what_is_nearest_is_kept_and_not_what_a_few_answers_favour(tmp_path: Path) -> None:
    """A few hundred answers are a coin's toss away from their neighbours."""
    looks = [Look(0.9, 0.1), Look(0.8, 0.3), Look(0.7, 0.2)]
    states: list[dict[str, torch.Tensor]] = []

    def look(student: Any) -> Look:
        states.append({name: weight.clone() for name, weight in student.state_dict().items()})
        return looks[len(states) - 1]

    what = lesson(look=look, steps=3)
    taught = teach(what, tmp_path)
    assert taught == Taught(3, tuple(looks))
    assert taught.best == looks[1]
    assert all(torch.equal(states[1][name], w) for name, w in what.student.state_dict().items())


def test_a_lesson_without_time_is_looked_at_all_the_same(tmp_path: Path) -> None:
    taught = teach(lesson(steps=40, overdue=lambda: True), tmp_path)
    assert taught == Taught(1, (Look(0.5, 0.5),))


def test_a_lesson_that_stops_early_tells_the_steps_that_were_taught(tmp_path: Path) -> None:
    taught = teach(lesson(steps=10), tmp_path)  # no look is better than the first
    assert (taught.steps, len(taught.looks)) == (1 + distil.PATIENCE, 1 + distil.PATIENCE)
    assert distil.teach_once(lesson(steps=10), tmp_path / "once", lambda *_: None) == taught
    # What is kept of it is enough, even where training cannot be repeated.
    assert distil.teach_once(lesson(steps=1), tmp_path / "once", lambda *_: None) == taught


# --- the loss ---------------------------------------------------------------------------------


def relation(states: np.ndarray, head: int, size: int) -> np.ndarray:
    """By hand: softmax(x x' / sqrt(size)) of one relation head of one text without padding."""
    x = states[:, head * size : (head + 1) * size]
    scores = np.exp(x @ x.T / math.sqrt(size))
    return np.asarray(scores / scores.sum(1, keepdims=True))


def test_relations_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    ours = [rng.normal(size=(2, 4, 6)) for _ in range(3)]
    theirs = [rng.normal(size=(2, 4, 12)) for _ in range(3)]
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    rows = [
        np.sum(p * np.log(p / q))
        for own, other in zip(ours, theirs, strict=True)
        for text, length in ((0, 4), (1, 2))
        for head in range(3)
        for q, p in zip(
            relation(own[text, :length], head, 2),
            relation(other[text, :length], head, 4),
            strict=True,
        )
    ]
    given = relations.difference(
        relations.Watched(1, [torch.tensor(x) for x in ours]),
        relations.Watched(5, [torch.tensor(x) for x in theirs]),
        torch.tensor(mask),
    )
    # 5 heads of 12 columns are not even division: 3 is the most that divides 6 and 12.
    assert relations.common_heads(6, 12, most=5) == 3
    assert given.item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_the_original_has_nothing_to_learn_from_itself() -> None:
    original = tiny_model().requires_grad_(False)
    same = lesson(student=blocks.cut(original, [0, 1], [UNITS] * 2), layers=[0, 1])
    for weight in (0.0, 1.0):
        total, _ = loss(replace(same, relations=weight), same.student, dict(INPUTS))
        assert total.item() == pytest.approx(0.0, abs=1e-5)


def test_relations_count_as_much_as_they_weigh() -> None:
    what = lesson()
    losses = [
        loss(replace(what, relations=weight), what.student, dict(INPUTS))[0].item()
        for weight in (0.0, 1.0, 3.0)
    ]
    assert losses[1] - losses[0] > 1e-3
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


@pytest.mark.parametrize("bf16", [True, False])
def test_products_are_bfloat16_only_where_it_is_asked_for(bf16: bool) -> None:
    what = lesson(bf16=bf16)
    seen: list[torch.dtype] = []
    layer = what.student.get_submodule("bert.encoder.layer.0.output.dense")
    hook = layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    total, outputs = loss(what, what.student, dict(INPUTS))
    hook.remove()
    assert seen == [torch.bfloat16 if bf16 else torch.float32]
    assert total.dtype == outputs.logits.dtype == torch.float32
    total.backward()
    gradients = [p.grad for p in what.student.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    exact, _ = loss(replace(what, bf16=False), what.student, dict(INPUTS))
    assert total.item() == pytest.approx(exact.item(), rel=0.1 if bf16 else 1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_embeddings_stay_and_the_rest_moves(frozen: bool, tmp_path: Path) -> None:
    what = lesson()
    before = {name: value.clone() for name, value in what.student.state_dict().items()}
    if frozen:
        distil.freeze_embeddings(what.student)
    teach(what, tmp_path)
    after = what.student.state_dict()
    tables = {name for name in before if name.endswith("embeddings.weight")}
    assert len(tables) == 3
    for name in tables:
        assert torch.equal(before[name], after[name]) is frozen
    layer = "bert.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(before[layer], after[layer])


# --- time -------------------------------------------------------------------------------------


def test_looks_are_few_and_the_last_step_is_looked_at() -> None:
    for steps in range(1, 500):
        assert steps // distil.looks_every(steps) <= distil.CHECKS


def test_a_lesson_ends_when_the_time_is_over(tmp_path: Path) -> None:
    told: list[int] = []
    what = lesson(steps=40, overdue=lambda: len(told) >= 9)
    taught = teach(what, tmp_path, lambda step, look: told.append(step))
    assert told == list(range(1, 10))
    assert len(taught.looks) == 2  # after 4 and 8 steps


def test_a_few_long_texts_count_for_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes its tokens' time: 1 in 16 batches of texts of ten times the length."""
    tokens = TextTokenizer(tiny_tokenizer(), MAX_LENGTH).encode(
        [*(["ba ke"] * 15 * 32), *(["ba ke li no " * 5] * 32)]
    )
    lengths = sorted(set(tokens.lengths.tolist()))
    now_s = [0.0]

    def slow(what: Lesson, student: Any, inputs: dict[str, Any]) -> Any:
        now_s[0] += inputs["input_ids"].numel()
        return loss(what, student, inputs)

    monkeypatch.setattr(distil, "loss", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])
    what = lesson(tokens=tokens)
    order = list(Order(tokens, what.seed, lambda: 0))
    batches = [tokens.lengths[order[at : at + 32]].max() for at in range(0, len(order), 32)]
    assert len(lengths) == 2
    assert max(batches) > 5 * min(batches)
    assert distil.time_steps(what, 8) == pytest.approx(32 * np.mean(batches))


def test_timing_steps_changes_nothing() -> None:
    what = lesson()
    before = {name: value.clone() for name, value in what.student.state_dict().items()}
    random_state = torch.get_rng_state()
    assert distil.time_steps(what, 3) > 0
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[n], v) for n, v in what.student.state_dict().items())
    assert all(p.grad is None for p in what.student.parameters())


@pytest.mark.parametrize(
    ("objective", "tells"), [("softmax", False), ("sigmoid", True), ("squared", True)]
)
def test_an_offset_of_all_answers_is_an_error_except_of_a_softmax(
    objective: Any, tells: bool
) -> None:
    what = lesson(objective=objective)
    head = what.original.get_submodule("classifier")
    what.student.get_submodule("classifier").load_state_dict(head.state_dict())
    same = replace(what, student=what.original, layers=[0, 1], relations=0.0)
    before, _ = loss(same, same.student, dict(INPUTS))
    moved = tiny_model()
    with torch.no_grad():
        moved.classifier.bias += 3.0
    after, _ = loss(same, moved, dict(INPUTS))
    assert before.item() == pytest.approx(0.0, abs=1e-5)
    assert (after.item() > 1.0) == tells


def test_long_texts_relate_their_beginnings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "TOKENS", 4)
    rng = np.random.default_rng(0)
    ours, theirs = (
        relations.Watched(2, [torch.tensor(rng.normal(size=(2, 9, 8))) for _ in range(3)])
        for _ in range(2)
    )
    our_four, their_four = (
        relations.Watched(2, [states[:, :4] for states in each.outputs]) for each in (ours, theirs)
    )
    mask = torch.ones(2, 9, dtype=torch.bool)
    assert torch.equal(
        relations.difference(ours, theirs, mask),
        relations.difference(our_four, their_four, mask[:, :4]),
    )


# --- the disk ---------------------------------------------------------------------------------


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights at the end, as if the disk had never been full."""
    scores = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6] * 3)
    grow = lambda student: Look(0.5, next(scores))  # noqa: E731
    whole = lesson(look=grow)
    teach(whole, tmp_path / "whole")
    full = {"full": False}
    real = torch.save

    def save(*arguments: Any, **options: Any) -> None:
        if full["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **options)

    monkeypatch.setattr(torch, "save", save)

    def tell(step: int, look: Look | None) -> None:
        full["full"] = step >= 4

    scores = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6] * 3)
    with pytest.raises(StorageError, match="No space left") as caught:
        teach(lesson(look=grow), tmp_path / "disk", tell)
    assert "same command" in str(caught.value.fix)
    kept = sorted(path.name for path in (tmp_path / "disk").iterdir())
    assert kept == ["checkpoint-2", "checkpoint-3"]
    monkeypatch.undo()
    scores = iter([0.4, 0.5, 0.6])
    again = lesson(look=grow)
    teach(again, tmp_path / "disk")
    theirs, ours = whole.student.state_dict(), again.student.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_checkpoint_that_was_cut_off_is_not_taken_up(tmp_path: Path) -> None:
    what = lesson()
    teach(what, tmp_path)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = last / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    again = lesson()
    teach(again, tmp_path)
    theirs, ours = what.student.state_dict(), again.student.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert json.loads(state.read_text())["global_step"] == int(last.name.split("-")[1])


def test_too_little_room_is_told_before_anything_is_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = lesson()
    needed = 3 * distil.checkpoint_bytes(what.student)
    sizes = sum(p.nbytes for p in what.student.parameters())
    assert needed == 9 * sizes
    distil.freeze_embeddings(what.student)
    assert distil.checkpoint_bytes(what.student) < 3 * sizes
    told: list[int] = []
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="checkpoints need"):
        teach(what, tmp_path, lambda step, look: told.append(step))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        distil.time_checkpoint(what, tmp_path / "file")
    assert not told
