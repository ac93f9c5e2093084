"""hasten: the fastest way to run your transformer encoder that still gives the same answers.

>>> import hasten
>>> hasten.__all__  # doctest: +NORMALIZE_WHITESPACE
['HastenError', '__version__', 'audit', 'bench', 'compress', 'demo', 'doctor', 'export', 'load',
 'predict', 'predict_file', 'report', 'tune']

Importing it loads no framework. ``tune``, ``bench``, ``export`` and ``audit`` need the extra
``[tune]``, ``compress`` needs ``[compress]``, ``demo`` needs ``[demo]``, and a ``report`` with
charts ``[report]``; ``load``, ``predict`` and ``predict_file`` need only what runs the winner.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.api import bench, compress, demo, doctor, report, tune
    from hasten.audits import audit
    from hasten.bulk.run import predict_file
    from hasten.bulk.stream import predict
    from hasten.exports import export
    from hasten.runtime.predictor import load

__version__ = "0.1.0"

__all__ = [
    "HastenError",
    "__version__",
    "audit",
    "bench",
    "compress",
    "demo",
    "doctor",
    "export",
    "load",
    "predict",
    "predict_file",
    "report",
    "tune",
]

_HOME = {
    "audit": "hasten.audits",
    "bench": "hasten.api",
    "compress": "hasten.api",
    "demo": "hasten.api",
    "doctor": "hasten.api",
    "export": "hasten.exports",
    "load": "hasten.runtime.predictor",
    "predict": "hasten.bulk.stream",
    "predict_file": "hasten.bulk.run",
    "report": "hasten.api",
    "tune": "hasten.api",
}


class _Package(ModuleType):
    """This package: its functions compress, demo and report keep their names.

    Python makes a subpackage an attribute of its package when it is imported, which would take
    the place of the function of that name. ``from hasten.report import ...`` works all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
