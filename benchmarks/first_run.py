"""What a newcomer sees: ``hasten demo`` from its first line to its last, as it came out.

    python benchmarks/first_run.py [--work FOLDER]

The classifier is trained anew, in a cache of its own. Progress goes by; what stays on the screen
is the figure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
from models import subject

from hasten.demo import assets as demo

COLUMNS = "88"


def main() -> None:
    options = figures.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = _tiny(folder) if options.quick else ["demo"]
        command = [sys.executable, "-m", "hasten", *words, "-o", str(folder / "bundle")]
        own = {"COLUMNS": COLUMNS, "XDG_CACHE_HOME": str(folder / "cache")}
        begin = time.monotonic()
        done = subprocess.run(  # noqa: S603 - hasten itself
            command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True, check=True
        )
        minutes = (time.monotonic() - begin) / 60
    screen = done.stdout.replace(str(folder / "bundle"), "demo-bundle")
    screen = "\n".join(map(str.rstrip, screen.splitlines())).rstrip()
    block = (
        f"After installation, `make demo` took {minutes:.1f} minutes on {figures.machine()}, its "
        f"classifier's training included, and showed:\n\n```text\n{screen}\n```"
    )
    figures.publish(options.result, {"demo": block}, {"minutes": minutes, "screen": screen})


def _tiny(folder: Path) -> list[str]:
    model, tokenizer, _ = subject("tiny", folder)
    texts = folder / "texts.jsonl"
    lines = (json.dumps({"text": text}) for text in demo.news_sentences(40))
    texts.write_text("\n".join(lines), encoding="utf-8")
    narrow = "--random-weights --engines onnx_runtime --precisions fp32 --budget 20m"
    return [
        *("tune", str(model), "--data", str(texts), "--tokenizer", str(tokenizer)),
        *narrow.split(),
    ]


if __name__ == "__main__":
    main()
