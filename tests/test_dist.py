"""What ``make dist`` builds, and that it runs where nothing but its dependencies is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import hasten

ROOT = Path(__file__).parents[1]
STEM = f"hasten-{hasten.__version__}"


def run(*words: str | Path, cwd: Path) -> str:
    """What a program prints that sees no source tree by way of ``PYTHONPATH``."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{STEM}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hasten").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == package
    assert "hasten/py.typed" in names
    assert any(name.startswith("hasten/report/assets/") for name in names)
    assert not any(part.startswith("test") for name in names for part in Path(name).parts)


def test_the_source_distribution_holds_what_the_targets_need(dist: Path) -> None:
    with tarfile.open(dist / f"{STEM}.tar.gz") as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "zensical.toml", "docs/README.md"} <= names
    assert {"tests/test_dist.py", "hasten/__init__.py", "LICENSE"} <= names


def test_the_wheel_runs_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    """Of this environment it gets the dependencies alone: an editable install is not followed."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    wheel = dist / f"{STEM}-py3-none-any.whl"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (own,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    where = run(python, "-P", "-c", "import hasten; print(hasten.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(own)
    told = json.loads(run(tmp_path / "venv" / "bin" / "hasten", "doctor", "--json", cwd=tmp_path))
    assert {engine["name"] for engine in told["engines"]} >= {"onnx_runtime", "openvino"}
