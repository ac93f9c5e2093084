"""The requests of docs/serving.md, as they stand there, and the form of their answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```\n(?:\n```json\n(.*?)^```)?", PAGE, re.DOTALL | re.MULTILINE)
REQUESTS = [
    (line, answer if line == block.splitlines()[-1] else "")
    for block, answer in BLOCKS
    for line in block.splitlines()
    if line.startswith("curl ")
]


def form(value: Any) -> Any:
    """A value without what differs from model to model: keys, nesting and kinds."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return float if isinstance(value, int | float) else type(value)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(("request_line", "answer"), REQUESTS)
def test_requests_are_answered_as_shown(live: str, request_line: str, answer: str) -> None:
    command = request_line.replace("localhost:8080", live).replace("curl ", "curl -sS --fail ", 1)
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    if answer:
        assert form(json.loads(ran.stdout)) == form(json.loads(answer))


def test_the_page_has_a_request_for_every_protocol() -> None:
    assert len(REQUESTS) > 15
    assert sum(bool(answer) for _, answer in REQUESTS) > 8
