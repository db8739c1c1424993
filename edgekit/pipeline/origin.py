"""Where products come from: what made a model, and which texts it has read, wherever its folder was made or moved."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgekit.duplicates import text_digest
from edgekit.errors import EdgekitError
from edgekit.prompts import PromptSet
from edgekit.recipe import Recipe
from edgekit.workspace import Product, file_sha256, fingerprint, open_product

# The steps that make a model, the last one first.
MODEL_STEPS = ("distill", "finetune", "create", "merge", "rename")
# What of a checkpoint's folder its answers may depend on.
MODEL_FILES = frozenset({".json", ".safetensors", ".txt", ".model", ".jinja"})
# The bytes of a text's hash that are kept: among a million texts two are taken for one once in 37 million times.
KEPT = 8
# The key of a training's inputs that tells threads and precision.
MACHINE = "machine"
# What a split was read for, in words.
READ_FOR = {"train": "trained on", "calibrate": "calibrated on"}


def model_product(folder: Path) -> Product | None:
    """The step that made a model's folder; None for a checkpoint that something else made.

    Raises EdgekitError where a product was changed after its step.
    """
    for step in MODEL_STEPS:
        if (folder / f"{step}.json").is_file():
            product = open_product(folder, step)
            product.check()
            return product
    return None


def model_digest(folder: Path) -> str:
    """A model's identity: sha256 over its files; of a product, the digest that its files were found to have.

    Raises EdgekitError where a product was changed after its step.
    """
    if product := model_product(folder):
        return product.digest
    paths = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES)
    return fingerprint({path.relative_to(folder).as_posix(): file_sha256(path) for path in paths})


def origin(folder: Path) -> str:
    """What a model was made of: a fingerprint of its step's inputs; of a checkpoint that was found, of its files.

    Not on which machine: the bits of a training depend on that, what was asked for does not.
    """
    if product := model_product(folder):
        inputs = {key: value for key, value in product.manifest["inputs"].items() if key != MACHINE}
        return fingerprint({"step": product.step, "inputs": inputs})
    return fingerprint({"files": model_digest(folder)})


def teacher_origin(recipe: Recipe, base: Path | None, prompts: Product) -> str:
    """The `origin` of the teacher that a recipe asks for. base: the checkpoint that it names, None where it is created."""
    if recipe.teacher.create is not None:
        return fingerprint({"step": "create", "inputs": create_inputs(recipe, prompts)})
    assert base is not None
    if recipe.teacher.finetune is not None:
        return fingerprint({"step": "finetune", "inputs": finetune_inputs(recipe, base, prompts)})
    return origin(base)


def create_inputs(recipe: Recipe, prompts: Product) -> dict[str, Any]:
    """What a created teacher follows from."""
    return {
        "prompts": split_digests(prompts, "train"),
        "task": recipe.task,
        "options": recipe.teacher.create or {},
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }


def finetune_inputs(recipe: Recipe, base: Path, prompts: Product) -> dict[str, Any]:
    """What a fine-tuned teacher follows from."""
    return {
        "base": model_digest(base),
        "prompts": split_digests(prompts, "train"),
        "task": recipe.task,
        "options": recipe.teacher.finetune,
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }


def split_digests(prompts: Product, *splits: str) -> dict[str, str]:
    """The hashes of the splits that a step reads: another split may change without it."""
    return {name: str(prompts.manifest["files"][f"{name}.jsonl"]["sha256"]) for name in splits}


def with_read(
    facts: Mapping[str, Any], prompts: Product | None, splits: Sequence[str], *sources: Path | Product
) -> dict[str, Any]:
    """A product's facts with `read`: base64 of the hashes of all texts that it and its sources have read, by split."""
    found = {split: set(text_hashes(prompts, split)) for split in splits} if prompts else {}
    for source in sources:
        for split, texts in texts_read(source).items():
            found.setdefault(split, set()).update(texts)
    packed = {split: b64encode(b"".join(sorted(texts))).decode() for split, texts in sorted(found.items())}
    return {**facts, "read": packed}


def texts_read(source: Path | Product) -> dict[str, frozenset[bytes]]:
    """The hashes of the texts that a product has read, by split; none are known of a checkpoint that something else made."""
    product = source if isinstance(source, Product) else model_product(source)
    if product is None:
        return {}
    told = product.facts.get("read")
    if not isinstance(told, Mapping):
        raise EdgekitError(
            f"{product.folder}: does not say which prompts it has read, as an older edgekit made it; run `edgekit"
            f" {product.step}` again"
        )
    return {split: _unpacked(str(packed)) for split, packed in told.items()}


def text_hashes(prompts: Product, split: str) -> frozenset[bytes]:
    """Of each text of a split the first bytes of its hash, as `duplicates` compares texts."""
    return frozenset(_hashes_in_order(prompts.folder, split, prompts.digest))


def refuse_read(prompts: Product, *products: Product, split: str = "verify") -> None:
    """Refuse prompts that anything was trained or calibrated on that is to be judged on them, whoever made the folders."""
    judged = _hashes_in_order(prompts.folder, split, prompts.digest)
    for product in products:
        for kind, texts in texts_read(product).items():
            common = [place for place, text in enumerate(judged) if text in texts]
            if common:
                row = PromptSet(folder=prompts.folder).split(split)[common[0]]
                raise EdgekitError(
                    f"{product.folder}: was {READ_FOR.get(kind, f'made with {kind}')} {len(common)} of the {len(judged)}"
                    f" {split} prompts, such as {row.text!r:.80}: they prove nothing of it; make it again without them, or"
                    f" {split} on others"
                )


@lru_cache(maxsize=16)
def _hashes_in_order(folder: Path, split: str, _digest: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(text_digest(row.text))[:KEPT] for row in PromptSet(folder=folder).split(split))


def _unpacked(packed: str) -> frozenset[bytes]:
    whole = b64decode(packed)
    return frozenset(whole[begin : begin + KEPT] for begin in range(0, len(whole), KEPT))
