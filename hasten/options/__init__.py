"""Every option of the library and of the command line, written once.

An option has a name, a type, a default, a help text and a check. The functions of the library take
it as a keyword, the command line as ``--name``, and :class:`hasten.records.Settings` stores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Required, TypedDict

from hasten.options import shared
from hasten.options.base import Defined, Option, choose, default, defined, documented, record
from hasten.options.bundles import AuditOptions, PredictOptions, ReportOptions
from hasten.options.checks import (
    duration,
    names,
    number,
    one_of,
    share,
    speed_up,
    whole_number,
    whole_numbers,
)
from hasten.options.choices import DEMOS, DEVICES, EXPERIMENTS, OBJECTIVES, PRECISIONS, SHORTEST
from hasten.options.serving import LoadTestOptions, ServeOptions
from hasten.options.shared import FilePath, Model

__all__ = [
    "AuditOptions",
    "BenchOptions",
    "CompressOptions",
    "Defined",
    "DemoOptions",
    "ExportOptions",
    "LoadTestOptions",
    "Model",
    "Option",
    "PredictOptions",
    "ReportOptions",
    "ServeOptions",
    "TuneOptions",
    "choose",
    "default",
    "defined",
    "documented",
    "record",
]


class TuneOptions(TypedDict, total=False):
    """Options of :func:`hasten.tune` and ``hasten tune``."""

    output: Annotated[
        FilePath,
        Option(
            "Folder for the bundle; an earlier bundle there is replaced.",
            "bundle",
            flags=("--output", "-o"),
        ),
    ]
    tokenizer: shared.Tokenizer
    weights: shared.Weights
    task: shared.Task
    task_settings: shared.TaskSettings
    random_weights: shared.RandomWeights
    allow_pickle: shared.AllowPickle
    reference: Annotated[
        Model | None,
        Option(
            "The original, where MODEL is its student: both are measured, and answers are "
            "compared with the original's.",
            panel=shared.MODEL,
            metavar="MODEL",
        ),
    ]
    max_flips: shared.MaxFlips
    strict: Annotated[
        bool,
        Option(
            "Compare the 95 % upper bound of that share with --max-flips.",
            False,
            panel=shared.ANSWERS,
        ),
    ]
    whole_texts: Annotated[
        bool,
        Option(
            "Try no candidates that read only the first tokens of long texts.",
            False,
            panel=shared.ANSWERS,
        ),
    ]
    cascade: Annotated[
        bool,
        Option(
            "Let a lossy candidate answer the texts it is sure of, and an exact one the rest, "
            "where that is faster; --max-flips then bounds the share of all texts.",
            True,
            flags=("--cascade/--no-cascade",),
            panel=shared.ANSWERS,
        ),
    ]
    cascade_only: Annotated[
        bool,
        Option(
            "Use lossy candidates as the first stage of a cascade alone.",
            False,
            panel=shared.ANSWERS,
        ),
    ]
    stages: Annotated[
        int,
        Option(
            "How many models a cascade may have, the exact one included.",
            2,
            check=whole_number(2, 4),
            panel=shared.ANSWERS,
        ),
    ]
    calibration: Annotated[
        int,
        Option(
            "Hold at most this many other texts out, and at most three in ten, to calibrate "
            "int8 and cascades with.",
            300,
            check=shared.CHECK_CALIBRATION,
            panel=shared.ANSWERS,
        ),
    ]
    budget: Annotated[
        str | float,
        Option(
            "How long it may take: 90s, 10m, 1h.",
            "10m",
            check=duration,
            field="budget_s",
            panel=shared.SEARCH,
        ),
    ]
    objective: Annotated[
        str,
        Option(
            "throughput, or latency (one text at a time).",
            "throughput",
            check=one_of(*OBJECTIVES),
            panel=shared.SEARCH,
        ),
    ]
    max_latency_ms: Annotated[
        float | None,
        Option(
            "With throughput: the longest that a batch may take.",
            check=number(1e-3, 1e9),
            panel=shared.SEARCH,
        ),
    ]
    engines: shared.Engines
    precisions: shared.Precisions
    batch_sizes: shared.BatchSizes
    threads: shared.Threads
    device: shared.Device
    max_texts: shared.MaxTexts
    rounds: Annotated[
        int,
        Option(
            "Interleaved end-to-end rounds, at least; more where the budget allows.",
            5,
            check=whole_number(5, 10_000),
            panel=shared.SEARCH,
        ),
    ]
    seed: shared.Seed
    restart: shared.Restart
    accept_now: shared.AcceptNow


class BenchOptions(TypedDict, total=False):
    """Options of :func:`hasten.bench` and ``hasten bench``."""

    output: Annotated[
        FilePath,
        Option(
            "Folder for the results; another start continues there.",
            "bench",
            flags=("--output", "-o"),
        ),
    ]
    tokenizer: shared.Tokenizer
    weights: shared.Weights
    task: shared.Task
    task_settings: shared.TaskSettings
    random_weights: shared.RandomWeights
    allow_pickle: shared.AllowPickle
    experiments: Annotated[
        str | Sequence[str] | None,
        Option(
            "Experiments to run, with commas.",
            EXPERIMENTS,
            check=names(*EXPERIMENTS),
            panel=shared.SEARCH,
        ),
    ]
    batch_sizes: shared.BatchSizes
    lengths: Annotated[
        str | Sequence[int] | None,
        Option(
            "Tokens of the experiment length, with commas; 8,16,32 to the model's maximum by "
            "default.",
            (),
            check=whole_numbers(SHORTEST, 10**9),
            panel=shared.SEARCH,
        ),
    ]
    runs: Annotated[
        int,
        Option(
            "Interleaved runs over the texts.",
            5,
            check=whole_number(2, 10_000),
            field="rounds",
            panel=shared.SEARCH,
        ),
    ]
    max_texts: shared.MaxTexts
    engines: shared.Engines
    precisions: Annotated[
        str | Sequence[str] | None,
        Option(
            f"Precisions to measure, with commas: {','.join(PRECISIONS)}; by default those "
            "that the machine has, but for int8.",
            (),
            check=names(*PRECISIONS),
            panel=shared.SEARCH,
        ),
    ]
    threads: shared.Threads
    device: shared.Device
    seed: shared.Seed
    restart: shared.Restart


class CompressOptions(TypedDict, total=False):
    """Options of :func:`hasten.compress` and ``hasten compress``."""

    output: Annotated[
        FilePath,
        Option(
            "Folder for the student; it must be new or empty.", "student", flags=("--output", "-o")
        ),
    ]
    layers: Annotated[
        int | None,
        Option("Blocks to keep; which ones is decided by their agreement.", panel=shared.SIZES),
    ]
    ffn_width: Annotated[
        int | None,
        Option(
            "Feed-forward units to keep in each block, rounded down to a multiple of 16.",
            panel=shared.SIZES,
        ),
    ]
    heads: Annotated[
        int | None,
        Option(
            "Attention heads to keep in each block; transformers 5 alone cannot load such a "
            "student, hasten and transformers 4 can.",
            panel=shared.SIZES,
        ),
    ]
    embeddings: Annotated[
        bool,
        Option(
            "Remove the words that none of the training texts has from the vocabulary; in new "
            "texts they are split smaller, or unknown.",
            False,
            panel=shared.SIZES,
        ),
    ]
    target: Annotated[
        str | float | None,
        Option(
            "Instead of sizes: the speed-up to reach, such as 3x, as predicted in PyTorch.",
            check=speed_up,
            panel=shared.SIZES,
        ),
    ]
    target_flips: Annotated[
        float | None,
        Option(
            "Instead of sizes: the largest acceptable share of flipped labels, such as 0.02; "
            "students are made from mild to strong, and the last that keeps it is taken.",
            check=share,
            panel=shared.SIZES,
        ),
    ]
    freeze_embeddings: Annotated[
        bool,
        Option(
            "Leave the embeddings as they are while the rest is trained, so that words that "
            "your texts lack still fit.",
            True,
            flags=("--freeze-embeddings/--train-embeddings",),
            panel=shared.TRAINING,
        ),
    ]
    int8: Annotated[
        bool,
        Option(
            "Add quantization-aware training; `hasten tune` then tries the int8 model.",
            False,
            panel=shared.TRAINING,
        ),
    ]
    budget: Annotated[
        str | float,
        Option(
            "How long it may take: 90s, 45m, 1h.",
            "1h",
            check=duration,
            field="budget_s",
            panel=shared.TRAINING,
        ),
    ]
    seed: Annotated[
        int,
        Option(
            "Seed of everything that is drawn.",
            0,
            check=whole_number(0, 2**32 - 1),
            panel=shared.TRAINING,
        ),
    ]
    allow_pickle: shared.AllowPickle
    restart: shared.Restart


class ExportOptions(TypedDict, total=False):
    """Options of :func:`hasten.export` and ``hasten export``."""

    engine: Required[Annotated[str, Option("The engine, one of those in `hasten doctor`.")]]
    precision: Annotated[
        str, Option("fp32, bf16, fp16 or int8.", "fp32", check=one_of(*PRECISIONS))
    ]
    output: Annotated[
        FilePath,
        Option(
            "Folder for the artifact; an earlier export there is replaced.",
            "export",
            flags=("--output", "-o"),
        ),
    ]
    tokenizer: shared.Tokenizer
    weights: shared.Weights
    task: shared.Task
    task_settings: shared.TaskSettings
    allow_pickle: shared.AllowPickle
    max_flips: shared.MaxFlips
    force: Annotated[
        bool,
        Option("Write the best recipe even if it fails the check.", False, panel=shared.ANSWERS),
    ]
    max_texts: Annotated[
        int,
        Option(
            "Compare on at most this many texts, a stratified sample if there are more.",
            200,
            check=whole_number(1, 10**9),
            field="texts",
            flags=("--max-texts", "--texts"),
            panel=shared.ANSWERS,
        ),
    ]
    calibration: Annotated[
        int,
        Option(
            "Set int8 ranges with at most this many other texts.",
            100,
            check=shared.CHECK_CALIBRATION,
            panel=shared.ANSWERS,
        ),
    ]
    seed: Annotated[
        int,
        Option("Seed for sampling.", 0, check=whole_number(0, 2**32 - 1), panel=shared.ANSWERS),
    ]
    budget: Annotated[
        str | float,
        Option(
            "Start no further recipe after this time.",
            "1m",
            check=duration,
            field="budget_s",
            panel=shared.SEARCH,
        ),
    ]
    threads: Annotated[
        int | None,
        Option(
            "Threads to check with; all usable cores by default.",
            check=whole_number(1, 4096),
            panel=shared.SEARCH,
        ),
    ]
    device: Annotated[
        str, Option("cpu or cuda.", "cpu", check=one_of(*DEVICES), panel=shared.SEARCH)
    ]


class DemoOptions(TypedDict, total=False):
    """Options of :func:`hasten.demo` and ``hasten demo``."""

    task: Annotated[
        str,
        Option(
            "classification, by a model that is trained first, or embeddings, by the packaged "
            "encoder as it is.",
            "classification",
            check=one_of(*DEMOS),
        ),
    ]
    output: Annotated[
        FilePath,
        Option(
            "Folder for the bundle; an earlier bundle there is replaced.",
            "demo-bundle",
            flags=("--output", "-o"),
        ),
    ]
    budget: Annotated[
        str | float,
        Option("How long it may take: 90s, 10m, 1h.", "4m", check=duration, field="budget_s"),
    ]
    restart: shared.Restart
    accept_now: shared.AcceptNow
