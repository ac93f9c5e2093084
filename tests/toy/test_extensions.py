"""An engine, a file format and a report medium are one file each, from tune to report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hasten
from hasten import cli, engines
from hasten.errors import ChoiceError, InputError
from hasten.inputs import corpus, formats
from hasten.report import media
from hasten.tuning import study
from hasten.tuning.process import InlineWorker, WorkerProcess
from hasten.tuning.worker import Load, Worker
from tests.tiny import save_tiny, tiny_texts

TEXTS = tiny_texts(48)


@pytest.fixture(autouse=True, scope="module")
def toys() -> Any:
    """All that installs the toys: the folders that they are in."""
    with pytest.MonkeyPatch.context() as patch:
        for package in (engines, formats, media):
            folder = Path(__file__).with_name(package.__name__.rpartition(".")[2])
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    texts = folder / "texts.ltsv"
    texts.write_text("".join(f"id:{n}\tbody:{text}\n" for n, text in enumerate(TEXTS)))
    with pytest.MonkeyPatch.context() as patch:
        # PyTorch is loaded here already, and takes seconds to load in a process of its own.
        patch.setattr(study, "WorkerProcess", lambda *_: InlineWorker(Worker()))
        hasten.tune(
            save_tiny(folder / "model"),
            corpus.read(texts, text_column="body").texts,
            output=folder / "bundle",
            engines="toy_numpy",
            precisions="fp32",
            batch_sizes=[1, 8],
            threads=1,
            budget=60,
        )
    return folder / "bundle"


def test_the_engine_wins_with_the_originals_answers(bundle: Path) -> None:
    from transformers import pipeline

    original: Any = pipeline("text-classification", str(bundle.with_name("model")))
    with hasten.load(bundle) as classify:
        candidate = classify.bundle.plan.candidate
        answers = classify(TEXTS)
    assert (candidate.engine, candidate.precision) == ("toy_numpy", "fp32")
    expected = original(TEXTS)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx(
        [answer["score"] for answer in expected], abs=1e-5
    )


def test_rows_are_read_and_written_in_the_format(bundle: Path, tmp_path: Path) -> None:
    given, made = tmp_path / "in.ltsv", tmp_path / "out.ltsv.gz"
    given.write_text("".join(f"id:{n}\ttext:{text}\n" for n, text in enumerate(TEXTS[:9])))
    hasten.predict_file(bundle, given, made, shard_rows=4)
    with hasten.load(bundle) as classify:
        labels = tuple(answer["label"] for answer in classify(TEXTS[:9]))
    answered = corpus.read(made, text_column="text", label_column="label")
    assert (answered.texts, answered.labels) == (tuple(TEXTS[:9]), labels)
    given.write_text("text:ba\nno name\n")
    with pytest.raises(InputError, match="line 2: a field without a name"):
        hasten.predict_file(bundle, given, tmp_path / "other.jsonl")


def test_a_report_is_written_in_the_medium(bundle: Path, tmp_path: Path) -> None:
    (path,) = hasten.report(bundle, output=tmp_path, format="outline")
    assert path == tmp_path / "report.outline"
    title, *headings = path.read_text().splitlines()
    assert title.startswith("model")
    assert headings
    shown = CliRunner().invoke(
        cli.app, ["report", str(bundle), "-o", str(tmp_path / "cli"), "--format", "outline"]
    )
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "cli" / "report.outline").read_bytes() == path.read_bytes()
    with pytest.raises(ChoiceError) as caught:
        hasten.report(bundle, output=tmp_path, format="pdf")
    assert "outline" in str(caught.value.fix)


def test_other_commands_list_them() -> None:
    assert "toy_numpy" in {row.name for row in hasten.doctor().engines}
    with pytest.raises(InputError) as caught:
        formats.named(Path("a.docx"))
    assert ".ltsv" in str(caught.value.fix)


def test_a_worker_process_finds_the_engine(bundle: Path, tmp_path: Path) -> None:
    tokenizer = bundle / "tokenizer.json"
    worker = WorkerProcess("toy", tmp_path / "log", threads=1)
    with hasten.load(bundle) as classify:
        whole, candidate = classify.bundle, classify.bundle.plan.candidate
    started = worker.call(
        Load(bundle, candidate, tokenizer, whole.model, tuple(TEXTS)), timeout_s=60
    )
    worker.close()
    assert started.load_s >= 0


def test_without_its_folder_a_bundle_says_which_engine_it_needs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "__path__", engines.__path__[:1])
    with pytest.raises(ChoiceError, match="toy_numpy"):
        hasten.load(bundle)
