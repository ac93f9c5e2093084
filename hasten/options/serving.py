"""Options of the server, and of what loads it."""

from __future__ import annotations

from typing import Annotated, TypedDict

from hasten.options.base import Option
from hasten.options.checks import duration, number, one_of, whole_number
from hasten.options.shared import FilePath, Trust

ACCESS = "Access"
LIMITS = "Limits"


class ServeOptions(TypedDict, total=False):
    """Options of ``hasten serve``."""

    host: Annotated[str, Option("The address to listen at.", "127.0.0.1", panel=ACCESS)]
    port: Annotated[
        int, Option("The port to listen at.", 8080, check=whole_number(0, 65535), panel=ACCESS)
    ]
    grpc_port: Annotated[
        int | None,
        Option(
            "Speak KServe v2 over gRPC too, at this port.",
            check=whole_number(1, 65535),
            panel=ACCESS,
        ),
    ]
    api_key: Annotated[
        str | None,
        Option(
            "What clients must send as a bearer token; by default what HASTEN_API_KEY holds.",
            panel=ACCESS,
            metavar="KEY",
        ),
    ]
    tls_certificate: Annotated[
        FilePath | None, Option("PEM file with the certificate chain, for HTTPS.", panel=ACCESS)
    ]
    tls_key: Annotated[
        FilePath | None, Option("PEM file with the certificate's key.", panel=ACCESS)
    ]
    max_queue_seconds: Annotated[
        float,
        Option(
            "Seconds of work that may wait; beyond that, requests get 429.",
            10.0,
            check=number(0.001, 86400),
            panel=LIMITS,
        ),
    ]
    deadline: Annotated[
        str | float,
        Option(
            "Time that a request may take; then it gets 504.", "60s", check=duration, panel=LIMITS
        ),
    ]
    max_body: Annotated[
        int,
        Option(
            "Largest body of a request, in bytes; beyond that, 413.",
            4 * 2**20,
            check=whole_number(1, 2**31 - 1),
            panel=LIMITS,
        ),
    ]
    max_inputs: Annotated[
        int,
        Option(
            "Most texts of a request; beyond that, 422.",
            10_000,
            check=whole_number(1, 10**9),
            panel=LIMITS,
        ),
    ]
    drain: Annotated[
        str | float,
        Option(
            "Time that requests in flight may still take after SIGTERM.",
            "30s",
            check=duration,
            panel=LIMITS,
        ),
    ]
    log: Annotated[
        str,
        Option(
            "text or json: one line a request on standard error.",
            "text",
            check=one_of("text", "json"),
        ),
    ]
    dry_run: Annotated[
        bool, Option("Load and prove the bundles, run a text through each, and exit.", False)
    ]
    trust: Trust


class LoadTestOptions(TypedDict, total=False):
    """Options of ``hasten load-test``."""

    protocol: Annotated[
        str,
        Option(
            "tei (POST /predict, or the URL's path) or openai (POST /v1/embeddings).",
            "tei",
            check=one_of("tei", "openai"),
        ),
    ]
    model: Annotated[str, Option("The model's name, for openai.", "model")]
    api_key: Annotated[str | None, Option("Sent as a bearer token.", metavar="KEY")]
    clients: Annotated[
        int, Option("Clients of the closed loop.", 64, check=whole_number(1, 10_000))
    ]
    rate: Annotated[
        float | None,
        Option("Open loop instead: requests a second, on average.", check=number(0.01, 10**6)),
    ]
    duration: Annotated[str | float, Option("How long each load takes.", "10s", check=duration)]
    slo_ms: Annotated[
        float | None,
        Option("Search the highest rate whose p99 is within this.", check=number(0.01, 10**6)),
    ]
    max_texts: Annotated[
        int, Option("Send at most this many different texts.", 1000, check=whole_number(1, 10**9))
    ]
    seed: Annotated[int, Option("Seed of the moments.", 0, check=whole_number(0, 2**32 - 1))]
