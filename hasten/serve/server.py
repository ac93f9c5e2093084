"""``hasten serve``: bundles behind HTTP, from options to the end of the process."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import uvicorn

from hasten.errors import ChoiceError, EngineError
from hasten.options import ServeOptions, choose
from hasten.serve.app import Access, create
from hasten.serve.connections import Connection, Server
from hasten.serve.fleet import Fleet
from hasten.serve.logs import to_stderr
from hasten.serve.metrics import Metrics
from hasten.serve.service import Limits, Service

log = logging.getLogger(__name__)

_KEY = "HASTEN_API_KEY"


def serve(bundles: Mapping[str, Path], **options: Unpack[ServeOptions]) -> Fleet:
    """Serve bundles until the process is told to end; with ``dry_run``, only check that they can.

    Args:
        bundles: folders by the names that clients use.
        options: see :class:`hasten.options.ServeOptions`.

    Returns:
        What was served, closed.

    Raises:
        ChoiceError: an option's value is not allowed.
        BundleError: no bundle, a damaged one, or one that must not or cannot run here.
        Unavailable: an engine is not installed.
        EngineError: an engine cannot load its artifact, or fails on a first text.
    """
    chosen = choose("hasten serve", ServeOptions, options)
    with to_stderr(chosen["log"]):
        return _serve(bundles, chosen)


def _serve(bundles: Mapping[str, Path], chosen: ServeOptions) -> Fleet:
    certificate, key_file = _tls(chosen)
    key = chosen["api_key"] or os.environ.get(_KEY) or None
    if not key and not _is_local(chosen["host"]):
        log.warning(
            "anybody who reaches %s may ask: there is no --api-key and no %s", chosen["host"], _KEY
        )
    access = Access(key, chosen["max_body"], float(chosen["drain"]))
    metrics = Metrics()
    fleet = _fleet(bundles, chosen, metrics, access)
    if chosen["dry_run"]:
        asyncio.run(_try(fleet))
        return fleet

    async def drain() -> None:
        await asyncio.gather(*(service.drain(access.drain_s) for service in fleet.values()))

    config = uvicorn.Config(
        create(fleet, access, metrics),
        host=chosen["host"],
        port=chosen["port"],
        http=Connection,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(access.drain_s)),
        backlog=2048,
        ssl_certfile=certificate,
        ssl_keyfile=key_file,
    )
    Server(config, drain, fleet.reload).run()
    return fleet


def _fleet(
    bundles: Mapping[str, Path], chosen: ServeOptions, metrics: Metrics, access: Access
) -> Fleet:
    limits = Limits(
        queue_s=chosen["max_queue_seconds"],
        deadline_s=float(chosen["deadline"]),
        texts=chosen["max_inputs"],
    )

    def opening(name: str, folder: Path) -> Service:
        told = metrics.on_batch(name)
        return Service.open(name, folder, limits, trust=chosen["trust"], on_batch=told)

    return Fleet(bundles, opening, metrics, access.drain_s)


async def _try(fleet: Fleet) -> None:
    """Run a text through each model, and close them all."""
    await asyncio.gather(*(service.canary() for service in fleet.values()))
    silent = [name for name, service in fleet.items() if not service.ready]
    await asyncio.gather(*(service.drain(0.0) for service in fleet.values()))
    if silent:
        raise EngineError(
            f"no answer from {', '.join(silent)}",
            fix="The log says why; `hasten doctor` shows what is installed.",
        )


def _tls(chosen: ServeOptions) -> tuple[str | None, str | None]:
    """The files for HTTPS, if any, read once to see that they fit."""
    certificate, key = chosen["tls_certificate"], chosen["tls_key"]
    if not certificate and not key:
        return None, None
    if not certificate or not key:
        raise ChoiceError(
            "HTTPS needs two files", fix="Give --tls-certificate FILE and --tls-key FILE."
        )
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's own errors are OSErrors
        raise ChoiceError(
            f"{certificate} and {key} cannot be used for HTTPS: {error}",
            fix="They must be PEM files, and the key without a password.",
        ) from error
    return str(certificate), str(key)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
