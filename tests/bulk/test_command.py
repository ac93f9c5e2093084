"""hasten predict as a person and as a script meet it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hasten import bulk, cli


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, ["predict", *map(str, arguments)], input=given)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text("text,topic\nshares fell,business\nthey won,sport\nshares fell,x\n")
    return path


def test_the_summary_counts_what_was_done(
    scripted_bundle: Path, data: Path, tmp_path: Path
) -> None:
    result = run(scripted_bundle, data, "-o", tmp_path / "out.csv", "--text-column", "text")
    assert result.exit_code == 0, result.output
    assert "3 rows answered" in result.stdout
    assert "1 duplicate run once" in result.stdout
    assert "out.csv" in result.stdout
    assert "load: the model" in result.stderr


def test_json_is_alone_on_standard_output(
    scripted_bundle: Path, data: Path, tmp_path: Path
) -> None:
    result = run(scripted_bundle, data, "-o", f"{tmp_path}/out/", "--text-column", "text", "--json")
    summary = json.loads(result.stdout)
    assert summary["total"]["rows"] == 3
    assert summary["rows_per_s"] > 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_pipes_carry_answers_and_nothing_else(scripted_bundle: Path) -> None:
    result = run(
        scripted_bundle, "-", "-o", "-", "--input-format", "txt", given="shares fell\nthey won\n"
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["shares fell", "they won"]
    assert "2 rows answered" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "label=text"], "has a column 'text'"),
        (["--on-error", "maybe"], "stop, record"),
        (["--text-column", "body"], "--text-column"),
        (["--format", "docx"], "contradict"),
    ],
)
def test_errors_are_messages_with_a_status(
    scripted_bundle: Path,
    data: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    given = ["--text-column", "text"] if "--text-column" not in options else []
    result = run(scripted_bundle, data, "-o", tmp_path / "out.csv", *given, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_rows_with_errors_are_counted(scripted_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nfine\n\xff\n")
    stopped = run(scripted_bundle, tmp_path / "a.csv", "-o", tmp_path / "out.csv")
    assert stopped.exit_code == 2
    assert "line 3" in stopped.stderr
    assert "--on-error record" in stopped.stderr
    recorded = run(
        scripted_bundle,
        tmp_path / "a.csv",
        "-o",
        tmp_path / "out.csv",
        "--on-error",
        "record",
        "--restart",
    )
    assert recorded.exit_code == 0, recorded.output
    assert "1 row has an error instead" in recorded.stdout
    assert "line 3" in (tmp_path / "out.csv").read_text()


def test_a_warning_is_a_sentence(
    scripted_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(*_: object, **__: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("this machine is another one", stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(bulk.run, "verified", warned)
    result = run(scripted_bundle, data, "-o", tmp_path / "out.csv")
    assert "warning: this machine is another one" in result.stderr
    assert "test_command.py" not in result.stderr
    assert result.exit_code == 130
