"""The narrow seam between hasten and the frameworks that run models.

An engine is one file in this folder that defines a subclass of :class:`Engine` and, at the end,
``ENGINE = ThatClass()``. It is found by being there (see :func:`hasten.engines.discover`); the
contract tests, the command line's choices and the table in the docs follow from that.
"""

from __future__ import annotations

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError, Unavailable
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from hasten.models import ModelFolder

Inputs: TypeAlias = Mapping[str, NDArray[np.int64]]
"""A batch by input name: ``input_ids`` and what else the model takes, int64 [batch, length]."""

Raw: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Its outputs by name, such as ``logits: float32 [batch, labels]``."""

Options: TypeAlias = Mapping[str, str | int | bool]
"""How a session is opened, by the names that the framework itself uses. Plain JSON values."""


class Session(ABC):
    """A loaded model, ready to run on its share of the cores."""

    @abstractmethod
    def run(self, inputs: Inputs) -> Raw:
        """Run one batch and block until its outputs are there.

        May be called from as many threads at once as the candidate has streams.

        Args:
            inputs: int64 [batch, length] by name: those of ``ModelInfo.input_names``.

        Returns:
            Those of ``ModelInfo.output_names``: float32, the batch along the first axis, owned
            by the caller.

        Raises:
            EngineError: the framework failed; its exception is chained.
        """

    def close(self) -> None:  # noqa: B027 - most frameworks free their memory with the object
        """Release what the session holds. It may be called more than once."""


class Engine(ABC):
    """One framework, one way of running a model."""

    name: str
    """As typed on the command line: ``onnx_runtime``."""

    title: str
    """As shown to people: ``ONNX Runtime``."""

    requires: Mapping[str, str]
    """Import names and the distributions that provide them, needed to run an artifact."""

    exports_with: Mapping[str, str]
    """The same, needed in addition to make one."""

    recipes_export_with: Mapping[str, Mapping[str, str]] = {}
    """The same, needed in addition to make one by a recipe, by the recipe's name."""

    trained_recipes: Sequence[str] = ()
    """Further ways to reach int8, for models that bring ranges from training, and only
    those: see :func:`hasten.models.load_trained`."""

    extra: str
    """The extra in ``pyproject.toml`` that installs ``requires``."""

    simplicity: int
    """Orders candidates that are equally fast, the simplest to deploy first (lowest number)."""

    can_spin: bool = False
    """Whether it can let waiting threads spin (see :class:`hasten.records.Candidate`)."""

    starts_slowly: bool = False
    """Whether every start takes half a minute or more; a tune's first answer then goes without."""

    clock: Callable[[], float] = time.perf_counter
    """What times the sessions' runs, in seconds; a scripted engine brings a virtual one."""

    def missing(self) -> Unavailable | None:
        """Why artifacts cannot be run here, if so; found without importing anything."""
        absent = _absent(self.requires)
        if not absent:
            return None
        return Unavailable(
            f"{self.title} needs {absent}, which is not installed",
            fix=f"pip install 'hasten[{self.extra}]'",
        )

    def missing_to_export(self, recipe: str = "") -> Unavailable | None:
        """Why artifacts cannot be made here, if so; found without importing anything."""
        absent = _absent({**self.exports_with, **self.recipes_export_with.get(recipe, {})})
        if not absent:
            return None
        return Unavailable(
            f"making artifacts for {self.title} needs {absent}, which is not installed",
            fix="pip install 'hasten[tune]'",
        )

    def versions(self) -> dict[str, str]:
        """Installed versions of the distributions that run an artifact."""
        return {dist: _version(dist) for dist in self.requires.values()}

    def recipes(self, precision: str, hardware: Hardware) -> Sequence[str]:
        """Names of the ways to reach ``precision`` on this machine, each a candidate of its own.

        One without a name by default. ``export`` and ``load`` find it in ``candidate.recipe``.
        """
        return ("",)

    def not_worth_trying(self, precision: str, hardware: Hardware) -> Mapping[str, str]:
        """Further recipes, which run on this machine but cannot win, and why each cannot.

        They show only where engine and precision are asked for by name: as rows with the reason,
        or, where :meth:`recipes` has none, as candidates.
        """
        return {}

    def calibrates(self, candidate: Candidate) -> bool:
        """Whether making the candidate's artifact takes calibration texts."""
        return False

    def depends_on_batch(self, candidate: Candidate) -> bool:
        """Whether a text's answer depends on the other texts of its batch.

        It does where numbers are rounded on a scale that the whole batch shares. Such candidates
        are proved under several batchings; the contract tests measure that no others depend.
        """
        return False

    @abstractmethod
    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        """Why this machine cannot run ``candidate``, in one sentence; None where it can."""

    def artifact_name(self, candidate: Candidate) -> str:
        """Name of the artifact's folder; candidates that share a name share the artifact."""
        return candidate.format

    def runs_code(self, folder: Path) -> bool:
        """Whether loading the artifact in ``folder`` can run code that its author chose.

        Decided by what lies there, not by what is said about it.
        """
        return False

    @abstractmethod
    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        """Write the artifact for ``candidate`` into the empty ``folder``.

        Raises:
            EngineError: the framework cannot convert this model; its exception is chained.
        """

    def base(self, candidate: Candidate) -> Candidate | None:
        """The candidate whose artifact this one's is made from; None where it needs none.

        ``export`` works without it as well, and takes the longer for it.
        """
        return None

    def derive(
        self, base: Path, reference: ModelFolder, candidate: Candidate, folder: Path
    ) -> None:
        """As :meth:`export`, from the artifact of :meth:`base` in the folder ``base``.

        Raises:
            EngineError: the framework cannot; its exception is chained.
        """
        raise EngineError(f"{self.title} makes every artifact from the original")

    def load(self, folder: Path, candidate: Candidate, options: Options | None = None) -> Session:
        """Load an artifact, with exactly the candidate's threads and streams.

        Args:
            folder: what :meth:`export` wrote.
            candidate: how to run it.
            options: as a bundle's manifest states them; :meth:`session_options` without. Options
                that the manifest does not name have the values of :meth:`session_options`.

        Raises:
            EngineError: an option is unknown, or the artifact cannot be loaded; the framework's
                exception is chained.
        """
        usual = self.session_options(candidate)
        # A framework has options that write files, and a bundle may come from anywhere: only
        # those are passed on that this engine sets itself.
        unknown = (options or {}).keys() - usual.keys()
        if unknown:
            raise EngineError(
                f"{self.title} has no session option {', '.join(sorted(unknown))}",
                fix=f"Allowed are {', '.join(usual)}. Tune again to write a new bundle.",
            )
        return self.open(folder, candidate, {**usual, **(options or {})})

    @abstractmethod
    def session_options(self, candidate: Candidate) -> Options:
        """How a session for ``candidate`` is opened; stored in a bundle's manifest."""

    @abstractmethod
    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        """Load the artifact in ``folder`` with these ``options``, all of them and no others.

        Raises:
            EngineError: the artifact cannot be loaded; the framework's exception is chained.
        """

    def usage(self, folder: Path, reference: ModelFolder, candidate: Candidate) -> str:
        """Python that loads the artifact in ``folder``, for people to copy.

        By default with this library. Engines whose artifacts other tools load name those instead.
        """
        arguments = ", ".join(map(repr, (self.name, candidate.precision, candidate.device)))
        recipe = f", recipe={candidate.recipe!r}" if candidate.recipe else ""
        threads = candidate.intra_op_num_threads
        return (
            "from pathlib import Path\n"
            "from hasten import engines\n"
            "from hasten.records import Candidate\n\n"
            f"candidate = Candidate({arguments}, {threads}{recipe})\n"
            f"session = engines.get({self.name!r}).load(Path({str(folder)!r}), candidate)\n"
            f"outputs = session.run(inputs)  # int64 [batch, length] by name: "
            f"{', '.join(reference.info.input_names)}"
        )

    def ceiling_flops_per_s(self, candidate: Candidate) -> float | None:
        """The fastest matrix product this framework reaches here, in FLOP/s, if it can tell."""
        return None


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a variant provides the module, such as -gpu
        return "(version unknown)"


def _absent(modules: Mapping[str, str]) -> str:
    # The top-level package alone: looking a dotted name up would import its parents.
    found = (importlib.util.find_spec(module.partition(".")[0]) for module in modules)
    pairs = zip(modules.values(), found, strict=True)
    return ", ".join(distribution for distribution, spec in pairs if spec is None)
