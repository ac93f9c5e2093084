"""hasten.compress on a tiny model: it agrees more when it was trained, and resumes exactly."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from hasten import api, hardware
from hasten.cli.display import show_student
from hasten.compress import distil, kept, lots
from hasten.compress.lesson import Lesson, Look, Taught
from hasten.errors import (
    BudgetError,
    ChoiceError,
    EngineError,
    HastenError,
    InputError,
    ModelError,
    ResumeError,
    StorageError,
)
from hasten.inputs import corpus
from hasten.models import ModelFolder, prepare
from hasten.models.module import pretrained
from hasten.records import Notice
from hasten.storage.workfolder import RESULTS
from tests.tiny import save_tiny, save_tiny_tokenizer, tiny_texts

TEXTS = tiny_texts(400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps everywhere, however fast the machine is."""
    monkeypatch.setattr(distil, "time_steps", lambda lesson, count: 100.0)


def compress(model: Path, output: Path, **options: Any) -> Any:
    given = {"texts": TEXTS, "layers": 1, "budget": 7000.0, **options}
    return api.compress(model, output=output, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(pretrained(folder).state_dict())


def test_a_student_is_an_ordinary_folder_and_is_compared(model: Path, tmp_path: Path) -> None:
    student = compress(model, tmp_path / "student", ffn_width=40)
    assert (student.of_layers, len(student.layers)) == (2, 1)
    assert (student.ffn_width, student.of_ffn_width) == (32, 64)
    assert student.parameter_count < student.of_parameter_count
    assert student.before.compared == student.after.compared == len(set(TEXTS)) // 5
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert loaded.config.num_hidden_layers == 1
    assert loaded.config.intermediate_size == 32
    stored = json.loads((tmp_path / "student" / "student.json").read_text())
    assert stored["steps"] == student.steps
    assert not (tmp_path / "student.training").exists()
    assert len(student.agreements) >= 1


@pytest.mark.parametrize(
    "options", [{}, {"ffn_width": 32, "heads": 1, "embeddings": True, "freeze_embeddings": False}]
)
def test_an_interrupted_run_ends_with_the_same_weights(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    undisturbed = compress(model, tmp_path / "whole", **options)

    def stop(event: Any) -> None:
        if event.stage == "train" and "step 15 " in event.message:  # amid the second pass
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "student", on_event=stop, **options)
    with pytest.raises(ResumeError, match="other labels"):
        compress(model, tmp_path / "student", labels=["LABEL_0"] * len(TEXTS), **options)
    with pytest.raises(ResumeError, match=r"ffn_width was .*; freeze_embeddings was"):
        compress(model, tmp_path / "student", ffn_width=16, freeze_embeddings=bool(options))
    continued = compress(model, tmp_path / "student", **options)
    assert continued.agreements == undisturbed.agreements
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "student")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_budget_shorter_than_a_pass_trains_on_some_of_the_texts(
    model: Path, tmp_path: Path
) -> None:
    events: list[Any] = []
    student = compress(model, tmp_path / "student", budget=720.0, on_event=events.append)
    assert student.taught_texts == 32 * student.steps == 192
    (notice,) = (event.text for event in events if isinstance(event, Notice))
    assert notice.startswith("The budget holds training on 192 of the ")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"layers": 3}, ChoiceError, "has 2"),
        ({"layers": 0}, ChoiceError, "has 2"),
        ({"layers": None}, ChoiceError, "no reduction"),
        ({"ffn_width": 65}, ChoiceError, "is 64"),
        ({"ffn_width": 7}, ChoiceError, "--ffn-width is 7"),
        ({"layers": None, "embeddings": True}, ChoiceError, "every word"),
        ({"heads": 3}, ChoiceError, "each block has 2"),
        ({"texts": TEXTS[:150]}, InputError, "at least 200"),
        ({"texts": TEXTS[:150] * 4}, InputError, "150 different texts"),
        ({"budget": 500.0}, BudgetError, "one pass"),
        ({"model": "tests.tiny:tiny_model"}, ModelError, "is code"),
    ],
)
def test_what_cannot_be(
    model: Path, tmp_path: Path, options: dict[str, Any], kind: type[HastenError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        compress(options.pop("model", model), tmp_path / "student", **options)
    assert caught.value.fix
    # What took time, such as the choice of the units that stay, is kept for the next start.
    assert kind is BudgetError or not list(tmp_path.iterdir())


def test_two_readings_of_one_tokenizer_are_said_before_the_long_part(
    model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    cased = {**settings, "tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(cased))
    events: list[Any] = []
    with pytest.raises(ChoiceError, match="has 2"):
        compress(
            folder,
            tmp_path / "student",
            texts=["bab KEB", *TEXTS],
            layers=3,
            on_event=events.append,
        )
    (notice,) = (event.text for event in events if isinstance(event, Notice))
    assert "1 of" in notice
    assert "'bab KEB'" in notice


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"), "not enough memory"),
        (MemoryError("Unable to allocate 8 GiB"), "not enough memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied\nat c10/core"), None),
    ],
)
def test_what_torch_raises_is_told_in_a_line(
    model: Path,
    tmp_path: Path,
    error: Exception,
    fix: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(distil, "teach", fail)
    with pytest.raises(EngineError, match="PyTorch could not make the student") as caught:
        compress(model, tmp_path / "student")
    assert caught.value.__cause__ is error
    assert "\n" not in caught.value.message
    assert (fix or "") in (caught.value.fix or "")


def test_a_mistake_that_was_mended_needs_no_restart(model: Path, tmp_path: Path) -> None:
    """Whatever was chosen for the mistake is thrown away: nothing was trained yet."""
    for options in (
        {"layers": 3},
        {"texts": TEXTS[:150]},
        {"labels": ["unknown"] * len(TEXTS)},
        {"budget": 500.0, "ffn_width": 32},
    ):
        with pytest.raises(HastenError):
            compress(model, tmp_path / "student", **options)
    results = tmp_path / "student.training" / RESULTS
    assert f'"{kept.CHOICE}"' in results.read_text()
    student = compress(model, tmp_path / "student", labels=["LABEL_1"] * len(TEXTS))
    assert (student.ffn_width, len(student.layers)) == (64, 1)


def test_weights_that_do_not_fit_on_the_disk_are_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def save(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as broken:
        broken.setattr(PreTrainedModel, "save_pretrained", save)
        with pytest.raises(StorageError, match="No space left"):
            compress(model, tmp_path / "student")
    assert compress(model, tmp_path / "student").steps


def test_what_taught_a_students_teacher_judges_neither(model: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "first")
    compress(tmp_path / "first", tmp_path / "second", layers=None, ffn_width=32)
    others = [f"{text} ba" for text in TEXTS]
    compress(tmp_path / "first", tmp_path / "third", layers=None, ffn_width=32, texts=others)
    taught = [
        set(json.loads((tmp_path / name / corpus.TAUGHT).read_text())["texts"])
        for name in ("first", "second", "third")
    ]
    assert taught[0] == taught[1] < taught[2]


def test_a_family_that_cannot_be_pruned_is_told(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(
        vocab_size=150,
        embedding_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    config.num_labels = 3
    AlbertForSequenceClassification(config).save_pretrained(tmp_path / "albert")
    save_tiny_tokenizer(tmp_path / "albert")
    with pytest.raises(ModelError, match="AlbertForSequenceClassification cannot") as caught:
        compress(tmp_path / "albert", tmp_path / "student")
    assert "CamemBERT" in str(caught.value.fix)


def test_a_student_with_fewer_heads_and_words_is_tuned_as_any(model: Path, tmp_path: Path) -> None:
    texts = [text.replace("b", "k") for text in TEXTS]
    student = compress(
        model, tmp_path / "student", texts=texts, layers=None, heads=1, embeddings=True
    )
    assert (student.heads, student.of_heads, len(student.layers)) == (1, 2, 2)
    assert student.vocabulary < student.of_vocabulary == 170
    assert student.vocabulary_saved_bytes == (170 - student.vocabulary) * 32 * 4
    assert student.parameter_count < student.of_parameter_count
    reference = prepare(tmp_path / "student", tmp_path / "reference")
    assert reference.info.parameter_count == student.parameter_count


def test_a_smaller_vocabulary_alone_changes_nothing(model: Path, tmp_path: Path) -> None:
    texts = [text.replace("b", "k") for text in TEXTS]
    student = compress(model, tmp_path / "student", texts=texts, layers=None, embeddings=True)
    assert (student.steps, student.taught_texts) == (0, 0)
    assert student.vocabulary < student.of_vocabulary
    assert student.before.flips == student.after.flips == 0
    assert student.after.max_abs_difference == 0.0


def test_texts_that_judge_do_not_choose_the_vocabulary(model: Path, tmp_path: Path) -> None:
    """The words with a "b" are in no other texts: they are lost, and that is counted."""
    texts = list(dict.fromkeys(text.replace("b", "k") for text in TEXTS))
    *_, judging = lots.split(len(texts), seed=0)
    for place in judging[:20].tolist():
        texts[place] += " bab"
    student = compress(model, tmp_path / "student", texts=texts, layers=None, embeddings=True)
    original = prepare(model, tmp_path / "one")
    made = prepare(tmp_path / "student", tmp_path / "two")
    held_out = [texts[place] for place in judging.tolist()]
    assert not made.taught() & set(map(corpus.digest, held_out))
    known = set(Tokenizer.from_file(str(made.folder / "tokenizer.json")).get_vocab())
    assert "bab" not in known
    assert student.unseen_share == pytest.approx(20 / len(held_out))
    # What is compared is what the student in the folder answers, reading with its own tokenizer.
    answers = [
        np.concatenate([answer(reference, [text]) for text in held_out])
        for reference in (original, made)
    ]
    difference = float(np.abs(answers[0] - answers[1]).max())
    assert difference > 0.01
    assert student.after.max_abs_difference == pytest.approx(difference, abs=1e-4)


def answer(reference: ModelFolder, texts: list[str]) -> NDArray[np.float32]:
    tokens = reference.tokenizer().encode(texts)
    ids, mask = tokens.pad(range(len(texts)), reference.info.pad_token_id)
    outputs = reference.module()(torch.from_numpy(ids), torch.from_numpy(mask))
    return np.asarray(outputs.detach().numpy())


def test_a_width_that_was_rounded_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text.replace("b", "k") for text in TEXTS]
    student = compress(
        model, tmp_path / "student", texts=texts, ffn_width=40, embeddings=True, heads=1
    )
    show_student(student, tmp_path / "student", "hasten tune", as_json=False)
    told = capsys.readouterr()
    assert "feed-forward units: 32 of 64 (40 requested" in told.out
    assert "attention heads: 1 of 2" in told.out
    assert "MB less)" in told.out
    assert "of new texts have one" in told.err
    assert "transformers 4 can" in told.err


def test_a_student_that_tune_would_not_take_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = compress(model, tmp_path / "student")
    for flips, told in ((made.after.compared // 100, False), (made.after.compared // 5, True)):
        student = replace(made, after=replace(made.after, flips=flips))
        show_student(student, tmp_path / "student", "hasten tune", as_json=False)
        assert ("--max-flips above 0." in capsys.readouterr().err) == told


def test_a_disk_that_is_full_is_told_and_the_run_goes_on_later(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(model, tmp_path / "whole")

    def save(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", save)
        with pytest.raises(StorageError, match="No space left"):
            compress(model, tmp_path / "student")
    compress(model, tmp_path / "student")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "student")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


TAUGHT = Taught(1, (Look(0.5, 0.5),))


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bfloat16_is_used_where_the_cpu_has_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    here = replace(hardware.detect(), instruction_sets=("avx512_bf16",) if has_bf16 else ("avx2",))
    seen: list[bool] = []
    monkeypatch.setattr(hardware, "detect", lambda: here)

    def teach(lesson: Lesson, *_: object) -> Taught:
        seen.append(lesson.bf16)
        return TAUGHT

    monkeypatch.setattr(distil, "teach", teach)
    compress(model, tmp_path / "student")
    assert seen == [has_bf16]


def test_a_folder_that_is_there_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="already exists"):
        compress(model, tmp_path)
