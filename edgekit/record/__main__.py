"""`python -m edgekit.record TASK`: {folders, ids, longest} as JSON on standard input, a list of what float costs on standard
output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit.record import measure_here

asked = json.load(sys.stdin)
found = [
    measure_here(Path(folder), sys.argv[1], ids, asked["longest"])
    for folder, ids in zip(asked["folders"], asked["ids"], strict=True)
]
sys.stdout.write(json.dumps(found))
