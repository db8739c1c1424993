"""Where products come from: what made a model, and which texts it has read, wherever its folder was made or moved."""

from __future__ import annotations

from base64 import b64decode, b64encode
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from edgekit.chat_template import find_templates
from edgekit.duplicates import text_digest
from edgekit.errors import EdgekitError
from edgekit.inputs import Content, Inputs, Json, identity
from edgekit.progress import Progress
from edgekit.prompts import PromptSet
from edgekit.stored import Lazy
from edgekit.workspace import Product, file_sha256, fingerprint, open_product

Given = TypeVar("Given", bound=Inputs)
Make = Callable[[Given, Path, Progress], Mapping[str, object]]
# The steps that make a model, the last one first.
MODEL_STEPS = ("qad", "distill", "control", "finetune", "create", "merge", "rename")
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
        return fingerprint({"step": product.step, "inputs": _anywhere(product.manifest["inputs"])})
    return fingerprint({"files": model_digest(folder)})


def origin_of(inputs: Inputs) -> str:
    """The `origin` of what a step makes of its inputs."""
    return fingerprint({"step": inputs.STEP, "inputs": _anywhere(identity(inputs))})


def _anywhere(inputs: Mapping[str, Json]) -> dict[str, Json]:
    """Inputs without what of them is the machine's."""
    return {key: value for key, value in inputs.items() if key != MACHINE}


def model_content(folder: Path) -> Content:
    """A model's folder as an input; raises EdgekitError as `model_digest` does."""
    return Content(path=folder, digest=model_digest(folder))


def split_content(prompts: Product, *splits: str) -> Content:
    """Some splits of the prompts as an input: another split may change without it."""
    return Content(path=prompts.folder, digest=split_digests(prompts, *splits))


def split_digests(prompts: Product, *splits: str) -> dict[str, str]:
    """The hashes of some splits' files."""
    return {name: str(prompts.manifest["files"][f"{name}.jsonl"]["sha256"]) for name in splits}


def with_read(make: Make[Given], prompts: Product | None, split: str | None, *sources: Path | Product) -> Make[Given]:
    """A verb whose facts also say, as `read`, which texts its product and its sources have read: base64 of all their hashes, by
    split; of the prompts it reads one split, or none."""

    def made(inputs: Given, out: Path, progress: Progress) -> dict[str, object]:
        facts = make(inputs, out, progress)
        found = {split: text_hashes(prompts, split)} if prompts and split else {}
        for source in sources:
            for name, texts in texts_read(source).items():
                found[name] = Hashes([found[name].packed, texts.packed]) if name in found else texts
        packed = {name: b64encode(texts.packed).decode() for name, texts in sorted(found.items())}
        return {**facts, "read": packed}

    return made


def as_recording(make: Make[Given], model: Path, prompts: Product, *splits: str) -> Make[Given]:
    """A verb whose facts also say, as `recording`, what its product is a recording of: the model that was asked, its tokenizer
    and its template, each by a sha256, and of each split its rows and the sha256 of its file.

    All recordings are told so, and lie in files that NumPy opens without pickle (.npy, .npz).
    """

    def made(inputs: Given, out: Path, progress: Progress) -> dict[str, object]:
        templates = find_templates(model)
        told = {
            "model": model_digest(model),
            "tokenizer": file_sha256(model / "tokenizer.json") if (model / "tokenizer.json").is_file() else None,
            "template": fingerprint(templates) if templates else None,
            "rows": {name: prompts.facts["rows"][name] for name in splits},
            "data": split_digests(prompts, *splits),
        }
        return {**make(inputs, out, progress), "recording": told}

    return made


class Hashes(Set[bytes]):
    """Hashes of KEPT bytes each, which `packed` has in their order."""

    def __init__(self, hashes: Iterable[bytes]) -> None:
        """hashes: in any order, some perhaps more than once, or several in one."""
        import numpy as np

        # Numbers whose first byte counts most are in the order of bytes.
        self.packed: bytes = np.unique(np.frombuffer(b"".join(hashes), ">u8")).astype(">u8").tobytes()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.packed) // KEPT

    def __iter__(self) -> Iterator[bytes]:
        """In their order."""
        return iter(_unpacked(self.packed))

    def __contains__(self, one: object) -> bool:
        """Whether a text has this hash."""
        rows = _unpacked(self.packed)
        place = bisect_left(rows, one) if isinstance(one, bytes) else len(self)
        return place < len(self) and rows[place] == one


def texts_read(source: Path | Product) -> dict[str, Hashes]:
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
    return {split: Hashes([b64decode(str(packed))]) for split, packed in told.items()}


def text_hashes(prompts: Product, split: str) -> Hashes:
    """Of each text of a split the first bytes of its hash, as `duplicates` compares texts."""
    return Hashes([_hashes_in_order(prompts.folder, split, prompts.digest)])


def refuse_read(prompts: Product, *products: Product, split: str = "verify") -> None:
    """Refuse prompts that anything was trained or calibrated on that is to be judged on them, whoever made the folders."""
    judged = _unpacked(_hashes_in_order(prompts.folder, split, prompts.digest))
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
def _hashes_in_order(folder: Path, split: str, _digest: str) -> bytes:
    packed = bytearray()
    for row in PromptSet(folder=folder).split(split):
        packed += bytes.fromhex(text_digest(row.text))[:KEPT]
    return bytes(packed)


def _unpacked(packed: bytes) -> Lazy[bytes]:
    return Lazy(len(packed) // KEPT, lambda index: packed[KEPT * index : KEPT * (index + 1)])
