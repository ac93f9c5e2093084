"""torch.compile: the original module, its operators fused and compiled where it runs.

Simplicity 4: all of PyTorch eager, and a C++ compiler at run time, half a minute at every start.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from hasten.engines import _torch
from hasten.engines._border import foreign_errors
from hasten.engines.base import Options, Session
from hasten.records import Candidate, Hardware

# What Inductor calls where CXX does not name another (torch._inductor.config.cpp.cxx).
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


class TorchCompile(_torch.WeightsEngine):
    """See the module's docstring."""

    name = "torch_compile"
    title = "torch.compile"
    simplicity = 4
    starts_slowly = True

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        reason = super().supports(candidate, hardware)
        compiler = os.environ.get("CXX", _COMPILERS.get(sys.platform, "g++"))
        if reason is None and not shutil.which(compiler):
            return f"torch.compile needs a C++ compiler, and {compiler} is not installed"
        return reason

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        import torch

        module, info = _torch.load_weights(self.title, folder, candidate, options)
        # Inductor writes the number of threads into its kernels. Named here, it is a part of its
        # on-disk cache's key in every release; before, one layout could get another's kernels.
        threads: dict[str, Any] = {"cpp.threads": options["num_threads"]}
        with (
            foreign_errors(self.title, f"compile {info.architecture}"),
            _torch.quiet_tracing(),  # importing Inductor uses what PyTorch deprecates
            torch.inference_mode(),
        ):
            # dynamic: from the first call on, sizes are symbols, and no shape is compiled for
            # twice. fullgraph: without it, one malformed batch makes PyTorch give the graph up
            # for good and compile its pieces again, in the middle of the work.
            compiled = torch.compile(module, dynamic=True, fullgraph=True, options=threads)
            # PyTorch never makes a symbol of size 1, so that a batch of one text is a graph of
            # its own. Both are compiled now: start-up time, and no stalls between batches.
            for batch in (2, 1):
                compiled(*_torch.example_inputs(info, str(options["device"]), batch))
        return _torch.TorchSession(self.title, compiled, _torch.names(info), options)


ENGINE = TorchCompile()
