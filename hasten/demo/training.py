"""Fine-tune the last two blocks of a BERT encoder and a head, over cached states.

The blocks below stay frozen: each text goes through those once, and every epoch starts from what
they gave. Of the last block only the position that the head reads, ``[CLS]``, is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten.inputs.tokenization import Tokens
from hasten.records import Progress, Strategy
from hasten.runtime.batching import plan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BertForSequenceClassification

TRAINED_BLOCKS = 2
EPOCHS = 2
BATCH_SIZE = 32
BLOCK_RATE = 2e-4
HEAD_RATE = 6e-4

_BUDGET = Strategy("token_budget", 64, token_budget=2048)


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """Texts as the first trained block gets them: ``states`` is float16 [tokens, hidden]."""

    tokens: Tokens
    states: Tensor

    def batch(self, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Padded states, float32 [batch, length, hidden], and a mask, bool [batch, length]."""
        import torch

        rows = np.arange(len(self.states), dtype=np.int32)
        found = Tokens(rows, self.tokens.offsets, self.tokens.truncated).pad(chosen, 0)
        index, mask = map(torch.from_numpy, found)
        return self.states[index].float(), mask.bool()


def lower_states(
    model: BertForSequenceClassification,
    tokens: Tokens,
    advance: Callable[[int], None] = lambda _: None,
) -> Hidden:
    """Run the frozen blocks. ``advance`` counts tokens."""
    import torch

    encoder = model.bert.encoder
    blocks, width = encoder.layer, model.config.hidden_size
    states = torch.empty(len(tokens.ids), width, dtype=torch.float16)
    encoder.layer = blocks[:-TRAINED_BLOCKS]
    try:
        with torch.inference_mode():
            for batch in plan(tokens.lengths, _BUDGET):
                ids, mask = map(torch.from_numpy, tokens.pad(batch, pad_token_id=0))
                found = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
                places = [np.arange(*tokens.offsets[[text, text + 1]]) for text in batch]
                states[torch.from_numpy(np.concatenate(places))] = found[mask.bool()].half()
                advance(int(mask.sum()))
    finally:
        encoder.layer = blocks
    return Hidden(tokens, states)


def logits(model: BertForSequenceClassification, states: Tensor, mask: Tensor) -> Tensor:
    """The trained blocks, the last at ``[CLS]`` alone, and the head: float32 [batch, labels].

    Args:
        model: gives the weights.
        states: float32 [batch, length, hidden], from :func:`lower_states`.
        mask: bool [batch, length], False at padding.
    """
    *lower, last = model.bert.encoder.layer[-TRAINED_BLOCKS:]
    seen = mask[:, None, None]
    for block in lower:
        given = block(states, attention_mask=seen)
        states = given[0] if isinstance(given, tuple) else given  # transformers 4 gave a tuple
    first = _at_first(last, states, seen, model.config.num_attention_heads)
    found: Tensor = model.classifier(model.dropout(_pooler(model)(first)))
    return found


def _at_first(block: Any, states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """A block's output at the first position: float32 [batch, 1, hidden]."""
    import torch

    attention, first = block.attention.self, states[:, :1]

    def split(product: Tensor) -> Tensor:
        return product.view(len(states), -1, heads, product.shape[-1] // heads).transpose(1, 2)

    context = torch.nn.functional.scaled_dot_product_attention(
        split(attention.query(first)),
        split(attention.key(states)),
        split(attention.value(states)),
        attn_mask=mask,
    )
    attended = block.attention.output(context.transpose(1, 2).flatten(-2), first)
    output: Tensor = block.output(block.intermediate(attended), attended)
    return output


def train(
    model: BertForSequenceClassification,
    seen: Hidden,
    right: Tensor,
    advance: Callable[[int], None] = lambda _: None,
    epochs: int = EPOCHS,
) -> None:
    """Fine-tune the last blocks, the pooler and the head; the blocks below stay as they are.

    AdamW with a linear warm-up and decay. Seeded generators of its own make it repeatable.
    ``advance`` counts tokens, from zero in every epoch.

    Args:
        model: is changed, and ends in evaluation mode.
        seen: the training texts.
        right: int64 [texts], indices into :data:`LABELS`.
        advance: is told how many tokens a step took.
        epochs: passes over all texts.
    """
    import torch

    head = [*_pooler(model).parameters(), *model.classifier.parameters()]
    blocks = list(model.bert.encoder.layer[-TRAINED_BLOCKS:].parameters())
    groups = [{"params": blocks, "lr": BLOCK_RATE}, {"params": head, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    batches = list(_batches(seen.tokens.lengths, epochs))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [BLOCK_RATE, HEAD_RATE],
        total_steps=len(batches) + 1,
        pct_start=0.1,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        torch.nn.init.normal_(model.classifier.weight, std=0.02)
        torch.nn.init.zeros_(model.classifier.bias)
        model.train()
        for batch in batches:
            states, mask = seen.batch(batch)
            optimizer.zero_grad()
            found = logits(model, states, mask)
            loss = torch.nn.functional.cross_entropy(found, right[torch.from_numpy(batch)])
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*blocks, *head], 1.0)
            optimizer.step()
            schedule.step()
            advance(int(mask.sum()))
    model.train(False)


def _batches(lengths: NDArray[np.int64], epochs: int) -> Iterator[NDArray[np.int64]]:
    """Random batches of texts of similar length, which pad little; every text once an epoch."""
    random = np.random.default_rng(0)
    pool_size = 16 * BATCH_SIZE
    for _ in range(epochs):
        order = random.permutation(len(lengths))
        for begin in range(0, len(order), pool_size):
            pool = order[begin : begin + pool_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            cuts = np.split(pool, range(BATCH_SIZE, len(pool), BATCH_SIZE))
            yield from (cuts[index] for index in random.permutation(len(cuts)))


def accuracy(model: BertForSequenceClassification, seen: Hidden, right: Tensor) -> float:
    """Share of right answers."""
    import torch

    hits = 0
    with torch.inference_mode():
        for batch in plan(seen.tokens.lengths, _BUDGET):
            answers = logits(model, *seen.batch(batch)).argmax(dim=1)
            hits += int((answers == right[torch.from_numpy(batch)]).sum())
    return hits / len(right)


def _pooler(model: BertForSequenceClassification) -> nn.Module:
    pooler = model.bert.pooler
    assert pooler is not None, "only encoders without a classifier are built without a pooler"
    return pooler


class Work:
    """Reports how much of the training is done, and how long is left.

    Args:
        report: is called with every advance.
        groups: the training texts, then those that are only looked at.
    """

    # In blocks that one token goes through; a step back costs twice a step forward, and of the
    # last block most is computed at one position only.
    _LOWER, _TRAIN = 4.0, 4.0

    def __init__(self, report: Callable[[Progress], None], groups: Sequence[Tokens]) -> None:
        self._report = report
        self._total = self._LOWER * sum(len(each.ids) for each in groups)
        self._total += self._TRAIN * EPOCHS * len(groups[0].ids)
        self._done, self._begin = 0.0, time.monotonic()

    def lower(self, tokens: int) -> None:
        self._add(self._LOWER * tokens)

    def train(self, tokens: int) -> None:
        self._add(self._TRAIN * tokens)

    def _add(self, work: float) -> None:
        self._done += work
        left_s = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
        done = min(self._done / self._total, 1.0)
        self._report(Progress("demo", "training the demo's classifier, once", done, max(left_s, 0)))
