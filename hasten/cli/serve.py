"""hasten serve: a bundle behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.app import app
from hasten.cli.display import reporting
from hasten.errors import ChoiceError, Unavailable


@app.command(
    epilog="**Examples**\n\n"
    "`hasten serve bundle`\n\n"
    "`hasten serve news=news-bundle topics=topics-bundle --port 9000 --api-key $KEY`\n\n"
    '`curl localhost:8080/predict -d \'{"inputs": "I like you."}\'`'
)
def serve(  # noqa: PLR0917 - typer makes options of all of them
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...", help="Folders that `hasten tune` made, or NAME=FOLDER."
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="HASTEN_API_KEY", help="What clients must send as a bearer token."),
    ] = None,
    max_queue_seconds: Annotated[
        float, typer.Option(help="Seconds of work that may wait; beyond that, requests get 429.")
    ] = 10.0,
    deadline: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 60.0,
    trust_bundle: Annotated[
        bool, typer.Option("--trust", "--trust-bundle", help="Load artifacts that can run code.")
    ] = False,
) -> None:
    """Serve bundles over HTTP, to clients of TEI, OpenAI, Cohere, vLLM, KServe and Hugging Face."""
    with reporting(False, interrupted=""):
        try:
            import uvicorn
        except ImportError:
            raise Unavailable(
                "hasten serve needs uvicorn", fix="pip install 'hasten[serve]'"
            ) from None
        from hasten.serve.app import Access, create
        from hasten.serve.metrics import Metrics
        from hasten.serve.service import Limits, Service

        named = dict(_named(bundle) for bundle in bundles)
        limits = Limits(queue_s=max_queue_seconds, deadline_s=deadline)

        metrics = Metrics()
        models = {
            name: Service.open(
                name, folder, limits, trust=trust_bundle, on_batch=metrics.on_batch(name)
            )
            for name, folder in named.items()
        }
        application = create(models, Access(api_key), metrics)
        uvicorn.run(application, host=host, port=port, access_log=False, log_level="warning")


def _named(bundle: str) -> tuple[str, Path]:
    """A name and a folder: those of NAME=FOLDER, or the folder's own name."""
    name, equals, folder = bundle.partition("=")
    path = Path(folder if equals else bundle)
    if equals and not name:
        raise ChoiceError(f"{bundle!r} has no name before its =", fix="Write NAME=FOLDER.")
    return (name if equals else path.resolve().name), path
