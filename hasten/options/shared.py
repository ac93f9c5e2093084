"""Options that several functions have, and what all definitions use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from hasten.options.base import Option
from hasten.options.checks import names, number, one_of, settings, whole_number, whole_numbers
from hasten.options.choices import DEVICES, FEWEST_CALIBRATION, PRECISIONS

if TYPE_CHECKING:
    from torch import nn

    Model: TypeAlias = str | PathLike[str] | nn.Module
    """A Hugging Face folder or hub id, ``package.module:factory``, or a module whose forward takes
    ``input_ids`` and ``attention_mask``."""
else:
    Model = Any

FilePath: TypeAlias = str | PathLike[str]

MODEL = "Model"
ANSWERS = "Same answers"
SEARCH = "Search and budget"
INTERRUPTED = "Interrupted runs"
SIZES = "Size of the student"
TRAINING = "Training"


Tokenizer = Annotated[
    FilePath | Any,
    Option(
        "A tokenizer.json, its folder, or a tokenizer object; the model's own by default.",
        panel=MODEL,
    ),
]
Trust = Annotated[
    bool,
    Option(
        "Accept an artifact that can run code when loaded.",
        False,
        flags=("--trust", "--trust-bundle"),
    ),
]
Weights = Annotated[
    FilePath | None,
    Option("A state_dict (.pt, .safetensors) for a factory's module.", panel=MODEL),
]
Task = Annotated[
    str | None,
    Option(
        "What the outputs mean, where config.json does not say: single_label, multi_label, "
        "regression, pair_classification, reranking, token_classification, question_answering, "
        "fill_mask, embeddings, sparse_embeddings, feature_extraction or tensors.",
        panel=MODEL,
    ),
]
TaskSettings = Annotated[
    str | Mapping[str, Any] | None,
    Option(
        "Settings of the task, which the bundle keeps: NAME=VALUE, several with commas, or a JSON "
        "object; such as stride=128, or threshold=0.3 for a label to apply.",
        check=settings,
        panel=MODEL,
    ),
]
RandomWeights = Annotated[
    bool,
    Option("Measure the speed of an architecture from its config.json alone.", False, panel=MODEL),
]
AllowPickle = Annotated[
    bool, Option("Accept a folder whose weights are a pickle.", False, panel=MODEL)
]
MaxFlips = Annotated[
    float,
    Option(
        "Largest acceptable share of flipped labels, for lossy precisions.",
        0.01,
        check=number(0.0, 1.0),
        panel=ANSWERS,
    ),
]
Engines = Annotated[
    str | Sequence[str] | None,
    Option(
        "Engines to try, with commas; all by default. See `hasten doctor`.",
        (),
        check=names(),
        panel=SEARCH,
    ),
]
Precisions = Annotated[
    str | Sequence[str] | None,
    Option(
        f"Precisions to try, with commas: {','.join(PRECISIONS)}; by default those that the "
        "machine has.",
        (),
        check=names(*PRECISIONS),
        panel=SEARCH,
    ),
]
BatchSizes = Annotated[
    str | Sequence[int] | None,
    Option(
        "Batch sizes to try, with commas.",
        (1, 2, 4, 8, 16, 32, 64),
        check=whole_numbers(1, 4096),
        panel=SEARCH,
    ),
]
Threads = Annotated[
    int | None,
    Option(
        "Threads for every candidate; all usable cores by default.",
        check=whole_number(1, 4096),
        panel=SEARCH,
    ),
]
Device = Annotated[
    str,
    Option("auto, cpu or cuda.", "auto", check=one_of("auto", *DEVICES), panel=SEARCH),
]
MaxTexts = Annotated[
    int,
    Option(
        "Use at most this many texts, a stratified sample if there are more.",
        1000,
        check=whole_number(1, 10**9),
        field="texts",
        flags=("--max-texts", "--texts"),
        panel=SEARCH,
    ),
]
Seed = Annotated[
    int,
    Option("Seed for sampling and resampling.", 0, check=whole_number(0, 2**32 - 1), panel=SEARCH),
]
Restart = Annotated[
    bool,
    Option(
        "Discard the results of an interrupted run instead of continuing it.",
        False,
        panel=INTERRUPTED,
    ),
]
AcceptNow = Annotated[
    bool,
    Option("End an interrupted run with the choice that stands so far.", False, panel=INTERRUPTED),
]
CHECK_CALIBRATION = whole_number(FEWEST_CALIBRATION, 10**6, zero="holds no texts out")
