"""hasten serve: bundles behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import err, reporting
from hasten.errors import ChoiceError, Unavailable
from hasten.options import ServeOptions


@command(
    "hasten serve bundle",
    "hasten serve news=news-bundle topics=topics-bundle --port 9000 --api-key $KEY",
    "hasten serve bundle --host 0.0.0.0 --log json --max-queue-seconds 2",
    "hasten serve bundle --dry-run",
    'curl localhost:8080/predict -d \'{"inputs": "I like you."}\'',
)
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...", help="Folders that `hasten tune` made, or NAME=FOLDER."
        ),
    ],
    *,
    debug: shared.Debug = False,
    **options: Unpack[ServeOptions],
) -> None:
    """Serve bundles over HTTP, to clients of TEI, OpenAI, Cohere, vLLM, KServe and Hugging Face.

    SIGTERM ends it in order: requests in flight are answered. SIGHUP loads the folders again: a new
    bundle takes over once its probes agree.
    """
    with reporting(debug, interrupted=""):
        try:
            from hasten.serve.server import serve as run
        except ImportError as error:
            raise Unavailable(
                f"hasten serve needs {error.name}", fix="pip install 'hasten[serve]'"
            ) from None
        named = dict(_named(bundle) for bundle in bundles)
        if len(named) < len(bundles):
            raise ChoiceError(
                "two bundles have the same name", fix="Write NAME=FOLDER, each with its own name."
            )
        fleet = run(named, **options)
        if options["dry_run"]:
            for name, service in fleet.items():
                label = service.predictor.bundle.plan.candidate.label
                err.print(f"{name}: {label} answers", markup=False, highlight=False)


def _named(bundle: str) -> tuple[str, Path]:
    """A name and a folder: those of NAME=FOLDER, or the folder's own name."""
    name, equals, folder = bundle.partition("=")
    path = Path(folder if equals else bundle)
    if equals and not name:
        raise ChoiceError(f"{bundle!r} has no name before its =", fix="Write NAME=FOLDER.")
    return (name if equals else path.resolve().name), path
