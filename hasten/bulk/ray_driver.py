"""The process that speaks with Ray.

It is one of its own, because Ray changes the process that it is in: environment, signal handlers,
loggers and standard output. Here it may, and the caller's process stays as it is. What is printed
goes to a log file; to the caller go pickled messages, each a word and what belongs to it:
``ready``, ``receipt``, ``done``, ``error`` (one of ours) or ``failed`` (what Ray said last).
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.bulk.node import Answerer, Findings, Order, inspect, opened
from hasten.errors import ChoiceError, EngineError, HastenError, StorageError
from hasten.plain import from_json, to_json
from hasten.records import Receipt, Shard

LOCAL = "local"
"""The address that means: start a cluster on this machine, and stop it at the end."""

_INSPECTION_S = 600.0
"""Loading the bundle and answering its probes takes seconds; a node that is silent is broken."""

_KNOCK_S = 10.0

_TRIES = 3
"""How often in a row Ray may fail without a single shard in between."""

_OBJECT_STORE_BYTES = 128 << 20
"""Only receipts lie in it."""

_BLOCK_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Need:
    """What one actor occupies of a node."""

    cpus: int
    gpus: int
    memory_bytes: int

    def places(self, resources: Mapping[str, float]) -> int:
        """How many actors a node holds that has these resources.

        >>> Need(4, 0, 2 << 30).places({"CPU": 16.0, "memory": 7.0 * 2**30})
        3
        """
        limits = [resources.get("CPU", 0.0) / self.cpus]
        if self.gpus:
            limits.append(resources.get("GPU", 0.0) / self.gpus)
        if self.memory_bytes:
            limits.append(resources.get("memory", 0.0) / self.memory_bytes)
        return int(min(limits))

    def sentence(self) -> str:
        """In words."""
        parts = [_counted(self.cpus, "CPU")]
        if self.gpus:
            parts.append("1 GPU")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 2**30:.1f} GiB of memory")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Start:
    """The first message from the caller; the second one is the list of shards."""

    address: str
    local_cpus: int
    need: Need
    order: Order
    reports: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """All nodes have been looked at."""

    nodes: int
    actors: int
    warnings: tuple[str, ...]

    def sentence(self) -> str:
        """In words.

        >>> Ready(1, 2, ()).sentence()
        '2 actors on 1 node'
        """
        return f"{_counted(self.actors, 'actor')} on {_counted(self.nodes, 'node')}"


@dataclass(frozen=True, slots=True)
class _Node:
    id: str
    name: str
    resources: Mapping[str, float]


Tell = Callable[[str, Any], None]


def main() -> None:
    """Entry point; see :mod:`hasten.bulk.cluster` for the other end."""
    # Ctrl-C reaches the whole process group; the caller decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(word: str, value: Any) -> None:
        pickle.dump((word, value), replies)
        replies.flush()

    requests: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        _serve(requests, tell)
        tell("done", None)
    except HastenError as error:
        log.warning("%s", error, exc_info=True)
        tell("error", error)
    except Exception as error:
        log.exception("Ray failed")
        tell("failed", f"{type(error).__name__}: {_last_line(error)}")


def _listen(requests: queue.Queue[Any]) -> None:
    """Hand on what the caller sends. When it is gone, this process ends too."""
    try:
        while True:
            requests.put(pickle.load(sys.stdin.buffer))  # noqa: S301 - from our own parent process
    except EOFError:
        os._exit(1)


def _serve(requests: queue.Queue[Any], tell: Tell) -> None:
    start: Start = requests.get()
    with _connected(start):
        nodes = _nodes(start.need)
        warnings = _inspected(nodes, start)
        actors = sum(start.need.places(node.resources) for node in nodes)
        tell("ready", Ready(len(nodes), actors, warnings))
        shards: Sequence[Shard] = requests.get()
        _answer(shards, start, tell)


@contextmanager
def _connected(start: Start) -> Iterator[None]:
    import ray

    # Threads are hasten's to share out: the tokenizer would otherwise take all cores it can see.
    threads = {"env_vars": {"RAYON_NUM_THREADS": str(start.need.cpus)}}
    quiet: dict[str, Any] = {"log_to_driver": False, "runtime_env": threads}
    try:
        if start.address == LOCAL:
            ray.init(
                "local",
                num_cpus=start.local_cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            _knock(start.address)
            ray.init(start.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ChoiceError(
            f"no Ray cluster can be reached at {start.address}: {_first_line(error)}",
            fix="This machine must be one of its nodes (ray start --address HEAD:6379). For this "
            "machine alone: --ray local",
        ) from error
    try:
        if not start.reports:
            _refuse_reports(start.address)
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anybody is there: Ray would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _refuse_reports(address: str) -> None:
    """Ray's head sends reports about what runs on it, unless its owner has said otherwise."""
    from ray.experimental.internal_kv import _internal_kv_get

    facts = json.loads(_internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster") or b"{}")
    # It notes the operating system for these reports, and only for them.
    if "os" in facts:
        raise ChoiceError(
            f"the Ray cluster at {address} reports usage statistics to Ray's makers, and hasten "
            "sends none",
            fix="Start its head with: ray start --head --disable-usage-stats\n"
            "Or, if you want these reports, say so: RAY_USAGE_STATS_ENABLED=1 hasten predict ...",
        )


def _nodes(need: Need) -> list[_Node]:
    """The nodes that have room for an actor.

    Raises:
        ChoiceError: there is none.
    """
    import ray

    alive = [
        _Node(node["NodeID"], f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})", resources)
        for node in ray.nodes()
        if node["Alive"] and (resources := node.get("Resources", {}))
    ]
    able = [node for node in alive if need.places(node.resources)]
    if not able:
        have = "; ".join(f"{node.name}: {_sentence(node.resources)}" for node in alive)
        raise ChoiceError(
            "no node of the Ray cluster has what the bundle's plan takes, "
            f"{need.sentence()} ({have})",
            fix="Tune with fewer threads (hasten tune --threads N), or use larger nodes.",
        )
    return able


def _sentence(resources: Mapping[str, float]) -> str:
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    memory = resources.get("memory", 0.0) / 2**30
    return f"{cpus:g} CPU, {gpus:g} GPU, {memory:.1f} GiB"


def _inspected(nodes: Sequence[_Node], start: Start) -> tuple[str, ...]:
    """Let each node show that it can take part.

    Returns:
        How nodes differ from the machine on which the bundle was tuned, in sentences.

    Raises:
        BundleError, InputError, StorageError, Unavailable: one cannot; all such are named.
    """
    problems: list[tuple[_Node, HastenError]] = []
    differences: list[str] = []
    for node, findings in _findings(nodes, start):
        if isinstance(findings, HastenError):
            problems.append((node, findings))
        elif problem := _unshared(findings, start.order):
            problems.append((node, problem))
        else:
            differences += [f"node {node.name}: {text}" for text in findings.differences]
            if start.need.cpus > findings.cores:
                differences.append(
                    f"node {node.name}: the bundle's plan takes {start.need.cpus} cores, and "
                    f"there are {findings.cores}"
                )
    if problems:
        listed = "\n".join(f"  {node.name}: {problem.message}" for node, problem in problems)
        first = problems[0][1]
        raise type(first)(
            f"{len(problems)} of {_counted(len(nodes), 'node')} of the Ray cluster cannot take "
            f"part:\n{listed}",
            fix=first.fix,
        )
    return tuple(differences)


def _findings(
    nodes: Sequence[_Node], start: Start
) -> Iterator[tuple[_Node, Findings | HastenError]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(inspect)
    sent = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        # Without a CPU of its own: it shall not wait for what else runs on the node.
        placed = task.options(
            num_cpus=0, num_gpus=start.need.gpus, max_retries=0, scheduling_strategy=here
        )
        sent.append((node, placed.remote(start.order.text())))
    # It is needed later, and takes seconds, in which the nodes are busy anyway.
    import ray.data

    until_s = time.monotonic() + _INSPECTION_S
    for node, reference in sent:
        try:
            reply = json.loads(ray.get(reference, timeout=max(until_s - time.monotonic(), 1.0)))
        except (ray.exceptions.RayError, RuntimeError) as error:
            yield node, EngineError(_last_line(error), fix=_fix_of(error))
            continue
        if "error" in reply:
            yield node, opened(reply["error"])
        else:
            yield node, from_json(Findings, reply["findings"])


def _fix_of(error: Exception) -> str | None:
    if "No module named 'hasten'" in str(error):
        return "Install hasten on every node, into the Python that Ray runs there."
    return None


def _unshared(findings: Findings, order: Order) -> HastenError | None:
    """What is wrong, if what the node wrote cannot be read here."""
    path = Path(order.fence).with_name(findings.proof)
    try:
        found = path.read_text(encoding="ascii")
        path.unlink()
    except OSError:
        found = None
    if found == order.token:
        return None
    return StorageError(
        f"what it writes to {path.parent} cannot be read where the run was started",
        fix="Give -o on storage that all nodes see under the same path, such as NFS.",
    )


def _answer(shards: Sequence[Shard], start: Start, tell: Tell) -> None:
    """Have all shards answered, however often Ray has to be asked.

    Raises:
        HastenError: a shard cannot be answered.
        RayError: Ray has failed repeatedly.
    """
    import ray

    left = {shard.number: shard for shard in shards}
    tries = 0
    while left:
        before = len(left)
        try:
            for receipt in _receipts(list(left.values()), start):
                tell("receipt", receipt)
                left.pop(receipt.shard.number, None)
        except (ray.exceptions.RayError, TimeoutError):
            # Ray replaces what dies by itself; this is for what it does not, such as a node that
            # died while an actor was being made there.
            log.warning("Ray failed with %d shards left", len(left), exc_info=True)
            tries = tries + 1 if len(left) == before else 1
            if tries >= _TRIES:
                raise


def _receipts(shards: Sequence[Shard], start: Start) -> Iterator[Receipt]:
    """Receipts in the order in which shards are done.

    Raises:
        HastenError: a shard cannot be answered.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = 0
    context.enable_progress_bars = False
    # Ray reckons with that much output of every shard, and would hold shards back for want of room.
    context.target_max_block_size = _BLOCK_BYTES
    need = start.need
    actors = min(sum(need.places(node.resources) for node in _nodes(need)), len(shards))
    items = [{"shard": json.dumps(to_json(shard))} for shard in shards]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Answerer,
        fn_constructor_args=(start.order.text(),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=need.cpus,
        num_gpus=need.gpus or None,
        memory=need.memory_bytes or None,
        # Not as many as fit onto the first node: Ray may count more CPUs than a node has cores.
        scheduling_strategy="SPREAD",
    )
    for row in done.iter_rows():
        result = json.loads(row["result"])
        if "error" in result:
            raise opened(result["error"])
        yield from_json(Receipt, result["receipt"])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _last_line(error: Exception) -> str:
    """Where Ray's messages say what was wrong, behind the traceback."""
    return (str(error).strip() or type(error).__name__).rpartition("\n")[2].strip()[:300]
