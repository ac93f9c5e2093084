"""How a tune's budget is shared out: every stage's part, in one table."""

from __future__ import annotations

from collections.abc import Mapping

EARLY = 0.4
"""The part of the whole budget after which a proved and timed choice should stand."""

PARTS: Mapping[str, float] = {
    # The first answer, from exact candidates that start quickly. Its rounds take what is left.
    "early prepare": 0.4,
    "early prepare again": 0.3,
    "early screen": 0.1,
    "early screen again": 0.1,
    "early cost table": 0.25,
    "early proof": 0.6,
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
    "proof": 0.5,
    "cascades": 0.3,
    "repair": 0.4,
    "repair start": 0.4,  # of a single attempt
    "repair table": 0.06,
}
"""By stage, the part of what is left when it begins, until the end of its phase."""
