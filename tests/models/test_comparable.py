"""Which models may be compared as original and student, and what is said about the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import ChoiceError, ModelError
from hasten.inputs.corpus import profile
from hasten.models import ModelFolder, require_comparable
from hasten.records import ModelInfo
from tests.scripted import INFO, save_reference
from tests.tiny import tiny_texts

TEXTS = tiny_texts(40)
WIDE = replace(INFO, output_width=3)
SMALL = replace(WIDE, name="small", parameter_count=400)


def pair(folder: Path, original: ModelInfo, student: ModelInfo) -> tuple[ModelFolder, ModelFolder]:
    kept = save_reference(folder / "original", original), save_reference(folder / "small", student)
    for reference in kept:
        (reference.folder / "module" / "weights").write_text(reference.info.name)
    return kept


def require(original: ModelFolder, student: ModelFolder, texts: Any = TEXTS) -> None:
    tokens = original.tokenizer().encode(texts)
    lengths = profile(tokens.lengths, tokens.truncated, original.info.max_length)
    require_comparable(original, student, texts, lengths)


def edit_tokenizer(reference: ModelFolder, edit: Callable[[dict[str, Any]], None]) -> None:
    path = reference.folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    edit(stored)
    path.write_text(json.dumps(stored))


def without(*tokens: str) -> Callable[[dict[str, Any]], None]:
    """A smaller vocabulary, whose ids are others."""

    def edit(stored: dict[str, Any]) -> None:
        vocabulary = stored["model"]["vocab"]
        special = [token["content"] for token in stored["added_tokens"]]
        kept = [*special, *(t for t in reversed(vocabulary) if t not in {*tokens, *special})]
        stored["model"]["vocab"] = {token: place for place, token in enumerate(kept)}

    return edit


def adding(*tokens: str) -> Callable[[dict[str, Any]], None]:
    def edit(stored: dict[str, Any]) -> None:
        vocabulary = stored["model"]["vocab"]
        vocabulary |= {token: len(vocabulary) + place for place, token in enumerate(tokens)}

    return edit


def tokens_of(reference: ModelFolder, text: str) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(reference.folder / "tokenizer.json"))
    return " ".join(tokenizer.encode(text).tokens)


def test_a_student_of_the_same_task_labels_and_tokens_is_accepted(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    assert original.fingerprint() != student.fingerprint()
    require(original, student)
    with pytest.raises(ChoiceError):
        require(original, original)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"task": "multi_label"},
            r"\(scripted\) is single_label, the student \(small\) multi_label",
        ),
        (
            {"labels": ("no", "yes"), "output_width": 2},
            r"gives 3 numbers a text, the student \(small\) 2",
        ),
        (
            {"labels": ("no", "yes", "never")},
            "output 2 is 'maybe' in the original .* and 'never' in",
        ),
        ({"labels": ("yes", "no", "maybe")}, r"labels differ \(the same labels in another order\)"),
    ],
)
def test_other_answers_are_refused_and_named(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        require(*pair(tmp_path, WIDE, replace(SMALL, **changes)))


def test_outputs_without_labels_need_the_same_width(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"task": "tensors", "labels": ()}
    models = replace(WIDE, **tensors), replace(SMALL, **tensors, output_width=4)
    with pytest.raises(ModelError, match=r"gives 3 numbers a text, the student \(small\) 4"):
        require(*pair(tmp_path, *models))


def test_the_model_itself_is_refused_under_any_name(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    shutil.copy(original.folder / "module" / "weights", student.folder / "module" / "weights")
    with pytest.raises(ChoiceError, match="is the very model that is tuned") as caught:
        require(original, student)
    assert "Leave --reference out" in (caught.value.fix or "")


def test_texts_that_only_one_of_them_reads_to_the_end_are_refused(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, replace(SMALL, max_length=16))
    with pytest.raises(ModelError, match="longer than 16"):
        require(original, student, ["ba " * 30])
    require(original, student, ["bab kec"])


def test_the_same_tokens_under_other_ids_are_accepted(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    edit_tokenizer(student, without())
    assert original.tokenizer().encode(TEXTS[:1]).ids.tolist() != (
        student.tokenizer().encode(TEXTS[:1]).ids.tolist()
    )
    require(original, student)


def test_a_rare_token_that_the_student_does_not_know_is_accepted(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    # "nuq" is n, ##u, ##q; without ##q the whole word is one unknown token.
    edit_tokenizer(student, without("##q"))
    text = "bab nuq kec"
    tokens = [list(r.tokenizer().encode([text]).lengths) for r in (original, student)]
    assert tokens == [[7], [5]]
    require(original, student, [text, "bab kec"])


def test_a_word_that_a_smaller_vocabulary_splits_further_is_accepted(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    edit_tokenizer(student, without("kec"))
    text = "bab kec lif"
    tokens = [list(r.tokenizer().encode([text]).lengths) for r in (original, student)]
    assert tokens == [[5], [7]]
    require(original, student, [text, "kec", "kec kecs"])


def test_pieces_of_a_word_that_end_elsewhere_are_accepted(tmp_path: Path) -> None:
    """The longest piece that is left may end within one that is gone, or after it."""
    original, student = pair(tmp_path, WIDE, SMALL)
    for reference, pieces in ((original, ("babk", "##ec", "##kec")), (student, ("##kec",))):
        edit_tokenizer(reference, adding(*pieces))
    text = "babkec"
    read = [tokens_of(reference, text) for reference in (original, student)]
    assert read == ["[CLS] babk ##ec [SEP]", "[CLS] bab ##kec [SEP]"]
    require(original, student, [text])


def test_what_the_original_does_not_know_a_smaller_vocabulary_may(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    # WordPiece gives a word up that it cannot continue after its longest first part.
    for reference, pieces in ((original, ("kecb", "##bß")), (student, ("##bß",))):
        edit_tokenizer(reference, adding(*pieces))
    read = [tokens_of(reference, "kecbß") for reference in (original, student)]
    assert read == ["[CLS] [UNK] [SEP]", "[CLS] kec ##bß [SEP]"]
    require(original, student, ["kecbß"])


def test_a_text_that_is_split_differently_is_refused_and_shown(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    edit_tokenizer(student, without("kec"))
    edit_tokenizer(student, adding("kecs"))  # not fewer words, but others
    with pytest.raises(ModelError) as caught:
        require(original, student, ["bab lif", "bab kec lif"])
    assert caught.value.message.endswith(
        "the original (scripted) reads 'kec lif [SEP]', the student (small) 'k ##e ##c' in "
        "'bab kec lif'"
    )
    require(original, student, ["bab lif"])  # what no text holds is not asked for


def test_other_words_and_other_characters_are_refused_of_a_smaller_vocabulary(
    tmp_path: Path,
) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    edit_tokenizer(student, without("kec"))
    require(original, student, ["Kec bab"])
    whole = (student.folder / "tokenizer.json").read_text()
    edit_tokenizer(student, lambda stored: stored["normalizer"].update(lowercase=False))
    with pytest.raises(ModelError, match=r"reads 'kec bab bab', the student .* 'k ##e ##c'"):
        require(original, student, ["kec bab Bab"])
    (student.folder / "tokenizer.json").write_text(whole)
    letters = {
        "type": "Split",
        "pattern": {"String": "e"},
        "behavior": "Isolated",
        "invert": False,
    }
    edit_tokenizer(student, lambda stored: stored.update(pre_tokenizer=letters))
    with pytest.raises(ModelError, match=r"reads 'kec \[SEP\]', the student .* 'k e c'"):
        require(original, student, ["kec"])
    (student.folder / "tokenizer.json").write_text(whole)
    first = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    edit_tokenizer(student, lambda stored: stored["post_processor"]["single"].__setitem__(0, first))
    with pytest.raises(ModelError, match=r"reads '\[CLS\] kec \[SEP\]', the student .* '\[SEP\] k"):
        require(original, student, ["kec"])


@pytest.mark.parametrize("gone", [(), ("kec",)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_tokenizer_without_the_others_special_tokens_is_refused(
    tmp_path: Path, which: int, gone: tuple[str, ...]
) -> None:
    models = pair(tmp_path, WIDE, SMALL)
    edit_tokenizer(models[1], without(*gone))
    edit_tokenizer(models[which], lambda stored: stored.update(post_processor=None))
    with pytest.raises(ModelError, match=r"reads '(\[CLS\] )?bab( \[SEP\])?', the student"):
        require(*models, ["bab"])


def test_unigram_names_what_it_does_not_know_by_the_text(tmp_path: Path) -> None:
    original, student = pair(tmp_path, WIDE, SMALL)
    for reference, pieces in ((original, ("▁a", "▁b", "☃")), (student, ("▁a", "▁b"))):
        save_unigram(reference.folder / "tokenizer.json", pieces)
    require(original, student, ["a b a ☃ a"])
    edited = ("▁a", "▁", "b", "☃")
    save_unigram(student.folder / "tokenizer.json", edited)
    with pytest.raises(ModelError, match="split a text differently"):
        require(original, student, ["a b a"])


def save_unigram(path: Path, pieces: tuple[str, ...]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    scores = [("<unk>", 0.0), ("▁", -3.0), *((piece, -1.0) for piece in pieces if piece != "▁")]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(path))
