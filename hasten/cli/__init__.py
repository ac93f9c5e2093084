"""The command line: parse, call the library once, render."""

# Importing a module adds its commands; help shows them in this order.
from hasten.cli import tuning, export, predict, audit, serve, load_test, compress, report  # isort: skip
from hasten.cli.app import app

__all__ = [
    "app",
    "audit",
    "compress",
    "export",
    "load_test",
    "main",
    "predict",
    "report",
    "serve",
    "tuning",
]


def main() -> None:
    """Entry point of the ``hasten`` command."""
    app()
