"""Time per text over batch size and length -> figures. Pure; nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hasten.records import Candidate, Interval, Row, ShapeTime
from hasten.report import content, figures
from hasten.report.document import Axis, Figure, Panel, Point

LENGTH = "length of the texts (tokens)"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a batch of ``batch_size`` texts of ``length`` tokens costs, per text."""

    batch_size: int
    length: int
    per_text_s: Interval
    samples: int | None

    @property
    def words(self) -> Mapping[str, str]:
        """Hover text."""
        batch_s = self.per_text_s.estimate * self.batch_size
        known = {"Samples": f"{self.samples:,}"} if self.samples else {}
        return {
            "Batch size": f"{self.batch_size}",
            "Length": f"{self.length:,} tokens",
            "Time per text": figures.time_words(self.per_text_s),
            "Time per batch": content.milliseconds(batch_s),
            "Tokens": f"{content.number(self.batch_size * self.length / batch_s)} tokens/s",
            **known,
        }


def cells(row: Row, shapes: Iterable[ShapeTime], seed: int) -> list[Cell]:
    """Cells with their samples where they were kept, or else those of the cost table."""
    kept = [
        Cell(
            shape.batch_size,
            shape.length,
            figures.mean_s(
                [sample_s / shape.batch_size for sample_s in shape.cost.samples_s], seed
            ),
            len(shape.cost.samples_s),
        )
        for shape in shapes
    ]
    return kept or list(_table_cells(row))


def _table_cells(row: Row) -> Iterator[Cell]:
    table = row.cost_table
    if table is None:
        return
    for size, times in zip(table.batch_sizes, table.latency_s, strict=True):
        for length, time_s in zip(table.lengths, times, strict=True):
            if time_s is not None:
                each_s = time_s / size
                yield Cell(size, length, Interval(each_s, each_s, each_s), None)


Cells = Mapping[Candidate, list[Cell]]


def over_length(measured: Cells, formats: tuple[str, ...]) -> tuple[Figure, ...]:
    """Time per text against length: a panel for each candidate, and one for each batch size."""
    there = {candidate: held for candidate, held in measured.items() if held}
    found = [cell for held in there.values() for cell in held]
    if not found:
        return ()
    lengths = tuple(float(length) for length in sorted({cell.length for cell in found}))
    sizes = sorted({cell.batch_size for cell in found})
    x = Axis(LENGTH, "log", ticks=lengths)
    within = _length_by_format(there, sizes, x)
    return (within, _length_by_size(there, sizes, x, formats)) if len(there) > 1 else (within,)


def _length_by_format(measured: Cells, sizes: Sequence[int], x: Axis) -> Figure:
    panels = tuple(
        Panel(
            content.short(candidate),
            tuple(_cell(cell, _batch(cell.batch_size), candidate) for cell in held),
            content.family(candidate),
        )
        for candidate, held in measured.items()
    )
    return Figure(
        "length-by-format",
        "Time per text over length, format by format",
        "Where the lines lie on each other, larger batches gain nothing. Both axes are "
        "logarithmic, and the same in all panels.",
        "line",
        x,
        figures.TIME,
        "batch size",
        tuple(map(_batch, sizes)),
        panels,
        ordered=True,
    )


def _length_by_size(
    measured: Cells, sizes: Sequence[int], x: Axis, formats: tuple[str, ...]
) -> Figure:
    legend, names, name_of = "format", formats, content.family
    if len(set(map(content.family, measured))) < len(measured):
        # Two layouts of one format would have one colour: each becomes a series of its own.
        legend, names, name_of = "candidate", tuple(map(content.short, measured)), content.short
    panels = tuple(
        Panel(
            _batch(size),
            tuple(
                _cell(cell, name_of(candidate), candidate)
                for candidate, held in measured.items()
                for cell in held
                if cell.batch_size == size
            ),
        )
        for size in sizes
    )
    return Figure(
        "length-by-batch-size",
        "Time per text over length, batch size by batch size",
        "The lowest line is the fastest for texts of that length in batches of that size.",
        "line",
        x,
        figures.TIME,
        legend,
        names,
        panels,
    )


def _batch(size: int) -> str:
    return f"batch {size}"


def _cell(cell: Cell, series: str, candidate: Candidate) -> Point:
    place = figures.bounded("y", cell.per_text_s, 1000)
    format_ = content.short(candidate)
    place |= {"x": cell.length}
    return {**place, "series": series, "Format": format_, **cell.words}
