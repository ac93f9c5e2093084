"""Write ``questions.json`` anew: what transformers' question-answering pipeline answers.

The pipeline is part of transformers 4 alone, and hasten's tests run with 5, so this takes two
interpreters: ``python tests/golden/questions.py save FOLDER`` in the tests' environment saves tiny
models, and the same with ``answer`` in one of transformers 4 writes their answers.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.tasks.readers import OPTIONS, QUESTIONS, save_headed

FAMILIES = ("bert", "roberta")
GOLDEN = Path(__file__).with_suffix(".json")


def main() -> None:
    """Save the models, or answer with them."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "save":
        for family in FAMILIES:
            save_headed(folder / family, "QuestionAnswering", family)
        return
    found = {family: answers(folder / family) for family in FAMILIES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def answers(folder: Path) -> list[Any]:
    """For each of the options, the answers to all questions."""
    import transformers

    pipeline: Any = transformers.pipeline  # 5, by whose types this is checked, has no such task
    run = pipeline("question-answering", model=str(folder), device="cpu")
    warnings.simplefilter("ignore")

    def answer(question: str, context: str, **options: Any) -> Any:
        try:
            return run(question=question, context=context, **options)
        except ValueError:  # the pipeline fails where a context has too few answers for top_k
            return None

    return [[answer(*pair, **options) for pair in QUESTIONS] for options in OPTIONS]


if __name__ == "__main__":
    main()
