"""What the comparison of the answers proves, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hasten.records import Parity, Row, Tuning
from hasten.report import content
from hasten.report.document import Table

_WAYS = {
    "plan": "in the shipped batches",
    "single": "one text at a time",
    "random": "in random batches",
}


def reading(row: Row) -> Iterator[str]:
    """How much of each text a candidate reads, and how many it cuts, where it cuts any."""
    tokens, parity = row.candidate.max_tokens, row.parity
    if tokens and parity:
        yield (
            f"It reads at most {tokens} tokens of a text: {parity.cut:,} of "
            f"{parity.compared:,} are cut."
        )


def rests_on(parity: Parity) -> Iterator[str]:
    """How many candidates share the bound, and which batchings were compared."""
    if parity.tries > 1 and parity.decisions:
        yield (
            f"The bound is corrected for {parity.tries} candidates judged on the same texts, "
            "repairs included: with 95 % confidence, all of their bounds hold."
        )
    if parity.batchings:
        ways = [f"{_WAYS[each.name]} ({each.flips} flips)" for each in parity.batchings]
        yield (
            "Its answers depend on the other texts of a batch. They were compared "
            f"{', '.join(ways)}; a text counts as flipped if any of these flips it."
        )


def batchings(rows: Iterable[Row]) -> Table | None:
    """Flips under each batching, of the candidates whose answers depend on it; None without any."""
    proved = [(row, row.parity) for row in rows if row.parity and row.parity.batchings]
    lines = tuple(
        (
            content.short(row.candidate),
            row.status,
            *(_flips(parity, name) for name in _WAYS),
            f"{parity.flips}",
        )
        for row, parity in proved
    )
    columns = ("candidate", "outcome", *_WAYS.values(), "in any of them")
    return Table("Flips by batching", columns, lines, numbers_from=2) if lines else None


def flips(rows: Iterable[Row], longest: int = 80, most: int = 3) -> Table | None:
    """The flipped labels of candidates that were proved or refused; None without any.

    Texts are cut off after ``longest`` characters; of each candidate there are ``most`` at most.
    """
    lines = []
    for row in rows:
        if row.parity is None or row.status not in ("chosen", "refused", "finalist"):
            continue
        for flip in row.parity.examples[:most]:
            text = flip.text if len(flip.text) <= longest else flip.text[: longest - 1] + "…"
            change = f"{flip.reference_answer} → {flip.candidate_answer}"
            margins = f"{flip.reference_margin:.3g} → {flip.candidate_margin:.3g}"
            lines.append((content.short(row.candidate), change, margins, text))
    columns = ("candidate", "answer", "margin", "text")
    return Table("Flipped labels", columns, tuple(lines), numbers_from=9) if lines else None


def limits(tuning: Tuning) -> tuple[str, ...]:
    """What the winner's agreement does not prove, a sentence each."""
    parity = tuning.chosen.parity
    return tuple(_limits(parity)) if parity else ()


def _limits(parity: Parity) -> Iterator[str]:
    yield (
        f"Anything about other texts: the figures hold for texts like the "
        f"{content.count(parity.compared, 'different text')} that were judged."
    )
    if parity.batchings:
        yield (
            "Answers in other batches: they depend on which texts share a batch, and only "
            f"{len(parity.batchings)} of all ways to batch the texts were compared."
        )
    if parity.quality is None and parity.errors is None:
        yield "That answers are right: they are compared with the original's, not with labels."
    if parity.decisions:
        yield "Which labels flip: the bound limits how many do, not how bad a flip is."
        yield "That scores stay: a label can stay while its probability moves."


def _flips(parity: Parity, name: str) -> str:
    return next((f"{each.flips}" for each in parity.batchings if each.name == name), "")
