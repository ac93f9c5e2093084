"""Texts or Arrow data in memory: answered as they come, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from os import PathLike
from typing import Any

import pyarrow as pa

from hasten.bulk.columns import choose, require_columns
from hasten.bulk.flow import flow
from hasten.bulk.model import Model
from hasten.errors import InputError
from hasten.inputs.corpus import choose_text_column
from hasten.inputs.datasets import is_dataset
from hasten.inputs.formats.tables import TableRows, row_bytes
from hasten.inputs.formats.values import is_string, whole
from hasten.records import Place, Shard
from hasten.runtime.predictor import Predictor, load

_SHARD_ROWS = 8192
_SHARD_BYTES = 32 << 20
_CHUNK = 1024


def predict(
    bundle: str | PathLike[str] | Predictor,
    data: Any,
    *,
    text_column: str | None = None,
    columns: Sequence[str] | None = None,
    trust: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Answer texts or Arrow data, however long, without holding all of it.

    Reading, tokenizing, planning and running overlap, and equal texts that are near each other
    are run once. Nothing is stored; ``hasten.predict_file`` does that.

    Args:
        bundle: what ``hasten tune`` made, or what ``hasten.load`` gave; the latter must not
            be called meanwhile.
        data: an iterable of str; a ``datasets.Dataset``; or a pyarrow Table, RecordBatch,
            RecordBatchReader, or anything that exports an Arrow stream, such as a Polars or pandas
            data frame.
        text_column: the column with the texts, if it is not clear.
        columns: answers to add, each as ``"label"`` or ``"label=topic"`` for another name.
        trust: accept a bundle whose artifact can run code, whoever made it.

    Yields:
        Record batches of the data's own columns and the answers, in the data's order.

    Raises:
        InputError: a row without text in its column, or no such column.
        ChoiceError: an answer that there is not, or a name that is taken.
        BundleError, Unavailable, EngineError: as ``hasten.load``.
    """
    tables = _tables(data)
    head = next(tables, None)
    if head is None:
        return
    with ExitStack() as closed:
        predictor = bundle
        if not isinstance(predictor, Predictor):
            predictor = closed.enter_context(load(predictor, trust=trust))
        text = _text_column(head.schema, text_column)
        require_columns(predictor.task, text, head.column_names)
        info = predictor.bundle.model
        naming = choose(columns, predictor.task, info, head.column_names, record_errors=False)
        model = Model(predictor)
        rows = _shards(chain([head], tables))
        works = (model.prepare(*pair, text) for pair in rows)
        for work in closed.enter_context(closing(flow(works, model.streams))):
            answered = work.finish(naming)
            if answered.errors:
                raise answered.errors[min(answered.errors)]
            table = work.rows.table(head.schema)
            for name in answered.table.column_names:
                table = table.append_column(name, answered.table.column(name))
            yield from table.combine_chunks().to_batches()


def _tables(data: Any) -> Iterator[pa.Table]:
    """Whatever it is as tables of the same columns, none of them empty."""
    if isinstance(data, str | bytes | Mapping):
        raise _no_data(data)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Array | pa.ChunkedArray):
        tables: Iterable[pa.Table] = [pa.table({"text": data})]
    elif is_dataset(data):
        tables = data.with_format("arrow").iter(_CHUNK)
    elif hasattr(data, "__arrow_c_stream__"):
        tables = _of_stream(data)
    elif isinstance(data, Iterable):
        tables = _of_texts(iter(data))
    else:
        raise _no_data(data)
    yield from (table for table in tables if len(table))


def _no_data(data: object) -> InputError:
    return InputError(
        f"data must be texts or Arrow data, not {type(data).__name__}",
        fix="Give a list of str, or a pyarrow Table.",
    )


def _of_stream(data: Any) -> Iterable[pa.Table]:
    try:
        reader = pa.RecordBatchReader.from_stream(data)
    except pa.ArrowInvalid:  # a bare column, such as a pandas or Polars series
        return [pa.table({"text": pa.chunked_array(data)})]
    return (pa.Table.from_batches([batch]) for batch in reader)


def _of_texts(texts: Iterator[object]) -> Iterator[pa.Table]:
    while some := list(islice(texts, _CHUNK)):
        yield pa.table({"text": pa.array([_checked(text) for text in some], pa.string())})


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise InputError(
            f"every text must be a str, but there is: {type(text).__name__}",
            fix='Put "" in the place of missing ones.',
        )
    return whole(text)


def _text_column(schema: pa.Schema, wanted: str | None) -> str:
    holding = tuple(field.name for field in schema if is_string(field.type))
    return choose_text_column("data", schema.names, holding, wanted)


def _shards(tables: Iterable[pa.Table]) -> Iterator[tuple[Shard, TableRows]]:
    """Stretches of rows, cut where enough rows or bytes of text have come together."""
    place = Place()
    waiting: list[pa.Table] = []
    rows = size = number = 0
    for table in tables:
        for piece in _pieces(table):
            waiting.append(piece)
            rows, size = rows + len(piece), size + int(row_bytes(piece)[-1])
            if rows >= _SHARD_ROWS or size >= _SHARD_BYTES:
                made = TableRows("data", place, pa.concat_tables(waiting), {})
                yield Shard(number, 0, place), made
                place, number = made.end, number + 1
                waiting, rows, size = [], 0, 0
    if waiting:
        yield Shard(number, 0, place), TableRows("data", place, pa.concat_tables(waiting), {})


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(begin, _CHUNK) for begin in range(0, len(table), _CHUNK))
