"""`python -m edgekit.record FOLDER TASK`: {ids, longest} as JSON on standard input, what float costs on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit.record import measure_here

asked = json.load(sys.stdin)
sys.stdout.write(json.dumps(measure_here(Path(sys.argv[1]), sys.argv[2], asked["ids"], asked["longest"])))
