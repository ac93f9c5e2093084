"""The house rules that no tool checks."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hasten
from hasten import engines

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hasten"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FRAMEWORKS = {
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "safetensors",
    "sentence_transformers",
    "sklearn",
    "torch",
    "transformers",
}
# What changes a mapping, and what `os` has to change the environment below it.
MUTATORS = {"clear", "pop", "popitem", "putenv", "setdefault", "unsetenv", "update"}

# Older than the rule, and on their way out. A name that is needed no longer fails its test.
LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def lines_of(function: Function) -> int:
    """From the first decorator to the last line: parameters and docstring have to be read too."""
    first = min(node.lineno for node in (function, *function.decorator_list))
    return (function.end_lineno or first) - first + 1


def requirements(extra: str) -> dict[str, Requirement]:
    """What an extra installs, extras that it names included, by canonical name."""
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "hasten":
            for named in requirement.extras:
                found |= requirements(named)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def run_python(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- size and names ---------------------------------------------------------------------------


def test_functions_are_short() -> None:
    lengths = {
        f"{name}:{node.name}:{node.lineno}": lines_of(node)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    long = sorted(name for name, lines in lengths.items() if lines >= 30)
    assert len(long) <= len(lengths) / 10, [(name, lengths[name]) for name in long]


def test_no_function_is_over_80_lines() -> None:
    too_long = {
        f"{Path(name).stem}.{node.name}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, Function) and lines_of(node) > 80
    }
    assert too_long == LONG_FUNCTIONS, "a function that is short again leaves the list"


def test_files_are_short() -> None:
    too_long = {
        path.stem for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) >= 450
    }
    assert too_long == LONG_FILES, "a file that is short again leaves the list"


def test_the_length_of_a_function_includes_decorators_signature_and_docstring() -> None:
    (function,) = ast.parse(
        '@cached\ndef f(\n    a: int,\n) -> int:\n    """One."""\n    return a'
    ).body
    assert isinstance(function, Function)
    assert lines_of(function) == 6


def test_no_file_is_named_after_nothing() -> None:
    nothing = {"utils", "util", "helpers", "helper", "common", "misc"}
    everywhere = [*FILES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    assert not [path for path in everywhere if path.stem.strip("_") in nothing]


# --- what library code may not do -------------------------------------------------------------


def prints(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "sys.stdout.write", "sys.stderr.write"}:
                yield node.lineno


def environment_changes(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) in {"os.environ", "environ"}:
                yield node.lineno
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr in MUTATORS and owner in {"os.environ", "environ", "os"}:
                yield node.lineno


def foreign_writes(tree: ast.Module) -> Iterator[int]:
    """Fields of an object that another one sets."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        if ast.unparse(node.value) != "self":
            yield node.lineno


def bundle_errors_without_fix(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "BundleError":
            continue
        if "fix" not in {keyword.arg for keyword in node.keywords}:
            yield node.lineno


def test_whoever_has_a_bad_bundle_learns_what_to_do() -> None:
    assert not [
        f"{name}:{line}" for name, tree in trees() for line in bundle_errors_without_fix(tree)
    ]


def test_only_the_command_line_prints() -> None:
    assert not [
        f"{name}:{line}"
        for name, tree in trees()
        if not name.startswith("hasten/cli/")
        for line in prints(tree)
    ]


def test_the_environment_is_left_alone() -> None:
    assert not [f"{name}:{line}" for name, tree in trees() for line in environment_changes(tree)]


def test_the_state_of_a_tune_is_written_by_its_owners() -> None:
    assert not [
        f"{name}:{line}"
        for name, tree in trees()
        if name.startswith(("hasten/tuning/", "hasten/experiment/"))
        for line in foreign_writes(tree)
    ]


def test_nothing_is_left_unwritten() -> None:
    assert not [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in {"NotImplementedError", "NotImplemented"}
    ]


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (prints, "print(1)"),
        (prints, "import sys\nsys.stderr.write('x')"),
        (environment_changes, "os.environ['A'] = 'b'"),
        (environment_changes, "del os.environ['A']"),
        (environment_changes, "os.environ.setdefault('A', 'b')"),
        (environment_changes, "os.putenv('A', 'b')"),
        (foreign_writes, "trial.status = 'dropped'"),
        (foreign_writes, "trial.further += (stage,)"),
    ],
)
def test_the_checks_above_see_what_they_look_for(check: Any, code: str) -> None:
    assert list(check(ast.parse(code)))
    assert not list(check(ast.parse("value = os.environ['A']; log.info('x')")))


# --- imports ----------------------------------------------------------------------------------


def test_import_hasten_is_light() -> None:
    loaded = run_python("import json, sys, hasten; print(json.dumps(sorted(sys.modules)))")
    assert not set(loaded) & (FRAMEWORKS | {"numpy", "pyarrow", "rich", "tokenizers", "typer"})


def test_no_module_loads_a_framework_by_being_imported() -> None:
    loaded = run_python(
        "import importlib, json, pkgutil, sys, hasten\n"
        "names = [m.name for m in pkgutil.walk_packages(hasten.__path__, 'hasten.')]\n"
        "names = [name for name in names if not name.endswith('__main__')]\n"
        "modules = [importlib.import_module(name) for name in names]\n"
        "print(json.dumps([len(modules), sorted(sys.modules)]))"
    )
    assert loaded[0] > 20
    assert not set(loaded[1]) & FRAMEWORKS


# --- packaging --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", engines.names())
def test_an_engines_extra_installs_what_it_needs(name: str) -> None:
    engine = engines.get(name)
    assert engine.extra in EXTRAS
    to_run = {canonicalize_name(dist) for dist in engine.requires.values()}
    to_export = {canonicalize_name(dist) for dist in engine.exports_with.values()}
    assert to_run <= set(requirements(engine.extra))
    assert to_run | to_export <= set(requirements("tune"))
    assert to_run | to_export <= set(requirements("all"))


def test_extras_are_there() -> None:
    promised = {
        "all",
        "compress",
        "demo",
        "dev",
        "docs",
        "interop",
        "onnx",
        "openvino",
        "ray",
        "report",
        "serve",
        "serve-grpc",
        "torch",
        "tune",
    }
    assert set(EXTRAS) == promised


def test_constraints_pin_what_is_declared_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }
    base = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    declared = base | requirements("all") | requirements("dev") | requirements("docs")
    for requirement in declared.values():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), requirement


def test_versions_agree() -> None:
    version = PROJECT["version"]
    assert hasten.__version__ == version
    assert metadata.version("hasten") == version
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
