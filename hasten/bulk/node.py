"""What a node of a cluster does: show that it can take part, and answer shards.

Nothing here knows Ray. What goes in and out is JSON: an order, shards, receipts, and errors, which
travel as data because an exception would be wrapped on its way in whatever carries it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten import __version__, errors
from hasten.bulk.columns import Naming
from hasten.bulk.flow import flow
from hasten.bulk.model import Model
from hasten.bulk.plan import Job, refuse_errors
from hasten.bulk.source import Input
from hasten.bulk.store import Store
from hasten.bulk.target import Target
from hasten.errors import BundleError, HastenError, InputError, StorageError
from hasten.plain import from_json, to_json
from hasten.records import BulkPlan, Receipt, Shard
from hasten.runtime.bundle import load
from hasten.runtime.predictor import Predictor
from hasten.storage import durable

_SAME = "Install the same version on all nodes: pip install 'hasten[ray]=={version}'"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, for every node alike.

    Attributes:
        version: of hasten, where the order comes from.
        bundle: its folder.
        trust: accept an artifact that can run code.
        plan: the run's.
        output: what the user asked for; an absolute path.
        workdir: what relative paths of the input start from.
        fence: a file that exists as long as this run does, in the folder of the parts; in it
            stands a token that nobody else knows.
        token: the same.
    """

    version: str
    bundle: str
    trust: bool
    plan: BulkPlan
    output: str
    workdir: str
    fence: str
    token: str

    def text(self) -> str:
        """As JSON."""
        return json.dumps(to_json(self))


@dataclass(frozen=True, slots=True)
class Findings:
    """A node that can take part.

    Attributes:
        cores: those it may really use; Ray may have been told of more.
        differences: from the machine on which the bundle was tuned, in sentences.
        proof: a file that it wrote beside the fence; the token stands in it.
    """

    cores: int
    differences: tuple[str, ...]
    proof: str


def inspect(order: str) -> str:
    """See whether this node can do what is ordered.

    Returns:
        JSON: ``{"findings": ...}`` or ``{"error": ...}``; see :func:`opened`.
    """
    try:
        return json.dumps({"findings": to_json(_inspect(_received(order)))})
    except HastenError as error:
        return json.dumps({"error": packed(error)})


class Answerer:
    """Answers shards, one at a time, with a model that is loaded once.

    What fails while it is being made is told with the first shard, as any other error.
    """

    def __init__(self, order: str) -> None:
        self._station: _Station | None = None
        try:
            self._station = _Station(_received(order))
        except HastenError as error:
            self._problem = packed(error)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Answer and store shards (JSON); for each a receipt or an error, as JSON."""
        return {"result": [json.dumps(self._answer(str(text))) for text in batch["shard"]]}

    def _answer(self, text: str) -> dict[str, Any]:
        if self._station is None:
            return {"error": self._problem}
        try:
            receipt = self._station.answer(from_json(Shard, json.loads(text)))
        except HastenError as error:
            return {"error": packed(error)}
        return {"receipt": to_json(receipt)}


class _Station:
    """A node in the middle of a run."""

    def __init__(self, order: Order) -> None:
        self._order = order
        bundle = _checked(order)
        self._model = Model(Predictor(bundle))
        plan = order.plan
        target = Target(Path(order.output), plan.dataset, plan.output_format, plan.packing)
        given = Input(plan.sources[0].path)
        self._job = Job(bundle, given, target, plan, Naming(plan.answers))
        self._store = Store(Path(order.output), dataset=plan.dataset)
        self._store.join(plan)

    def answer(self, shard: Shard) -> Receipt:
        """Read a shard, answer it, and store the part and its receipt."""
        plan = self._order.plan
        # By its own name alone: looking for all files again would take long where there are many.
        given = Input(plan.sources[shard.source].path)
        rows = given.read(plan, replace(shard, source=0))
        work = self._model.prepare(shard, rows, plan.text_column)
        refuse_errors(work.unread, plan)
        with closing(flow([work], self._model.streams)) as finished:
            (work,) = finished
        answered = work.finish(self._job.naming)
        refuse_errors(answered.errors, plan)
        part = self._job.encode(answered)
        self._refuse_orphaned()
        return self._store.put(plan, shard, rows.end, answered.tally, part)

    def _refuse_orphaned(self) -> None:
        """A restarted run has removed this one's fence, maybe with other answers."""
        # Read, not looked for: a network file system may remember for a minute that it was there.
        if _token(self._order) != self._order.token:
            raise StorageError(f"another run has taken over {self._order.output}")


def _received(text: str) -> Order:
    fields = json.loads(text)
    if fields["version"] != __version__:
        raise BundleError(
            f"hasten {__version__} is installed here, and the run was started with "
            f"{fields['version']}",
            fix=_SAME.format(version=fields["version"]),
        )
    return from_json(Order, fields)


def _checked(order: Order) -> Any:
    """The bundle, if it, the output and the input are here what they are for the others."""
    _enter(order)
    _refuse_other_input(order.plan)
    _read_fence(order)
    bundle = load(Path(order.bundle), trust=order.trust)
    if bundle.digest != order.plan.bundle:
        raise BundleError(
            f"{order.bundle} is another bundle here than where the run was started",
            fix="Copy the bundle to all nodes, to the same path, or keep it on shared storage.",
        )
    return bundle


def _inspect(order: Order) -> Findings:
    bundle = _checked(order)
    # Answers the bundle's probes, if it has not done so on this machine before.
    Predictor(bundle).close()
    fence = Path(order.fence)
    proof = fence.with_name(temporary_name())
    durable.write(proof, order.token.encode())
    return Findings(bundle.here.usable_cores, bundle.differences, proof.name)


def _enter(order: Order) -> None:
    """Relative names stand in messages and in the plan: they mean the same everywhere."""
    if all(Path(source.path).is_absolute() for source in order.plan.sources):
        return
    try:
        os.chdir(order.workdir)
    except OSError as error:
        raise InputError(
            f"the folder {order.workdir}, from which the input's path starts, cannot be entered: "
            f"{error.strerror}",
            fix="Give INPUT as an absolute path on storage that all nodes see.",
        ) from error


def _refuse_other_input(plan: BulkPlan) -> None:
    for source in plan.sources:
        try:
            size = Path(source.path).stat().st_size
        except OSError as error:
            what = f"cannot be seen: {error.strerror}"
        else:
            if size == source.size_bytes:
                continue
            what = f"has {size:,} bytes here and {source.size_bytes:,} where the run was started"
        raise InputError(
            f"{source.path} {what}",
            fix="Keep the input on storage that all nodes see under the same path.",
        )


def _read_fence(order: Order) -> None:
    if _token(order) != order.token:
        raise StorageError(
            f"{Path(order.fence).parent} is not the folder into which the run writes: what was "
            "written there cannot be read here",
            fix="Give -o on storage that all nodes see under the same path, such as NFS.",
        )


def _token(order: Order) -> str | None:
    try:
        return Path(order.fence).read_text(encoding="ascii")
    except OSError:
        return None


def temporary_name() -> str:
    """A file's name that nobody else has, of the kind that :func:`durable.sweep` removes."""
    return f".node.{secrets.token_hex(4)}.unfinished"


def packed(error: HastenError) -> dict[str, Any]:
    """An error of ours as JSON values."""
    return {"kind": type(error).__name__, "message": error.message, "fix": error.fix}


def opened(fields: Mapping[str, Any]) -> HastenError:
    """The inverse of :func:`packed`."""
    kind: type[HastenError] = getattr(errors, fields["kind"])
    return kind(fields["message"], fix=fields["fix"])
