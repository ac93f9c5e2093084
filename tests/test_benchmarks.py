"""``make bench``: parts run and continue, and what they found ends in the pages."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hasten.records import Hardware, Interval
from tests.report.results import tuned

ROOT = Path(__file__).parents[1]
PAGE = "# Page\n<!-- figures: speed -->\nold\n<!-- end of figures -->\nprose\n"

# A part that fails while the file `broken` lies beside the results.
SCRIPT = """
import sys
from pathlib import Path
import figures
options = figures.parser("a part").parse_args()
if (options.result.parent / "broken").exists():
    sys.exit(3)
with (options.result.parent.parent / "ran").open("a") as file:
    file.write(options.result.stem + " ")
figures.publish(options.result, {options.result.stem: f"{options.result.stem} found"}, [1.5])
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("bench")


@pytest.fixture
def figures(bench: ModuleType) -> Any:
    return bench.figures


@pytest.fixture
def desk(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one page and two parts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parts = tuple(bench.Part(name, name, 1, str(script)) for name in ("speed", "memory"))
    monkeypatch.setattr(bench, "PARTS", parts)
    monkeypatch.setattr(bench.figures, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench.figures, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'benchmarks'}:{ROOT}")
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def run(bench: ModuleType, desk: Path, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench.py", "--work", str(desk / "work"), *words])
        bench.main()


def test_a_block_is_replaced_and_everything_else_stays(figures: Any) -> None:
    page = PAGE + PAGE.replace("speed", "memory")
    rendered = figures.render(page, {"speed": "new\n\n| a |\n", "elsewhere": "x"})
    assert rendered == page.replace("old", "new\n\n| a |", 1)
    assert figures.render(rendered, {"speed": "new\n\n| a |"}) == rendered
    assert figures.names(rendered) == ["speed", "memory"]


def test_the_machine_is_named_with_what_decides_its_speed(figures: Any) -> None:
    zen4 = Hardware("AMD EPYC", 2, ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), 8 << 30)
    assert figures.machine(zen4) == "2 cores of an AMD EPYC with AVX2, AVX-512, VNNI, bf16"
    zen3 = Hardware("AMD EPYC", 2, ("avx2", "fma"), 8 << 30)
    assert figures.machine(zen3).endswith("with AVX2 (no AVX-512, no VNNI, no bf16)")


def test_all_parts_run_and_end_in_the_page(bench: ModuleType, desk: Path) -> None:
    run(bench, desk)
    assert "\nspeed found\n<!-- end" in (desk / "README.md").read_text()
    kept = json.loads((desk / "results" / "memory.json").read_text())
    assert kept["data"] == [1.5]
    assert "core" in kept["machine"]
    assert not (desk / "work").exists()


def test_an_interrupted_run_continues_where_it_was(bench: ModuleType, desk: Path) -> None:
    run(bench, desk, "--list")
    (desk / "work").mkdir()
    (desk / "work" / "speed.json").write_text('{"blocks": {"speed": "earlier"}}')
    (desk / "work" / "broken").touch()
    with pytest.raises(SystemExit, match="memory ended with status 3"):
        run(bench, desk)
    assert (desk / "README.md").read_text() == PAGE
    (desk / "work" / "broken").unlink()
    run(bench, desk)
    assert (desk / "ran").read_text() == "memory "
    assert "\nearlier\n" in (desk / "README.md").read_text()


def test_a_smoke_run_changes_no_page(bench: ModuleType, desk: Path) -> None:
    run(bench, desk, "--quick", "speed")
    assert (desk / "ran").read_text() == "speed "
    assert (desk / "README.md").read_text() == PAGE
    assert not (desk / "results").exists()


def test_an_unknown_part_is_refused(bench: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no part 'spede'; there are demo, "):
        bench.chosen(["spede"])


def test_the_readme_takes_at_most_35_minutes(bench: ModuleType) -> None:
    assert sum(part.minutes for part in bench.chosen([])) <= 35


def test_pages_show_what_is_kept(figures: Any) -> None:
    blocks = figures.read(ROOT / "benchmarks" / "results")
    pages = {path: path.read_text(encoding="utf-8") for path in figures.pages(ROOT)}
    stale = [str(path) for path, page in pages.items() if figures.render(page, blocks) != page]
    assert not stale, "run python benchmarks/figures.py"
    shown = {name for page in pages.values() for name in figures.names(page)}
    assert not set(blocks) - shown, "measured, and quoted nowhere"


SLEEPLESS = """
import sys, contender
assert sys.argv[1] == "--contender"
contender.answer(lambda order: print("asked for", order * int(sys.argv[2])))
"""


def test_contenders_take_turns(bench: ModuleType, desk: Path) -> None:
    contender = importlib.import_module("contender")
    script = desk / "contending.py"
    script.write_text(SLEEPLESS)
    one, other = (contender.Contender(sys.executable, str(script), n) for n in (1, 2))
    samples_s = contender.take_turns([("one", one, 5), ("other", other, 7)], rounds=3)
    for each in (one, other):
        each.close()
    assert {key: len(taken) for key, taken in samples_s.items()} == {"one": 3, "other": 3}
    assert min(min(taken) for taken in samples_s.values()) > 0


def test_a_contender_that_ends_is_named(bench: ModuleType, desk: Path) -> None:
    contender = importlib.import_module("contender")
    script = desk / "ending.py"
    script.write_text("raise SystemExit(4)")
    with pytest.raises(SystemExit, match="ended with status 4"):
        contender.Contender(sys.executable, str(script))


def test_the_headline_names_both_baselines(bench: ModuleType, tmp_path: Path) -> None:
    speed = importlib.import_module("speed")
    samples_s = {"one by one": [8.0, 8.4], "at its best": [4.0, 4.2], "hasten": [2.0, 2.1]}
    options = SimpleNamespace(model="minilm", texts=60, timed_texts=20, budget="3m")
    block = speed._block(tuned(tmp_path), samples_s, "2 streams x 1 thread, sorted", options)
    assert "4.00x faster than PyTorch one text at a time (95 % interval 4.00-4.00)" in block
    assert "2.00x faster than PyTorch at its best (95 % interval 2.00-2.00)" in block
    slower = {**samples_s, "hasten": [4.1, 4.1]}
    block = speed._block(tuned(tmp_path), slower, "2 streams x 1 thread, sorted", options)
    assert "1.00x the speed of PyTorch at its best" in block
    assert "x faster than PyTorch at its best" not in block
    assert "| PyTorch at its best (2 streams x 1 thread, sorted) | 4.9 | 2.00" in block
    assert bench.figures.machine() in block


@pytest.mark.faults  # a minute of loading PyTorch in one process after the other
@pytest.mark.timeout(600)
def test_a_part_runs_on_a_tiny_model(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/bench.py", "--quick", "speed-mpnet"]
    subprocess.run([*command, "--work", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "speed-mpnet.json").read_text())
    assert len(found["data"]["samples_s"]) == 3
    assert "PyTorch one text at a time (95 % interval" in found["blocks"]["speed-mpnet"]
    assert "PyTorch at its best (95 % interval" in found["blocks"]["speed-mpnet"]


def test_an_interval_is_held_against_the_mean_of_the_other_runs(bench: ModuleType) -> None:
    repeat: Any = importlib.import_module("repeat")
    near, far = Interval(1.9, 2.0, 2.1), Interval(2.9, 3.0, 3.1)
    assert repeat.held([near, near, near]) == [True, True, True]
    assert repeat.held([near, near, far]) == [False, False, False]
    assert repeat.held([near, near, Interval(1.9, 3.0, 4.0)])[2]
