"""The page at ``/ui``: try a model, and watch the load. It loads nothing from elsewhere.

What the page shows comes from the protocols' own paths, from ``/metrics``, and from the list of
models here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hasten.runtime.predictor import Predictor
from hasten.serve import answers
from hasten.serve.calls import Refusal, reply
from hasten.serve.service import Service

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(models: Mapping[str, Service], require_key: Callable[[Request], None]) -> list[Route]:
    """``/ui``, its script, and the models that it offers.

    Args:
        models: by their names.
        require_key: raises a :class:`Refusal` where a request lacks the key.
    """

    async def page(_: Request) -> Response:
        return Response(
            asset("ui.html"), media_type="text/html", headers={"Content-Security-Policy": _POLICY}
        )

    async def script(_: Request) -> Response:
        return Response(asset("ui.js"), media_type="text/javascript")

    async def listed(request: Request) -> Response:
        try:
            require_key(request)
        except Refusal as refused:
            return reply({"error": refused.message}, refused.status, refused.headers)
        return reply([described(service) for service in models.values()])

    return [Route("/ui", page), Route("/ui/page.js", script), Route("/ui/models", listed)]


def asset(name: str) -> str:
    """A file of the package."""
    return (files("hasten.serve") / "assets" / name).read_text(encoding="utf-8")


def described(service: Service) -> dict[str, object]:
    """What the page has to know of a model."""
    bundle = service.predictor.bundle
    return {
        "name": service.name,
        "task": service.predictor.task.name.replace("_", " "),
        "kind": kind(service.predictor),
        "stages": [stage.plan.candidate.label for stage in bundle.stages],
    }


def kind(predictor: Predictor) -> str:
    """How a model's answers are shown."""
    if answers.classifies(predictor):
        if not answers.reads_pairs(predictor):
            return "labels"
        return "ranking" if answers.ranks(predictor) else "pairs"
    if answers.embeds(predictor):
        return "vectors"
    return "entities" if predictor.task.needs_spans else "other"
