"""BERT in numpy, for classifiers. Its clock is virtual, so that it is always the fastest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.engines._border import why_not
from hasten.engines.base import Engine, Inputs, Options, Raw, Session
from hasten.engines.fake import VirtualClock
from hasten.records import Candidate, Hardware

if TYPE_CHECKING:
    from hasten.models import ModelFolder

Floats = NDArray[np.float32]

_BATCH_S = 5e-4
"""What any batch takes, by its own clock. Less would be run more often, to be measured."""


class NumpySession(Session):
    """The weights by name, and what config.json says of the sizes."""

    def __init__(self, weights: Mapping[str, Floats], config: Any, clock: VirtualClock) -> None:
        self._weights, self._config, self._clock = weights, config, clock

    def run(self, inputs: Inputs) -> Raw:
        self._clock.advance(_BATCH_S)
        hidden = self._embedded(inputs["input_ids"], inputs["token_type_ids"])
        away = np.where(inputs["attention_mask"][:, None, None, :], np.float32(0), -np.inf)
        for index in range(self._config["num_hidden_layers"]):
            hidden = self._layer(f"bert.encoder.layer.{index}.", hidden, away)
        pooled = np.tanh(self._linear("bert.pooler.dense", hidden[:, 0]))
        return {"logits": self._linear("classifier", pooled)}

    def _embedded(self, ids: NDArray[np.int64], types: NDArray[np.int64]) -> Floats:
        tables = [
            self._weights[f"bert.embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        ]
        places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        rows = [table[which] for table, which in zip(tables, (ids, places, types), strict=True)]
        return self._normal("bert.embeddings.LayerNorm", sum(rows[1:], rows[0]))

    def _layer(self, name: str, hidden: Floats, away: NDArray[Any]) -> Floats:
        heads = self._config["num_attention_heads"]

        def split(part: str) -> Floats:
            states = self._linear(f"{name}attention.self.{part}", hidden)
            return states.reshape(*hidden.shape[:2], heads, -1).swapaxes(1, 2)

        query, key, value = map(split, ("query", "key", "value"))
        scores = query @ key.swapaxes(2, 3) / np.sqrt(np.float32(query.shape[-1])) + away
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (shares / shares.sum(-1, keepdims=True)) @ value
        seen = self._linear(
            f"{name}attention.output.dense", seen.swapaxes(1, 2).reshape(hidden.shape)
        )
        hidden = self._normal(f"{name}attention.output.LayerNorm", hidden + seen)
        inner = _gelu(self._linear(f"{name}intermediate.dense", hidden))
        return self._normal(
            f"{name}output.LayerNorm", hidden + self._linear(f"{name}output.dense", inner)
        )

    def _linear(self, name: str, x: Floats) -> Floats:
        product: Floats = x @ self._weights[f"{name}.weight"].T
        return product + self._weights[f"{name}.bias"]

    def _normal(self, name: str, x: Floats) -> Floats:
        spread = np.sqrt(x.var(-1, keepdims=True) + np.float32(self._config["layer_norm_eps"]))
        scaled: Floats = (x - x.mean(-1, keepdims=True)) / spread
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _gelu(x: Floats) -> Floats:
    """Abramowitz and Stegun, formula 7.1.26: the error function to 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x) / np.sqrt(2))
    series = np.polyval([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0], t)
    error = np.sign(x) * (1 - series * np.exp(-x * x / 2))
    return np.asarray(0.5 * x * (1 + error), np.float32)


class ToyNumpy(Engine):
    """See the module's docstring."""

    name = "toy_numpy"
    title = "Toy"
    requires: Mapping[str, str] = {"numpy": "numpy", "safetensors": "safetensors"}
    exports_with: Mapping[str, str] = {}
    extra = "torch"
    simplicity = 0

    def __init__(self) -> None:
        self.clock = self._clock = VirtualClock()

    def supports(self, candidate: Candidate, hardware: Hardware) -> str | None:
        return why_not(self.title, candidate, hardware, {"cpu": ("fp32",)})

    def export(self, reference: ModelFolder, candidate: Candidate, folder: Path) -> None:
        shutil.copy(reference.folder / "module" / "model.safetensors", folder)
        shutil.copy(reference.folder / "config.json", folder / "toy.json")

    def session_options(self, candidate: Candidate) -> Options:
        return {}

    def open(self, folder: Path, candidate: Candidate, options: Options) -> Session:
        from safetensors.numpy import load_file

        config = json.loads((folder / "toy.json").read_text(encoding="utf-8"))
        return NumpySession(load_file(folder / "model.safetensors"), config, self._clock)


ENGINE = ToyNumpy()
