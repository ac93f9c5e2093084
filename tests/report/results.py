"""A bench and a tuning from the scripted lab, for the tests of what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.experiment.run import Experiment, Wanted
from hasten.records import EXPERIMENTS, Bench, Candidate, Flip, Parity, Quality, Row, Tuning
from tests.scripted import Lab

SLOW = {"call_s": 5e-3, "token_s": 1e-4}
FAST = {"call_s": 1e-3, "token_s": 2e-5}
NASTY = "</script><script>alert('a text of the user')</script> <b>&amp; | \n more"

SCRIPT = {
    "*": SLOW,
    "fake-bf16-cpu-2x1": FAST,
    "fake-bf16-cpu-1x2": {**FAST, "shift": 5.0},
}

# In a bench the second layout is right as well: single texts run on it.
BENCH_SCRIPT = {**SCRIPT, "fake-bf16-cpu-1x2": {"call_s": 1.2e-3, "token_s": 2.5e-5}}


_made: dict[str, Any] = {}


def once(make: Callable[..., Any], folder: Path, *given: Any, **settings: Any) -> Any:
    """``make(folder, ...)``, or what an equal call has made: records are frozen, so tests share."""
    key = repr((make.__name__, given, settings))
    if key not in _made:
        _made[key] = make(folder, *given, **settings)
    return _made[key]


def tuned(folder: Path, script: Any = None, **settings: Any) -> Tuning:
    """A tuning, with one changed answer whose text is nasty. Made once for equal arguments."""
    tuning: Tuning = once(_tuned, folder, script, **settings)
    return tuning


def _tuned(folder: Path, script: Any = None, **settings: Any) -> Tuning:
    tuning = Lab(folder, script or SCRIPT, **settings).tune()
    flip = Flip(3, NASTY, "no", "yes", 0.5, 0.25)
    parity = Parity(60, 0.5, 0.1, 1, 0, 0.0767, 0, decisions=True, examples=(flip,))
    chosen = replace(tuning.chosen, parity=parity, ceiling_share=0.5)
    rows = tuple(chosen if row.status == "chosen" else row for row in tuning.rows)
    return replace(tuning, rows=rows)


def crowded(folder: Path) -> Tuning:
    """A tuning as a real one looks: a lossy winner, a dozen refused candidates, two warnings."""
    tuning = tuned(folder, {**SCRIPT, "fake-fp32-cpu-2x1": {"call_s": 2e-3, "token_s": 4e-5}})
    found = Quality(0.80, 0.81, 0.797, 0.797, 3, 4, 1.0)
    parity = Parity(700, 0.5, 0.1, 1, 0, 0.00676, 0, decisions=True, quality=found)
    refused = replace(parity, flips=47, flip_upper_bound=0.0848, quality=None)
    rows = [
        replace(row, parity=parity) if row.status == "chosen" else row
        for row in tuning.rows
        if row.status != "refused"
    ]
    rows += [
        Row(
            Candidate("fake", "int8", "cpu", 1, 2, f"static-{number}"),
            "refused",
            "47 of 700 labels flipped",
            screen_tokens_per_s=1e5 + (number == 7),
            parity=refused,
        )
        for number in range(12)
    ]
    noisy = "The machine was noisy: rounds spread. Close other programs."
    return replace(tuning, rows=tuple(rows), warnings=(noisy, "Nothing else. Really."))


def benched(folder: Path, *experiments: str, script: Any = None, **settings: Any) -> Bench:
    """A bench of the wanted experiments, all if none is named. Made once for equal arguments."""
    bench: Bench = once(_benched, folder, *experiments, script=script, **settings)
    return bench


def _benched(folder: Path, *experiments: str, script: Any = None, **settings: Any) -> Bench:
    usual = {"batch_sizes": (1, 4, 8), "budget_s": math.inf, "rounds": 3}
    lab = Lab(folder, script or BENCH_SCRIPT, **{**usual, **settings})
    wanted = Wanted(experiments or EXPERIMENTS, (16, 64), "hasten bench model --data 'a b.csv'")
    return Experiment.plan(lab.context(), wanted, lambda _: None, baseline_engine="fake").run()
