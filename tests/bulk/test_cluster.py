"""A bulk run over a Ray cluster: the same bytes, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from shutil import copytree
from typing import Any, ClassVar

import psutil
import pytest

import hasten
from hasten import errors, hardware
from hasten.bulk import cluster, node, ray_driver
from hasten.bulk import target as targets
from hasten.bulk.node import Answerer, Order
from hasten.bulk.plan import decide
from hasten.bulk.ray_driver import Need, Start
from hasten.bulk.source import Input
from hasten.bulk.store import Store
from hasten.errors import BundleError, ChoiceError, EngineError, InputError, StorageError
from hasten.options import PredictOptions, choose
from hasten.plain import from_json, to_json
from hasten.records import Progress, Receipt, Shard
from tests.scripted import Lab, save_bundle
from tests.tiny import tiny_texts

RAY_STORE_BYTES = 100 << 20
UNREADABLE = ["no", "text"]
ONE_CPU = Need(cpus=1, gpus=0, memory_bytes=0)


@pytest.fixture(scope="module")
def scripted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one thread: it fits the nodes. Read only."""
    script = {"*": {"call_s": 1e-3}}
    lab = Lab(tmp_path_factory.mktemp("lab"), script, precisions=("fp32",), threads=1)
    lab.hardware = hardware.detect()
    return save_bundle(tmp_path_factory.mktemp("bundle") / "bundle", lab, lab.tune())


def write(path: Path, texts: list[Any]) -> Path:
    lines = (json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def predict(bundle: Path, given: Path, output: Path, **options: Any) -> bytes:
    hasten.predict_file(bundle, given, output, **{"shard_rows": 5, **options})
    return output.read_bytes()


def order_of(bundle: Path, given: Path, output: Path, **changes: Any) -> Order:
    """What a node would be told, with the fence in its place."""
    source = Input(str(given))
    job = decide(
        cluster.described(bundle, trust=False),
        source,
        targets.decide(str(output), None, source),
        choose("predict_file", PredictOptions, PredictOptions(shard_rows=5)),
    )
    store = Store(output, dataset=False)
    with store:
        store.begin(job.plan)
    fence = store.folder / node.temporary_name()
    order = Order(
        version=hasten.__version__,
        bundle=str(bundle),
        trust=False,
        plan=job.plan,
        output=str(output),
        workdir=str(given.parent),
        fence=str(fence),
        token="token",
    )
    fence.write_text(order.token)
    return replace(order, **changes)


def inspected(order: Order) -> Any:
    """What a node finds; its error, if it has one, raised."""
    reply = json.loads(node.inspect(order.text()))
    if "error" in reply:
        raise node.opened(reply["error"])
    return reply["findings"]


def answered(answerer: Answerer, shard: Shard) -> Any:
    (reply,) = answerer({"shard": [json.dumps(to_json(shard))]})["result"]
    return json.loads(reply)


# --- without Ray ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["-", "in.csv"])
def test_pipes_cannot_be_spread(scripted_bundle: Path, given: str) -> None:
    with pytest.raises(ChoiceError, match=r"cannot be used with --ray"):
        hasten.predict_file(scripted_bundle, given, "-", ray="auto")


def test_rays_client_is_refused(scripted_bundle: Path) -> None:
    with pytest.raises(ChoiceError, match=r"HEAD:6379"):
        hasten.predict_file(scripted_bundle, "in.csv", "out.csv", ray="ray://head:10001")


def test_without_ray_the_command_that_installs_it_is_named(
    scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(errors.Unavailable, match=r"pip install 'hasten\[ray\]'"):
        hasten.predict_file(scripted_bundle, "in.csv", "out.csv", ray="auto")


def test_a_node_that_has_everything_says_so_and_leaves_a_proof(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl")
    findings = inspected(order)
    assert Path(order.fence).with_name(findings["proof"]).read_text() == order.token
    assert findings["cores"] >= 1


def test_a_node_that_cannot_take_part_says_why(scripted_bundle: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl")
    damaged = copytree(scripted_bundle, tmp_path / "damaged")
    (damaged / "fake.json").write_text("{}")
    with pytest.raises(BundleError, match=r"fake\.json"):
        inspected(replace(order, bundle=str(damaged)))
    with pytest.raises(BundleError, match="another bundle"):
        inspected(replace(order, plan=replace(order.plan, bundle="0")))
    with pytest.raises(BundleError, match=r"0\.0\.0"):
        inspected(replace(order, version="0.0.0"))
    with pytest.raises(StorageError, match="all nodes see"):
        inspected(replace(order, token="another"))
    with pytest.raises(StorageError, match="not the folder into which"):
        inspected(replace(order, fence=str(tmp_path / "elsewhere" / "fence")))
    given.write_text("{}")
    with pytest.raises(InputError, match="has 2 bytes here and"):
        inspected(order)
    given.unlink()
    with pytest.raises(InputError, match="cannot be seen"):
        inspected(order)


def test_an_answerer_gives_receipts_and_errors_as_data(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7), UNREADABLE])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl")
    first, second = (shard for shard, _ in Input(str(given)).shards(order.plan, {}))
    answerer = Answerer(order.text())
    receipt = from_json(Receipt, answered(answerer, first)["receipt"])
    assert receipt.tally.rows == 5
    assert receipt == from_json(Receipt, answered(answerer, first)["receipt"])
    error = node.opened(answered(answerer, second)["error"])
    assert isinstance(error, InputError)
    assert "in.jsonl" in error.message
    assert "--on-error record" in str(error)


def test_an_answerer_that_cannot_be_made_says_so_with_its_first_shard(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl", version="0.0.0")
    (shard, _), *_ = Input(str(given)).shards(order.plan, {})
    assert answered(Answerer(order.text()), shard)["error"]["kind"] == "BundleError"


def test_what_is_left_of_an_earlier_run_writes_nothing(
    scripted_bundle: Path, tmp_path: Path
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl")
    (shard, _), *_ = Input(str(given)).shards(order.plan, {})
    answerer = Answerer(order.text())
    with Store(tmp_path / "out.jsonl", dataset=False, restart=True) as store:
        store.begin(order.plan)
        assert answered(answerer, shard)["error"]["kind"] == "StorageError"
        assert not store.receipts()


def test_relative_paths_mean_the_same_on_a_node(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    monkeypatch.chdir(tmp_path)
    order = order_of(scripted_bundle, Path("in.jsonl"), tmp_path / "out.jsonl")
    order = replace(order, workdir=str(tmp_path))
    monkeypatch.chdir("/")
    assert inspected(order)
    with pytest.raises(InputError, match="absolute path"):
        inspected(replace(order, workdir=str(tmp_path / "nowhere")))


# --- with Ray ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray's processes take their environment from whoever starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or a token is made in the user's home
        yield


@pytest.fixture(scope="module")
def two_nodes(quiet_ray: None) -> Iterator[Any]:
    """A cluster of two nodes with one CPU each; nodes may be added, and these must stay."""
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 1, "object_store_memory": RAY_STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=nodes)
    try:
        made.add_node(num_cpus=1, object_store_memory=RAY_STORE_BYTES)
        yield made
    finally:
        made.shutdown()


def test_the_bytes_are_those_of_a_run_without_ray(
    scripted_bundle: Path, tmp_path: Path, two_nodes: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = [*tiny_texts(60), UNREADABLE, *tiny_texts(20, seed=1)]
    given = write(tmp_path / "in.jsonl", texts)
    alone = predict(scripted_bundle, given, tmp_path / "alone.csv.gz", on_error="record")
    events: list[Any] = []
    environment = dict(os.environ)
    spread = predict(
        scripted_bundle,
        given,
        tmp_path / "spread.csv.gz",
        on_error="record",
        ray=two_nodes.address,
        on_event=events.append,
    )
    assert spread == alone
    assert Progress("cluster", "2 actors on 2 nodes", 0.0, None) in events
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == [
        "alone.csv.gz",
        "spread.csv.gz",
    ]
    assert os.environ == environment
    assert capfd.readouterr() == ("", "")


# --- faults -----------------------------------------------------------------------------------


def receipts_of(output: Path) -> int:
    return len(list(output.with_name(f"{output.name}.parts").glob("_hasten/receipts/*.json")))


def after(receipts: int, output: Path, act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as so many shards are done."""

    def wait() -> None:
        while receipts_of(output) < receipts:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def actors_of(raylets: list[Any]) -> list[psutil.Process]:
    """Processes of actors below the raylets of these nodes."""
    return [
        process
        for one in raylets
        for info in one.all_processes["raylet"]
        for process in psutil.Process(info.process.pid).children(recursive=True)
        if "MapWorker" in " ".join(process.cmdline())
    ]


@pytest.mark.faults
def test_a_row_without_an_answer_stops_the_run_with_our_message(
    scripted_bundle: Path, tmp_path: Path, two_nodes: Any
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(12), UNREADABLE, *tiny_texts(12)])
    with pytest.raises(InputError, match=r"in\.jsonl.*13") as caught:
        predict(scripted_bundle, given, tmp_path / "out.jsonl", ray=two_nodes.address)
    assert "--on-error record" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def many(scripted_bundle: Path, tmp_path: Path) -> tuple[Path, bytes]:
    """An input of many shards, and what comes out of it without Ray."""
    given = write(tmp_path / "in.jsonl", [*tiny_texts(1500)])
    return given, predict(scripted_bundle, given, tmp_path / "alone.jsonl")


@pytest.mark.faults
def test_a_killed_actor_is_replaced(
    scripted_bundle: Path, many: tuple[Path, bytes], tmp_path: Path, two_nodes: Any
) -> None:
    output = tmp_path / "out.jsonl"
    raylets = two_nodes.list_all_nodes()
    killing = after(50, output, lambda: [actors_of(raylets)[0].kill()])
    assert predict(scripted_bundle, many[0], output, ray=two_nodes.address) == many[1]
    killing.join(0)
    assert not killing.is_alive()


@pytest.mark.faults
def test_a_node_that_dies_takes_nothing_with_it(
    scripted_bundle: Path, many: tuple[Path, bytes], tmp_path: Path, two_nodes: Any
) -> None:
    output = tmp_path / "out.jsonl"
    third = two_nodes.add_node(num_cpus=1, object_store_memory=RAY_STORE_BYTES)
    killing = after(50, output, lambda: two_nodes.remove_node(third, allow_graceful=False))
    assert predict(scripted_bundle, many[0], output, ray=two_nodes.address) == many[1]
    killing.join(20)
    assert not killing.is_alive()


@pytest.mark.faults
def test_a_killed_run_is_continued_by_the_same_command(
    scripted_bundle: Path, many: tuple[Path, bytes], tmp_path: Path, two_nodes: Any
) -> None:
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "hasten", "predict", str(scripted_bundle), str(many[0])]
    command += ["-o", str(output), "--shard-rows", "5", "--ray", two_nodes.address]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    after(50, output, running.kill).join()
    running.wait()
    assert not output.exists()
    done = receipts_of(output)
    assert 50 <= done < 300
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
    assert output.read_bytes() == many[1]


@pytest.mark.faults
def test_nodes_that_cannot_take_part_are_named(
    scripted_bundle: Path, tmp_path: Path, two_nodes: Any
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl")
    damaged = copytree(scripted_bundle, tmp_path / "damaged")
    (damaged / "fake.json").write_text("{}")
    order = replace(order, bundle=str(damaged))
    with cluster._Driver() as driver:
        driver.send(Start(two_nodes.address, 0, ONE_CPU, order, False))
        with pytest.raises(BundleError, match=r"2 of 2 nodes[^\n]*\n.*fake\.json.*\n.*fake\.json"):
            driver.ready()


@pytest.mark.faults
def test_a_plan_that_fits_no_node_is_refused(
    scripted_bundle: Path, tmp_path: Path, two_nodes: Any
) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    order = order_of(scripted_bundle, given, tmp_path / "out.jsonl")
    with cluster._Driver() as driver:
        driver.send(Start(two_nodes.address, 0, replace(ONE_CPU, cpus=3), order, False))
        with pytest.raises(ChoiceError, match="3 CPUs"):
            driver.ready()


@pytest.mark.faults
def test_no_cluster_at_the_address(scripted_bundle: Path, tmp_path: Path, quiet_ray: None) -> None:
    given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
    with pytest.raises(ChoiceError, match="--ray local"):
        predict(scripted_bundle, given, tmp_path / "out.jsonl", ray="127.0.0.1:1")


class Ear(BaseHTTPRequestHandler):
    """Hears whatever is sent to Ray's makers."""

    heard: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.heard.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.faults
def test_a_cluster_of_our_own_reports_nothing(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Ear)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_USAGE_STATS_REPORT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("RAY_USAGE_STATS_REPORT_INTERVAL_S", "1")
    monkeypatch.setenv("HOME", str(tmp_path))  # for Ray's token
    given = write(tmp_path / "in.jsonl", [*tiny_texts(1500)])
    predict(scripted_bundle, given, tmp_path / "out.jsonl", ray=ray_driver.LOCAL)
    server.shutdown()
    server.server_close()
    assert not Ear.heard


@pytest.mark.faults
def test_a_cluster_that_reports_is_refused(
    scripted_bundle: Path, tmp_path: Path, quiet_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:1")
    arguments = {"num_cpus": 1, "object_store_memory": RAY_STORE_BYTES, "include_dashboard": False}
    reporting = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        given = write(tmp_path / "in.jsonl", [*tiny_texts(7)])
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
        with pytest.raises(ChoiceError, match="--disable-usage-stats"):
            predict(scripted_bundle, given, tmp_path / "out.jsonl", ray=reporting.address)
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
        assert predict(scripted_bundle, given, tmp_path / "out.jsonl", ray=reporting.address)
    finally:
        reporting.shutdown()


@pytest.mark.faults
def test_when_rays_process_dies_the_run_says_so_and_can_be_continued(
    scripted_bundle: Path, many: tuple[Path, bytes], tmp_path: Path, two_nodes: Any
) -> None:
    output = tmp_path / "out.jsonl"

    def kill() -> None:
        for child in psutil.Process().children():
            if "ray_driver" in " ".join(child.cmdline()):
                child.kill()

    after(50, output, kill)
    with pytest.raises(EngineError, match="the same command continues") as caught:
        predict(scripted_bundle, many[0], output, ray=two_nodes.address)
    Path(str(caught.value).rpartition("log: ")[2]).unlink()
    assert predict(scripted_bundle, many[0], output, ray=two_nodes.address) == many[1]
