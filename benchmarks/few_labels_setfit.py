"""SetFit's recipe on a few labels, for `few_labels.py`: runs in an environment that has setfit, and not edgekit.

Usage: python few_labels_setfit.py BASE ASKED.json OUT.json, where ASKED.json holds train ([[text, label], ...]), test (texts),
seed, max_length, iterations (pairs a text, of each kind) and max_steps (-1: all). OUT.json gets labels, seconds and versions;
what was killed goes on from the last checkpoint beside it, and its seconds are those since then.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

SAVE_STEPS = 400


def main() -> int:
    """Train by SetFit's defaults and label the test texts."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    base, asked, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
    texts, labels = zip(*asked["train"], strict=True)
    names = sorted(set(labels))
    rows = Dataset.from_dict({"text": list(texts), "label": [names.index(label) for label in labels]})
    begun = time.perf_counter()
    body = SentenceTransformer(base, device="cpu")
    body.max_seq_length = asked["max_length"]
    model = SetFitModel.from_pretrained(base, device="cpu")
    model.model_body = body
    chosen = TrainingArguments(
        output_dir=str(out.parent / "setfit"),
        batch_size=16,
        num_epochs=1,
        num_iterations=asked["iterations"],
        max_steps=asked["max_steps"],
        seed=asked["seed"],
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        report_to="none",
    )
    trainer = Trainer(model=model, args=chosen, train_dataset=rows)
    if saved := get_last_checkpoint(chosen.output_dir) if Path(chosen.output_dir).is_dir() else None:
        # SetFit hands nothing on that would say so.
        trainer.st_trainer.train = partial(trainer.st_trainer.train, resume_from_checkpoint=saved)
    trainer.train()
    found = [names[int(index)] for index in model.predict(asked["test"], batch_size=64, as_numpy=True)]
    told = {name: version(name) for name in ("setfit", "sentence-transformers", "transformers", "torch")}
    unfinished = out.with_suffix(".partial")
    unfinished.write_text(
        json.dumps({"labels": found, "seconds": time.perf_counter() - begun, "versions": told}), encoding="utf-8"
    )
    unfinished.replace(out)
    shutil.rmtree(chosen.output_dir, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
