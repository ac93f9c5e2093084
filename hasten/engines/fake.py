"""An engine whose speed and answers follow a script, for tests of everything around engines.

The script is ``fake.json`` in the reference's folder: a mapping from a candidate's label (or
``"*"`` for all others) to settings; ``"recipes"`` lists recipes by precision, and ``"per_token"``
says that outputs have a row for each token. Time is virtual: a run advances the engine's clock,
nothing sleeps, and the figures that come out are the figures that were put in.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.engines.base import Engine, Inputs, Options, Raw, Session
from hasten.errors import EngineError
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from hasten.models import ModelFolder

SCRIPT = "fake.json"

COLUMNS = 4
"""How many numbers it gives for a text where no labels say it."""


class VirtualClock:
    """A clock that moves only when told; safe to advance from several threads."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._now_s

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now_s += seconds


@dataclass(frozen=True)
class Script:
    """How one candidate behaves.

    A batch of ``b`` texts of length ``n`` costs the machine ``call_s + token_s * b * n`` seconds;
    batches on several streams add up, as they do on cores that are all busy. Exporting and
    loading take ``export_s`` and ``load_s``. ``shift`` is added to the first output column;
    ``fail`` names what goes wrong and ``when`` in which step: ``raise``, ``exit``, ``hang``,
    ``nan`` or ``constant``, at ``export``, ``load`` or ``run``. A batch with the token id
    ``poison`` raises; texts with ``nan_on`` get NaN, and nothing happens to their neighbours.

    Only the first ``reads`` tokens of a text count, where given, whatever comes after them.

    ``alone`` is added to the first column of a text that is alone in its batch, and ``mixed`` to
    that of all texts of a batch with texts of several lengths.
    """

    call_s: float = 1e-3
    token_s: float = 1e-5
    export_s: float = 0.0
    load_s: float = 0.0
    shift: float = 0.0
    fail: str | None = None
    when: str = "run"
    unsupported: str | None = None
    poison: int | None = None
    nan_on: int | None = None
    reads: int | None = None
    alone: float = 0.0
    mixed: float = 0.0

    def act(self, step: str) -> None:
        """Fail as scripted, if this is the step for it."""
        if step != self.when or self.fail in (None, "nan", "constant"):
            return
        if self.fail == "exit":
            os._exit(11)
        if self.fail == "hang":
            # Until the watchdog kills this process; an event never set needs no time to pass.
            threading.Event().wait()
        raise EngineError(f"fake: scripted failure at {step}")


class FakeSession(Session):
    """Outputs are a fixed function of each text's own token ids, whatever the padding.

    Of its ``names`` each has the same; float32 [batch, columns], or with ``per_token``
    [batch, length, columns].
    """

    def __init__(
        self,
        script: Script,
        columns: int,
        names: Sequence[str],
        clock: VirtualClock,
        *,
        per_token: bool = False,
    ) -> None:
        self._script = script
        self._columns, self._names, self._clock = columns, tuple(names), clock
        self._per_token = per_token

    def run(self, inputs: Inputs) -> Raw:
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        self._script.act("run")
        batch, length = input_ids.shape
        self._clock.advance(self._script.call_s + self._script.token_s * batch * length)
        ids = np.where(attention_mask, input_ids, -1)
        if self._script.poison is not None and (ids == self._script.poison).any():
            raise EngineError("fake: scripted poison in a batch")
        read = input_ids * attention_mask
        if self._script.reads is not None:
            read[:, self._script.reads :] = 0
        sums = read if self._per_token else read.sum(axis=1)
        outputs = np.sin(sums[..., None] * np.arange(1.0, self._columns + 1)).astype(np.float32)
        outputs[..., 0] += self._script.shift
        outputs[..., 0] += self._script.alone * (batch == 1)
        outputs[..., 0] += self._script.mixed * bool(np.ptp(attention_mask.sum(axis=1)))
        if self._script.nan_on is not None:
            outputs[(ids == self._script.nan_on).any(axis=1)] = np.nan
        if self._script.fail == "nan":
            outputs[0, ..., 0] = np.nan
        if self._script.fail == "constant":
            outputs[:] = 1.0
        return dict.fromkeys(self._names, outputs)


class Fake(Engine):
    """See the module's docstring."""

    name = "fake"
    title = "Fake"
    requires: Mapping[str, str] = {}
    exports_with: Mapping[str, str] = {}
    extra = "dev"
    simplicity = 9

    def __init__(self, script: Mapping[str, Any] | None = None) -> None:
        self._script = script
        self.clock = self.virtual_clock = VirtualClock()

    def recipes(self, precision: str, hardware: Hardware) -> Sequence[str]:
        return tuple((self._script or {}).get("recipes", {}).get(precision, ("",)))

    def not_worth_trying(self, precision: str, hardware: Hardware) -> Mapping[str, str]:
        script: Mapping[str, Mapping[str, str]] = (self._script or {}).get("not_worth_trying", {})
        return script.get(precision, {})

    def calibrates(self, candidate: Candidate) -> bool:
        return candidate.recipe.startswith("static")

    def depends_on_batch(self, candidate: Candidate) -> bool:
        script = _script(self._script or {}, candidate)
        return bool(script.alone or script.mixed)

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        if candidate.device != "cpu":
            return "fake runs on the CPU only"
        return _script(self._script or {}, candidate).unsupported

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        stored = reference.folder / SCRIPT
        table = json.loads(stored.read_text()) if stored.exists() else self._script or {}
        script = _script(table, candidate)
        script.act("export")
        self.virtual_clock.advance(script.export_s)
        info = reference.info
        artifact = {
            "script": table,
            "columns": len(info.labels) or COLUMNS,
            "outputs": info.output_names,
        }
        (folder / SCRIPT).write_text(json.dumps(artifact))

    def session_options(self, candidate: Candidate) -> Options:
        return {"threads": candidate.intra_op_num_threads}

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        artifact = json.loads((folder / SCRIPT).read_text())
        script = _script(artifact["script"], candidate)
        script.act("load")
        self.virtual_clock.advance(script.load_s)
        return FakeSession(
            script,
            artifact["columns"],
            artifact.get("outputs") or [artifact["output"]],  # earlier ones have one
            self.virtual_clock,
            per_token=artifact["script"].get("per_token", False),
        )

    def ceiling_flops_per_s(self, candidate: Candidate) -> float | None:
        return 1e12


def _script(table: Mapping[str, Any], candidate: Candidate) -> Script:
    names = candidate.label, candidate.untruncated.label, "*"
    return Script(**next((table[name] for name in names if name in table), {}))


ENGINE = Fake()
