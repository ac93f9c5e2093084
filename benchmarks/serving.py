"""hasten serve beside the bundle that it serves, and beside another server, interleaved.

    python benchmarks/serving.py BUNDLE
    python benchmarks/serving.py BUNDLE --infinity other/bin/infinity_emb --model FOLDER

In turns, round after round, over the same sentences: one call of ``hasten.load`` with all of them,
64 clients with one sentence each through HTTP, calls of ``hasten.load`` with one sentence each,
and one client through HTTP. ``--infinity`` is the command of an environment with infinity-emb, and
``--model`` the folder of the classifier that the bundle was made of; Infinity then takes turns too,
at its defaults. The clients run in a process of their own (benchmarks/clients.py); all share the
machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import contender
from contender import Contender

CLIENTS = 64
MODEL = "classifier"


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    import figures

    from hasten.demo import assets as demo

    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        many, few = folder / "many.json", folder / "few.json"
        sentences = demo.news_sentences(options.texts)
        many.write_text(json.dumps(sentences), encoding="utf-8")
        few.write_text(json.dumps(sentences[: options.single]), encoding="utf-8")
        servers = {"hasten": Server("hasten", options)}
        if options.infinity:
            servers["Infinity"] = Server("Infinity", options)
        bundle = Contender(sys.executable, __file__, options.bundle, folder / "latencies.json")
        try:
            data = _measured(options.rounds, servers, bundle, many, few)
        finally:
            bundle.close()
            for server in servers.values():
                server.close()
    figures.publish(options.result, {"serving": _block(data, options)}, data)


def _parse() -> argparse.Namespace:
    import figures

    parser = figures.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--single", type=int, default=150, help="of them, one at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--infinity")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--engine", default="torch", help="Infinity's: torch or optimum")
    return parser.parse_args()


class Server:
    """A server in its own process, once it answers."""

    def __init__(self, who: str, options: argparse.Namespace) -> None:
        self._port = 18080 if who == "hasten" else 18081
        port = str(self._port)
        if who == "hasten":
            given = ["-m", "hasten", "serve", f"{MODEL}={options.bundle}", "--port", port]
            command = [sys.executable, *given]
        else:
            given = ["v2", "--model-id", str(options.model), "--served-model-name", MODEL]
            where = ["--engine", options.engine, "--device", "cpu", "--port", port]
            command = [options.infinity, *given, *where, "--no-bettertransformer"]
        self._process = subprocess.Popen(  # noqa: S603 - a server that the user named
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
        )
        while not self._answers():
            if self._process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {self._process.returncode}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health"):
                return True
        except OSError:
            return False

    def asked(self, clients: int, texts: Path) -> Any:
        """What ``clients.py`` prints of a closed loop over texts."""
        script = Path(__file__).with_name("clients.py")
        command = [sys.executable, script, self._port, clients, texts, MODEL]
        ran = subprocess.run(  # noqa: S603 - one of these scripts
            list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True
        )
        return json.loads(ran.stdout)

    def close(self) -> None:
        """End it, and wait for it."""
        self._process.terminate()
        self._process.wait()


def _measured(
    rounds: int, servers: dict[str, Server], bundle: Contender, many: Path, few: Path
) -> dict[str, list[float]]:
    """Seconds a text of each way, and median latencies, one a round; the first is not counted."""
    found: dict[str, list[float]] = defaultdict(list)
    count = len(json.loads(many.read_text(encoding="utf-8")))
    for number in range(rounds + 1):
        one: dict[str, float] = {"bulk": bundle.ask({"all": str(many)}) / count}
        for who, server in servers.items():
            answered = server.asked(CLIENTS, many)
            one[who] = answered["seconds"] / answered["answers"]
        one["single p50"] = _median_of(bundle, few)
        for who, server in servers.items():
            one[f"{who} p50"] = statistics.median(server.asked(1, few)["latencies_s"])
        print(f"{number}: {one}", file=sys.stderr)
        if number:
            for name, seconds in one.items():
                found[name].append(seconds)
    return dict(found)


def _median_of(bundle: Contender, texts: Path) -> float:
    """The median latency of the bundle's own calls, in seconds."""
    bundle.ask({"each": str(texts)})
    return float(json.loads((texts.parent / "latencies.json").read_text(encoding="utf-8")))


def _contend(bundle: str, latencies: str) -> None:
    """Runs in a process of its own: all texts in one call, or one call for each."""
    import hasten

    with hasten.load(bundle) as predictor:

        def run(order: dict[str, str]) -> None:
            ((how, path),) = order.items()
            texts = json.loads(Path(path).read_text(encoding="utf-8"))
            if how == "all":
                predictor(texts)
                return
            taken_s = []
            for text in texts:
                begin = time.perf_counter()
                predictor(text)
                taken_s.append(time.perf_counter() - begin)
            median_s = statistics.median(taken_s)
            Path(latencies).write_text(json.dumps(median_s), encoding="utf-8")

        contender.answer(run)


def _block(data: dict[str, list[float]], options: argparse.Namespace) -> str:
    import figures

    from hasten.judging.stats import mean_interval, ratio_interval

    def rate(name: str) -> str:
        return f"{1 / statistics.median(data[name]):.0f} a second"

    def times(slow: str, fast: str) -> str:
        return figures.interval(ratio_interval(data[slow], data[fast], seed=0))

    added_ms = [
        1000 * (http - alone)
        for http, alone in zip(data["hasten p50"], data["single p50"], strict=True)
    ]
    added = figures.interval(mean_interval(added_ms, seed=0))
    single_ms, http_ms = (
        1000 * statistics.median(data[name]) for name in ("single p50", "hasten p50")
    )
    told = (
        f"Measured in {options.rounds} rounds on {figures.machine()}, which server and clients "
        f"share, over {options.texts:,} news sentences. Ratios with their 95 % intervals:"
    )
    lines = [
        told,
        "",
        "| | | beside the bundle itself |",
        "| --- | ---: | ---: |",
        f"| the bundle itself, all texts in one call | {rate('bulk')} | |",
        f"| {CLIENTS} clients with one text each | {rate('hasten')} | {times('bulk', 'hasten')} |",
        f"| one text at a time without a server, p50 | {single_ms:.1f} ms | |",
        f"| one client, p50 | {http_ms:.1f} ms | {added} ms more |",
    ]
    if "Infinity" in data:
        ratio = times("Infinity", "hasten")
        row = f"| Infinity ({options.engine}), {CLIENTS} clients | {rate('Infinity')} "
        lines.append(f"{row}| hasten serve answers {ratio} times as many |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
