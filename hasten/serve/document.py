"""The server's own description: an OpenAPI document, and a page to try it on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import hasten
from hasten.serve.offers import Offer
from hasten.serve.service import Service

_REFUSALS = {
    "404": "The model does not have this operation, or is unknown.",
    "413": "The request is larger than what is taken.",
    "422": "The body is not a valid request; the answer says what is wrong.",
    "429": "Too much work waits; Retry-After says when to ask again.",
    "503": "The server is shutting down.",
    "504": "No answer within the deadline.",
}


def openapi(
    offers: Iterable[tuple[Offer, ...]], models: Mapping[str, Service], *, keyed: bool
) -> dict[str, Any]:
    """The OpenAPI document of what these models have.

    Args:
        offers: the operations of each path.
        models: by their names.
        keyed: whether requests need a key.
    """
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for shared in offers:
        predictors = [service.predictor for service in models.values()]
        fitting = [offer for offer in shared if any(map(offer.operation.fits, predictors))]
        if fitting:
            first = fitting[0].operation
            entry = _entry(fitting, list(models), schemas)
            paths.setdefault(first.path, {})[first.method.lower()] = entry
    names = {"default": next(iter(models)), "enum": list(models)}
    components: dict[str, Any] = {"schemas": schemas}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "hasten", "version": hasten.__version__},
        "servers": [{"url": "/"}, {"url": "/models/{model}", "variables": {"model": names}}],
        "paths": paths,
        "components": components,
    }
    if keyed:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _entry(offers: list[Offer], models: list[str], schemas: dict[str, Any]) -> dict[str, Any]:
    """One path: of several protocols, the body decides among them."""
    first = offers[0].operation
    entry: dict[str, Any] = {
        "operationId": f"{first.method.lower()}{first.path.replace('/', '_')}".translate(_PLAIN),
        "summary": " ".join(dict.fromkeys(offer.operation.summary for offer in offers)),
        "tags": list(dict.fromkeys(offer.protocol.title for offer in offers)),
        "responses": {"200": {"description": "The answer."}}
        | {status: {"description": text} for status, text in _REFUSALS.items()},
    }
    values = {"model": models, "version": ["1"]}
    entry["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"enum": several}}
        for name, several in values.items()
        if f"{{{name}}}" in first.path
    ]
    bodies = [_body(offer, schemas) for offer in offers if offer.operation.body]
    if bodies:
        examples = {
            offer.protocol.name: {"summary": offer.protocol.title, "value": offer.operation.example}
            for offer in offers
        }
        schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
        content = {"application/json": {"schema": schema, "examples": examples}}
        entry["requestBody"] = {"required": True, "content": content}
    return entry


_PLAIN = str.maketrans("", "", "{}")


def _body(offer: Offer, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to an operation's body, which is put among the schemas."""
    body = offer.operation.body
    assert body is not None
    prefix = offer.protocol.name
    schema = body.model_json_schema(ref_template=f"#/components/schemas/{prefix}.{{model}}")
    inner = schema.pop("$defs", {})
    schemas.update(
        {f"{prefix}.{name}": one for name, one in {**inner, body.__name__: schema}.items()}
    )
    return {"$ref": f"#/components/schemas/{prefix}.{body.__name__}"}


def page() -> str:
    """A page that shows the document and sends requests; it loads nothing from elsewhere."""
    return (files("hasten.serve") / "assets" / "docs.html").read_text(encoding="utf-8")
