"""hasten.predict beside the loops that people write: the same file, the same model, interleaved.

    python benchmarks/bulk_peers.py --peer-python OTHER/bin/python

The file is CSV with news sentences and whole articles together. Every contender reads it, answers
every row at fp32, and writes CSV; loading the model is not in the figures. The loops are
``transformers.pipeline`` with ``batch_size=32`` and Optimum's ONNX Runtime pipeline with the same,
against a classifier; and sentence-transformers' ``encode``, against the encoder below it. Each
contender is a process of its own, and round after round each runs once.

``--peer-python`` names an environment with sentence-transformers and Optimum, which may want
another version of transformers than hasten's has.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from peers import Contender

Loop = Callable[[list[str]], list[object]]

_BATCH = 32
_MAX_LENGTH = 512
LOOPS = ("transformers", "optimum", "sentence-transformers")
"""Each is compared with hasten over the same model."""


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given, texts = _mixed(folder / "mixed.csv", options.sentences, options.articles)
        classifier, encoder = _models()
        bundles = _bundles(folder, texts, options)
        targets = {
            "transformers": classifier,
            "optimum": bundles["hasten, classifier"],
            "sentence-transformers": encoder,
        }
        contenders = {
            name: Contender(sys.executable, "hasten", bundle, given, script=__file__)
            for name, bundle in bundles.items()
        }
        contenders |= {
            name: Contender(options.peer_python, name, targets[name], given, script=__file__)
            for name in options.loops
        }
        samples_s: dict[str, list[float]] = defaultdict(list)
        for number in range(options.rounds + 1):
            for name, contender in contenders.items():
                took_s = contender.ask("run")
                if number:  # the first warms caches and allocators
                    samples_s[name].append(took_s)
        for contender in contenders.values():
            contender.close()
    _print(samples_s, len(texts))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sentences", type=int, default=700)
    parser.add_argument("--articles", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", default="4m", help="for each of hasten's tunes")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--peer-python", default=sys.executable)
    return parser.parse_args()


def _mixed(path: Path, sentences: int, articles: int) -> tuple[Path, list[str]]:
    from hasten import demo

    texts = demo.mixed_texts(sentences, articles)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    return path, texts


def _models() -> tuple[Path, Path]:
    from models import quiet

    from hasten import demo

    return demo.prepare(None, quiet).model_folder, demo.tokenizer_file().parent


def _bundles(folder: Path, texts: list[str], options: argparse.Namespace) -> dict[str, Path]:
    """Hasten's own choices at fp32; of the classifier in ONNX Runtime, which Optimum can load."""
    from peers import sentence_encoder

    import hasten

    classifier, encoder = _models()
    given = {"precisions": ["fp32"], "budget": options.budget}
    bundles = {}
    if {"transformers", "optimum"} & set(options.loops):
        bundles["hasten, classifier"] = folder / "classifier"
        hasten.tune(
            classifier,
            texts=texts,
            engines=["onnx_runtime"],
            output=folder / "classifier",
            **given,
        )
    if "sentence-transformers" in options.loops:
        bundles["hasten, encoder"] = folder / "encoder"
        hasten.tune(
            sentence_encoder(encoder),
            encoder / "tokenizer.json",
            texts,
            task="tensors",
            engines=["onnx_runtime", "openvino"],
            output=folder / "encoder",
            **given,
        )
    return bundles


def _print(samples_s: dict[str, list[float]], rows: int) -> None:
    from hasten.stats import ratio_interval

    print("| | rows/s | times as slow as hasten (95 %) |")
    print("|---|---:|---:|")
    for name, values in samples_s.items():
        rate = rows / statistics.median(values)
        if name.startswith("hasten"):
            print(f"| {name} | {rate:.1f} | |")
            continue
        rival = "encoder" if name == "sentence-transformers" else "classifier"
        ratio = ratio_interval(values, samples_s[f"hasten, {rival}"], seed=0)
        print(f"| {name} | {rate:.1f} | {ratio.estimate:.2f} ({ratio.low:.2f}-{ratio.high:.2f}) |")


def _contend(who: str, model: str, given: str) -> None:
    """Runs in a contender's process: answers every order on standard input with seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the answers stay clean
    run = _hasten(model, given) if who == "hasten" else _written(_LOOPS[who](model), given, who)
    for line in sys.stdin:
        begin = time.perf_counter()
        if json.loads(line) is not None:
            run()
        print(time.perf_counter() - begin, file=answers, flush=True)


def _hasten(bundle: str, given: str) -> Callable[[], None]:
    import hasten
    from hasten.bulk.stream import predict  # the model stays loaded, as the loops' does

    predictor = hasten.load(bundle)
    output = f"{given}.{Path(bundle).name}.csv"

    def run() -> None:
        with Path(given).open(newline="", encoding="utf-8") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
        with Path(output).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for batch in predict(predictor, texts):
                writer.writerows(zip(*(column.to_pylist() for column in batch), strict=True))

    return run


def _written(loop: Loop, given: str, who: str) -> Callable[[], None]:
    def run() -> None:
        with Path(given).open(newline="", encoding="utf-8") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
        with Path(f"{given}.{who}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(zip(texts, loop(texts), strict=True))

    return run


def _transformers(model: str) -> Loop:
    from transformers import pipeline

    classify = pipeline("text-classification", model=model, device="cpu")
    return lambda texts: list(
        classify(texts, batch_size=_BATCH, truncation=True, max_length=_MAX_LENGTH)
    )


def _optimum(bundle: str) -> Loop:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    model = ORTModelForSequenceClassification.from_pretrained(bundle)
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    return lambda texts: list(
        classify(texts, batch_size=_BATCH, truncation=True, max_length=_MAX_LENGTH)
    )


def _sentence_transformers(model: str) -> Loop:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    encoder.max_seq_length = _MAX_LENGTH  # or it would leave out half of the long texts
    return lambda texts: list(encoder.encode(texts, batch_size=_BATCH, show_progress_bar=False))


_LOOPS: dict[str, Callable[[str], Loop]] = {
    "transformers": _transformers,
    "optimum": _optimum,
    "sentence-transformers": _sentence_transformers,
}

if __name__ == "__main__":
    main()
