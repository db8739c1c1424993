"""`python -m edgekit.record FOLDER TASK`: token ids as JSON on standard input, what float costs on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit.record import measure_here

sys.stdout.write(json.dumps(measure_here(Path(sys.argv[1]), sys.argv[2], json.load(sys.stdin))))
