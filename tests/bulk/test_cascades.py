"""Bulk runs over a bundle of two stages."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import hardware
from hasten.bulk.plan import _rows_of_a_shard
from hasten.bulk.store import Store
from hasten.records import CostTable, HandsOn, Summary, Tally
from hasten.runtime.bundle import load
from hasten.runtime.saving import save
from tests.scripted import Lab, earlier_stage, save_cascade
from tests.tiny import tiny_texts

TEXTS = tiny_texts(60, seed=2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(tmp_path_factory.mktemp("lab"), {"*": {"call_s": 1e-3}}, precisions=("fp32",))
    made.hardware = hardware.detect()
    return made


@pytest.fixture(scope="module")
def bundle(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage whose answers are shifted, and the original. Read only."""
    tuning, folder = lab.tune(), tmp_path_factory.mktemp("cascade")
    first = earlier_stage(folder / "first", lab, tuning, HandsOn(0.5), shift=0.25)
    return save_cascade(folder / "b", lab, tuning, first)


def write_csv(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    return path


def predict(bundle: Path, given: Path, output: Path, **options: Any) -> Summary:
    return hasten.predict_file(bundle, given, output, **{"shard_rows": 16, **options})


def test_rows_get_the_answers_of_the_loaded_bundle(bundle: Path, tmp_path: Path) -> None:
    texts = [*TEXTS, *TEXTS[:5]]  # of equal texts in a shard, one is run
    summary = predict(bundle, write_csv(tmp_path / "a.csv", texts), tmp_path / "out.csv")
    with hasten.load(bundle) as predictor:
        expected = predictor(texts)
        answered = predictor.stats.answered
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [answer["label"] for answer in expected]
    scores = [answer["score"] for answer in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx(scores, abs=1e-6)
    assert summary.total.stages == answered
    assert min(answered) > 0


def test_texts_that_only_a_later_stage_tells_apart_are_both_run(lab: Lab, tmp_path: Path) -> None:
    tuning = lab.tune()
    texts = [f"{' '.join(TEXTS[0].split()[:1] * 10)} {text}" for text in TEXTS[:8]]
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(1e9))
    short = replace(tuning.model, max_length=8)
    cascade = save_cascade(tmp_path / "b", lab, tuning, replace(first, model=short))
    with hasten.load(cascade) as predictor:
        assert len(np.unique(predictor.stages.first.run(texts).outputs.values, axis=0)) == 1
        scores = [answer["score"] for answer in predictor(texts)]
    assert len(set(scores)) > 1
    predict(cascade, write_csv(tmp_path / "a.csv", texts), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        written = [float(row["score"]) for row in csv.DictReader(file)]
    assert written == pytest.approx(scores, abs=1e-6)


def test_texts_in_memory_get_the_same(bundle: Path) -> None:
    batches = list(hasten.predict(bundle, TEXTS))
    labels = [label for batch in batches for label in batch.column("label").to_pylist()]
    with hasten.load(bundle) as predictor:
        assert labels == [answer["label"] for answer in predictor(TEXTS)]


@pytest.mark.parametrize("shard", range(4))
def test_parts_are_the_same_bytes_after_a_fault(
    bundle: Path, tmp_path: Path, shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_csv(tmp_path / "a.csv", TEXTS)
    whole = predict(bundle, given, tmp_path / "whole.csv")
    put = Store.put

    def failing(self: Store, plan: Any, number: Any, *rest: Any) -> Any:
        if number.number == shard:
            raise KeyboardInterrupt
        return put(self, plan, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", failing)
        with pytest.raises(KeyboardInterrupt):
            predict(bundle, given, tmp_path / "out.csv")
    resumed = predict(bundle, given, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert resumed.kept_rows == 16 * shard
    assert resumed.total == whole.total


def test_a_text_that_fails_in_the_second_stage_fails_alone(lab: Lab, tmp_path: Path) -> None:
    tuning = lab.tune()
    word = int(lab.reference.tokenizer().encode([TEXTS[0]]).ids[1])
    first = earlier_stage(tmp_path / "1", lab, tuning, HandsOn(1e9), shift=0.25)
    second = earlier_stage(tmp_path / "2", lab, tuning, HandsOn(-1.0), poison=word)
    cascade = save_cascade(tmp_path / "b", lab, tuning, first, second)
    given = write_csv(tmp_path / "a.csv", TEXTS)
    summary = predict(cascade, given, tmp_path / "out.csv", on_error="record")
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ids = [lab.reference.tokenizer().encode([text]).ids.tolist() for text in TEXTS]
    assert [bool(row["error"]) for row in rows] == [word in tokens for tokens in ids]
    assert 0 < summary.total.errors < len(TEXTS)
    assert "scripted poison" in rows[0]["error"]


def test_texts_unlike_the_proved_ones_are_told_in_the_summary(lab: Lab, tmp_path: Path) -> None:
    tuning = lab.tune()
    rule = HandsOn(1e9, handed=10, texts=1000)
    first = earlier_stage(tmp_path / "1", lab, tuning, rule)
    cascade = save_cascade(tmp_path / "b", lab, tuning, first)
    given = write_csv(tmp_path / "a.csv", tiny_texts(300))
    summary = predict(cascade, given, tmp_path / "out.csv", shard_rows=512)
    assert summary.unlike is not None
    assert "300 of 300 texts (100 %), and 1 %" in summary.unlike


def test_tallies_of_stages_add_up() -> None:
    assert (Tally(stages=(2, 1)) + Tally(stages=(3, 0))).stages == (5, 1)
    assert (Tally() + Tally(stages=(3, 1))).stages == (3, 1)
    assert (Tally() + Tally()).stages == ()


def test_a_shard_is_20_seconds_of_all_stages_together(lab: Lab, tmp_path: Path) -> None:
    tuning = lab.tune()
    # 1 and 3 ms a typical row.
    tables = [CostTable((32,), (32,), ((32e-3 * factor,),)) for factor in (1, 3)]
    plans = [replace(tuning.plan, cost_table=table) for table in tables]
    rows = []
    for handed in (0, 1000):
        rule = HandsOn(0.5, handed=handed, texts=1000)
        first = earlier_stage(tmp_path / f"1-{handed}", lab, tuning, rule)
        stages = [replace(first, plan=plans[0]), replace(first, plan=plans[1], hands_on=None)]
        folder = tmp_path / f"b-{handed}"
        save(folder, tuning, stages=stages, extra={}, results=lab.folder / "results.jsonl")
        rows.append(_rows_of_a_shard(load(folder)))
    assert rows == [16384, 4096]
