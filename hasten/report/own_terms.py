"""A task's own figures on how far a candidate keeps the original's answers, in words."""

from __future__ import annotations

from hasten.records import Parity


def own_terms(parity: Parity) -> str:
    """The task's own figures, in one line: ``mean cosine 0.9993 (at least 0.99), ...``."""
    return ", ".join(
        f"{name} {value:.5g}"
        + (f" (at least {parity.demanded[name]:g})" if name in parity.demanded else "")
        for name, value in parity.agreement.items()
    )


def kept(parity: Parity) -> str:
    """The first of the figures that must be reached, for a cell; empty where there is none."""
    first = next(iter(parity.demanded), None)
    return f"{first} {parity.agreement[first]:.5g}" if first else ""


def kept_too(parity: Parity) -> str:
    """The figures as a last sentence, for tasks that demand none of them."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in parity.agreement.items())
    return f" Kept of the original's answers: {figures}." if figures else ""
