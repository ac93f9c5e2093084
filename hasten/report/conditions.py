"""Where and under which conditions a result's figures were taken."""

from __future__ import annotations

from hasten.records import Bench, Tuning
from hasten.report import content


def of(result: Tuning | Bench) -> tuple[str, ...]:
    """Model, texts, machine, rounds and versions, a line each."""
    threads = result.baseline.candidate.intra_op_num_threads
    baseline = result.baseline.main
    rounds = len(baseline.total.samples_s) if baseline else 0
    judged = f"{baseline.texts:,} texts in each of {rounds}" if baseline else "no"
    student = result.student if isinstance(result, Tuning) else None
    fastest = content.ceilings(result.ceilings) or "not measured"
    return (
        f"{'Original' if student else 'Model'}: {content.model(result.model)}",
        *((f"Student: {content.model(student)}",) if student else ()),
        f"Texts: {content.lengths(result.profile)}{_shares(result)}",
        f"Machine: {content.machine(result.hardware)}",
        f"Threads: {threads} for every candidate",
        f"Rounds: {judged} interleaved rounds; {result.elapsed_s:.0f} s in all",
        f"Fastest matrix product measured here: {fastest}",
        f"Versions: {', '.join(f'{name} {v}' for name, v in result.versions.items())}",
    )


def _shares(result: Tuning | Bench) -> str:
    """How many texts are in the evaluation set and in the calibration set."""
    if isinstance(result, Bench):
        return ""
    judged, held, parity = result.judged_texts, result.calibration_texts, result.chosen.parity
    copies = f" ({parity.compared:,} different)" if parity and parity.compared < judged else ""
    split = judged and (held or copies or result.taught_texts)
    parts = [f"{judged:,} for evaluation{copies}"] if split else []
    if held:
        parts.append(f"{held:,} for int8 calibration")
    if result.taught_texts:
        parts.append(f"{result.taught_texts:,} not used, as they trained the student")
    return "; " + ", ".join(parts) if parts else ""
