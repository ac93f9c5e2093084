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
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import contender
import numpy as np
from contender import Contender, Entry

if TYPE_CHECKING:
    from torch import Tensor, nn

Encode = Callable[[list[str], int], Any]
"""Texts and a batch size to embeddings, float32 [texts, hidden]. hasten plans its own batches."""

# hasten's engine that runs what each of sentence-transformers' backends runs.
ENGINES = {"torch": "torch_eager", "onnx": "onnx_runtime", "openvino": "openvino"}
TITLES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    import figures

    from hasten.demo import assets as demo

    options = _parse()
    encoder = demo.tokenizer_file().parent
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        texts = demo.news_sentences(options.texts)
        file = folder / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        contenders = {}
        for backend in options.backends:
            bundle = _tune(encoder, backend, texts, folder / backend, options)
            contenders["hasten", backend] = Contender(
                sys.executable, __file__, "hasten", backend, bundle, file
            )
            contenders["sentence-transformers", backend] = Contender(
                options.peer_python, __file__, "sentence-transformers", backend, encoder, file
            )
        entries = [
            (Entry(*key, size), each, size)
            for key, each in contenders.items()
            for size in ([0] if key[0] == "hasten" else options.batch_sizes)
        ]
        samples_s = contender.take_turns(entries, options.rounds)
        embeddings = {key: _embeddings(contenders[key], folder) for key in contenders}
        for each in contenders.values():
            each.close()
    data = [{**entry._asdict(), "samples_s": values} for entry, values in samples_s.items()]
    block = _block(samples_s, embeddings, options)
    figures.publish(options.result, {"peers": block}, data)


def _parse() -> argparse.Namespace:
    import figures

    parser = figures.parser(__doc__)
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

    from hasten.models.module import quiet

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


def _tune(
    encoder: Path, backend: str, texts: list[str], folder: Path, options: argparse.Namespace
) -> Path:
    import hasten

    tuning = hasten.tune(
        sentence_encoder(encoder),
        texts,
        tokenizer=encoder / "tokenizer.json",
        task="tensors",
        engines=[ENGINES[backend]],
        precisions=["fp32"],
        output=folder,
        budget=options.budget,
        restart=folder.exists(),
    )
    plan = tuning.plan
    print(f"hasten tuned {backend}: {plan.candidate.label}, {plan.strategy.label}", file=sys.stderr)
    return folder


def _embeddings(contender: Contender, folder: Path) -> Any:
    path = folder / "embeddings.npy"
    contender.ask(str(path))
    return np.load(path)


def _block(
    samples_s: dict[Entry, list[float]],
    embeddings: dict[tuple[str, str], Any],
    options: argparse.Namespace,
) -> str:
    """One row a backend: both at their best, and hasten's ratio to the peer's best batch size."""
    import figures

    from hasten.judging.stats import ratio_interval

    medians_s = {entry: statistics.median(values) for entry, values in samples_s.items()}
    truth = next(vectors for (who, _), vectors in embeddings.items() if who != "hasten")
    worst = min((vectors * truth).sum(axis=1).min() for vectors in embeddings.values())
    lines = [
        (
            "Beside sentence-transformers, interleaved: the same MiniLM-L6 encoder, engine and "
            f"precision (fp32), {options.texts:,} news sentences, {figures.machine()}; "
            "sentence-transformers at the best of the batch sizes "
            f"{', '.join(map(str, options.batch_sizes))}:"
        ),
        "",
        "| engine | hasten, sentences/s | sentence-transformers, sentences/s | ratio (95 %) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for backend in options.backends:
        ours = Entry("hasten", backend, 0)
        peers = [e for e in medians_s if e.who != "hasten" and e.backend == backend]
        best = min(peers, key=medians_s.__getitem__)
        ratio = figures.interval(ratio_interval(samples_s[best], samples_s[ours], seed=0))
        rate, peer = (options.texts / medians_s[entry] for entry in (ours, best))
        row = f"{rate:.0f} | {peer:.0f} (batch {best.batch_size}) | {ratio}"
        lines.append(f"| {TITLES[backend]} | {row} |")
    lines += ["", f"The embeddings agree: the worst cosine is {worst:.6f}."]
    return "\n".join(lines)


def _contend(who: str, backend: str, model: str, texts: str) -> None:
    """Runs in a contender's process: a number is a batch size, a string where to save to."""
    encode = _load_hasten(model) if who == "hasten" else _load_peer(model, backend)
    sentences = json.loads(Path(texts).read_text(encoding="utf-8"))

    def run(order: int | str) -> None:
        if isinstance(order, str):
            np.save(order, encode(sentences, 32))
        else:
            encode(sentences, order)

    contender.answer(run)


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
