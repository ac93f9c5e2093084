"""Options are written once; the library, the command line and the records follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypedDict, get_args

import pytest
import typer.main

from hasten import api, audits, cli, exports, tasks
from hasten.bulk import run
from hasten.errors import ChoiceError
from hasten.inputs import formats
from hasten.options import (
    AuditOptions,
    BenchOptions,
    CompressOptions,
    DemoOptions,
    ExportOptions,
    Option,
    PredictOptions,
    ReportOptions,
    TuneOptions,
    checks,
    choose,
    defined,
    documented,
    record,
    shared,
)
from hasten.records import Settings
from hasten.report import media

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
FUNCTIONS: dict[str, tuple[type, Callable[..., Any]]] = {
    "tune": (TuneOptions, api.tune),
    "bench": (BenchOptions, api.bench),
    "compress": (CompressOptions, api.compress),
    "export": (ExportOptions, exports.export),
    "demo": (DemoOptions, api.demo),
    "report": (ReportOptions, api.report),
    "predict": (PredictOptions, run.predict_file),
    "audit": (AuditOptions, audits.audit),
}


def by_name(name: str) -> Any:
    return pytest.param(*FUNCTIONS[name], COMMANDS[name], id=name)


every_function = pytest.mark.parametrize(
    ("kind", "function", "command"), [by_name(name) for name in FUNCTIONS]
)


@every_function
def test_the_library_and_the_command_line_have_the_same_options(
    kind: type, function: Callable[..., Any], command: Any
) -> None:
    keywords = inspect.signature(function).parameters
    words = {parameter.name: parameter for parameter in command.params}
    for name, option in defined(kind).items():
        assert keywords[name].default in {option.option.default, inspect.Parameter.empty}
        assert option.flag in words[name].opts or words[name].secondary_opts
        assert words[name].help == option.option.help
        assert words[name].required is option.required
        assert f"{name} (" in (function.__doc__ or "")


@every_function
def test_a_default_on_the_command_line_means_what_it_means_in_python(
    kind: type, function: Callable[..., Any], command: Any
) -> None:
    words = {parameter.name: parameter.default for parameter in command.params}
    for name, option in defined(kind).items():
        if not option.required:
            assert option.value(words[name]) == option.value(None)


def test_settings_have_the_defaults_of_tune() -> None:
    assert record(Settings, TuneOptions, choose("tune", TuneOptions, {})) == Settings()


def test_a_misspelt_option_names_the_one_that_was_meant() -> None:
    with pytest.raises(ChoiceError, match=r"hasten\.tune has no option 'max_flip'") as caught:
        api.tune("model", ["text"], max_flip=0.1)  # type: ignore[call-arg]
    assert caught.value.fix == "Did you mean max_flips?"
    with pytest.raises(ChoiceError) as caught:
        choose("hasten.bench", BenchOptions, {"zzz": 1})
    assert "experiments, " in (caught.value.fix or "")


class _Options(TypedDict, total=False):
    size: Annotated[int, Option("See --other-size.", 3, check=checks.whole_number(1, 9))]


def test_a_docstring_lists_options_before_what_is_returned() -> None:
    @documented(_Options)
    def function(**options: object) -> int:
        """Do something.

        Returns:
            A number.
        """
        return len(options)

    assert inspect.getdoc(function) == (
        "Do something.\n\nOptions:\n    size (int): See ``other_size``; 3 by default.\n\n"
        "Returns:\n    A number."
    )
    assert list(inspect.signature(function).parameters) == ["size"]


@pytest.mark.parametrize("given", [None, [], ()])
def test_nothing_stands_for_the_default(given: Any) -> None:
    assert choose("f", _Options, {"size": given}) == {"size": 3}


@pytest.mark.parametrize(
    ("check", "value", "found"),
    [
        (checks.number(0, 1), 0.5, 0.5),
        (checks.whole_number(32, 100, zero="means none"), 0, 0),
        (checks.whole_numbers(1, 64), "8,1,8", (1, 8)),
        (checks.whole_numbers(1, 64), [4], (4,)),
        (checks.names(), "a, b,", ("a", "b")),
        (checks.names("a"), ["a"], ("a",)),
        (checks.one_of("a", "b"), "b", "b"),
        (checks.duration, "1.5h", 5400.0),
        (checks.share, 0.02, 0.02),
        (checks.speed_up, "3x", 3.0),
        (checks.settings, "stride=128, mode=simple", {"stride": 128, "mode": "simple"}),
        (checks.settings, '{"threshold": {"a": 0.3}}', {"threshold": {"a": 0.3}}),
        (checks.settings, {"stride": 8}, {"stride": 8}),
    ],
)
def test_a_value_becomes_what_records_hold(
    check: checks.Check, value: object, found: object
) -> None:
    assert check("--option", value) == found


@pytest.mark.parametrize(
    ("check", "value", "fix"),
    [
        (checks.number(0, 1), 1.5, "from 0 to 1"),
        (checks.number(0, 1), "much", "from 0 to 1"),
        (checks.whole_number(1, 4096), 2.5, "from 1 to 4,096"),
        (checks.whole_number(1, 4096), True, "from 1 to 4,096"),
        (checks.whole_number(32, 100, zero="holds none out"), 5, "32 to 100; 0 holds none out"),
        (checks.whole_numbers(1, 64), "1,65", "from 1 to 64"),
        (checks.whole_numbers(1, 64), "few", "1,8,32"),
        (checks.whole_numbers(1, 64), 8, "1,8,32"),
        (checks.names("a", "b"), "a,c", "a, b"),
        (checks.names(), "", "leave it out"),
        (checks.one_of("a", "b"), "c", "a, b"),
        (checks.duration, "soon", "90s"),
        (checks.duration, 0, "90s"),
        (checks.share, 1.0, "0.02"),
        (checks.speed_up, "1x", "2x"),
        (checks.speed_up, "fast", "2x"),
        (checks.settings, "stride", "NAME=VALUE"),
        (checks.settings, "{stride", "JSON object"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(
    check: checks.Check, value: object, fix: str
) -> None:
    with pytest.raises(ChoiceError, match="--option") as caught:
        check("--option", value)
    assert fix in (caught.value.fix or "")


def test_a_subpackage_does_not_hide_the_function_of_its_name() -> None:
    import hasten.compress.kept
    import hasten.demo.assets
    import hasten.report.screen

    for name in hasten.__all__:
        assert not inspect.ismodule(getattr(hasten, name)), name
    assert hasten.compress is api.compress
    assert hasten.report is api.report
    assert hasten.demo is api.demo


def test_the_help_of_task_names_every_task() -> None:
    """Options lie below the tasks, so their help cannot list them by itself."""
    (option,) = (item for item in get_args(shared.Task) if isinstance(item, Option))
    assert all(name in option.help for name in tasks.names())


def test_the_help_of_formats_names_every_format() -> None:
    """As with tasks: formats lie above the options."""
    help_of = {name: each.option.help for name, each in defined(PredictOptions).items()}
    kinds = set(formats.by_extension().values())
    for kind in kinds:
        (name, *_) = kind.extensions
        shown = f" {name.removeprefix('.')}"
        assert (shown in help_of["output_format"]) == kind.holds_answers
        assert (shown in help_of["input_format"]) == (not kind.seeks)
    written = defined(ReportOptions)["format"].option.help
    assert all(name in written for name in media.discover())
