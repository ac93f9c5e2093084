from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from hasten.errors import InputError, ModelError
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.records import Candidate
from tests.tiny import MAX_LENGTH, save_tiny_tokenizer, tiny_texts, tiny_tokenizer

CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.json"


def ragged(rows: list[list[int]]) -> Tokens:
    lengths = [len(row) for row in rows]
    return Tokens(
        np.array([token for row in rows for token in row], dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([length % 2 == 0 for length in lengths], dtype=bool),
    )


rows_and_indices = st.lists(
    st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8
).flatmap(
    lambda rows: st.tuples(
        st.just(rows), st.lists(st.integers(0, len(rows) - 1), min_size=0, max_size=10)
    )
)


@given(rows_and_indices)
def test_select_takes_the_texts_that_were_named(case: tuple[list[list[int]], list[int]]) -> None:
    rows, indices = case
    tokens = ragged(rows)
    chosen = tokens.select(indices)
    assert len(chosen) == len(indices)
    for position, index in enumerate(indices):
        text = chosen.ids[chosen.offsets[position] : chosen.offsets[position + 1]]
        assert text.tolist() == rows[index]
    assert chosen.truncated.tolist() == tokens.truncated[indices].tolist()
    assert (str(chosen.ids.dtype), str(chosen.offsets.dtype)) == ("int32", "int64")


@given(rows_and_indices)
def test_padding_adds_only_masked_pads_on_the_right(
    case: tuple[list[list[int]], list[int]],
) -> None:
    rows, indices = case
    input_ids, mask = ragged(rows).pad(indices, pad_token_id=77)
    length = max([1, *(len(rows[index]) for index in indices)])
    assert input_ids.shape == mask.shape == (len(indices), length)
    assert input_ids.dtype == mask.dtype == np.int64
    for index, ids, bits in zip(indices, input_ids.tolist(), mask.tolist(), strict=True):
        row = rows[index]
        assert ids == row + [77] * (length - len(row))
        assert bits == [1] * len(row) + [0] * (length - len(row))


def test_the_files_own_truncation_and_padding_are_overridden(file: Path) -> None:
    stored = Tokenizer.from_file(str(file))
    assert stored.truncation is not None
    assert stored.truncation["max_length"] == 16
    assert stored.padding is not None
    tokens = TextTokenizer.load(file, 40).encode(["babbab " * 25, "bab"])
    assert tokens.lengths[0] > 16
    assert tokens.lengths[1] < tokens.lengths[0]


def test_only_texts_that_lost_tokens_count_as_truncated(file: Path) -> None:
    tokenizer = TextTokenizer.load(file, 8)
    tokens = tokenizer.encode(["bab " * 5, "bab " * 6, "bab " * 7, ""])
    assert tokens.lengths.tolist() == [7, 8, 8, 2]
    assert tokens.truncated.tolist() == [False, False, True, False]


def test_an_empty_text_is_its_special_tokens(file: Path) -> None:
    tokens = TextTokenizer.load(file, 8).encode(["", " \t\n"])
    assert tokens.ids.tolist() == [CLS, SEP, CLS, SEP]


def test_no_texts_are_no_tokens(file: Path) -> None:
    tokens = TextTokenizer.load(file, 8).encode([])
    assert (len(tokens), tokens.offsets.tolist(), tokens.lengths.tolist()) == (0, [0], [])


def test_ids_are_those_of_the_library_text_by_text(file: Path) -> None:
    texts = tiny_texts(50, seed=3)
    tokens = TextTokenizer.load(file, 128).encode(texts)
    library = tiny_tokenizer()
    for index, text in enumerate(texts):
        ids = tokens.ids[tokens.offsets[index] : tokens.offsets[index + 1]]
        assert ids.tolist() == library.encode(text).ids


@settings(max_examples=60, deadline=None)
@example([(" ", 92), ("x", 101)])
@example([("bab ", 300)])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["bab ", "x", " ", "\n", "keb,", "é", "日"]), st.integers(0, 400)
        ),
        max_size=5,
    )
)
def test_reading_only_the_head_of_a_long_text_changes_nothing(
    pieces: list[tuple[str, int]],
) -> None:
    text = "".join(piece * count for piece, count in pieces)
    tokens = TextTokenizer(tiny_tokenizer(), 12).encode([text])
    library = tiny_tokenizer()
    whole = len(library.encode(text).ids)
    library.enable_truncation(12)
    assert tokens.ids.tolist() == library.encode(text).ids
    assert tokens.truncated.tolist() == [whole > 12]


@settings(max_examples=60, deadline=None)
@example(words=90, max_tokens=3, side="right")
@example(words=14, max_tokens=16, side="left")
@given(
    words=st.integers(0, 90),
    max_tokens=st.integers(3, 64),
    side=st.sampled_from(["left", "right"]),
)
def test_reading_less_cuts_as_the_library_does(words: int, max_tokens: int, side: str) -> None:
    text = " ".join(tiny_texts(90)[:words])
    library = tiny_tokenizer()
    whole = library.encode(text).ids[:MAX_LENGTH]
    library.enable_truncation(max_tokens, direction=side)
    limit = Candidate("fake", "fp32", "cpu", 1, max_tokens=max_tokens).token_limit(MAX_LENGTH)
    cut_there = tiny_tokenizer()
    cut_there.enable_truncation(16, direction=side)
    tokens = TextTokenizer(cut_there, limit).encode([text])
    assert tokens.ids.tolist() == library.encode(text).ids
    assert (tokens.ids[0], tokens.ids[-1], len(tokens.ids) <= max_tokens) == (CLS, SEP, True)
    assert tokens.truncated.tolist() == [len(whole) > max_tokens]
    if len(whole) <= max_tokens:
        assert tokens.ids.tolist() == whole


def test_texts_are_cut_on_the_side_that_the_file_names(file: Path, tmp_path: Path) -> None:
    library = Tokenizer.from_file(str(file))
    library.enable_truncation(16, direction="left")
    library.save(str(tmp_path / "left.json"))
    text = " ".join(["bab"] * 300 + ["keb"])
    tokens = TextTokenizer.load(tmp_path / "left.json", 8).encode([text])
    assert tokens.ids[-2] == library.token_to_id("keb")
    assert tokens.truncated[0]


@pytest.mark.parametrize("position", [0, 2])
def test_a_lone_surrogate_is_named_by_its_texts_index(file: Path, position: int) -> None:
    texts = ["bab"] * 3
    texts[position] = "bab \ud83d keb"
    with pytest.raises(InputError, match=f"text {position} holds a lone surrogate .U\\+D83D"):
        TextTokenizer.load(file, 8).encode(texts)


@pytest.mark.parametrize("bad", [None, 3, b"bab", ("bab", "keb")])
def test_what_is_not_text_is_named_by_its_index(file: Path, bad: Any) -> None:
    with pytest.raises(InputError, match=f"text 1 is {type(bad).__name__}, not str"):
        TextTokenizer.load(file, 8).encode(["bab", bad])


def test_a_word_that_the_vocabulary_cannot_express_is_our_error() -> None:
    library = Tokenizer(models.WordLevel({"bab": 0}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match="cannot encode"):
        TextTokenizer(library, 8).encode(["keb"])


@pytest.mark.parametrize("text", ["a\0b", "\ufeffbab", "\u202ebab", "e\u0301", "👩‍👩‍👧"])
def test_odd_but_valid_text_becomes_tokens(file: Path, text: str) -> None:
    tokens = TextTokenizer.load(file, 16).encode([text])
    assert tokens.ids[0] == CLS
    assert tokens.ids[-1] == SEP


def test_a_window_without_room_for_text_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match="2 special tokens"):
        TextTokenizer.load(file, 2)
    assert TextTokenizer.load(file, 3).encode(["bab keb"]).lengths.tolist() == [3]


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TextTokenizer.load(path, 8)


def test_pairs_are_read_as_transformers_reads_them(tmp_path: Path, file: Path) -> None:
    from transformers import AutoTokenizer

    pairs = list(zip(tiny_texts(20), tiny_texts(20, seed=4), strict=True))
    pairs += [("ba " * 70, "ke " * 20), ("ba", "ke " * 200), ("", "")]
    tokens = TextTokenizer.load(file, 64).encode(pairs, pairs=True)
    assert tokens.types is not None
    theirs = AutoTokenizer.from_pretrained(file.parent)(
        *map(list, zip(*pairs, strict=True)), truncation="longest_first", max_length=64
    )
    for index in range(len(pairs)):
        begin, end = tokens.offsets[index : index + 2]
        assert tokens.ids[begin:end].tolist() == theirs["input_ids"][index]
        assert tokens.types[begin:end].tolist() == theirs["token_type_ids"][index]
    assert tokens.truncated.tolist() == [length == 64 for length in tokens.lengths]


@pytest.mark.parametrize("threads", [None, 1])
def test_spans_say_where_each_token_stands_in_its_text(file: Path, threads: int | None) -> None:
    texts = ["bab  kek", "", "Ké ba", "bab " * 40]
    tokens = TextTokenizer.load(file, 16, threads).encode(texts, spans=True)
    assert tokens.spans is not None
    assert tokens.special is not None
    assert tokens.spans.shape == (len(tokens.ids), 2)
    shown = tokens.select([2, 0])
    assert shown.spans is not None
    assert shown.special is not None
    own = [shown.spans[shown.offsets[i] : shown.offsets[i + 1]] for i in range(2)]
    special = [shown.special[shown.offsets[i] : shown.offsets[i + 1]] for i in range(2)]
    words = [
        [texts[index][begin:end] for begin, end in spans[~skipped]]
        for index, spans, skipped in zip((2, 0), own, special, strict=True)
    ]
    assert words[1] == ["bab", "kek"]
    assert "".join(words[0]) == "Kéba"
    assert tokens.special[:1].all()
    assert (tokens.spans[tokens.special] == 0).all()


def test_a_text_is_no_pair_and_a_pair_no_text(file: Path) -> None:
    tokenizer = TextTokenizer.load(file, 16)
    with pytest.raises(InputError, match="text 1 is tuple, not str"):
        tokenizer.encode(["a", ("a", "b")])
    with pytest.raises(InputError, match="text 0 is str, not a pair"):
        tokenizer.encode(["ab"], pairs=True)


def test_tokens_put_together_are_all_texts(file: Path) -> None:
    tokenizer = TextTokenizer.load(file, 16)
    texts = tiny_texts(9)
    parts = [tokenizer.encode(texts[:4], spans=True), tokenizer.encode(texts[4:], spans=True)]
    whole, expected = Tokens.concatenate(parts), tokenizer.encode(texts, spans=True)
    for name in ("ids", "offsets", "truncated", "spans", "special"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(expected, name))
    assert whole.types is None
