"""A voice assistant's ears: one line of text in, one action out. Needs a bundle, onnxruntime, tokenizers and numpy.

python app.py path/to/bundle < commands.txt
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_loader(bundle: Path) -> ModuleType:
    """The bundle's own load.py. An app that ships one bundle may simply copy the file and `from load import Bundle`."""
    spec = importlib.util.spec_from_file_location("load", bundle / "load.py")
    if spec is None or spec.loader is None:
        sys.exit(f"{bundle}: no load.py in it: not a bundle")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answer each line of standard input."""
    if len(sys.argv) != 2:
        sys.exit("usage: python app.py BUNDLE")
    bundle = Path(sys.argv[1])
    try:
        model = import_loader(bundle).Bundle(bundle)
    except (OSError, ImportError, RuntimeError) as refused:
        sys.exit(str(refused))
    for line in sys.stdin:
        label, score = model(line.strip())[0]
        if label == model.manifest["out_of_scope"]:
            sys.stdout.write(f"did not understand: {line.strip()}\n")
        else:
            sys.stdout.write(f"{label} ({score:.0%}): {line.strip()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
