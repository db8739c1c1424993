"""`python -m edgekit.record TASK`: {folders, ids, longest} as JSON on standard input, a list of what float costs on standard
output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit.record.timing import measure_here
from edgekit.typed_json import to_table

asked = json.load(sys.stdin)
found = [
    to_table(measure_here(Path(folder), sys.argv[1], ids, asked["longest"]))
    for folder, ids in zip(asked["folders"], asked["ids"], strict=True)
]
sys.stdout.write(json.dumps(found))
