"""How shares are written wherever a person reads them."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share in percent, to three digits; what is less than all never reads as all.

    >>> percent(0.004287), percent(0.80142), percent(0), percent(1)
    ('0.429 %', '80.1 %', '0 %', '100 %')
    >>> percent(0.9997), percent(0.999999)
    ('99.97 %', '99.99 %')
    """
    whole = f"{100 * share:.3g}"
    if share < 1 and whole == "100":
        whole = f"{min(100 * share, 99.99):.2f}"
    return f"{whole} %"
