"""A bench and the report about it, for the tests of the page."""

from __future__ import annotations

import pytest

from hasten.records import Bench
from hasten.report import compose
from hasten.report.document import Document
from tests.report.results import benched


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return benched(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def document(bench: Bench) -> Document:
    return compose.of(bench)
