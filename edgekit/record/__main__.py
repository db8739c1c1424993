"""`python -m edgekit.record TASK`: {models: [{folder, prompts, inputs}], longest} as JSON on standard input, a list of what float
costs on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit.record.alone import read_prompts
from edgekit.record.timing import measure_here
from edgekit.typed_json import to_table

asked = json.load(sys.stdin)
found = [
    to_table(
        measure_here(
            Path(model["folder"]), sys.argv[1], read_prompts(Path(model["prompts"]), model["inputs"]), asked["longest"]
        )
    )
    for model in asked["models"]
]
sys.stdout.write(json.dumps(found))
