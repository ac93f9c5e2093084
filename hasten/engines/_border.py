"""What every engine does at its framework's border: say no in time, and wrap what it raises."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

from hasten.errors import EngineError, HastenError, StorageError
from hasten.hardware import missing_instructions
from hasten.records import Candidate, Hardware
from hasten.tasks import Task

# OpenVINO begins with its own source files, a line for each.
_WHERE = ("Exception from src/", "Check '", "FrontEnd API failed with")
# Where it lists what it has no rule for, after the messages of each.
_UNCONVERTED = "-- Conversion is failed for: "
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
_MORE_MEMORY = "There is not enough memory: end other programs, or use a machine with more."
_DEVICES = {"cpu": "the CPU", "cuda": "CUDA GPUs"}

Runner = TypeVar("Runner")


class Pool(Generic[Runner]):
    """What runs batches, lent to one stream at a time."""

    def __init__(self, runners: Iterable[Runner]) -> None:
        self._idle: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            self._idle.put(runner)

    @contextmanager
    def borrow(self) -> Iterator[Runner]:
        """One that nobody else uses meanwhile; waits until there is one."""
        runner = self._idle.get()
        try:
            yield runner
        finally:
            self._idle.put(runner)


def why_not(
    title: str, candidate: Candidate, hardware: Hardware, offered: Mapping[str, Sequence[str]]
) -> str | None:
    """Why ``candidate`` cannot run, as far as no framework must be asked; None where it may.

    Args:
        title: the engine's, to begin the sentence with.
        candidate: what was asked for.
        hardware: the machine.
        offered: the engine's precisions, by device.

    >>> zen = Hardware("AMD EPYC 7763", 2, ("avx2", "fma"), 8 << 30)
    >>> offered = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}
    >>> why_not("TorchScript", Candidate("torchscript", "int8", "cpu", 2), zen, offered)
    'TorchScript runs fp32 and bf16 on the CPU, and not int8 yet'
    >>> why_not("TorchScript", Candidate("torchscript", "fp16", "cuda", 1), zen, offered)
    'no GPU on this machine'
    """
    device, precision = candidate.device, candidate.precision
    if device not in offered:
        return f"{title} does not run on {_DEVICES[device]}"
    if precision not in offered[device]:
        runs = " and ".join(offered[device])
        return f"{title} runs {runs} on {_DEVICES[device]}, and not {precision} yet"
    if device == "cuda":
        return None if hardware.gpus else "no GPU on this machine"
    return missing_instructions(precision, hardware)


def nodes_of(layers: Sequence[str], nodes: Iterable[str]) -> list[str]:
    """Of an exported graph's nodes, those that come from these layers of the original module.

    Args:
        layers: names of modules in the user's own, such as ``encoder.layer.0.output.dense``.
        nodes: names of nodes, which exporters make from the module's name and the operator's,
            such as ``/original/encoder/layer.0/output/dense/MatMul``.

    Raises:
        EngineError: a layer has no node, so that what was wanted for it would silently not be.
    """
    dotted = {node: f".{node.replace('/', '.')}." for node in nodes}
    found = []
    for layer in layers:
        # The reference wraps the user's module, whose outermost names could be others' inner ones.
        own = [node for node, name in dotted.items() if f".original.{layer}." in name]
        if not own:
            raise EngineError(f"the exported graph has no node of the layer {layer}")
        found += own
    return list(dict.fromkeys(found))


@contextmanager
def quiet_logger(name: str | None) -> Iterator[None]:
    """Hold back what is not an error in the log of this name (None: the root's), for the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def foreign_errors(
    title: str,
    doing: str,
    passing: tuple[type[HastenError], ...] = (EngineError, StorageError),
) -> Iterator[None]:
    """Turn what a framework raises into one readable line, the framework's own chained.

    Args:
        title: the framework's name, to begin the sentence with.
        doing: what it could not do.
        passing: errors of ours that go through as they are; others become an EngineError.

    Raises:
        EngineError: anything at all was raised inside.
        StorageError: the disk is full, which is not a fault of the framework's.
    """
    try:
        yield
    except passing:
        raise
    except HastenError as error:
        raise EngineError(f"{title} could not {doing}: {error.message}", fix=error.fix) from error
    except Exception as error:  # frameworks raise whatever they like, bare RuntimeErrors mostly
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{title} could not {doing}: {error.strerror}",
                fix="Free some space or choose another -o; the same command continues.",
            ) from error
        fix = _MORE_MEMORY if _out_of_memory(error) else None
        raise EngineError(f"{title} could not {doing}: {first_line(error)}", fix=fix) from error


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    r"""What went wrong, in one line: of the error at the root of the chain, its first that tells.

    >>> first_line(RuntimeError("\n  Unsupported: aten::foo\n  at line 3"))
    'RuntimeError: Unsupported: aten::foo'
    >>> first_line(RuntimeError("Exception from src/core/node.cpp:123:\nshapes do not match"))
    'RuntimeError: shapes do not match'
    >>> first_line(RuntimeError("Check 'false' failed at src/report.cpp:151:\nno rule for aten::x"))
    'RuntimeError: no rule for aten::x'
    >>> first_line(RuntimeError("-- a message\n\nSummary:\n-- Conversion is failed for: aten::x"))
    'RuntimeError: no conversion of aten::x'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    unconverted = [line for line in lines if line.startswith(_UNCONVERTED)]
    if unconverted:
        lines = [f"no conversion of {unconverted[0].removeprefix(_UNCONVERTED)}"]
    telling = (line for line in lines if line and not line.startswith(_WHERE))
    return ": ".join(filter(None, (type(error).__name__, next(telling, ""))))


def with_optimum(task: Task, module: str, prefix: str, folder: Path, options: str) -> str:
    """Python that makes a pipeline of an exported model with Optimum.

    Args:
        task: the model's, which has a pipeline.
        module: the package that has the classes, such as ``optimum.onnxruntime``.
        prefix: how their names begin, such as ``ORT``.
        folder: the artifact, with ``config.json`` and the tokenizer.
        options: further arguments of ``from_pretrained``, in Python, beginning with a comma.
    """
    name = task.model_class.replace("Auto", prefix)
    return (
        f"from {module} import {name}\n"
        "from transformers import AutoTokenizer, pipeline\n\n"
        f"folder = {str(folder)!r}\n"
        f"model = {name}.from_pretrained(folder{options})\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f'answer = pipeline("{task.pipeline}", model=model, tokenizer=tokenizer)'
    )


def shape_of(inputs: Mapping[str, object]) -> str:
    """The shape of a batch for an error message, whatever was passed.

    >>> import numpy as np
    >>> shape_of({"input_ids": np.zeros((8, 32))})
    '8x32'
    """
    first = next(iter(inputs.values()), None)
    return "x".join(map(str, getattr(first, "shape", ()))) or type(first).__name__
