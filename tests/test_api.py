"""``hasten.tune`` and ``hasten.load`` end to end, with real engines on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hasten
from hasten import hardware
from hasten.errors import (
    BundleError,
    ChoiceError,
    HastenError,
    InputError,
    ModelError,
    ResumeError,
    StorageError,
)
from hasten.records import Briefing, Progress
from hasten.report import stored
from hasten.runtime import bundle
from hasten.storage import workfolder
from hasten.tuning.texts import choose_texts
from tests.tiny import save_tiny, tiny_texts

TEXTS = tiny_texts(40)
# One quick exact engine is enough here; all of them have their contract tests.
QUICK: dict[str, Any] = {
    "engines": ["onnx_runtime"],
    "batch_sizes": [1, 8],
    "rounds": 5,
    "threads": 1,
    "budget": 60,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-bert", "bert")


@pytest.fixture(scope="module")
def tuned(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, hasten.Tuning, list[Any]]:
    folder = tmp_path_factory.mktemp("tuned") / "bundle"
    events: list[Any] = []
    tuning = hasten.tune(model, texts=TEXTS, output=folder, on_event=events.append, **QUICK)
    return folder, tuning, events


def test_the_main_job_ends_in_a_bundle_with_its_evidence(tuned: Any) -> None:
    folder, tuning, events = tuned
    assert tuning.plan.candidate.engine == "onnx_runtime"
    assert tuning.chosen.parity.flips == 0
    assert tuning.chosen.parity.compared == len(TEXTS)
    assert "Fastest: ONNX Runtime fp32" in (folder / "report.md").read_text()
    assert isinstance(events[0], Briefing)
    assert events[0].profile.texts == len(TEXTS)
    done = [event.done for event in events if isinstance(event, Progress)]
    assert all(0 <= share <= 1 for share in done)
    assert not folder.with_name("bundle.tuning").exists()
    raw = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert sum(line.get("key", "").startswith("round:") for line in raw) >= 4


def test_a_bundle_answers_as_the_pipeline_does(tuned: Any, model: Path) -> None:
    from transformers import pipeline

    original = pipeline("text-classification", model=str(model), device="cpu")
    texts = [*TEXTS[:5], ""]
    with hasten.load(tuned[0]) as classify:
        for arguments in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}):
            expected = original(texts, truncation=True, **arguments)
            _assert_same(classify(texts, **arguments), expected)
            single = original(texts[0], truncation=True, **arguments)
            _assert_same(classify(texts[0], **arguments), single)
        assert classify([]) == []


def _assert_same(answer: Any, expected: Any) -> None:
    assert type(answer) is type(expected)
    if isinstance(answer, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            _assert_same(one, other)
    else:
        assert list(answer) == list(expected)
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_outputs_keep_the_inputs_order_whatever_the_batches(tuned: Any) -> None:
    with hasten.load(tuned[0]) as classify:
        together = classify.outputs(TEXTS).values
        alone = np.concatenate([classify.outputs([text]).values for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_bundle_runs_without_torch_and_transformers(tuned: Any) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import hasten; print(hasten.load(sys.argv[1])('ba ke')[0]['label'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tuned[0])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LABEL_")


def test_texts_that_are_not_text_are_told(tuned: Any) -> None:
    with hasten.load(tuned[0]) as classify, pytest.raises(InputError, match="texts are int"):
        classify(123)
    with hasten.load(tuned[0]) as classify, pytest.raises(InputError, match="int"):
        classify(["a", 3])


def test_an_argument_that_a_bundle_does_not_take_is_refused_with_those_it_takes(
    tuned: Any,
) -> None:
    with hasten.load(tuned[0]) as classify:
        with pytest.raises(ChoiceError, match="does not take temperature") as caught:
            classify("ba ke", temperature=1)
        named = str(caught.value.fix).rpartition("texts and ")[2].rstrip(".").split(", ")
        assert {"top_k", "truncation", "batch_size"} <= set(named)
        assert "unknown" not in named


def test_another_machine_is_warned_about(tuned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    then = bundle.load(tuned[0])
    elsewhere = replace(then.hardware, cpu_model="Elsewhere CPU")
    monkeypatch.setattr(hardware, "detect", lambda: elsewhere)
    with pytest.warns(UserWarning, match="Elsewhere CPU") as warned:
        hasten.load(tuned[0]).close()
    assert any(then.hardware.cpu_model in str(warning.message) for warning in warned)


def test_a_module_in_memory_is_tuned_by_its_tensors(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from tests.tiny import save_tiny_tokenizer

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(200, 16)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            mask = attention_mask.unsqueeze(-1)
            return (self.embed(input_ids) * mask).sum(1) / mask.sum(1)

    torch.manual_seed(0)
    module = Pooled().eval()
    folder = tmp_path / "bundle"
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    tuning = hasten.tune(
        module,
        TEXTS,
        tokenizer=tokenizer,
        output=folder,
        task="tensors",
        precisions=["fp32"],
        **QUICK,
    )
    assert tuning.chosen.parity is not None
    assert not tuning.chosen.parity.decisions
    with hasten.load(folder) as embed:
        vectors = embed(TEXTS[:3])
        nothing = embed([]), embed.outputs([]).values.shape
    assert nothing == ([], (0, len(vectors[0])))
    ids = torch.tensor([embed.stages.first.pipeline().tokenizer.encode(TEXTS[:1]).ids.tolist()])
    expected = module(ids, torch.ones_like(ids))[0].tolist()
    assert vectors[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"engines": ["tensorflow"]}, ChoiceError, "tensorflow"),
        ({"precisions": ["fp8"]}, ChoiceError, "fp8"),
        ({"device": "tpu"}, ChoiceError, "tpu"),
        ({"objective": "beauty"}, ChoiceError, "beauty"),
        ({"budget": "soon"}, ChoiceError, "soon"),
        ({"budget": 0}, ChoiceError, "0"),
        ({"max_flips": 2.0}, ChoiceError, "--max-flips"),
        ({"threads": 0}, ChoiceError, "--threads"),
        ({"batch_sizes": [0, 1]}, ChoiceError, "--batch-sizes"),
        ({"rounds": 4}, ChoiceError, "--rounds"),
        ({"objective": "latency", "max_latency_ms": 5.0}, ChoiceError, "--max-latency-ms"),
        ({"texts": []}, InputError, "texts is empty"),
        ({"labels": ["a"]}, InputError, "40 texts and 1 labels"),
    ],
)
def test_nonsense_is_refused_before_anything_is_measured(
    model: Path, tmp_path: Path, settings: dict[str, Any], error: type[HastenError], message: str
) -> None:
    arguments = {"texts": TEXTS, "output": tmp_path / "bundle", **QUICK, **settings}
    with pytest.raises(error, match=message):
        hasten.tune(model, **arguments)
    assert not (tmp_path / "bundle").exists()


def test_unknown_gold_labels_are_told_early(model: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    with pytest.raises(InputError, match="spam"):
        hasten.tune(
            model,
            texts=TEXTS,
            labels=["spam"] * len(TEXTS),
            output=tmp_path / "bundle",
            on_event=events.append,
            **QUICK,
        )
    assert not [event for event in events if isinstance(event, Progress)]
    assert not list(tmp_path.iterdir())


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        hasten.tune(str(tmp_path / "nowhere"), texts=TEXTS, output=tmp_path / "bundle", **QUICK)
    assert not list(tmp_path.iterdir())


def test_a_refused_run_takes_its_folder_away_unless_something_was_measured(tmp_path: Path) -> None:
    work, results = tmp_path / "bundle.tuning", tmp_path / "bundle.tuning" / workfolder.RESULTS

    def run(lines: tuple[str, ...], name: str) -> None:
        with workfolder.held(work, restart=False, ours=(), worth=("student",)):
            (work / name).touch()
            if lines:
                results.write_text("\n".join(lines))
            raise ModelError("the second model is not there")

    def refused(*lines: str, name: str = "reference.json") -> None:
        with pytest.raises(ModelError):
            run(lines, name)

    refused()
    assert not list(tmp_path.iterdir())
    refused("{header}")
    assert not list(tmp_path.iterdir())
    refused(name="student")
    assert (work / "student").exists()
    refused()  # a folder that was there stays
    assert work.exists()
    workfolder.discard(work)
    refused("{header}", "{result}")
    assert results.exists()


def test_a_folder_with_other_things_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(StorageError, match="is not a bundle"):
        hasten.tune(model, texts=TEXTS, output=tmp_path, **QUICK)


def test_a_foreign_work_folder_is_left_alone(model: Path, tmp_path: Path) -> None:
    precious = tmp_path / "bundle.tuning" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(StorageError, match="holds something else"):
        hasten.tune(model, texts=TEXTS, output=tmp_path / "bundle", restart=True, **QUICK)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("restart", [False, True])
def test_a_bench_leaves_a_folder_of_others_alone(
    model: Path, tmp_path: Path, restart: bool
) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "precious.txt").write_text("precious")
    with pytest.raises(StorageError, match="holds something else"):
        hasten.bench(model, texts=TEXTS, output=tmp_path, restart=restart)
    assert (tmp_path / "reference" / "precious.txt").exists()


BENCH: dict[str, Any] = {
    "engines": ["onnx_runtime"],
    "precisions": ["fp32"],
    "batch_sizes": [1, 8],
    "runs": 2,
    "threads": 1,
    "max_texts": 20,
}


def test_a_bench_adds_to_what_it_finished(model: Path, tmp_path: Path) -> None:
    first = hasten.bench(
        model, texts=TEXTS, output=tmp_path / "bench", experiments=["batch-size"], **BENCH
    )

    def interrupt(event: Any) -> None:
        if isinstance(event, Progress) and event.stage == "length":
            raise KeyboardInterrupt

    more: dict[str, Any] = {"experiments": ["length"], "lengths": [8, 16], **BENCH}
    with pytest.raises(KeyboardInterrupt):
        hasten.bench(model, texts=TEXTS, output=tmp_path / "bench", on_event=interrupt, **more)
    assert stored.read(tmp_path / "bench") == first
    both = hasten.bench(model, texts=TEXTS, output=tmp_path / "bench", **more)
    assert both.experiments == ("batch-size", "length")
    assert [f.row.runs for f in both.formats] == [f.row.runs for f in first.formats]
    assert all(format_.shapes for format_ in both.formats)
    assert stored.read(tmp_path / "bench") == both


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"experiments": ["speed"]}, "--experiments has 'speed'"),
        ({"runs": 1}, "--runs is 1"),
        ({"lengths": [100_000]}, "--lengths has 100000"),
        ({"engines": ["tvm"]}, "unknown engine 'tvm'"),
    ],
)
def test_a_bench_refuses_what_means_nothing(
    model: Path, tmp_path: Path, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(ChoiceError, match=match):
        hasten.bench(model, texts=TEXTS, output=tmp_path / "bench", **{**BENCH, **arguments})


def test_two_runs_cannot_write_to_one_folder(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"

    def again(event: Any) -> None:
        del event
        hasten.tune(model, texts=TEXTS, output=output, restart=True, **QUICK)

    with pytest.raises(StorageError, match="another run is writing"):
        hasten.tune(model, texts=TEXTS, output=output, on_event=again, **QUICK)


def test_a_run_of_other_texts_is_not_continued(model: Path, tmp_path: Path) -> None:
    def interrupt(event: Any) -> None:
        if isinstance(event, Progress) and "answers to" in event.message:  # something is stored
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"output": tmp_path / "bundle", **QUICK}
    with pytest.raises(KeyboardInterrupt):
        hasten.tune(model, texts=TEXTS, on_event=interrupt, **arguments)
    with pytest.raises(ResumeError, match="texts"):
        hasten.tune(model, texts=TEXTS[1:], on_event=interrupt, **arguments)
    with pytest.raises(KeyboardInterrupt):
        hasten.tune(model, texts=TEXTS[1:], on_event=interrupt, restart=True, **arguments)


def test_a_bundle_of_a_missing_engine_says_what_to_install(
    tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HastenError, match=r"onnxruntime") as caught:
        hasten.load(tuned[0])
    assert "hasten[onnx]" in (caught.value.fix or "")


def test_load_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        hasten.load(tmp_path)


def test_lengths_of_many_texts_are_profiled_on_a_sample(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.models import prepare
    from hasten.records import Settings

    monkeypatch.setattr("hasten.tuning.texts._MOST_PROFILED", 30)
    reference = prepare(str(model), tmp_path / "reference")
    chosen = choose_texts(reference, TEXTS, None, Settings(texts=10))
    assert chosen.profile.texts == 30
    assert len(chosen.texts) == 10
    assert set(chosen.texts) <= set(TEXTS)
    np.testing.assert_array_equal(
        chosen.tokens.lengths, reference.tokenizer().encode(chosen.texts).lengths
    )


def test_calibration_texts_are_held_apart(model: Path, tmp_path: Path) -> None:
    from hasten.models import prepare
    from hasten.records import Settings

    reference = prepare(str(model), tmp_path / "reference")
    texts = [*tiny_texts(300, seed=5), *tiny_texts(20, seed=5)]  # twenty come twice
    chosen = choose_texts(reference, texts, None, Settings())
    assert len(chosen.calibration) == 96  # three in ten
    assert not set(chosen.calibration) & set(chosen.texts)
    assert abs(chosen.calibration_lengths.mean() - chosen.tokens.lengths.mean()) < 2
    again = choose_texts(reference, texts, None, Settings())
    assert again.digest == chosen.digest
    fewer = choose_texts(reference, texts, None, Settings(calibration=40))
    assert len(fewer.calibration) == 40
    for settings in (Settings(precisions=("fp32",)), Settings(integers=False)):
        assert choose_texts(reference, texts, None, settings).calibration == ()
    few = choose_texts(reference, texts[:100], None, Settings())
    assert few.calibration == ()
    assert len(few.texts) == 100
    copies = choose_texts(reference, ["the same"] * 200, None, Settings())
    assert copies.calibration == ()
    assert len(copies.texts) == 200
    # Each of the frequent texts may be drawn once; if most are, too little would be left.
    frequent = choose_texts(reference, texts[:150] * 4, None, Settings())
    assert not set(frequent.calibration) & set(frequent.texts)
    assert len(frequent.calibration) == 45
