"""The training texts as batches: their order and padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.inputs.tokenization import Tokens

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 32


class Texts:
    """The training texts as ``transformers`` wants them: one dict a text."""

    def __init__(self, tokens: Tokens, gold: Sequence[int] | None) -> None:
        self._tokens, self._gold = tokens, gold

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)  # ends a loop over all of them
        begin, end = self._tokens.offsets[index : index + 2]
        item: dict[str, Any] = {"input_ids": self._tokens.ids[begin:end].tolist()}
        if self._gold is not None:
            item["gold"] = self._gold[index]
        return item


class Order:
    """The order of the texts in each pass over them: by length, in random groups.

    The Trainer's own sampler draws from whatever PyTorch's generator has come to, which a run that
    continues amid a pass no longer knows: it would train the first pass again.
    """

    def __init__(self, tokens: Tokens, seed: int, steps: Callable[[], int]) -> None:
        """Of ``tokens``; ``steps`` is how many are done, as the Trainer knows after a restart."""
        self._lengths = tokens.lengths.tolist()
        self._seed, self._steps = seed, steps

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        number = self._steps() // -(-len(self) // BATCH_SIZE)  # of the pass
        (seed,) = np.random.SeedSequence([self._seed, number]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed))
        indices: list[int] = get_length_grouped_indices(
            self._lengths, BATCH_SIZE, generator=generator
        )
        return iter(indices)


class Collate:
    """Pads a batch."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        lengths = np.array([len(item["input_ids"]) for item in items])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._pad, np.int64)
        ids[mask] = np.concatenate([item["input_ids"] for item in items])
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if "gold" in items[0]:
            batch["gold"] = torch.tensor([item["gold"] for item in items])
        return batch
