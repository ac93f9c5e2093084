"""docs/bundle.md says what is written, field by field."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hasten import engines
from hasten.records import (
    Candidate,
    CostTable,
    HandsOn,
    Hardware,
    ModelInfo,
    Parity,
    Probes,
    Strategy,
)
from hasten.runtime.manifest import File, Manifest, StageEntry, TaskEntry

PAGE = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
RECORDS: dict[str, Any] = {
    "The manifest": Manifest,
    "File": File,
    "Task": TaskEntry,
    "Stage": StageEntry,
    "Model": ModelInfo,
    "Candidate": Candidate,
    "Strategy": Strategy,
    "Cost table": CostTable,
    "Rule": HandsOn,
    "Probes": Probes,
    "Proof": Parity,
    "Machine": Hardware,
}
TYPES = {"int": "int", "float": "float", "str": "str", "bool": "bool"}


def section(title: str) -> str:
    found = re.search(rf"^##+ {title}$(.*?)(?=^## |^### |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("title", RECORDS)
def test_every_field_is_listed_in_order(title: str) -> None:
    written = [field.name for field in fields(RECORDS[title])]
    assert [row[0].strip("`") for row in rows(title)] == written


@pytest.mark.parametrize("title", RECORDS)
def test_plain_fields_have_the_type_that_is_listed(title: str) -> None:
    listed = {row[0].strip("`"): row[1] for row in rows(title)}
    for field in fields(RECORDS[title]):
        kind = str(field.type).replace(" | None", " or null")
        if kind.removesuffix(" or null") in TYPES:
            assert listed[field.name] == kind, field.name


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("onnx_runtime", "fp32", "cpu", 3, streams=2),
        Candidate("openvino", "bf16", "cpu", 3, streams=2),
        Candidate("torch_eager", "fp32", "cpu", 3),
        Candidate("torchscript", "fp32", "cpu", 3),
    ],
    ids=lambda candidate: candidate.engine,
)
def test_every_session_option_is_listed(candidate: Candidate) -> None:
    listed: dict[str, str] = {}
    named = ""
    for engine, option, kind, _ in rows("Session options"):
        named = engine or named
        if f"`{candidate.engine}`" in named:
            listed[option.strip("`")] = kind
    found = engines.get(candidate.engine)
    on_gpu = replace(candidate, device="cuda") if candidate.engine != "openvino" else candidate
    options = {**found.session_options(on_gpu), **found.session_options(candidate)}
    assert listed == {name: type(value).__name__ for name, value in options.items()}
