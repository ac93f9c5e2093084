"""What the report says, as sentences and tables of plain strings; others render it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hasten import engines
from hasten.errors import ChoiceError
from hasten.judging.stats import percentile
from hasten.percent import percent
from hasten.records import (
    Candidate,
    Ceiling,
    Hardware,
    Interval,
    LengthProfile,
    ModelInfo,
    Parity,
    Quality,
    Row,
    Strategy,
    Tuning,
)
from hasten.report.document import Table
from hasten.report.own_terms import kept, kept_too, own_terms

HIGHEST_SHARE = 1.05
"""A larger share of the fastest matrix product means that the product was measured too low."""

_ORDER = ("chosen", "finalist", "refused", "dropped", "failed")


def title(candidate: Candidate) -> str:
    """A candidate in words: ``ONNX Runtime fp32, 2 streams x 1 thread``."""
    where = "" if candidate.device == "cpu" else f" on {candidate.device}"
    whose = "" if candidate.model == "original" else f"the {candidate.model} in "
    return f"{whose}{engine(candidate)} {_kind(candidate)}{where}, {layout(candidate)}"


def layout(candidate: Candidate) -> str:
    """How the cores are shared out: ``2 streams x 1 thread``.

    >>> layout(Candidate("onnx_runtime", "fp32", "cpu", 2, spinning=True))
    '1 stream x 2 threads, spinning'
    """
    threads = count(candidate.intra_op_num_threads, "thread")
    spinning = ", spinning" if candidate.spinning else ""
    return f"{count(candidate.streams, 'stream')} x {threads}{spinning}"


def family(candidate: Candidate) -> str:
    """Its format: ``student ONNX Runtime fp32``; of a cascade: ``OpenVINO int8 static + fp32``."""
    if candidate.then:
        return _stages(candidate, [family(stage) for stage in candidate.stages])
    where = "" if candidate.device == "cpu" else f" {candidate.device}"
    whose = "" if candidate.model == "original" else f"{candidate.model} "
    return f"{whose}{engine(candidate)} {_kind(candidate)}{where}"


def short(candidate: Candidate) -> str:
    """A candidate for tables: ``ONNX Runtime fp32 2x1``."""
    if candidate.then:
        return _stages(candidate, [short(stage) for stage in candidate.stages])
    return f"{family(candidate)} {candidate.layout}"


def _stages(candidate: Candidate, names: Sequence[str]) -> str:
    """The names of a cascade's stages; a later stage names its engine only if it is another."""
    later = (name.removeprefix(f"{engine(candidate)} ") for name in names[1:])
    return " + ".join([names[0], *later])


def number(value: float) -> str:
    """A number to three significant digits; below 1, where the zero is shown as well, to two.

    >>> number(4785.5), number(98.63), number(1.8), number(0.951), number(0.01234)
    ('4,790', '98.6', '1.80', '0.95', '0.012')
    """
    if not value:
        return "0"
    rounded = float(f"{value:.3g}")
    magnitude = math.floor(math.log10(abs(rounded)))
    decimals = max(0, 2 - magnitude) if magnitude >= 0 else 1 - magnitude
    return f"{rounded:,.{decimals}f}"


def milliseconds(time_s: float) -> str:
    """A time in milliseconds: ``12.3 ms``."""
    return f"{number(1000 * time_s)} ms"


def order(strategy: Strategy) -> str:
    """How texts become batches, without the size of a batch."""
    return strategy.name.replace("_", " ")


def facts(tuning: Tuning) -> Iterator[tuple[str, str]]:
    """The figures of the answer, each with what it is."""
    chosen, ratio = tuning.chosen, tuning.chosen.ratio_to_baseline
    run, parity = chosen.main, chosen.parity
    assert run
    if ratio:
        span = f"{number(ratio.low)} to {number(ratio.high)}"
        yield f"{number(ratio.estimate)}x", f"faster than the original, one text at a time ({span})"
    if tuning.settings.objective == "latency":
        yield milliseconds(percentile(run.batch_latency_s, 50)), "median for one text"
    else:
        yield number(run.texts_per_s), "texts a second"
    if parity and parity.decisions:
        bound = f"labels flipped (at most {percent(parity.flip_upper_bound)})"
        yield f"{parity.flips} of {parity.compared:,}", bound
    elif parity and (best := next(iter(parity.demanded), None)):
        yield f"{parity.agreement[best]:.5g}", f"{best} with the original's answers"
    elif parity:
        yield f"{parity.mean_abs_difference:.0e}", "mean difference, in standard deviations"
    if chosen.ceiling_share is not None:
        yield percent(chosen.ceiling_share), "of the machine's fastest matrix product"


def flipped(parity: Parity) -> str:
    """How many labels flipped, and the bound on their share: ``0 of 700 labels flipped: ...``."""
    bound = f"at most {percent(parity.flip_upper_bound)} with 95 % confidence"
    corrected = f" (corrected for {parity.tries} candidates)" if parity.tries > 1 else ""
    return f"{parity.flips} of {parity.compared:,} labels flipped: {bound}{corrected}"


def agreement(parity: Parity) -> str:
    """How a candidate's answers differ from the original's, in sentences."""
    if parity.demanded and not parity.decisions:
        return (
            f"Against the original on {parity.compared:,} texts: {own_terms(parity)}. A lossy "
            "candidate must reach what is said in brackets."
        )
    if not parity.decisions:
        return (
            f"Outputs were compared as tensors on {parity.compared:,} texts: mean difference "
            f"{parity.mean_abs_difference:.1e}, largest {parity.max_abs_difference:.1e}, in units "
            f"of the original's standard deviation.{errors(parity)}{kept_too(parity)}"
        )
    sentences = [f"Against the original, {flipped(parity)}."]
    if parity.ties:
        sentences.append(f"{parity.ties} of them are ties in the original itself.")
    if parity.flip_margins and parity.margin_quantiles:
        median, usual = statistics.median(parity.flip_margins), parity.margin_quantiles[2]
        sentences.append(
            f"On the flipped texts the original preferred its own label by {median:.2g} logits in "
            f"the median; over all texts by {usual:.2g}."
        )
    if parity.quality:
        sentences.append(quality(parity.quality))
    return " ".join(sentences) + kept_too(parity)


def quality(found: Quality) -> str:
    """Both models' scores against the right labels, in two sentences."""
    micro = ""
    if found.micro_f1 is not None:
        micro = f"micro-F1 {found.micro_f1:.3f} and {found.reference_micro_f1:.3f}, "
    return (
        f"{accuracies(found)}; {micro}macro-F1 {found.macro_f1:.3f} and "
        f"{found.reference_macro_f1:.3f}. "
        f"Only the candidate is right on {count(found.only_candidate_right, 'text')}, only the "
        f"original on {found.only_reference_right} (McNemar's test, p = {found.mcnemar_p:.2g})."
    )


def errors(parity: Parity) -> str:
    """Both models' mean absolute error as one more sentence; empty where it is unknown."""
    found = parity.errors
    if found is None:
        return ""
    figures = [("Mean absolute error", found.mean_absolute, found.reference_mean_absolute)]
    for name, ours, theirs in (
        ("mean relative error", found.mean_relative, found.reference_mean_relative),
        ("Spearman's correlation", found.spearman, found.reference_spearman),
    ):
        if ours is not None and theirs is not None:
            figures.append((name, ours, theirs))
    told = (f"{name} {ours:.3g}, the original's {theirs:.3g}" for name, ours, theirs in figures)
    return f" {'; '.join(told)}."


def accuracies(found: Quality) -> str:
    """Both accuracies: ``Accuracy 80.1 %, the original's 80.3 %``."""
    return f"Accuracy {percent(found.accuracy)}, the original's {percent(found.reference_accuracy)}"


def range_of_lengths(profile: LengthProfile) -> str:
    """The length profile in a few words: ``1,000 texts, median 40 tokens, longest 512``."""
    cut = ""
    if profile.truncated:
        cut = f"; {profile.truncated:,} longer than the model's {profile.max_length} are truncated"
    of = f" (sampled from {profile.given:,})" if profile.given > profile.texts else ""
    return (
        f"{count(profile.texts, 'text')}{of}, median {profile.p50} tokens, "
        f"longest {profile.longest}{cut}"
    )


def lengths(profile: LengthProfile) -> str:
    """The length profile as one line."""
    cut = ""
    if profile.truncated:
        cut = (
            f"; {profile.truncated:,} ({percent(profile.truncated_share)}) are truncated to the "
            f"model's {profile.max_length} tokens"
        )
    sample = f" (a random sample of {profile.given:,})" if profile.given > profile.texts else ""
    return (
        f"{count(profile.texts, 'text')}{sample}, {profile.tokens:,} tokens: "
        f"mean {number(profile.mean)}, p5 {profile.p5}, p25 {profile.p25}, median {profile.p50}, "
        f"p75 {profile.p75}, p95 {profile.p95}, longest {profile.longest}{cut}"
    )


def model(info: ModelInfo) -> str:
    """A model as one line."""
    weights = ", random ones" if info.random_weights else ""
    million = info.parameter_count / 1e6
    return f"{info.name}, {info.architecture}, {million:.3g} M weights{weights}"


def machine(hardware: Hardware) -> str:
    """A machine as one line."""
    wide = ("avx2", "avx512", "amx", "bf")
    extensions = [name for name in hardware.instruction_sets if name.startswith(wide)]
    parts = (
        hardware.cpu_model,
        count(hardware.usable_cores, "usable core"),
        " ".join(extensions) or "no vector extensions known",
        f"{hardware.memory_bytes / 2**30:.0f} GiB",
        *(gpu.name for gpu in hardware.gpus),
    )
    return ", ".join(parts)


def ceilings(measured: Iterable[Ceiling]) -> str:
    """The fastest matrix products as one line."""
    return "; ".join(
        f"{c.precision} {number(c.flops_per_s / 1e9)} GFLOP/s on {c.device}" for c in measured
    )


def comparable(tuning: Tuning) -> Tuning:
    """The same, with screening estimates scaled to end-to-end speed by the winner's ratio.

    Batches alone are faster than end-to-end runs, which tokenize as well.
    """
    chosen = tuning.chosen
    if chosen.main is None or not chosen.screen_tokens_per_s:
        return tuning
    share = chosen.main.tokens_per_s / chosen.screen_tokens_per_s
    rows = (
        replace(row, screen_tokens_per_s=(row.screen_tokens_per_s or 0.0) * share or None)
        for row in tuning.rows
    )
    return replace(tuning, rows=tuple(rows))


def candidates(tuning: Tuning) -> Table:
    """All candidates that were tried, the best first, and those for which no time was left."""
    started = {row.candidate.format for row in tuning.rows if row.start_up}
    known = [
        row
        for row in tuning.rows
        # Another layout of a dropped format that was never started adds nothing.
        if row.status in _ORDER
        and (row.status != "dropped" or row.start_up or row.candidate.format not in started)
    ]
    rows = sorted(known, key=lambda row: (_ORDER.index(row.status), -rate(row)))
    baseline = tuning.baseline
    reference = (short(baseline.candidate), "baseline")
    latency = tuning.settings.objective == "latency"
    return Table(
        "Candidates (2x1: two streams of one thread each; ~ estimated from the first shapes)",
        (
            "candidate",
            "outcome",
            "speed-up (95 %)",
            "p50 ms" if latency else "texts/s",
            "tokens/s",
            "flipped",
            "largest difference",
            "load s",
            "memory MiB",
            "note",
        ),
        (
            *(_cells(tuning, row) for row in rows),
            (*reference, "1.00", *measured(tuning, baseline)[1:], "batch 1, arrival order"),
        ),
        numbers_from=2,
        numbers_to=8,
        wide=frozenset({"largest difference", "tokens/s", "load s", "memory MiB"}),
    )


def batching(tuning: Tuning) -> Table | None:
    """The winner's speed under each batching strategy; None where only one was run."""
    runs = tuning.chosen.runs
    if len(runs) < 2:
        return None
    best = tuning.chosen.main
    assert best
    return Table(
        f"Batching with {title(tuning.chosen.candidate)}",
        ("strategy", "texts/s", "of the chosen", "padding", "predicted s", "measured s"),
        tuple(
            (
                run.strategy.label,
                number(run.texts_per_s),
                number(run.texts_per_s / best.texts_per_s),
                percent(run.padding_share),
                number(run.predicted_s) if run.predicted_s else "",
                number(run.total.mean_s),
            )
            for run in sorted(runs, key=lambda run: -run.texts_per_s)
        ),
    )


def unavailable(rows: Iterable[Row]) -> tuple[str, ...]:
    """Candidates that cannot run here, grouped by reason."""
    precisions: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row.status == "unavailable":
            reason = " ".join((row.reason or "").split())
            kind = (reason, row.candidate.device, engine(row.candidate))
            if _kind(row.candidate) not in precisions[kind]:
                precisions[kind].append(_kind(row.candidate))
    titles: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for (reason, device, title), names in precisions.items():
        titles[reason, device, ", ".join(names)].append(title)
    return tuple(
        f"{', '.join(group)} ({names} on {device}): {reason}"
        for (reason, device, names), group in titles.items()
    )


def _cells(tuning: Tuning, row: Row) -> tuple[str, ...]:
    log = "; see logs/ in the bundle" if row.status == "failed" else ""
    note = f"{in_words(row.reason or '', tuning.rows)}{log}"
    return (short(row.candidate), row.status, *measured(tuning, row), note)


def in_words(reason: str, rows: Iterable[Row]) -> str:
    """A reason with candidates named as in tables, instead of by their labels."""
    named = {row.candidate.label: short(row.candidate) for row in rows}
    for label in sorted(named, key=len, reverse=True):  # one may begin as a longer one does
        reason = reason.replace(label, named[label])
    return reason


def measured(tuning: Tuning, row: Row) -> tuple[str, ...]:
    """A row's cells from its speed-up to its memory, as :func:`candidates` heads them."""
    run, start_up, parity = row.main, row.start_up, row.parity
    rate = ""
    if run and tuning.settings.objective == "latency":
        rate = number(1000 * percentile(run.batch_latency_s, 50))
    elif run:
        rate = number(run.texts_per_s)
    elif row.screen_tokens_per_s and tuning.settings.objective == "throughput":
        rate = f"~{number(row.screen_tokens_per_s / tuning.profile.mean)}"
    screened = f"~{number(row.screen_tokens_per_s)}" if row.screen_tokens_per_s else ""
    changed = ""
    if parity:
        bound = f"≤{percent(parity.flip_upper_bound)}"
        changed = f"{parity.flips}/{parity.compared} {bound}"
        if not parity.decisions:
            changed = kept(parity) or "-"
    return (
        interval(row.ratio_to_baseline) if row.ratio_to_baseline else "",
        rate,
        number(run.tokens_per_s) if run else screened,
        changed,
        f"{parity.max_abs_difference:.1e}" if parity else "",
        number(start_up.load_s) if start_up else "",
        number(start_up.peak_bytes / 2**20) if start_up else "",
    )


def interval(value: Interval) -> str:
    """``4.21 (4.10-4.33)``: the estimate and its 95 % interval."""
    return f"{number(value.estimate)} ({number(value.low)}-{number(value.high)})"


def _kind(candidate: Candidate) -> str:
    """Precision, recipe, layers kept in fp32, and the tokens read, where these are not all.

    >>> _kind(Candidate("openvino", "int8", "cpu", 1, recipe="static", max_tokens=128))
    'int8 static, 128 tokens'
    """
    kind = " ".join(filter(None, (candidate.precision, candidate.recipe)))
    spared = len(candidate.spared)
    layers = f"{count(spared, 'layer')} in fp32" if spared else ""
    tokens = f"{candidate.max_tokens} tokens" if candidate.max_tokens else ""
    return ", ".join(filter(None, (kind, layers, tokens)))


def engine(candidate: Candidate) -> str:
    """The engine's title: ``ONNX Runtime``."""
    try:
        return engines.get(candidate.engine).title
    except ChoiceError:  # stored by a version that had more engines than this one
        return candidate.engine


def rate(row: Row) -> float:
    """Tokens per second, end to end or else from the first shapes; to sort by."""
    if row.main:
        return row.main.tokens_per_s
    return row.screen_tokens_per_s or 0.0


def count(number: int, noun: str) -> str:
    """``1 text``, ``1,000 texts``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
