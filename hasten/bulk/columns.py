"""Which answers become columns of the output, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from hasten.errors import ChoiceError, HastenError
from hasten.inputs.corpus import pair_of
from hasten.inputs.tokenization import Tokens
from hasten.records import ModelInfo
from hasten.tasks import Encoded, Outputs, Task

ERROR = "error"
"""The column that says why a row has no answer, where such rows are recorded."""


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of the output's columns by what they hold, in their order."""

    names: Mapping[str, str]

    def named(self, answers: pa.Table, errors: Mapping[int, HastenError]) -> pa.Table:
        """The chosen columns of a task's table, under their names, and the errors if wanted."""
        columns = {}
        for what, name in self.names.items():
            if what == ERROR:
                messages = [errors[i].message if i in errors else None for i in range(len(answers))]
                columns[name] = pa.chunked_array([pa.array(messages, pa.string())])
            else:
                columns[name] = answers.column(what)
        return pa.table(columns)


def choose(
    wanted: Sequence[str] | None,
    task: Task,
    model: ModelInfo,
    taken: Sequence[str],
    *,
    record_errors: bool,
) -> Naming:
    """Decide on the columns.

    Args:
        wanted: ``"label"``, or ``"label=topic"`` for another name; None for the usual ones.
        task: which columns there can be.
        model: its labels.
        taken: the input's own columns, which are kept.
        record_errors: add a column for them.

    Raises:
        ChoiceError: unknown column, or a name is taken.

    >>> from hasten.tasks import get
    >>> model = ModelInfo("m", "Bert", "regression", ("x",), 9, (), (), 0, 1, 1.0, 1.0)
    >>> choose(["value=price"], get("regression"), model, ["text"], record_errors=False).names
    {'value': 'price'}
    """
    allowed = task.table(*nothing(model)).column_names
    names: dict[str, str] = {}
    for item in wanted or task.usual_columns:
        what, _, name = item.partition("=")
        if what not in [*allowed, ERROR] or (what == ERROR and not record_errors):
            raise ChoiceError(
                f"a {model.task} model has no answer {what!r}",
                fix=f"--columns takes {', '.join(allowed)}, each also with a name of its own: "
                f"--columns {allowed[0]}=NAME",
            )
        if what in names:
            raise ChoiceError(
                f"--columns names {what!r} twice", fix=f"Once: --columns {','.join(allowed)}"
            )
        names[what] = name or what
    if record_errors:
        names.setdefault(ERROR, ERROR)
    _refuse_taken(names, taken)
    return Naming(names)


def require_columns(task: Task, text_column: str, columns: Sequence[str]) -> None:
    """Refuse one column for a model of pairs, and two for one of texts.

    Raises:
        ChoiceError: the number of columns is not what the model reads.
    """
    named = pair_of(text_column, columns)
    if task.takes == "pairs" and len(named) == 1:
        raise ChoiceError(
            f"the model reads pairs of texts, and {text_column!r} is one column",
            fix="Name both with a comma between them: --text-column FIRST,SECOND",
        )
    if task.takes == "texts" and len(named) == 2:
        raise ChoiceError(
            f"the model reads one text at a time, and {text_column!r} names two columns",
            fix=f"Name one of them: --text-column {named[0]}",
        )


def nothing(model: ModelInfo) -> tuple[Outputs, Sequence[str], Encoded]:
    """What a task makes a table without rows of."""
    columns = len(model.labels) or model.output_width or 1
    none = np.empty(0, np.int32)
    tokens = Tokens(none, np.zeros(1, np.int64), np.empty(0, np.bool_), none)
    tokens = replace(tokens, spans=none.reshape(0, 2), special=np.empty(0, np.bool_))
    rows = Outputs.of_rows(np.empty((0, columns), np.float32))
    return rows, model.labels, Encoded((), tokens)


def _refuse_taken(names: Mapping[str, str], taken: Sequence[str]) -> None:
    for what, name in names.items():
        if name in taken:
            free = {w: f"{w}=predicted_{w}" if n in taken else f"{w}={n}" for w, n in names.items()}
            others = [free[w] if free[w] != f"{w}={w}" else w for w in names if w != ERROR]
            if what == ERROR:
                others.append(f"{ERROR}=NAME")
            raise ChoiceError(
                f"the input has a column {name!r} already, which would be overwritten",
                fix=f"Give the answer another name: --columns {','.join(others)}",
            )
    if len(set(names.values())) < len(names):
        raise ChoiceError("two answers share a name", fix="Give each a name of its own.")
