"""A tokenizer is read as transformers reads it, from all files of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hasten.inputs.tokenization import Padding, TextTokenizer
from hasten.judging.parity import FP32_TOLERANCE
from hasten.models import padding_notice, prepare, reading_notice
from tests.tiny import MAX_LENGTH, save_tiny, save_tiny_tokenizer, tiny_texts

TEXTS = ["bab KEB", "BAB", "bab", " ".join(["bab"] * MAX_LENGTH + ["keb"]), ""]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", "bert")


def edited(source: Path, folder: Path, **settings: Any) -> Path:
    """A copy whose tokenizer_config.json has these settings; None removes one."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    file = folder / "tokenizer_config.json"
    merged = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
    return folder


def ids_of(tokenizer: TextTokenizer, texts: list[str]) -> list[list[int]]:
    tokens = tokenizer.encode(texts)
    rows: list[NDArray[np.int32]] = np.split(tokens.ids, tokens.offsets[1:-1])
    return [row.tolist() for row in rows]


def ids_of_transformers(folder: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[list[int]] = tokenizer(texts, truncation=True)["input_ids"]
    return ids


READINGS: dict[str, dict[str, Any]] = {
    "cased": {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    "cut on the left": {"truncation_side": "left"},
    "shorter": {"model_max_length": 12},
    "shorter, as old files say it": {"model_max_length": None, "max_len": 12},
}


@pytest.mark.parametrize("name", READINGS)
def test_ids_are_those_of_transformers(name: str, bert: Path, tmp_path: Path) -> None:
    folder = edited(bert, tmp_path / "model", **READINGS[name])
    reference = prepare(folder, tmp_path / "reference")
    expected = ids_of_transformers(folder, TEXTS)
    assert ids_of(reference.tokenizer(), TEXTS) == expected
    # The file taken alone would have been read otherwise, or the test shows nothing.
    alone = TextTokenizer.load(folder / "tokenizer.json", MAX_LENGTH)
    assert ids_of(alone, TEXTS) != expected


def test_where_two_readings_differ_it_is_said(bert: Path, tmp_path: Path) -> None:
    folder = edited(bert, tmp_path / "model", **READINGS["cased"])
    reference = prepare(folder, tmp_path / "reference")
    notice = reading_notice(reference, ["bab keb", *TEXTS[:3]])
    assert notice is not None
    assert "2 of 4 texts" in notice
    assert "normalizer" in notice
    assert "'bab KEB'" in notice
    assert reading_notice(reference, ["bab keb"]) is None


def test_where_the_side_that_is_cut_off_differs_it_is_said(bert: Path, tmp_path: Path) -> None:
    folder = edited(bert, tmp_path / "model", **READINGS["cut on the left"])
    notice = reading_notice(prepare(folder, tmp_path / "reference"), TEXTS)
    assert notice is not None
    assert "1 of 5 texts" in notice
    assert "the side that is cut off" in notice


def test_a_folder_with_one_reading_says_nothing(bert: Path, tmp_path: Path) -> None:
    reference = prepare(bert, tmp_path)
    assert reading_notice(reference, TEXTS) is None
    assert reference.info.notices == ()


def test_a_prepared_folder_is_read_the_same_again(bert: Path, tmp_path: Path) -> None:
    folder = edited(bert, tmp_path / "model", padding_side="left", **READINGS["cased"])
    reference = prepare(folder, tmp_path / "reference")
    assert ids_of_transformers(reference.folder, TEXTS) == ids_of(reference.tokenizer(), TEXTS)


def test_special_tokens_that_the_model_has_no_row_for_are_read_as_text(
    bert: Path, tmp_path: Path
) -> None:
    """BertTokenizer adds the mask token that the tiny vocabulary does not have."""
    folder = edited(bert, tmp_path / "model", tokenizer_class="BertTokenizer")
    reference = prepare(folder, tmp_path / "reference")
    original: Any = reference.module().original
    rows = original.get_input_embeddings().num_embeddings
    assert max(ids_of_transformers(folder, ["a [MASK]"])[0]) >= rows
    assert max(ids_of(reference.tokenizer(), ["a [MASK]"])[0]) < rows


def test_a_class_that_does_not_fit_the_file_is_said(tmp_path: Path) -> None:
    folder = edited(
        save_tiny(tmp_path / "tiny", "roberta"), tmp_path / "model", tokenizer_class=None
    )
    reference = prepare(folder, tmp_path / "reference")
    (notice,) = reference.info.notices
    assert "WordPiece" in notice
    alone = TextTokenizer.load(folder / "tokenizer.json", MAX_LENGTH)
    assert ids_of(reference.tokenizer(), TEXTS) == ids_of(alone, TEXTS)


def test_the_side_of_padding_travels_with_the_file(bert: Path, tmp_path: Path) -> None:
    folder = edited(bert, tmp_path / "model", padding_side="left")
    reference = prepare(folder, tmp_path / "reference")
    tokens = reference.tokenizer().encode(["bab", "bab keb"])
    assert tokens.padding == Padding("left", 0)
    ids, mask = tokens.pad([0, 1], reference.info.pad_token_id)
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert ids[0].tolist() == [
        reference.info.pad_token_id,
        *ids_of(reference.tokenizer(), ["bab"])[0],
    ]


def test_padding_that_changes_answers_is_said(bert: Path, tmp_path: Path) -> None:
    texts = tiny_texts(30)
    right = prepare(bert, tmp_path / "right")
    assert padding_notice(right, texts, FP32_TOLERANCE) is None
    left = prepare(edited(bert, tmp_path / "model", padding_side="left"), tmp_path / "left")
    notice = padding_notice(left, texts, FP32_TOLERANCE)
    assert notice is not None
    assert "pads on the left" in notice
    assert "Set padding_side to 'right'" in notice
    assert padding_notice(left, ["bab keb"] * 30, FP32_TOLERANCE) is None  # nothing is padded


def test_a_model_that_ignores_the_mask_is_said(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(200, 3)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.embed(input_ids).mean(1)

    reference = prepare(
        Mean(), tmp_path / "reference", tokenizer=save_tiny_tokenizer(tmp_path / "tokenizer")
    )
    notice = padding_notice(reference, tiny_texts(30), FP32_TOLERANCE)
    assert notice is not None
    assert "on either side" in notice


def test_a_model_that_cannot_be_padded_has_no_notice(tmp_path: Path) -> None:
    class Unpadded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(200, 3)
            self.refuses = False

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            if self.refuses and not attention_mask.all():
                raise LookupError("padding")
            return self.embed(input_ids).mean(1)

    module, folder = Unpadded(), save_tiny_tokenizer(tmp_path / "tokenizer")
    module.refuses = True
    reference = prepare(module, tmp_path / "reference", tokenizer=folder)
    assert padding_notice(reference, tiny_texts(30), FP32_TOLERANCE) is None


def test_calibration_keeps_the_text_wherever_padding_goes(bert: Path, tmp_path: Path) -> None:
    folder = edited(bert, tmp_path / "model", padding_side="left")
    reference = prepare(folder, tmp_path / "reference")
    reference.keep_calibration(tiny_texts(20))
    batch = reference.calibration_batch(4, 3)
    assert (batch["attention_mask"][:, -1] == 1).all()
    assert batch["input_ids"].shape == (4, 3)
