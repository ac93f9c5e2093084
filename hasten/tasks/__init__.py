"""Tasks, found by the files that are here.

A file whose name starts with an underscore, ``base`` and ``outputs`` are not tasks of their own.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.errors import ChoiceError
from hasten.plain import from_json, to_json
from hasten.records import ModelInfo
from hasten.tasks._correlation import spearman
from hasten.tasks._scores import FUNCTIONS, applied
from hasten.tasks.base import DEFAULT_FORM, Encoded, Form, Objective, Task, token_rows
from hasten.tasks.outputs import Outputs

__all__ = [
    "DEFAULT_FORM",
    "FUNCTIONS",
    "Encoded",
    "Form",
    "Objective",
    "Outputs",
    "Task",
    "adjusted",
    "applied",
    "as_numbers",
    "claiming",
    "discover",
    "get",
    "is_claimed",
    "named",
    "names",
    "of",
    "spearman",
    "token_rows",
]

_NOT_TASKS = {"base", "outputs"}


def names() -> tuple[str, ...]:
    """Names of the tasks there are, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(n for n in found if n not in _NOT_TASKS and not n.startswith("_")))


def discover() -> dict[str, type[Task]]:
    """The class of every task by name."""
    return {name: _class(name) for name in names()}


def get(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """The task of that name, with these of its settings changed.

    Raises:
        ChoiceError: unknown task or setting.
    """
    if name not in names():
        raise ChoiceError(f"unknown task {name!r}", fix=f"Tasks: {', '.join(names())}.")
    try:
        return from_json(_class(name), settings or {})
    except ValueError as error:
        raise ChoiceError(f"settings of the task {name} do not fit it: {error}") from error


def named(name: str, config: Mapping[str, Any]) -> Task:
    """The task of that name, with what a model's ``config.json`` says of its settings.

    Raises:
        ChoiceError: unknown task.
        ModelError: the config asks for what the task does not have.
    """
    return get(name, type(get(name)).settings_of(config))


def adjusted(
    task: Task, settings: Mapping[str, Any], labels: Sequence[str] = ()
) -> tuple[Task, dict[str, Any]]:
    """The task with those of the settings that it has, and the others.

    Args:
        task: the model's.
        settings: by name, as a caller gives them.
        labels: of the model.

    Raises:
        ChoiceError: a setting cannot have that value.
    """
    own, settings = to_json(task), task.given(settings, labels)
    changed = {name: value for name, value in settings.items() if name in own}
    others = {name: value for name, value in settings.items() if name not in own}
    return (get(task.name, {**own, **changed}) if changed else task), others


def of(info: ModelInfo) -> Task:
    """A model's task, with its settings."""
    return get(info.task, info.task_settings)


def as_numbers() -> Task:
    """What decides nothing: outputs of any task, compared as numbers."""
    return get("tensors")


def claiming(config: Mapping[str, Any]) -> Task:
    """The task of a model, by what its ``config.json`` says.

    A model that none of them claims is taken for a classifier of whole texts.

    >>> claiming({"num_labels": 2}).name, claiming({"num_labels": 1}).name
    ('single_label', 'multi_label')
    """
    found = _claiming(config) or _claiming({**config, "architectures": None})
    assert found, "some task takes any classifier"
    return found(**found.settings_of(config))


def is_claimed(config: Mapping[str, Any]) -> bool:
    """Whether a model is of some task, by what its ``config.json`` says; see :func:`claiming`."""
    return _claiming(config) is not None


def _claiming(config: Mapping[str, Any]) -> type[Task] | None:
    config = {"num_labels": len(config.get("id2label") or (0, 1)), **config}
    # What pools an encoder's vectors has no head, whatever architecture its config.json names.
    headless = config.get("sentence") is not None
    known = (task for task in discover().values() if (task.pools is not None) == headless)
    return next((task for task in known if task.claims(config)), None)


def _class(name: str) -> type[Task]:
    found: type[Task] = importlib.import_module(f"{__name__}.{name}").TASK
    return found
