"""hasten load-test: what a server answers under load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from hasten.cli import shared
from hasten.cli.command import command
from hasten.cli.display import err, out, print_json, reporting
from hasten.errors import Unavailable
from hasten.options import LoadTestOptions, choose
from hasten.plain import to_json
from hasten.records import Interval

if TYPE_CHECKING:
    from hasten.serve.load import Load


@command(
    "hasten load-test http://localhost:8080 --data texts.csv",
    "hasten load-test http://localhost:8080/embed --rate 200 --duration 60s",
    "hasten load-test http://localhost:8000 --protocol openai --model news --slo-ms 50 --json",
    name="load-test",
)
def load_test(
    url: Annotated[str, typer.Argument(metavar="URL", help="http://HOST:PORT, or with a path.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            help="Your texts, in any format that tune reads; built-in ones otherwise.",
        ),
    ] = None,
    text_column: shared.TextColumn = None,
    as_json: shared.AsJson = False,
    debug: shared.Debug = False,
    **options: Unpack[LoadTestOptions],
) -> None:
    """Measure throughput and latency of any server that speaks TEI's or OpenAI's protocol.

    By default a closed loop of --clients. With --rate, requests come at random moments; latency
    counts from when each was due. With --slo-ms, search the highest such rate whose p99 is within.
    """
    from hasten.inputs import corpus

    with reporting(debug, interrupted="Nothing is kept."):
        chosen = choose("hasten load-test", LoadTestOptions, options)
        read = (
            corpus.read(data, text_column=text_column, limit=chosen["max_texts"]) if data else None
        )
        texts = corpus.singles(read.texts) if read else corpus.sample_texts()
        loads = asyncio.run(_measured(url, texts, chosen))
        if as_json:
            print_json(to_json(loads))
        for load in () if as_json else loads:
            out.print(_line(load), markup=False, highlight=False)


async def _measured(url: str, texts: Sequence[str], chosen: LoadTestOptions) -> tuple[Load, ...]:
    try:
        from hasten.serve import load
    except ImportError as error:
        raise Unavailable(f"needs {error.name}", fix="pip install 'hasten[serve]'") from None
    to = load.target(url, chosen["protocol"], chosen["model"], chosen["api_key"])
    await load.check(to, texts[0])
    duration_s, seed = float(chosen["duration"]), chosen["seed"]
    at = partial(load.open_loop, to, texts, duration_s=duration_s, seed=seed)
    if chosen["rate"] and not chosen["slo_ms"]:
        return (await at(rate=chosen["rate"]),)
    closed = await load.closed_loop(to, texts, chosen["clients"], duration_s)
    if not chosen["slo_ms"]:
        return (closed,)
    err.print(_line(closed), markup=False, highlight=False)
    first = chosen["rate"] or 0.8 * closed.goodput
    return await load.capacity(lambda rate: at(rate=rate), max(first, 0.1), chosen["slo_ms"])


def _line(load: Load) -> str:
    """A load in one line."""
    kind = f"{load.rate:.4g}/s due" if load.rate else f"{load.clients} clients"
    quantiles = zip(("p50", "p90", "p99"), (load.p50_ms, load.p90_ms, load.p99_ms), strict=True)
    latency = ", ".join(f"{name} {_interval(value)}" for name, value in quantiles if value)
    return (
        f"{kind}: {load.goodput:.4g} answers/s, {latency or 'no answers'}; "
        f"{load.rejected} rejected, {load.failed} failed"
    )


def _interval(value: Interval) -> str:
    return f"{value.estimate:.3g} ms ({value.low:.3g}-{value.high:.3g})"
