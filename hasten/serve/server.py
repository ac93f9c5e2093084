"""``hasten serve``: bundles behind HTTP, from options to the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Unpack

import uvicorn

from hasten.errors import ChoiceError, EngineError, Unavailable
from hasten.options import ServeOptions, choose
from hasten.serve.app import Access, create
from hasten.serve.connections import Connection, Server
from hasten.serve.fleet import Fleet
from hasten.serve.health import guarding
from hasten.serve.logs import to_stderr
from hasten.serve.metrics import Metrics
from hasten.serve.service import Limits, Service

log = logging.getLogger(__name__)

_KEY = "HASTEN_API_KEY"

Speaking = Callable[[Mapping[str, Service], Metrics], AbstractAsyncContextManager[object]]
"""Speaks another protocol beside HTTP for as long as it is entered."""


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
        Unavailable: an engine is not installed, or gRPC where its port is given.
        EngineError: an engine cannot load its artifact, fails on a first text, or has hung.
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
    speaking = _grpc(chosen, access)
    fleet = _fleet(bundles, chosen, metrics, access)
    if chosen["dry_run"]:
        asyncio.run(_try(fleet))
        return fleet

    async def drain() -> None:
        await asyncio.gather(*(service.drain(access.drain_s) for service in fleet.values()))

    hung: list[str] = []

    def end(name: str) -> None:
        log.error("a batch of %s does not return; the server ends", name)
        hung.append(name)
        server.end()

    @contextlib.asynccontextmanager
    async def beside() -> AsyncIterator[None]:
        async with speaking(fleet, metrics), guarding(fleet, end):
            yield

    config = uvicorn.Config(
        create(fleet, access, metrics, beside=beside),
        host=chosen["host"],
        port=chosen["port"],
        http=Connection,
        access_log=False,
        proxy_headers=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(access.drain_s)),
        backlog=2048,
        ssl_certfile=certificate,
        ssl_keyfile=key_file,
    )
    server = Server(config, drain, fleet.reload)
    server.run()
    if hung:
        raise EngineError(
            f"the engine of {hung[0]} did not return from a batch",
            fix="Let systemd, Kubernetes or Docker start the server again (docs/serving.md).",
        )
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
        on_batch = metrics.on_batch(name)
        return Service.open(name, folder, limits, trust=chosen["trust"], on_batch=on_batch)

    return Fleet(bundles, opening, metrics, access.drain_s)


def _grpc(chosen: ServeOptions, access: Access) -> Speaking:
    """What speaks gRPC beside HTTP, with the same key, limits and certificate; or nothing."""
    port, host = chosen["grpc_port"], chosen["host"]
    if not port:
        return lambda *_: contextlib.nullcontext()
    try:
        from hasten.serve import grpc_server
    except ImportError as error:
        raise Unavailable(
            f"--grpc-port needs {error.name}", fix="pip install 'hasten[serve-grpc]'"
        ) from None
    where = grpc_server.Listening(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        access.api_key,
        access.body_bytes,
        *_tls(chosen),
    )
    return partial(grpc_server.speaking, where)


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
