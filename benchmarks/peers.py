"""hasten beside sentence-transformers: the same model, texts, engine and precision, interleaved.

    python benchmarks/peers.py
    python benchmarks/peers.py --backends torch onnx openvino --peer-python other/bin/python

The model is MiniLM-L6 with mean pooling and normalization; the texts are 1,000 news sentences of
mean 28 tokens; everything is in fp32. Each contender loads in a process of its own. Then, round
after round, each encodes all the texts once while the others wait, so that drift hits all alike.
Loading, exporting and tuning are not in the figures; tokenizing is.

sentence-transformers' onnx and openvino backends need Optimum, which may want another version of
transformers than hasten's environment has: ``--peer-python`` names the interpreter of one where
they work, for sentence-transformers alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

Encode = Callable[[list[str], int], Any]
"""Texts and a batch size to embeddings, float32 [texts, hidden]. hasten plans its own batches."""

# hasten's engine that runs what each of sentence-transformers' backends runs.
ENGINES = {"torch": "torch_eager", "onnx": "onnx_runtime", "openvino": "openvino"}


class Entry(NamedTuple):
    """One row of the result; ``batch_size`` 0 leaves the batches to the contender."""

    who: str
    backend: str
    batch_size: int

    def __str__(self) -> str:
        batches = f"batch {self.batch_size}" if self.batch_size else "planned batches"
        return f"{self.who}, {self.backend}, {batches}"


class Contender:
    """A process that loads one model and times itself when asked."""

    def __init__(self, python: str, *arguments: object, script: str = __file__) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - one of these scripts
            [python, script, "--contender", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask(None)

    def ask(self, order: Any) -> float:
        """Send an order, and wait for the seconds that it took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a contender ended with status {self._process.wait()}; see above")
        return float(answer)

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    from hasten import demo

    options = _parse()
    encoder = demo.tokenizer_file().parent
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = demo.news_sentences(options.texts)
        file = folder / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        contenders = {}
        for backend in options.backends:
            bundle = _tune(encoder, backend, texts, folder / backend, options.budget)
            contenders["hasten", backend] = Contender(
                sys.executable, "hasten", backend, bundle, file
            )
            contenders["sentence-transformers", backend] = Contender(
                options.peer_python, "sentence-transformers", backend, encoder, file
            )
        samples_s = _measure(contenders, options.batch_sizes, options.rounds)
        embeddings = {key: _embeddings(contenders[key], folder) for key in contenders}
        for contender in contenders.values():
            contender.close()
    _print(samples_s, embeddings, len(texts))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", default="2m", help="for each of hasten's tunes")
    parser.add_argument("--backends", nargs="+", choices=list(ENGINES), default=["torch"])
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 8, 32, 128], help="the peer's"
    )
    parser.add_argument("--peer-python", default=sys.executable)
    return parser.parse_args()


def sentence_encoder(folder: Path) -> nn.Module:
    """What sentence-transformers computes, as one module: unit vectors, float32 [batch, hidden]."""
    import torch
    from transformers import BertModel

    from hasten.reference.module import quiet

    class SentenceEncoder(torch.nn.Module):
        def __init__(self, bert: BertModel) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.bert(input_ids, attention_mask).last_hidden_state
            weights = attention_mask[:, :, None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean)

    with quiet():  # it tells that the checkpoint's unused pooler is left out
        bert = BertModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation="sdpa", local_files_only=True
        )
    return SentenceEncoder(bert).eval()


def _tune(encoder: Path, backend: str, texts: list[str], folder: Path, budget: str) -> Path:
    import hasten

    tuning = hasten.tune(
        sentence_encoder(encoder),
        encoder / "tokenizer.json",
        texts,
        task="tensors",
        engines=[ENGINES[backend]],
        precisions=["fp32"],
        output=folder,
        budget=budget,
    )
    plan = tuning.plan
    print(f"hasten tuned {backend}: {plan.candidate.label}, {plan.strategy.label}", file=sys.stderr)
    return folder


def _measure(
    contenders: dict[tuple[str, str], Contender], batch_sizes: list[int], rounds: int
) -> dict[Entry, list[float]]:
    """Seconds of every entry, one for each round; the round before the first is not counted."""
    samples_s: dict[Entry, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for (who, backend), contender in contenders.items():
            for size in [0] if who == "hasten" else batch_sizes:
                took_s = contender.ask(size)
                if number:
                    samples_s[Entry(who, backend, size)].append(took_s)
    return samples_s


def _embeddings(contender: Contender, folder: Path) -> Any:
    path = folder / "embeddings.npy"
    contender.ask(str(path))
    return np.load(path)


def _print(
    samples_s: dict[Entry, list[float]], embeddings: dict[tuple[str, str], Any], texts: int
) -> None:
    """One row an entry; hasten's ratio is to the peer's best batch size on the same backend."""
    from hasten.stats import ratio_interval

    medians_s = {entry: statistics.median(values) for entry, values in samples_s.items()}
    truth = next(vectors for (who, _), vectors in embeddings.items() if who != "hasten")
    print("| | sentences/s | times the peer's best | worst cosine |")
    print("|---|---|---|---|")
    for entry, median_s in medians_s.items():
        ratio = ""
        if entry.who == "hasten":
            peers = [e for e in medians_s if e.who != "hasten" and e.backend == entry.backend]
            best = min(peers, key=medians_s.__getitem__)
            found = ratio_interval(samples_s[best], samples_s[entry], seed=0)
            ratio = f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"
        cosine = (embeddings[entry.who, entry.backend] * truth).sum(axis=1).min()
        print(f"| {entry} | {texts / median_s:.0f} | {ratio} | {cosine:.6f} |")


def _contend(who: str, backend: str, model: str, texts: str) -> None:
    """Runs in a contender's process: answers every order on standard input with seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the answers stay clean
    encode = _load_hasten(model) if who == "hasten" else _load_peer(model, backend)
    sentences = json.loads(Path(texts).read_text(encoding="utf-8"))
    for line in sys.stdin:
        order, begin = json.loads(line), time.perf_counter()
        if isinstance(order, str):
            np.save(order, encode(sentences, 32))
        elif order is not None:
            encode(sentences, order)
        print(time.perf_counter() - begin, file=answers, flush=True)


def _load_hasten(bundle: str) -> Encode:
    import hasten

    predictor = hasten.load(bundle)
    return lambda texts, _: predictor.outputs(texts)


def _load_peer(model: str, backend: Any) -> Encode:
    from sentence_transformers import SentenceTransformer

    # OpenVINO takes bf16 by itself where the CPU has it.
    fp32 = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}} if backend == "openvino" else {}
    encoder = SentenceTransformer(model, device="cpu", backend=backend, model_kwargs=fp32)
    return lambda texts, size: encoder.encode(texts, batch_size=size, show_progress_bar=False)


if __name__ == "__main__":
    main()
