"""The command line as a person and as a script meet it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hasten import __version__, api, cli
from hasten.cli import reference
from hasten.demo import assets as demo
from hasten.errors import BudgetError, EngineError, HastenError, NoCandidate, Unavailable
from hasten.records import Briefing, Parity, Progress, Student, Tuning
from hasten.report import charts, content, stored
from hasten.runtime import bundle
from tests.report import results
from tests.scripted import MACHINE, Lab, save_bundle

FAST = {"*": {"call_s": 1e-3, "token_s": 2e-5}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), FAST, precisions=("fp32",))


@pytest.fixture(scope="module")
def tuning(lab: Lab) -> Tuning:
    return lab.tune()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text("text,topic\nshares fell,business\nthey won,sport\n")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def replaced(monkeypatch: pytest.MonkeyPatch, outcome: Tuning | BaseException) -> dict[str, Any]:
    """Stand in for the library's one call, and keep what it was called with."""
    seen: dict[str, Any] = {}

    def tune(model: Any, texts: Any, **options: Any) -> Tuning:
        seen.update(options, model=model, texts=texts)
        if isinstance(outcome, BaseException):
            raise outcome
        profile, model_info = outcome.profile, outcome.model
        options["on_event"](Briefing(model_info, profile, MACHINE, 60, resumed=True))
        options["on_event"](Progress("screen", "fake [bold]x[/]", 0.5, 61.0))
        options["on_event"](Progress("finals", "too soon for a second line", 0.6, 60.0))
        return outcome

    monkeypatch.setattr(api, "tune", tune)
    return seen


def test_every_option_reaches_the_library(
    data: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = replaced(monkeypatch, tuning)
    options = (
        "--output out --label-column topic --tokenizer tok --weights w.pt --task multi_label "
        "--allow-pickle --reference big --budget 90s --max-latency-ms 20 --max-flips 0.05 --strict "
        "--engines onnx_runtime,openvino --precisions fp32, --batch-sizes 1,8 --threads 3 "
        "--device cpu --max-texts 50 --rounds 7 --seed 4 --restart"
    )
    result = run("tune", "model", "--data", data, *options.split())
    assert result.exit_code == 0, result.output
    assert seen["texts"] == ("shares fell", "they won")
    assert seen["labels"] == ("business", "sport")
    expected = {
        "model": "model",
        "tokenizer": Path("tok"),
        "output": Path("out"),
        "weights": Path("w.pt"),
        "task": "multi_label",
        "random_weights": False,
        "allow_pickle": True,
        "reference": "big",
        "budget": "90s",
        "objective": "throughput",
        "max_latency_ms": 20.0,
        "max_flips": 0.05,
        "strict": True,
        "engines": "onnx_runtime,openvino",
        "precisions": "fp32,",
        "batch_sizes": "1,8",
        "threads": 3,
        "device": "cpu",
        "max_texts": 50,
        "rounds": 7,
        "seed": 4,
        "restart": True,
    }
    assert {key: seen[key] for key in expected} == expected


def test_random_weights_take_the_demos_tokenizer_only_where_there_is_none(
    data: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "tokenizer_file", lambda: Path("demo.json"))
    seen = replaced(monkeypatch, tuning)
    run("tune", tmp_path, "--data", data, "--random-weights")
    assert seen["tokenizer"] == Path("demo.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    run("tune", tmp_path, "--data", data, "--random-weights")
    assert seen["tokenizer"] is None
    run("tune", tmp_path, "--data", data)
    assert seen["tokenizer"] is None


def test_the_profile_is_shown_before_and_the_answer_after(
    data: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, tuning)
    result = run("tune", "model", "--data", data)
    assert "60 texts" in result.stderr
    assert "Continuing an interrupted run" in result.stderr
    assert "screen: fake [bold]x[/], 1:01 left" in result.stderr
    assert "too soon" not in result.output
    assert result.stdout.startswith("Fastest: Fake fp32")
    assert "\x1b[" not in result.output


def test_json_is_alone_on_standard_output(
    data: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, tuning)
    result = run("tune", "model", "--data", data, "--json")
    plan = json.loads(result.stdout)["plan"]
    assert plan["candidate"]["engine"] == "fake"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BudgetError("too small", fix="Try --budget 10m."), 2),
        (EngineError("broke"), 1),
        (NoCandidate("none"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_messages_with_a_status(
    data: Path, error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, error)
    result = run("tune", "model", "--data", data)
    assert result.exit_code == status
    assert "Traceback" not in result.output
    if isinstance(error, HastenError):
        assert f"error: {error.message}" in result.stderr
        assert (error.fix or "") in result.stderr
    else:
        assert "the same command continues" in result.stderr


def test_a_bug_shows_itself(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, ZeroDivisionError("a bug"))
    assert isinstance(run("tune", "model", "--data", data).exception, ZeroDivisionError)


def test_debug_shows_our_errors_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, EngineError("broke"))
    assert isinstance(run("tune", "model", "--data", data, "--debug").exception, EngineError)


def test_a_wrong_number_in_a_list_is_told(data: Path) -> None:
    result = run("tune", "model", "--data", data, "--batch-sizes", "1,many")
    assert result.exit_code == 2
    assert "1,many" in result.stderr


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    result = run("tune", "model", "--data", tmp_path / "nowhere.csv")
    assert result.exit_code == 2
    assert "nowhere.csv" in result.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, lab: Lab, tuning: Tuning) -> Path:
    """A bundle."""
    return save_bundle(tmp_path_factory.mktemp("saved") / "b", lab, tuning)


def test_the_report_of_a_bundle_is_shown_again(tmp_path: Path, saved: Path) -> None:
    shown = run("report", saved, "--format", "md")
    assert "Fastest: Fake fp32" in shown.stdout
    assert "b.report.md" in shown.stderr
    assert saved.with_name("b.report.md").read_text().startswith("# scripted, tuned")
    bundle.load(saved)  # it is still what its manifest says
    assert json.loads(run("report", saved, "--json").stdout)["model"]["name"] == "scripted"
    missing = run("report", tmp_path)
    assert missing.exit_code == 2
    assert "not a bundle" in missing.stderr


def test_a_report_goes_where_it_is_asked_to(tmp_path: Path, saved: Path) -> None:
    shown = run("report", saved, saved, "-o", tmp_path / "site", "--format", "md")
    assert "No significant difference" in shown.stdout
    assert (tmp_path / "site" / "comparison.md").exists()
    both = run("report", saved, saved, "-o", tmp_path / "none", "--json")
    assert len(json.loads(both.stdout)) == 2
    assert not (tmp_path / "none").exists()
    wrong = run("report", saved, "-o", tmp_path, "--format", "pdf")
    assert (wrong.exit_code, "html, md, png, svg" in wrong.stderr) == (2, True)


def test_without_the_charts_packages_the_report_is_shown_and_the_command_named(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise Unavailable(f"charts need {name}", fix="pip install 'hasten[report]'")

    monkeypatch.setattr(charts, "library", absent)
    shown = run("report", saved, "-o", tmp_path)
    assert shown.exit_code == 0
    assert "Fastest: Fake fp32" in shown.stdout
    assert "pip install 'hasten[report]'" in shown.stderr
    assert run("report", saved, "-o", tmp_path, "--format", "html").exit_code == 2


def test_doctor_names_every_engine() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    for name in ("ONNX Runtime", "OpenVINO", "PyTorch eager", "TorchScript", "torch.compile"):
        assert name in result.stdout
    assert {"hardware", "engines"} <= json.loads(run("doctor", "--json").stdout).keys()


def test_a_finished_student_names_the_command_that_compares_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parity = Parity(80, 0.5, 0.1, 2, 0, 0.077, 0, decisions=True)
    student = Student((0, 2), 4, 32, 64, 400, 1000, 700, 90, (0.9,), parity, parity, 61.0)
    monkeypatch.setattr(api, "compress", lambda *_, **__: student)
    told = run("compress", "my model", "--data", data, "--layers", "2", "--text-column", "text")
    assert told.stdout.splitlines()[-1] == (
        f"Next:    hasten tune student --reference 'my model' --data {data} --text-column text "
        "-o bundle"
    )


def test_both_models_are_named_before_anything_is_measured(
    data: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(*_: Any, on_event: Any, **__: Any) -> Tuning:
        small = replace(tuning.model, name="small")
        on_event(Briefing(tuning.model, tuning.profile, MACHINE, 60, False, student=small))
        return tuning

    monkeypatch.setattr(api, "tune", tune)
    told = run("tune", "small", "--reference", "big", "--data", data).stderr
    assert "Model   scripted (Scripted)" in told
    assert "Student small (Scripted)" in told


def test_help_has_examples_and_the_version_is_told() -> None:
    assert "hasten tune ./my-model --data texts.csv" in run("tune", "--help").stdout
    assert run("--version").stdout.strip() == f"hasten {__version__}"


def test_the_reference_of_the_command_line_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference.render(), (
        "write it again: python -m hasten.cli.reference > docs/cli.md"
    )


def lines_of(shown: str, width: int = 80) -> int:
    """How many lines a terminal of that width needs."""
    return sum(max(1, -(-len(line.rstrip()) // width)) for line in shown.splitlines())


def test_the_whole_of_a_tune_fits_on_one_screen(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tuning = results.crowded(tmp_path)
    replaced(monkeypatch, tuning)
    result = run("tune", "model", "--data", data, "-o", "my-bundle")
    assert lines_of(result.output) <= 25, result.output
    shown = " ".join(result.stdout.split())
    for fact in (
        "Fastest: Fake bf16 (2 streams x 1 thread, batches planned by length). ",
        "x faster than Fake one text at a time (95 % interval ",
        "x faster than Fake's own best, 2 streams x 1 thread",
        "1 of 700 labels flipped: at most 0.676 % with 95 % confidence",
        "accuracy 80 %, the original's 81 %",
        "The machine was noisy: rounds spread.",
        "(1 more in the report)",
        "Refused: Fake int8 static-7 2x1: 47 of 700 labels flipped. Also refused: ",
        "Fake int8 static-0 2x1, 47 of 700 labels flipped; 10 more.",
        "3 cannot run here",
        "hasten report my-bundle",
        "hasten.load('my-bundle')",
    ):
        assert fact in shown, (fact, result.stdout)
    for role in ("chosen", "runner-up, Fake's best", "baseline"):
        assert f" {role} " in shown
    assert "memory" not in shown


def test_verbose_shows_every_candidate_and_its_reason(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tuning = results.crowded(tmp_path)
    replaced(monkeypatch, tuning)
    shown = " ".join(run("tune", "model", "--data", data, "--verbose").stdout.split())
    for row in tuning.rows:
        if row.status == "refused":
            assert f"{content.short(row.candidate)} refused: {row.reason}" in shown
    assert "Batching with" in shown
    assert "Not tried here" in shown


def test_every_kind_of_report_fits_on_one_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "bundle": results.crowded(tmp_path),
        "latency": results.tuned(tmp_path / "latency", objective="latency"),
        "bench": results.benched(tmp_path / "bench"),
        "singles": results.benched(tmp_path / "singles", "latency"),
    }
    monkeypatch.setattr(stored, "read", lambda path: found[path.name])
    for name in found:
        shown = run("report", tmp_path / name, "-o", tmp_path, "--format", "md")
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.startswith("Fastest")
        assert lines_of(shown.stdout) <= 25, shown.stdout
    both = run("report", tmp_path / "bundle", tmp_path / "bench", "-o", tmp_path, "--format", "md")
    assert lines_of(both.stdout) <= 25, both.stdout
    whole = run("report", tmp_path / "bench", "-o", tmp_path, "--format", "md", "--verbose")
    assert "Latency of single texts" in whole.stdout


def test_a_command_leaves_no_log_handler_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    assert run("report", tmp_path, "--debug").exit_code == 1
    assert (root.handlers, root.level) == ([], logging.WARNING)
