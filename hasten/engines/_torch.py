"""What the PyTorch engines share: a session, weights in a folder, thread counts, tracing."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.engines._border import foreign_errors, shape_of, why_not
from hasten.engines.base import Engine, Inputs, Options, Raw, Session
from hasten.errors import EngineError
from hasten.hardware import detect
from hasten.models import ModelFolder, load_module, runs_code
from hasten.plain import from_json, to_json
from hasten.records import Candidate, Hardware, ModelInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OFFERED: Mapping[str, Sequence[str]] = {
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp32", "fp16", "bf16"),
}

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_INFO = "model_info.json"
# Rows, inner and outer size of the products that are timed, by device. On the CPU those of
# BERT-base, its feed-forward and its projections. A GPU takes microseconds for these, less than a
# kernel's launch: there they are large enough to take a millisecond or more.
_MATRIX_SHAPES = {
    "cpu": ((512, 768, 3072), (2048, 768, 768)),
    "cuda": ((16384, 3072, 3072), (8192, 8192, 8192)),
}
_CEILING_S = 0.4


class TorchSession(Session):
    """Runs a module, or what was made of one, as plain PyTorch does."""

    def __init__(
        self,
        title: str,
        forward: Callable[..., Any],
        names: tuple[Sequence[str], Sequence[str]],
        options: Options,
    ) -> None:
        """Wrap ``forward``: int64 tensors by position in, float32 tensors out, one bare.

        ``names`` are those of the inputs and of the outputs.
        """
        self._title = title
        self._forward = forward
        self._input_names, self._output_names = names
        self._device = options["device"]
        self._threads = int(options["num_threads"])

    def run(self, inputs: Inputs) -> Raw:
        import torch

        pin_threads(self._threads)
        doing = f"run a batch of {shape_of(inputs)}"
        with foreign_errors(self._title, doing), torch.inference_mode():
            # A copy: from_numpy would warn about arrays that must not be written to.
            names = [name for name in self._input_names if name in inputs]
            given = [torch.tensor(inputs[name], device=self._device) for name in names]
            outputs = as_tuple(self._forward(*given))
            # .cpu() waits for the GPU; on the CPU it is the tensor itself.
            arrays = (output.cpu().numpy() for output in outputs)
            return dict(zip(self._output_names, arrays, strict=True))


class WeightsEngine(Engine):
    """An engine whose artifact is the original's weights; one artifact serves all of them."""

    requires: Mapping[str, str] = {
        "torch": "torch",
        "transformers": "transformers",
        "safetensors": "safetensors",
    }
    exports_with: Mapping[str, str] = {}
    extra = "torch"

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        return supports(self.title, candidate, hardware)

    def session_options(self, candidate: Candidate) -> Options:
        return session_options(candidate)

    def artifact_name(self, candidate: Candidate) -> str:
        # In fp32: the precision is applied, and anything compiled, where they are loaded.
        return "torch-weights"

    def runs_code(self, folder: Path) -> bool:
        return runs_code(folder / "module")

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        with foreign_errors(self.title, "copy the weights"):
            reference.copy_module(folder)
            (folder / _INFO).write_text(json.dumps(to_json(reference.info)), encoding="utf-8")


def names(info: ModelInfo) -> tuple[Sequence[str], Sequence[str]]:
    """Of a model's inputs and outputs, as :class:`TorchSession` takes them."""
    return info.input_names, info.output_names


def supports(title: str, candidate: Candidate, hardware: Hardware) -> str | None:
    """What the PyTorch engines can run, as for :meth:`hasten.engines.base.Engine.supports`."""
    reason = why_not(title, candidate, hardware, OFFERED)
    if reason is None and candidate.device == "cuda":
        return _cuda_reason(candidate.precision, hardware)
    return reason


def session_options(candidate: Candidate) -> Options:
    """``num_threads`` of each stream (``torch.set_num_threads``), and the ``device``."""
    return {"num_threads": candidate.intra_op_num_threads, "device": candidate.device}


def _cuda_reason(precision: str, hardware: Hardware) -> str | None:
    # CUDA itself is asked in worker processes only: here the question could open a context.
    import torch

    if torch.version.cuda is None:
        return "the installed PyTorch is built without CUDA; another build has it"
    if precision == "bf16" and not all(gpu.has_bf16 for gpu in hardware.gpus):
        return "this GPU has no bf16 instructions (those since Ampere have)"
    return None


def pin_threads(threads: int) -> None:
    """Make PyTorch use ``threads`` threads in the thread that calls this.

    The number is each calling thread's own (OpenMP keeps it so): a stream that never asked for
    one would get whatever another thread set last.
    """
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def load_weights(
    title: str, folder: Path, candidate: Candidate, options: Options
) -> tuple[nn.Module, ModelInfo]:
    """What :meth:`WeightsEngine.export` wrote, as a module that the candidate wants."""
    pin_threads(int(options["num_threads"]))
    with foreign_errors(title, f"load {folder}"):
        info = from_json(ModelInfo, json.loads((folder / _INFO).read_text(encoding="utf-8")))
        module = load_module(folder / "module", info)
        if candidate.precision == "int8":
            return dynamic_int8(module, candidate.spared), info
        return in_precision(module, candidate.precision).to(str(options["device"])), info


def in_precision(module: nn.Module, precision: str) -> nn.Module:
    """The fp32 ``module`` computing in ``precision``; it returns float32 all the same."""
    if precision == "fp32":
        return module
    return _fp32_output()(module.to(dtype(precision))).eval()


def dynamic_int8(module: nn.Module, spared: Sequence[str]) -> nn.Module:
    """The fp32 ``module`` with its linear layers in 8-bit integers, but for the ``spared`` ones.

    Weights have a scale a row; the ranges of activations are found batch by batch. PyTorch's own
    quantize_dynamic, deprecated as it is: of torchao, its successor, int8 products on a CPU
    without VNNI took 350 times as long as fp32 (0.18 on Zen 3), where FBGEMM takes half.
    """
    from torch import nn
    from torch.ao import quantization

    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    chosen = [name for name in names if name.removeprefix("original.") not in spared]
    if not chosen:
        raise EngineError("nothing in it can become int8: it has no linear layer to round")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"torch\.ao\.quantization is deprecated")
        warnings.filterwarnings(
            "ignore", r"torch\.quantize_per_tensor, torch\.quantize_per_channel"
        )
        quantize: Any = quantization.quantize_dynamic  # without type hints
        quantized: nn.Module = quantize(
            module, dict.fromkeys(chosen, quantization.per_channel_dynamic_qconfig)
        )
    return quantized


def dtype(precision: str) -> torch.dtype:
    """PyTorch's type for a floating-point precision."""
    import torch

    found: torch.dtype = getattr(torch, _DTYPES[precision])
    return found


@cache
def _fp32_output() -> Callable[[nn.Module], nn.Module]:
    from torch import nn

    class Fp32Output(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            outputs = tuple(output.float() for output in as_tuple(self.module(*inputs)))
            return outputs if len(outputs) > 1 else outputs[0]

    return Fp32Output


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """What a module with the original's face returns: one tensor, or several."""
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def varying_axes(module: nn.Module, info: ModelInfo) -> dict[str, dict[int, str]]:
    """The axes of each output that depend on the batch, by output and axis; found by running it.

    They are named after the axis of the inputs that is as long. An axis that varies otherwise,
    such as a shortened sequence, has a name of its own.
    """
    import torch

    shapes = ((2, 7), (3, 11))
    with torch.no_grad():
        runs = [
            [output.shape for output in as_tuple(module(*example_inputs(info, batch=b, length=n)))]
            for b, n in shapes
        ]
    names = dict(zip(zip(*shapes, strict=True), ("batch_size", "sequence_length"), strict=True))
    return {
        output: {
            axis: names.get(sizes, f"{output}_axis_{axis}")
            for axis, sizes in enumerate(zip(*both, strict=True))
            if sizes[0] != sizes[1]
        }
        for output, *both in zip(info.output_names, *runs, strict=True)
    }


def example_inputs(
    info: ModelInfo, device: str = "cpu", batch: int = 2, length: int = 7
) -> tuple[Tensor, ...]:
    """Inputs to trace ``info``'s model with: int64 [batch, length], the last text padded.

    Padding keeps branches that look for it in the trace; two texts of seven tokens are not a size
    that models treat specially.
    """
    import torch

    input_ids = torch.tensor(info.example(batch, length))
    attention_mask = torch.ones_like(input_ids)
    input_ids[-1, :5] = torch.tensor(info.example(1, 5)[0])
    input_ids[-1, 5:], attention_mask[-1, 5:] = info.pad_token_id, 0
    named = {"input_ids": input_ids, "attention_mask": attention_mask}
    zeros = torch.zeros_like(input_ids)
    return tuple(named.get(name, zeros).to(device) for name in info.input_names)


def refuse_fixed_shapes(
    title: str, session: Session, module: nn.Module, info: ModelInfo, device: str = "cpu"
) -> None:
    """Refuse a graph that answers as the module does for the traced shape alone.

    What a model computes in Python from the sizes of its inputs, such as Funnel's relative
    positions, is a constant in a trace.

    Args:
        title: the engine's, to begin the sentence with.
        session: runs the graph.
        module: what was traced.
        info: the model's.
        device: the module's.

    Raises:
        EngineError: the graph fails on another shape, or gives other outputs.
    """
    import torch

    batch, length = 3, min(40, info.max_length)
    tensors = example_inputs(info, device, batch, length)
    with torch.no_grad():
        expected = [output.cpu().numpy() for output in as_tuple(module(*tensors))]
    arrays = (tensor.cpu().numpy() for tensor in tensors)
    inputs = dict(zip(info.input_names, arrays, strict=True))
    cause = None
    try:
        found = list(session.run(inputs).values())
    except EngineError as error:
        found, cause = [], error
    if len(found) == len(expected) and all(map(_alike, found, expected)):
        return
    raise EngineError(
        f"{title} cannot run {info.architecture}: its trace holds for batches of 2x7, the shape it "
        f"was traced with, and not for {batch}x{length}. The model computes something in Python "
        "from the size of its inputs, which a trace keeps as a constant",
        fix="Choose engines that run the model's own code: --engines torch_eager,torch_compile.",
    ) from cause


def _alike(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Equal but for another order of sums, by far: the parity check looks closer."""
    scale = float(np.abs(expected).max(initial=0.0))
    return found.shape == expected.shape and np.allclose(
        found, expected, rtol=0.0, atol=0.1 * scale + 1e-3, equal_nan=True
    )


def jit() -> Any:
    """``torch.jit``, which has no type hints."""
    import torch.jit

    return torch.jit


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Hold back what a trace says about code that is not ours, and that the parity check covers."""
    with warnings.catch_warnings():
        for message in (
            # TorchScript is feature-complete and will not grow, which is what an engine wants.
            r"`torch\.jit\.\w+` is (deprecated|not supported)",
            r"You are using the legacy TorchScript-based ONNX export",
            r"The feature will be removed\. Please remove usage of this function",
        ):
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        # The tracer reads every attribute of a module, transformers' deprecated ones included.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        # Branches on shapes: the contract tests run other shapes than the traced one.
        warnings.filterwarnings("ignore", category=jit().TracerWarning)
        # Negative indices would be wrong; transformers indexes with a range from 0.
        warnings.filterwarnings("ignore", "Exporting aten::index operator of advanced indexing")
        yield


def matrix_product_flops_per_s(candidate: Candidate) -> float | None:
    """The fastest of several matrix products, in FLOP/s; it takes under two seconds.

    The candidate's precision, device and threads. In fp32 on all cores, NumPy's product counts
    too: its OpenBLAS beats PyTorch's MKL by half on AMD's CPUs (145 and 95 GFLOP/s on two
    Zen 3 cores). It cannot be held to fewer threads without another library. None in precisions
    that have no type of PyTorch's, such as int8, whose products need scales beside them.
    """
    import torch

    if candidate.precision not in _DTYPES:
        return None
    threads = candidate.streams * candidate.intra_op_num_threads
    pin_threads(threads)
    on_cpu = candidate.device == "cpu"
    with_numpy = on_cpu and candidate.precision == "fp32" and threads >= detect().usable_cores
    wait = _nothing if on_cpu else torch.cuda.synchronize
    best = 0.0
    for rows, inner, columns in _MATRIX_SHAPES[candidate.device]:
        a = torch.randn(rows, inner).to(candidate.device, dtype(candidate.precision))
        b = torch.randn(inner, columns).to(candidate.device, dtype(candidate.precision))
        fastest_s = _fastest_s(partial(torch.matmul, a, b), wait)
        if with_numpy:
            product = partial(np.matmul, a.numpy(), b.numpy())
            fastest_s = min(fastest_s, _fastest_s(product, _nothing))
        best = max(best, 2 * rows * inner * columns / fastest_s)
    return best


def _fastest_s(product: Callable[[], object], wait: Callable[[], object]) -> float:
    end = time.perf_counter() + _CEILING_S
    best = float("inf")
    while (begin := time.perf_counter()) < end:
        product()
        wait()
        best = min(best, time.perf_counter() - begin)
    return best


def _nothing() -> None:
    """On the CPU, a product has ended when it returns."""
