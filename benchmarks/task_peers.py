"""hasten beside the library of each task: rerankers, taggers and embedders, interleaved.

    python benchmarks/task_peers.py pairs
    python benchmarks/task_peers.py tokens
    python benchmarks/task_peers.py embeddings --precisions fp32,int8
    python benchmarks/task_peers.py pairs --backends torch onnx --peer-python other/bin/python

All run MiniLM-L6: as a reranker and a tagger with heads of random weights, which cost what trained
ones do, and as the sentence embedder that it is, pooling included. The peers are sentence-
transformers' ``CrossEncoder.predict`` over 1,000 pairs, ``transformers.pipeline`` over 1,000
sentences with ``batch_size=32``, and ``SentenceTransformer.encode``; the first and last at the best
of several batch sizes. Each contender loads in a process of its own, and round after round each
answers everything once. Loading, exporting and tuning are not in the figures; tokenizing is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contender
from contender import Contender, Entry

Answer = Callable[[list[Any], int], list[Any]]
"""Texts and a batch size to answers; hasten plans its own batches."""

_HEADS = {"pairs": "SequenceClassification", "tokens": "TokenClassification", "embeddings": None}
_TASKS = {"pairs": "reranking", "tokens": "token_classification", "embeddings": "embeddings"}
_PEERS = {
    "pairs": "`CrossEncoder.predict`",
    "tokens": '`pipeline("token-classification")`',
    "embeddings": "`SentenceTransformer.encode`",
}
_LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    import figures

    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        texts = _texts(options.task, options.texts)
        file = folder / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        model = _model(options.task, folder / "model")
        bundle = _tune(model, texts, folder / "bundle", options)
        start = (sys.executable, __file__, options.task)
        contenders = {("hasten", ""): Contender(*start, "hasten", "", bundle, file)}
        for backend in options.backends:
            contenders["peer", backend] = Contender(
                options.peer_python, __file__, options.task, "peer", backend, model, file
            )
        sizes = [32] if options.task == "tokens" else options.batch_sizes
        entries = [
            (Entry(*key, size), each, size)
            for key, each in contenders.items()
            for size in ([0] if key[0] == "hasten" else sizes)
        ]
        samples_s = contender.take_turns(entries, options.rounds)
        answers = {key: _answers(each, folder) for key, each in contenders.items()}
        for each in contenders.values():
            each.close()
    data = [{**entry._asdict(), "samples_s": values} for entry, values in samples_s.items()]
    block = _block(samples_s, answers, options)
    figures.publish(options.result, {f"peers-{options.task}": block}, data)


def _parse() -> argparse.Namespace:
    import figures

    parser = figures.parser(__doc__)
    parser.add_argument("task", choices=list(_TASKS))
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", default="90s", help="of hasten's tune")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--backends", nargs="+", default=["torch"], help="the peer's")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--peer-python", default=sys.executable)
    return parser.parse_args()


def _texts(task: str, count: int) -> list[Any]:
    """News sentences, or each sentence with the one after it."""
    from hasten.demo import assets as demo

    sentences = demo.news_sentences(count)
    if task != "pairs":
        return sentences
    return [list(pair) for pair in zip(sentences, [*sentences[1:], sentences[0]], strict=True)]


def _model(task: str, folder: Path) -> Path:
    """The encoder as it is, or with a head of random weights."""
    import torch
    import transformers

    from hasten.demo import assets as demo
    from hasten.models.module import quiet

    encoder = demo.tokenizer_file().parent
    head = _HEADS[task]
    if head is None:
        return encoder
    labels = _LABELS if task == "tokens" else ("score",)
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    with quiet(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        kind: Any = getattr(transformers, f"AutoModelFor{head}")
        model = kind.from_pretrained(encoder, **named, local_files_only=True)
        torch.nn.init.normal_(model.classifier.weight, std=0.5)
        if task == "pairs":
            model.config.sentence_transformers = {"activation_fn": "torch.nn.Sigmoid"}
        model.save_pretrained(folder)
    for path in encoder.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def _tune(model: Path, texts: list[Any], folder: Path, options: argparse.Namespace) -> Path:
    import hasten

    tuning = hasten.tune(
        model,
        [text if isinstance(text, str) else tuple(text) for text in texts],
        task=_TASKS[options.task],
        precisions=options.precisions,
        output=folder,
        budget=options.budget,
        restart=folder.exists(),
    )
    plan, parity = tuning.plan, tuning.chosen.parity
    found = dict(parity.agreement) if parity else {}
    print(f"hasten tuned: {plan.candidate.label}, {plan.strategy.label}; {found}", file=sys.stderr)
    return folder


def _answers(each: Contender, folder: Path) -> list[Any]:
    path = folder / "answers.json"
    each.ask(str(path))
    found: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _block(
    samples_s: dict[Entry, list[float]],
    answers: dict[tuple[str, str], list[Any]],
    options: argparse.Namespace,
) -> str:
    """One row for each of the peer's backends, at its best batch size."""
    import figures

    from hasten.judging.stats import ratio_interval

    medians_s = {entry: statistics.median(values) for entry, values in samples_s.items()}
    ours = Entry("hasten", "", 0)
    title = (
        f"Beside {_PEERS[options.task]}, interleaved, {options.texts:,} texts, "
        f"{figures.machine()}; hasten may choose among {options.precisions}:"
    )
    lines = [
        title,
        "",
        "| peer | hasten, texts/s | peer, texts/s | ratio (95 %) | answers |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for backend in options.backends:
        peers = [e for e in medians_s if e.who == "peer" and e.backend == backend]
        best = min(peers, key=medians_s.__getitem__)
        ratio = figures.interval(ratio_interval(samples_s[best], samples_s[ours], seed=0))
        rate, peer = (options.texts / medians_s[entry] for entry in (ours, best))
        same = _agreement(answers["hasten", ""], answers["peer", backend], options.task)
        row = f"{rate:.0f} | {peer:.0f} (batch {best.batch_size}) | {ratio} | {same}"
        lines.append(f"| {backend} | {row} |")
    return "\n".join(lines)


def _agreement(ours: list[Any], theirs: list[Any], task: str) -> str:
    """How far hasten's answers are the peer's, in words."""
    import numpy as np

    if task == "tokens":
        same = sum(one == other for one, other in zip(ours, theirs, strict=True))
        return f"{same} of {len(ours)} texts have equal entities"
    one, other = np.array(ours), np.array(theirs)
    if task == "pairs":
        return f"scores differ by at most {abs(one - other).max():.1g}"
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return f"mean cosine {cosines.mean():.5f}, lowest {cosines.min():.5f}"


def _contend(task: str, who: str, backend: str, model: str, texts: str) -> None:
    """Runs in a contender's process: a number is a batch size, a string where to save to."""
    load = _hasten if who == "hasten" else _PEER[task]
    answer = load(model, task) if who == "hasten" else load(model, backend)
    given = json.loads(Path(texts).read_text(encoding="utf-8"))
    given = [text if isinstance(text, str) else tuple(text) for text in given]

    def run(order: int | str) -> None:
        if isinstance(order, str):
            Path(order).write_text(json.dumps(answer(given, 32)), encoding="utf-8")
        else:
            answer(given, order)

    contender.answer(run)


def _entities(found: list[Any]) -> list[Any]:
    return [[(e["entity_group"], e["start"], e["end"]) for e in text] for text in found]


def _hasten(bundle: str, task: str) -> Answer:
    import hasten

    predictor = hasten.load(bundle)
    if task == "pairs":
        return lambda texts, _: [answer["score"] for answer in predictor(texts)]
    if task == "tokens":
        return lambda texts, _: _entities(predictor(texts, aggregation_strategy="simple"))
    return lambda texts, _: predictor(texts).tolist()


def _cross_encoder(model: str, backend: str) -> Answer:
    from sentence_transformers import CrossEncoder

    encoder: Any = CrossEncoder(model, device="cpu", backend=backend)
    return lambda texts, size: encoder.predict(
        texts, batch_size=size, show_progress_bar=False
    ).tolist()


def _tagger(model: str, _: str) -> Answer:
    from transformers import pipeline

    run: Any = pipeline(
        "token-classification", model=model, device="cpu", aggregation_strategy="simple"
    )
    return lambda texts, size: _entities(run(texts, batch_size=size))


def _embedder(model: str, backend: Any) -> Answer:
    from sentence_transformers import SentenceTransformer

    # OpenVINO takes bf16 by itself where the CPU has it.
    fp32 = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}} if backend == "openvino" else {}
    encoder = SentenceTransformer(model, device="cpu", backend=backend, model_kwargs=fp32)
    return lambda texts, size: encoder.encode(
        texts, batch_size=size, show_progress_bar=False
    ).tolist()


_PEER: dict[str, Callable[[str, str], Answer]] = {
    "pairs": _cross_encoder,
    "tokens": _tagger,
    "embeddings": _embedder,
}


if __name__ == "__main__":
    main()
