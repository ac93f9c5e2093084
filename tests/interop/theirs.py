"""What other libraries answer with the files of a bundle. It imports nothing of hasten.

``python theirs.py HOW FOLDER TEXTS OUT``: HOW is a class of Optimum, such as
``ORTModelForSequenceClassification``, or ``tokenizer``. TEXTS is a JSON list of texts or pairs, and
OUT is written: a list for each text of the numbers that the model gives, or of the ids.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer every text alone, so that nothing is padded."""
    how, folder, given, out = sys.argv[1:]
    texts = json.loads(Path(given).read_text(encoding="utf-8"))
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(folder)
    pairs = [text if isinstance(text, list) else [text] for text in texts]
    if how == "tokenizer":
        found: list[Any] = [tokenizer(*pair)["input_ids"] for pair in pairs]
    else:
        package = "optimum.onnxruntime" if how.startswith("ORT") else "optimum.intel"
        model = getattr(importlib.import_module(package), how).from_pretrained(folder)
        found = []
        for pair in pairs:
            outputs = model(**tokenizer(*pair, truncation=True, return_tensors="pt"))
            found.append([numbers.squeeze(0).tolist() for numbers in outputs.values()])
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
