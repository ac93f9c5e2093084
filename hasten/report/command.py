"""The command that repeats a result."""

from __future__ import annotations

from hasten.records import Bench, Settings, Tuning


def repeat(result: Tuning | Bench) -> str | None:
    """The command that repeats a result; for a tuning from Python, one with the same settings."""
    if result.command or isinstance(result, Bench):
        return result.command
    return again(result.settings, student=result.student is not None)


def again(settings: Settings, *, student: bool = False) -> str:
    """A `hasten tune` command with these settings; file names are not stored."""
    models = "STUDENT --reference MODEL" if student else "MODEL"
    asked, usual = settings, Settings()
    options = {
        "budget": f"{asked.budget_s:g}s" if asked.budget_s != usual.budget_s else None,
        "engines": ",".join(asked.engines),
        "precisions": ",".join(asked.precisions),
        "batch-sizes": ",".join(map(str, asked.batch_sizes))
        if asked.batch_sizes != usual.batch_sizes
        else None,
    }
    for name in ("objective", "max_latency_ms", "max_flips", "threads", "device", "texts"):
        if getattr(asked, name) != getattr(usual, name):
            options[name.replace("_", "-")] = str(getattr(asked, name))
    for name in ("calibration", "rounds", "seed"):
        if getattr(asked, name) != getattr(usual, name):
            options[name] = str(getattr(asked, name))
    words = [f"--{name} {value}" for name, value in options.items() if value]
    words += ["--strict"] * asked.strict + ["--whole-texts"] * asked.whole_texts
    return " ".join([f"hasten tune {models} --data FILE -o BUNDLE", *words])
