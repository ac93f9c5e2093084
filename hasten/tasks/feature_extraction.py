"""Hidden states: a vector for each token of a text, special tokens included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import ModelError
from hasten.inputs.tokenization import Batch
from hasten.records import Text
from hasten.tasks import DEFAULT_FORM, _vectors
from hasten.tasks.base import Encoded, Form, Raw, token_rows
from hasten.tasks.outputs import Outputs
from hasten.tasks.tensors import Tensors

if TYPE_CHECKING:
    import pyarrow as pa

_COSINE = "mean cosine of tokens"


@dataclass(frozen=True)
class FeatureExtraction(Tensors):
    """See the module's docstring."""

    name = "feature_extraction"
    reads = ("last_hidden_state",)
    model_class = "AutoModel"
    pipeline = "feature-extraction"
    vectors = False
    pools = ()
    compresses = False
    wraps_single = False
    demanded = MappingProxyType({_COSINE: 0.99})
    usual_columns = ("features",)

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """An encoder that was prepared for this task: a folder alone never says so."""
        return (config.get("sentence") or {}).get("pooling") in ((), [])

    def gather(self, raw: Raw, batch: Batch) -> Outputs:
        values = raw[self.reads[0]]
        if values.ndim != 3:
            raise ModelError(
                f"for {len(values)} texts the model returns {list(values.shape)}; hidden states "
                f"are [{len(values)}, tokens, numbers]",
                fix="To compare outputs of any shape as tensors, use --task tensors.",
            )
        return token_rows(values, batch)

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[Any]:
        """Those of ``transformers.pipeline("feature-extraction")``: lists [1, tokens, numbers]."""
        return [[outputs[number].tolist()] for number in range(len(outputs))]

    def table(self, outputs: Outputs, labels: Sequence[str], encoded: Encoded) -> pa.Table:
        """The vectors of a text's tokens as ``features``."""
        import pyarrow as pa

        numbers = pa.array(np.ascontiguousarray(outputs.values).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(numbers, outputs.width)
        offsets = pa.array(outputs.offsets.astype(np.int32))
        return pa.table({"features": pa.ListArray.from_arrays(offsets, vectors)})

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Cosines of the tokens' vectors with the original's."""
        cosines = _vectors.cosines(outputs.values, others.values)
        if not len(cosines):
            return {}
        return {
            _COSINE: float(cosines.mean()),
            "1st percentile of cosines": float(np.percentile(cosines, 1)),
            "lowest cosine": float(cosines.min()),
        }


TASK = FeatureExtraction
