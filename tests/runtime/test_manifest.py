"""The manifest: format 2 as it is written, format 1 as it still reads, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten import tasks
from hasten.engines.fake import Fake
from hasten.errors import BundleError, EngineError
from hasten.records import HandsOn, ModelInfo, Plan, Strategy, Tuning
from hasten.runtime import bundle, manifest, signature
from hasten.runtime.saving import NewStage, save
from tests.runtime.test_bundle import FAST, rewrite
from tests.scripted import MACHINE, Lab, save_bundle


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), FAST, precisions=("fp32",))


@pytest.fixture(scope="module")
def tuning(lab: Lab) -> Tuning:
    return lab.tune()


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "key_file", lambda: tmp_path / "user" / "bundle.key")


def as_format_1(raw: dict[str, Any]) -> None:
    """Turn a manifest of one stage into the older form."""
    (stage,) = raw.pop("stages")
    names = ("candidate", "strategy", "cost_table", "max_batch_latency_s")
    raw["plan"] = {name: stage[name] for name in names}
    raw["format"] = 1
    del raw["task"]


def test_one_stage_lies_where_other_tools_look(tmp_path: Path, lab: Lab, tuning: Tuning) -> None:
    folder = save_bundle(tmp_path / "b", lab, tuning)
    raw = json.loads((folder / "hasten.json").read_text())
    (stage,) = raw["stages"]
    assert (raw["format"], stage["folder"], stage["probes"]) == (2, ".", "probes.json")
    assert raw["task"] == {"name": "single_label", "settings": {}}
    assert stage["session"] == {"threads": tuning.plan.candidate.intra_op_num_threads}
    assert (folder / "fake.json").exists()


def test_format_1_is_read_into_the_same_records(tmp_path: Path, lab: Lab, tuning: Tuning) -> None:
    folder = save_bundle(tmp_path / "b", lab, tuning)
    new = bundle.load(folder, here=MACHINE)
    rewrite(folder, as_format_1)
    old = bundle.load(folder, here=MACHINE)
    assert old.stages == (replace(new.stages[0], session={}),)
    assert replace(old, stages=new.stages, digest=new.digest) == new
    assert bundle.read_tuning(folder) == tuning


def test_fields_of_a_later_version_are_refused_with_its_name(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    folder = save_bundle(tmp_path / "b", lab, tuning)

    def later(raw: dict[str, Any]) -> None:
        raw["hasten"] = "99.0"
        raw["stages"][0]["candidate"]["sparse"] = True

    rewrite(folder, later)
    with pytest.raises(BundleError, match=r"written by hasten 99\.0") as caught:
        bundle.load(folder, here=MACHINE)
    assert "hasten==99.0" in (caught.value.fix or "")


def test_a_session_is_opened_as_the_manifest_says(
    tmp_path: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bundle(tmp_path / "b", lab, tuning)
    rewrite(folder, lambda raw: raw["stages"][0]["session"].update({"threads": 7}))
    (stage,) = bundle.load(folder, here=MACHINE).stages
    opened: list[Any] = []
    monkeypatch.setattr(Fake, "open", lambda *arguments: opened.append(arguments[-1]))
    Fake().load(stage.folder, stage.plan.candidate, stage.session)
    Fake().load(stage.folder, stage.plan.candidate, {})
    assert opened == [{"threads": 7}, {"threads": stage.plan.candidate.intra_op_num_threads}]
    with pytest.raises(EngineError, match="no session option profile_file_prefix"):
        Fake().load(stage.folder, stage.plan.candidate, {"profile_file_prefix": "/etc/passwd"})


# --- several stages ---------------------------------------------------------------------------


def two_stages(lab: Lab, tuning: Tuning, **first: Any) -> list[NewStage]:
    """An int8 model that hands on what it is unsure of, and the original."""
    reference = lab.reference.folder
    last = NewStage(
        lab.folder / "artifacts" / "fake-fp32-cpu",
        reference,
        tuning.model,
        tuning.plan,
        tuning.probes,
    )
    artifact = lab.folder / "first"
    artifact.mkdir(exist_ok=True)
    (artifact / "fake.json").write_text((last.artifact / "fake.json").read_text())
    usual = {"artifact": artifact, "probes": None, "hands_on": HandsOn(0.5)}
    return [replace(last, **{**usual, **first}), last]


def save_stages(folder: Path, lab: Lab, tuning: Tuning, stages: list[NewStage]) -> Path:
    save(folder, tuning, stages=stages, extra={}, results=lab.folder / "results.jsonl")
    return folder


def test_stages_are_saved_in_order_and_share_what_is_equal(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    stages = two_stages(lab, tuning)
    folder = save_stages(tmp_path / "b", lab, tuning, stages)
    loaded = bundle.load(folder, here=MACHINE)
    assert [stage.folder for stage in loaded.stages] == [folder, folder / "stages/2"]
    assert {stage.tokenizer for stage in loaded.stages} == {folder / "tokenizer.json"}
    assert [stage.hands_on for stage in loaded.stages] == [HandsOn(0.5), None]
    assert [stage.probes for stage in loaded.stages] == [None, tuning.probes]
    assert not (folder / "stages/2/tokenizer.json").exists()
    shared = two_stages(lab, tuning, artifact=stages[1].artifact)
    folder = save_stages(tmp_path / "c", lab, tuning, shared)
    assert {s.folder for s in bundle.load(folder, here=MACHINE).stages} == {folder}


def test_a_stage_with_other_words_keeps_its_own_tokenizer(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    own = tmp_path / "student"
    own.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (own / name).write_text((lab.reference.folder / name).read_text() + "\n")
    student = replace(tuning.model, name="student", max_length=64)
    first, last = two_stages(lab, tuning, reference=own, model=student)
    loaded = bundle.load(save_stages(tmp_path / "b", lab, tuning, [first, last]), here=MACHINE)
    assert [stage.model for stage in loaded.stages] == [student, tuning.model]
    assert loaded.model == tuning.model
    assert loaded.stages[1].tokenizer == tmp_path / "b/stages/2/tokenizer.json"
    assert loaded.stages[1].tokenizer.read_bytes() != loaded.stages[0].tokenizer.read_bytes()


def other(tuning: Tuning, **changes: Any) -> ModelInfo:
    return replace(tuning.model, **changes)


def test_stages_that_do_not_fit_together_are_refused_before_anything_is_written(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    labels = tuning.model.labels
    reasons: dict[str, dict[str, Any]] = {
        "only one of them knows new": {"model": other(tuning, labels=(*labels, "new"))},
        "in a different order": {"model": other(tuning, labels=labels[::-1])},
        "different tasks": {"model": other(tuning, task="multi_label")},
        "every stage but the last": {"hands_on": None},
    }
    for reason, first in reasons.items():
        with pytest.raises(BundleError, match=reason):
            save_stages(tmp_path / "b", lab, tuning, two_stages(lab, tuning, **first))
    regression = other(tuning, task="regression")
    stages = [replace(stage, model=regression) for stage in two_stages(lab, tuning)]
    with pytest.raises(BundleError, match="makes no decision"):
        save_stages(tmp_path / "b", lab, tuning, stages)
    assert not (tmp_path / "b").exists()


def test_answers_that_point_to_tokens_need_the_same_tokens_from_every_stage(
    tmp_path: Path, lab: Lab, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_stages(
        tmp_path / "b", lab, tuning, two_stages(lab, tuning, model=other(tuning, max_length=64))
    )
    bundle.load(folder, here=MACHINE)
    monkeypatch.setattr(type(tasks.get("single_label")), "needs_spans", True)
    with pytest.raises(BundleError, match="different tokens"):
        bundle.load(folder, here=MACHINE)


def test_a_second_stage_that_is_damaged_or_cannot_run_here_is_refused(
    tmp_path: Path, lab: Lab, tuning: Tuning
) -> None:
    folder = save_stages(tmp_path / "b", lab, tuning, two_stages(lab, tuning))
    victim = folder / "stages/2/fake.json"
    content = victim.read_text()
    victim.write_text(content.upper())
    with pytest.raises(BundleError, match=r"stages/2/fake\.json has been altered"):
        bundle.load(folder, here=MACHINE)
    victim.unlink()
    with pytest.raises(BundleError, match=r"stages/2/fake\.json is missing"):
        bundle.load(folder, here=MACHINE)
    first, last = two_stages(lab, tuning)
    candidate = replace(tuning.plan.candidate, precision="bf16")
    last = replace(last, plan=Plan(candidate, Strategy("sorted", 8), None))
    folder = save_stages(tmp_path / "c", lab, tuning, [first, last])
    with pytest.raises(BundleError, match="bf16"):
        bundle.load(folder, here=replace(MACHINE, instruction_sets=("avx2",)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokenizer", "../tokenizer.json"), ("folder", "/etc"), ("probes", "missing.json")],
)
def test_a_stage_cannot_reach_outside_or_name_what_is_not_listed(
    tmp_path: Path, lab: Lab, tuning: Tuning, field: str, value: str
) -> None:
    folder = save_stages(tmp_path / "b", lab, tuning, two_stages(lab, tuning))
    rewrite(folder, lambda raw: raw["stages"][1].update({field: value}))
    with pytest.raises(BundleError, match=r"outside the bundle|not among the files"):
        bundle.load(folder, here=MACHINE)


@pytest.mark.parametrize("below", ["NaN", "Infinity"])
def test_a_threshold_that_is_not_a_number_is_refused(
    tmp_path: Path, lab: Lab, tuning: Tuning, below: str
) -> None:
    folder = save_stages(tmp_path / "b", lab, tuning, two_stages(lab, tuning))
    rewrite(folder, lambda raw: raw["stages"][0]["hands_on"].update({"below": float(below)}))
    with pytest.raises(BundleError, match="finite number"):
        bundle.load(folder, here=MACHINE)


def test_sessions_of_onnx_runtime_follow_the_options(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Cast", ["input_ids"], ["logits"], to=1)
    shape = ["batch", "length"]
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, shape)],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    from hasten import engines
    from hasten.records import Candidate

    engine, candidate = engines.get("onnx_runtime"), Candidate("onnx_runtime", "fp32", "cpu", 1)
    session: Any = engine.load(tmp_path, candidate, {"intra_op_num_threads": 2})
    (inner,) = session.sessions
    found = inner.get_session_options()
    assert (found.intra_op_num_threads, found.inter_op_num_threads) == (2, 1)
    assert found.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_the_manifest_has_one_spelling() -> None:
    assert (
        manifest.canonical({"b": 1, "sha256": "x", "a": [1.5, "ä"]})
        == b'{"a":[1.5,"\\u00e4"],"b":1}'
    )
