"""Sentence embeddings: one vector a text, as sentence-transformers gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ChoiceError, ModelError
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.plain import from_json
from hasten.records import Text
from hasten.tasks import DEFAULT_FORM, _vectors
from hasten.tasks.base import Encoded, Form
from hasten.tasks.outputs import Outputs
from hasten.tasks.tensors import Tensors

_COSINE = "mean cosine"
_NEIGHBOURS = "nearest neighbours kept"


@dataclass(frozen=True)
class Embeddings(Tensors):
    """See the module's docstring.

    Attributes:
        prompts: what can be put before every text, by name.
        default_prompt_name: the one that is, unless the caller asks for another.
        similarity_fn_name: how vectors are compared: cosine, dot, euclidean or manhattan.
        prompt_name: of a call, the prompt that it wants instead of the default one.
        prompt: of a call, what it wants before every text instead of any named prompt.
    """

    name = "embeddings"
    reads = ("sentence_embedding",)
    model_class = "AutoModel"
    pools: ClassVar[tuple[str, ...] | None] = ("mean",)
    compresses = False
    wraps_single = False
    demanded = MappingProxyType({_COSINE: 0.99, _NEIGHBOURS: 0.95})

    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    prompt_name: str | None = None
    prompt: str | None = None

    @classmethod
    def claims(cls, config: Mapping[str, Any]) -> bool:
        """A folder of sentence-transformers, which says how tokens become a vector."""
        pooling = tuple((config.get("sentence") or {}).get("pooling", ()))
        return pooling not in ((), ("splade",))

    @classmethod
    def settings_of(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        stored = (config.get("sentence") or {}).get("settings", {})
        try:
            task = from_json(cls, stored)
        except ValueError as error:
            raise ModelError(
                f"config_sentence_transformers.json cannot be used: {error}"
            ) from error
        if task.similarity_fn_name not in _vectors.SIMILARITIES:
            raise ModelError(
                f"the model's similarity_fn_name is {task.similarity_fn_name!r}",
                fix=f"It can be {', '.join(_vectors.SIMILARITIES)}.",
            )
        task.prefix()
        settings: Mapping[str, Any] = stored
        return settings

    def prefix(self) -> str:
        """What stands before every text.

        Raises:
            ModelError: there is no prompt of the default's name.
            ChoiceError: there is none of the name that the call gives.
        """
        if self.prompt is not None:
            return self.prompt
        name = self.prompt_name or self.default_prompt_name
        if name is None:
            return ""
        # Of sentence-transformers itself, which knows these two without a text.
        known = {"query": "", "document": "", **self.prompts}
        if name not in known:
            raise (ChoiceError if self.prompt_name else ModelError)(
                f"there is no prompt {name!r}",
                fix=f"The model's prompts: {', '.join(self.prompts) or 'none'}.",
            )
        return known[name]

    def encode(self, tokenizer: TextTokenizer, texts: Sequence[Text]) -> Tokens:
        prefix = self.prefix()
        if prefix:
            texts = [prefix + text if isinstance(text, str) else text for text in texts]
        return super().encode(tokenizer, texts)

    def answers(
        self,
        outputs: Outputs,
        labels: Sequence[str],
        encoded: Encoded,
        form: Form = DEFAULT_FORM,
    ) -> list[NDArray[np.float32]]:
        """The vectors, float32 [numbers] each; the form has no meaning."""
        return list(outputs.values)

    def together(self, answers: list[Any], width: int) -> NDArray[np.float32]:
        """The vectors as ``SentenceTransformer.encode`` returns them, float32 [n, width]."""
        return np.array(answers, np.float32).reshape(len(answers), width)

    def agreement(
        self, outputs: Outputs, others: Outputs, texts: Sequence[Text], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Cosines with the original's vectors, neighbours kept, and order of similarities."""
        ours, theirs = outputs.values, others.values
        cosines = _vectors.cosines(ours, theirs)
        found = {
            _COSINE: float(cosines.mean()),
            "1st percentile of cosines": float(np.percentile(cosines, 1)),
            "lowest cosine": float(cosines.min()),
        }
        if len(ours) > 2:
            how = self.similarity_fn_name
            found[_NEIGHBOURS] = _vectors.neighbours_kept(ours, theirs, how)
            found["Spearman of similarities"] = _vectors.order_kept(ours, theirs, how)
        return found


TASK = Embeddings
