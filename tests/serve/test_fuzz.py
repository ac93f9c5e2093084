"""Whatever is sent, the server never fails by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from hasten.serve import protocols

OPERATIONS = [
    operation
    for protocol in protocols.discover()
    for operation in protocol.operations
    if operation.body
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A value with some of its parts replaced, removed or repeated."""
    change = draw(st.sampled_from(["keep", "keep", "keep", "replace", "inside"]))
    if change == "replace":
        return draw(VALUES)
    if isinstance(value, dict):
        kept = {key: draw(mutated(inner)) for key, inner in value.items() if draw(st.booleans())}
        return (
            value | kept
            if change == "inside"
            else {key: kept.get(key, value[key]) for key in value}
        )
    if isinstance(value, list):
        return [draw(mutated(inner)) for inner in value] * draw(st.integers(0, 2))
    return value


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a body that is somewhat like one of its own."""
    operation = draw(st.sampled_from(OPERATIONS))
    assert operation.body
    if draw(st.booleans()):
        body = draw(mutated(operation.example))
    else:
        body = {key: draw(VALUES) for key in operation.body.model_fields if draw(st.booleans())}
    raw = json.dumps(body).encode()
    return operation.path, draw(st.binary()) if draw(st.integers(0, 9)) == 0 else raw


@pytest.mark.parametrize("kind", ["client", "embedder"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_breaks_the_server(
    kind: str, request: pytest.FixtureRequest, data: st.DataObject
) -> None:
    client: TestClient = request.getfixturevalue(kind)
    path, body = data.draw(requests())
    name = "news" if kind == "client" else "vectors"
    path = path.replace("{model}", name).replace("{version}", "1")
    answered = client.post(path, content=body)
    assert answered.status_code < 500 or answered.status_code in {503, 504}, answered.text
    assert answered.headers["content-type"].startswith("application/")
    if answered.headers["content-type"] == "application/json":
        answered.json()
