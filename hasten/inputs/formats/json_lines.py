"""JSON Lines: one object a line. Objects may differ; each keeps the keys it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from hasten.errors import InputError
from hasten.inputs.formats.base import HEAD_ROWS, Reader, Rows
from hasten.inputs.formats.records import Lines, Record, RecordFormat, RecordReader, answered
from hasten.inputs.formats.values import as_json
from hasten.records import Place


class _JsonLinesReader(RecordReader):
    def records(self, lines: Lines) -> Iterator[Record]:
        number = lines.place.number
        for line in lines:
            error = lines.fault()
            if error or (line and not line.isspace()):
                item: dict[str, object] = {}
                try:
                    item = {} if error else _object(line, f"{self._name}, line {number}")
                except InputError as problem:
                    error = problem
                yield Record(number, lines.place, item, error)
            number = lines.place.number


def _object(line: str, place: str) -> dict[str, object]:
    fix = (
        'Every line must be one object, such as {"text": "..."}. A JSON array is rewritten by: '
        "jq -c '.[]' OLD.json > NEW.jsonl"
    )
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.colno}"
        raise InputError(f"{place}: broken JSON ({what})", fix=fix) from error
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits; 100,000 brackets
        raise InputError(f"{place}: JSON beyond what can be read ({error})", fix=fix) from error
    if not isinstance(item, dict):
        raise InputError(f"{place}: a JSON {type(item).__name__}, not an object", fix=fix)
    return item


class JsonLines(RecordFormat):
    """See the module's docstring."""

    extensions = (".jsonl", ".ndjson", ".json")

    def read(
        self,
        stream: IO[bytes],
        name: str,
        begin: Place,
        schema: pa.Schema | None,
        head_rows: int = HEAD_ROWS,
    ) -> Reader:
        return _JsonLinesReader(stream, name, begin, schema, head_rows)

    def write(self, rows: Rows, answers: pa.Table, schema: pa.Schema, *, head: bool) -> bytes:
        lines = []
        for index, (values, answer) in enumerate(answered(rows, answers)):
            if not answer.keys().isdisjoint(values):  # the rows that were looked at had no such key
                raise InputError(
                    f"{rows.where(index)}: there is a {min(answer.keys() & values.keys())!r} "
                    "already, which the answer would replace",
                    fix="Give the answer another name: --columns, with --restart.",
                )
            lines.append(as_json({**values, **answer}) + "\n")
        return "".join(lines).encode()


FORMATS = (JsonLines(),)
