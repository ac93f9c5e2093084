"""What is to be done, decided before the first row: everything that the output depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hasten import tasks
from hasten.bulk.columns import Naming, choose, require_columns
from hasten.bulk.model import Answered
from hasten.bulk.source import Input, schema_of, schema_text
from hasten.bulk.target import Target
from hasten.errors import HastenError
from hasten.inputs import formats
from hasten.options import PredictOptions
from hasten.records import BulkPlan
from hasten.runtime.batching import CostModel
from hasten.runtime.bundle import Bundle, Stage

_VERSION = 1

_SHARD_S = 20.0
"""What a shard should take: so much is lost at most when a run is killed."""

_SHARD_ROWS = (512, 16384)
"""Fewer leave too little choice for batches without padding; more gain nothing."""

_FIRST_ROWS = 32
"""Of the first shard, where a pipe's other end waits for it."""

_SHARD_BYTES = 32 << 20
"""Where texts are large, fewer rows make a shard: a few shards must fit into memory."""

_TYPICAL = (32, 32)
"""Batch size and tokens a text by which a shard's time is guessed, before any text is seen."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, decided: the input, where the output goes, and the plan."""

    bundle: Bundle
    given: Input
    target: Target
    plan: BulkPlan
    naming: Naming

    def encode(self, answered: Answered) -> bytes:
        """A shard with its answers, as its part holds it."""
        written = formats.by_extension()[self.plan.output_format]
        head = self.plan.dataset or answered.shard.number == 0
        raw = written.write(answered.rows, answered.table, schema_of(self.plan), head=head)
        return formats.packed(raw, self.plan.packing)


def decide(bundle: Bundle, given: Input, target: Target, options: PredictOptions) -> Job:
    """Decide everything that the output depends on.

    Raises:
        InputError: the input's columns cannot be told.
        ChoiceError: an option that cannot be.
    """
    found = given.columns(options["text_column"])
    task = tasks.of(bundle.model)
    require_columns(task, found.text_column, found.schema.names)
    record = options["on_error"] == "record"
    most = options["shard_rows"] or _rows_of_a_shard(bundle)
    naming = choose(
        options["columns"], task, bundle.model, found.schema.names, record_errors=record
    )
    decided = BulkPlan(
        version=_VERSION,
        bundle=bundle.digest,
        sources=given.sources,
        input_format=given.extension,
        text_column=found.text_column,
        schema=schema_text(found.schema),
        answers=naming.names,
        output_format=target.format,
        packing=target.packing,
        dataset=target.dataset,
        on_error="record" if record else "stop",
        shard_rows=most,
        shard_bytes=_SHARD_BYTES,
        first_rows=_FIRST_ROWS if target.path is None else most,
    )
    return Job(bundle, given, target, decided, naming)


def _rows_of_a_shard(bundle: Bundle) -> int:
    """A power of two, by what the bundle's cost table says; the same whenever it is asked."""
    row_s = sum(share * _row_s(stage) for stage, share in _shares(bundle))
    fewest, most = _SHARD_ROWS
    wanted = min(max(_SHARD_S / row_s, fewest), most) if row_s else most
    return 1 << (int(wanted).bit_length() - 1)


def _row_s(stage: Stage) -> float:
    """Seconds for a typical row; 0 where nothing was measured."""
    cost = CostModel.of(stage.plan)
    batch, length = _TYPICAL
    return cost.cost_s(batch, length) / batch if cost else 0.0


def _shares(bundle: Bundle) -> Iterator[tuple[Stage, float]]:
    """Every stage, with the share of all rows that came to it when the bundle was proved."""
    share = 1.0
    for stage in bundle.stages:
        yield stage, share
        rule = stage.hands_on
        share *= rule.handed / rule.texts if rule and rule.texts else 0.0


def refuse_errors(errors: Mapping[int, HastenError], plan: BulkPlan) -> None:
    """Raise the first error, unless errors are recorded."""
    if plan.on_error == "stop" and errors:
        first = errors[min(errors)]
        raise type(first)(
            first.message,
            fix=f"{first.fix or ''}\nOr give such rows an error instead of an answer: "
            "--on-error record (with --restart, if rows were answered already).".strip(),
        ) from first
