"""What a training takes of a CPU's memory, and what edgekit says before its first step (`distill/footprint.py`).

Goal, for encoders and decoders, long and short texts, a small and a wide vocabulary: the peak of the process's resident set above
that before the first step is between 0.5 and 1 times what was said. So what is said to fit does, and what is cut had to be.

Each training is a real one of a few steps (`distill`), in a process of its own, of models with random weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LEAST, MOST = 0.5, 1.0
# Of each training: the model's family, its sizes, the rows of a batch and the words of a text.
BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
LLAMA = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 768,
}
CASES: dict[str, tuple[str, dict[str, int], int, int]] = {
    "encoder, short texts": ("bert", BERT, 64, 12),
    "encoder, long texts": ("bert", BERT, 16, 120),
    "encoder, one layer": ("bert", BERT | {"num_hidden_layers": 1}, 64, 60),
    "decoder": ("llama", LLAMA, 8, 120),
    "decoder, packed": ("llama", LLAMA, 16, 60),
    "decoder, 64k tokens": ("llama", LLAMA | {"vocab_size": 65536}, 8, 120),
}


def main() -> int:
    """The table; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    parser.add_argument(
        "--rows", type=Path, help="a file that keeps finished rows; what is in it is not measured again"
    )
    parser.add_argument("--only", choices=CASES, help="one training, in this process")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(train(*CASES[options.only], packing="packed" in options.only)))
        return 0
    known = json.loads(options.rows.read_text()) if options.rows and options.rows.is_file() else {}
    for name in CASES:
        if name not in known:
            ran = subprocess.run(
                [sys.executable, __file__, "--only", name], stdout=subprocess.PIPE, check=True, encoding="utf-8"
            )
            known[name] = json.loads(ran.stdout.splitlines()[-1])
            if options.rows:
                options.rows.write_text(json.dumps(known))
    met = all(LEAST <= row["ratio"] <= MOST for row in known.values())
    if options.json:
        print(json.dumps({"goal": [LEAST, MOST], "rows": known, "met": met}))
    else:
        print(f"{'training':24}{'said MB':>10}{'took MB':>10}{'took / said':>13}")
        for name, row in known.items():
            print(f"{name:24}{row['said_mb']:10.0f}{row['took_mb']:10.0f}{row['ratio']:13.2f}")
        print(f"goal: {LEAST} to {MOST}: {'met' if met else 'missed'}")
    return 0 if met else 1


def train(family: str, sizes: dict[str, Any], batch: int, words: int, *, packing: bool) -> dict[str, float]:
    """A training's peak above what the process held before its first step, and what was said of it."""
    from edgekit.distill.footprint import Footprint
    from tests.architectures.decoders import make_decoder
    from tests.conftest import LABELS
    from tests.steps import distill

    said: list[tuple[float, int]] = []
    fit = Footprint.fit

    def note(self: Footprint, *given: Any, **more: Any) -> bool:
        changed = fit(self, *given, **more)
        Path("/proc/self/clear_refs").write_text("5")
        said.append((self.of(batch), resident("VmRSS")))
        return changed

    Footprint.fit = note  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [f"the sum of {place} " * (words // 4) for place in range(3 * batch)]
        rows = [{"text": text, "label": LABELS[place % len(LABELS)]} for place, text in enumerate(texts)]
        if family != "bert":
            rows = [{"text": "add", "label": text} for text in texts]
        (folder / "data").mkdir()
        (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if family == "bert":
            make_encoder(folder / "teacher", sizes)
        else:
            make_decoder(family, folder / "teacher", **sizes)
        table = {"epochs": 1, "batch": batch, "precision": "fp32", "holdout": 0.1}
        (folder / "out").mkdir()
        distill(
            folder / "teacher",
            folder / "data",
            task="text-classification" if family == "bert" else "text-generation",
            layers=max(1, sizes["num_hidden_layers"] // 2),
            options=table | ({"packing": True} if packing else {}),
            max_length=512 if packing else 480,
            out=folder / "out",
        )
    (expected, before), took = said[0], resident("VmHWM")
    return {"said_mb": expected / 1e6, "took_mb": (took - before) / 1e6, "ratio": (took - before) / expected}


def make_encoder(folder: Path, sizes: dict[str, int]) -> None:
    """The tests' checkpoint in other sizes, of a usual encoder's vocabulary."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from tests.conftest import LABELS, make_checkpoint

    make_checkpoint(folder, labels=LABELS)
    config = BertConfig.from_pretrained(folder)
    config.update({**sizes, "vocab_size": 30522, "max_position_embeddings": 512})
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)


def resident(key: str) -> int:
    """Bytes of this process that are in memory (VmRSS), or were at the most (VmHWM); proc_pid_status(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.exit(main())
