"""What loading a bundle imports: what runs it, and nothing that made it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.scripted import Lab, save_bundle

MADE_WITH = {"hasten.models", "hasten.tuning", "hasten.api", "hasten.compress", "hasten.report"}
NOT_NEEDED = {"pyarrow", "rich", "torch", "transformers", "typer"}

CODE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import hasten
with hasten.load(sys.argv[1]) as classify:
    classify(["ba ke", "mo"])
print(json.dumps(sorted(sys.modules)))
"""


def test_a_bundle_loads_without_what_made_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", {}, precisions=("fp32",))
    bundle = save_bundle(tmp_path / "bundle", lab, lab.tune())
    command = [sys.executable, "-c", CODE, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "hasten.runtime.predictor" in loaded
    assert not loaded & MADE_WITH
    assert not {name.partition(".")[0] for name in loaded} & NOT_NEEDED
