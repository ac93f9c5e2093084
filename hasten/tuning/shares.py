"""How a tune's budget is shared out: every stage's part, in one table."""

from __future__ import annotations

from collections.abc import Mapping

EARLY = 0.4
"""The part of the whole budget after which a proved and timed choice should stand."""

ROUNDS = 0.92
"""The part of what is left that rounds are planned for: choosing, saving and a slow last round
need a little."""

RESTARTS = 0.25
"""Of the time for rounds, what starting all workers again may take at most, warm-up aside."""

GRACE = 1.1
"""Rounds may take this many times what is left: they are predicted to about 10 %, and the budget
is kept within 20 %."""

OVERRUN = 0.15
"""The part of the whole budget by which the fewest rounds may exceed it, which is better than
spending all of it without a result."""

PATIENCE = 0.2
"""The part of the whole budget for which a worker may be silent, beyond what its task takes."""

PARTS: Mapping[str, float] = {
    # The first answer, from exact candidates that start quickly, and the fastest of them with
    # long texts cut. Its rounds take what is left.
    "early prepare": 0.4,
    "early prepare again": 0.3,
    "early screen": 0.1,
    "early screen again": 0.1,
    "early cost table": 0.25,
    "early proof": 0.6,
    "early prepare truncated": 0.4,
    "early proof truncated": 0.6,
    # The rest of the budget tries to beat it. The final rounds take what is left.
    "prepare": 0.4,  # one layout of each format
    "prepare original": 0.3,  # the same where a student is prepared afterwards
    "prepare student": 0.3,
    "prepare again": 0.2,  # the other layouts of what is near
    "screen": 0.1,
    "screen student": 0.1,
    "screen again": 0.1,
    "cost table": 0.25,
    "prepare truncated": 0.2,
    "cascade thresholds": 0.2,
    "cascades": 0.35,
    "proof": 0.5,
    "repair": 0.4,
    "repair start": 0.4,  # of a single attempt
    "repair table": 0.06,
}
"""By stage, the part of what is left when it begins, until the end of its phase."""
