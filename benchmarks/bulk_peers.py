"""hasten.predict beside the loops that people write: the same file, the same model, interleaved.

    python benchmarks/bulk_peers.py --peer-python OTHER/bin/python

The file is CSV with news sentences and whole articles together. Every contender reads it, answers
every row at fp32, and writes CSV; loading the model is not in the figures. The loops are
``transformers.pipeline`` with ``batch_size=32`` and Optimum's ONNX Runtime pipeline with the same.
Each contender is a process of its own, and round after round each runs once.

``--peer-python`` names an environment with Optimum, which may want
another version of transformers than hasten's has.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import contender
from contender import Contender

Loop = Callable[[list[str]], list[object]]

_BATCH = 32
_MAX_LENGTH = 512
LOOPS = {
    "transformers": "`transformers.pipeline`, `batch_size=32`",
    "optimum": "Optimum's ONNX Runtime pipeline, `batch_size=32`",
}


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        _contend(*sys.argv[2:])
        return
    import figures

    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        given, texts = _mixed(folder / "mixed.csv", options.sentences, options.articles)
        model = demo_model()
        bundle = _bundle(folder / "classifier", model, texts, options.budget)
        targets = {"transformers": model, "optimum": bundle}
        contenders = {"hasten": Contender(sys.executable, __file__, "hasten", bundle, given)}
        contenders |= {
            name: Contender(options.peer_python, __file__, name, targets[name], given)
            for name in options.loops
        }
        entries = [(name, each, "run") for name, each in contenders.items()]
        samples_s = contender.take_turns(entries, options.rounds)
        for each in contenders.values():
            each.close()
    figures.publish(options.result, {"bulk-peers": _block(samples_s, options)}, samples_s)


def _parse() -> argparse.Namespace:
    import figures

    parser = figures.parser(__doc__)
    parser.add_argument("--sentences", type=int, default=700)
    parser.add_argument("--articles", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", default="4m", help="for hasten's tune")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--peer-python", default=sys.executable)
    return parser.parse_args()


def _mixed(path: Path, sentences: int, articles: int) -> tuple[Path, list[str]]:
    from hasten.demo import assets as demo

    texts = demo.mixed_texts(sentences, articles)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    return path, texts


def demo_model() -> Path:
    from models import quiet

    from hasten.demo import assets as demo

    return demo.prepare(None, quiet).model_folder


def _bundle(folder: Path, model: Path, texts: list[str], budget: str) -> Path:
    """Tuned in ONNX Runtime at fp32, which Optimum can load as well."""
    import hasten

    hasten.tune(
        model,
        texts=texts,
        engines=["onnx_runtime"],
        precisions=["fp32"],
        output=folder,
        budget=budget,
        restart=folder.exists(),
    )
    return folder


def _block(samples_s: dict[str, list[float]], options: argparse.Namespace) -> str:
    import figures

    from hasten.judging.stats import ratio_interval

    rows = options.sentences + options.articles
    lines = [
        (
            "Beside the loops that people write, interleaved, loading not counted: the same CSV "
            f"file with {options.sentences:,} sentences and {options.articles:,} whole articles, "
            f"the demo's classifier at fp32, {figures.machine()}:"
        ),
        "",
        "| | rows/s | hasten is faster by (95 %) |",
        "| --- | ---: | ---: |",
    ]
    for name, values in samples_s.items():
        rate = rows / statistics.median(values)
        ratio = figures.interval(ratio_interval(values, samples_s["hasten"], seed=0))
        title = LOOPS.get(name, "hasten, in ONNX Runtime")
        lines.append(f"| {title} | {rate:.1f} | {ratio if name in LOOPS else ''} |")
    return "\n".join(lines)


def _contend(who: str, model: str, given: str) -> None:
    """Runs in a contender's process: every order is one pass over the file."""
    run = _hasten(model, given) if who == "hasten" else _written(_LOOPS[who](model), given, who)
    contender.answer(lambda _: run())


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


_LOOPS: dict[str, Callable[[str], Loop]] = {
    "transformers": _transformers,
    "optimum": _optimum,
}

if __name__ == "__main__":
    main()
