"""Writes the reference of the command line: ``python -m hasten.cli.reference > docs/cli.md``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from typer.models import ArgumentInfo, CommandInfo

from hasten.cli import app
from hasten.cli.display import out

_HEAD = """\
# Command line

Python has the same functions with the same names: `--max-flips 0.02` of `hasten tune` is
`max_flips=0.02` of `hasten.tune`. `hasten COMMAND --help` shows what stands here.

<!-- Generated: python -m hasten.cli.reference > docs/cli.md -->
"""


def render() -> str:
    """Every command with its arguments, options, defaults and examples, as Markdown."""
    commands = list(app.registered_commands)
    index = [f"- [`{_name(one)}`](#{_anchor(one)}): {_summary(one)}" for one in commands]
    return "\n".join([_HEAD, "\n".join(index), "", "\n".join(map(_section, commands))])


@dataclass(frozen=True, slots=True)
class _Word:
    """An argument or an option of a command."""

    name: str
    type: Any
    default: Any
    info: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def panel(self) -> str:
        """The heading above it."""
        if isinstance(self.info, ArgumentInfo):
            return "Argument"
        return self.info.rich_help_panel or "Option"

    @property
    def spelling(self) -> str:
        """What is typed, without a value."""
        if isinstance(self.info, ArgumentInfo):
            name = self.info.metavar or self.name.upper()
            return name if self.required else f"[{name}]"
        # In an annotation, typer takes the first spelling for a default.
        first = [] if self.info.default is ... else [self.info.default]
        spelt = [*first, *(self.info.param_decls or ())] or [f"--{self.name.replace('_', '-')}"]
        return ", ".join(spelt)

    @property
    def value(self) -> str:
        """What stands for the value."""
        (kind, *_) = [kind for kind in get_args(self.type) or (self.type,) if kind is not NoneType]
        if isinstance(self.info, ArgumentInfo) or kind is bool:
            return ""
        return f" {self.info.metavar or kind.__name__.upper()}"

    @property
    def shown_default(self) -> str:
        """What it is unless given."""
        if self.required:
            return "required"
        if self.default is True:
            return f"`{self.spelling.partition('/')[0]}`"
        return "" if self.default is None or self.default is False else f"`{self.default}`"


def _words(command: CommandInfo) -> Iterator[_Word]:
    for parameter in inspect.signature(_callback(command), eval_str=True).parameters.values():
        kind, info = get_args(parameter.annotation)
        yield _Word(parameter.name, kind, parameter.default, info)


def _callback(command: CommandInfo) -> Callable[..., Any]:
    assert command.callback
    return command.callback


def _name(command: CommandInfo) -> str:
    return f"hasten {command.name or _callback(command).__name__}"


def _anchor(command: CommandInfo) -> str:
    return _name(command).replace(" ", "-")


def _summary(command: CommandInfo) -> str:
    return (inspect.getdoc(_callback(command)) or "").partition("\n")[0]


def _section(command: CommandInfo) -> str:
    words = list(_words(command))
    arguments = "".join(f"{word.spelling} " for word in words if word.panel == "Argument")
    parts = [
        f"## {_name(command)}",
        f"```\n{_name(command)} {arguments}[OPTIONS]\n```",
        inspect.getdoc(_callback(command)) or "",
    ]
    panels = dict.fromkeys(word.panel for word in words)
    parts += [_table(panel, [word for word in words if word.panel == panel]) for panel in panels]
    if command.epilog:
        examples = [line.strip("`") for line in command.epilog.split("\n\n")[1:]]
        parts.append("\n".join(["```bash", *examples, "```"]))
    return "\n\n".join(parts) + "\n"


def _table(panel: str, words: list[_Word]) -> str:
    rows = [
        (f"`{word.spelling}{word.value}`", word.info.help, word.shown_default) for word in words
    ]
    lines = [(panel, "", "Default"), ("---", "---", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    out.file.write(render())
