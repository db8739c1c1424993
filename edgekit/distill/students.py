"""STUDENTS: what a training begins from. A further kind is one function and one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.architectures.widths import Sizes
from edgekit.distill.created import make_decoder
from edgekit.distill.decoders import Body
from edgekit.distill.importance import choose_channels, find_sizes, read_importance
from edgekit.distill.options import CreateOptions, Ngrams
from edgekit.distill.slimming import slim
from edgekit.distill.tap import find_blocks, find_family
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.outputs import OUTPUTS
from edgekit.tasks import Task
from edgekit.tasks.encoders import Encoder, load_encoder
from edgekit.tasks.ngrams import NgramsConfig, NgramsForSequenceClassification

# Tokens that a model is asked before and after others went.
_ASKED = 64


@dataclass(frozen=True, kw_only=True)
class Student:
    """A module to train, which holds transformers' model as `model`.

    matched: for each of its blocks the teacher's block whose output it learns. tokens: of a student with fewer tokens than its
    teacher, its own id for each of the teacher's, -1 for one that it lacks, int64. channels: of a student with fewer channels
    between its blocks, the teacher's that it has, rising, int64. facts: what its step writes about it.
    """

    module: nn.Module
    matched: Sequence[int] = ()
    tokens: Tensor | None = None
    channels: Tensor | None = None
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A checkpoint with all its blocks; with `classes` a new classifier on it."""

    folder: Path
    classes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A teacher without the blocks that `keep` does not name; 0 is the first. tokens: the ids that stay, rising; () for all.

    sizes: how wide it is, None for as wide as the teacher; importance: the file that says which heads, neurons and channels
    stay, where some go.
    """

    folder: Path
    keep: Sequence[int]
    tokens: Sequence[int] = ()
    sizes: Sizes | None = None
    importance: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """A table of hashed n-grams of the tokens that a teacher's tokenizer makes, with the teacher's classes."""

    folder: Path
    table: Ngrams


@dataclass(frozen=True, kw_only=True)
class Created:
    """A decoder of this size with fresh weights, for a tokenizer of `vocabulary` tokens."""

    size: CreateOptions
    vocabulary: int


def whole(options: Whole, task: Task) -> Student:
    """A checkpoint as it is. A new classifier's weights are drawn from torch's generator."""
    if not options.classes:
        return Student(module=load_module(task, options.folder))
    head = {
        "num_labels": len(options.classes),
        "id2label": dict(enumerate(options.classes)),
        "label2id": {name: index for index, name in enumerate(options.classes)},
        "problem_type": "single_label_classification",
    }
    module = load_encoder(options.folder, task.NAME, head)
    return Student(module=module, facts={"classes": list(options.classes)})


def cut_teacher(options: Cut, task: Task) -> Student:
    """A teacher with some of its blocks, and of those some of the heads, neurons and channels."""
    depth = load_model(options.folder).layers
    module = load_module(task, options.folder)
    cut(module, options.keep)
    facts: dict[str, object] = {"keep": list(options.keep), "teacher_layers": depth}
    channels = None
    if options.sizes is not None:
        channels = cut_widths(module, options.keep, options.sizes, options.importance)
        facts["sizes"] = asdict(options.sizes)
    tokens = None
    if options.tokens:
        tokens = cut_tokens(module, options.tokens)
        facts |= {"tokens": len(options.tokens), "teacher_tokens": len(tokens)}
    matched = match_blocks(depth, options.keep)
    return Student(module=module, matched=matched, tokens=tokens, channels=channels, facts=facts)


def create(options: Created, task: Task) -> Student:  # noqa: ARG001 - one signature for all
    """A causal language model from nothing, its weights drawn from torch's generator."""
    module = Body(make_decoder(options.size, options.vocabulary))
    return Student(module=module, facts={"parameters": sum(weight.numel() for weight in module.parameters())})


def hash_ngrams(options: Hashed, task: Task) -> Student:
    """A classifier of hashed n-grams. Its weights are drawn from torch's generator."""
    teacher, table = task.open_model(options.folder), options.table
    spelled = teacher.spelled(table.characters)
    config = NgramsConfig(
        vocab_size=len(spelled),
        buckets=table.buckets,
        width=table.width,
        grams=[list(gram) for gram in table.grams],
        spelling=[list(gram) for gram in table.spelling],
        characters=table.characters,
        dropout=table.dropout,
        id2label=dict(enumerate(teacher.labels)),
        label2id={name: index for index, name in enumerate(teacher.labels)},
        pad_token_id=teacher.config.get("pad_token_id"),
    )
    model = NgramsForSequenceClassification(config)
    model.spelled.copy_(torch.from_numpy(spelled))
    return Student(module=Encoder(model, token_type_ids=False), facts={"buckets": table.buckets, "width": table.width})


@dataclass(frozen=True, kw_only=True)
class StudentKind:
    """An entry of STUDENTS: the dataclass of what such a student is made of, and the function that makes one for a task."""

    options: type[object]
    make: Callable[[Any, Task], Student]


STUDENTS: dict[str, StudentKind] = {
    "created": StudentKind(options=Created, make=create),
    "cut": StudentKind(options=Cut, make=cut_teacher),
    "hashed": StudentKind(options=Hashed, make=hash_ngrams),
    "whole": StudentKind(options=Whole, make=whole),
}


def make_student(options: object, task: Task) -> Student:
    """The student that these options describe, by the entry of STUDENTS that has options of their type."""
    for kind in STUDENTS.values():
        if type(options) is kind.options:
            return kind.make(options, task)
    raise EdgekitError(f"student: {type(options).__name__}: no kind of student is made of it; add it to STUDENTS")


def load_module(task: Task, folder: Path) -> nn.Module:
    """A checkpoint as it is trained and asked: an encoder as its task loads it, a decoder as a Body."""
    module = task.load(folder)
    return Body(module.model) if OUTPUTS[task.OUTPUT].generates else module


def cut(module: nn.Module, keep: Sequence[int]) -> None:
    """Leave only the named blocks in a loaded model, and make its configuration say so."""
    model: Any = module.model
    architecture = find_family(module)
    blocks = [find_blocks(module)[index] for index in keep]
    architecture.cut(model.config, blocks, keep)
    for index, block in enumerate(blocks):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                setattr(part, "layer_idx", index)  # noqa: B010 - nn.Module's type knows no such attribute
    path, _, name = architecture.LAYERS.rpartition(".")
    setattr(model.base_model.get_submodule(path), name, nn.ModuleList(blocks))


def cut_widths(module: nn.Module, keep: Sequence[int], sizes: Sizes, importance: Path | None) -> Tensor | None:
    """Leave the most important heads, neurons and channels, and the first positions, in a loaded model of the blocks `keep`.

    Returns the channels between blocks that stay, None where all do. Raises EdgekitError for a family that cannot be cut so.
    """
    known = find_sizes(module)
    if known is None:
        raise EdgekitError(f"{type(module.model).__name__}: edgekit cuts no widths of this family")
    chosen = choose_channels({} if importance is None else read_importance(importance), keep, known[1], sizes)
    slim(module, chosen, sizes)
    return chosen.whole["model"] if sizes.hidden < known[1].hidden else None


def cut_tokens(module: nn.Module, kept: Sequence[int]) -> Tensor:
    """Leave only the rows of some tokens in a loaded encoder's embedding, and make its configuration say so.

    kept: ids, rising; those that have no row are passed over. Returns the new id of each old one, -1 for what went, int64.
    Raises EdgekitError where the model then answers otherwise: it does more with ids than look up their rows.
    """
    model: Any = module.model
    old: Any = model.get_input_embeddings()
    rows = [index for index in kept if index < old.num_embeddings]
    asked = [index for index in rows[:: max(1, len(rows) // _ASKED)] if index != old.padding_idx]
    some = torch.tensor([asked[:_ASKED]])
    with torch.no_grad():
        before = module(some, torch.ones_like(some))
        numbers = narrow(module, rows)
    model.config.vocab_size = len(rows)
    for key, value in model.config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int) and 0 <= value < len(numbers):
            number = int(numbers[value])
            setattr(model.config, key, None if number < 0 else number)
    with torch.no_grad():
        after = module(numbers[some], torch.ones_like(some))
    if not torch.allclose(before, after, atol=1e-5):
        raise EdgekitError(f"{type(model).__name__}: with fewer tokens it answers otherwise; remove student.vocabulary")
    return numbers


def narrow(module: nn.Module, rows: Sequence[int]) -> Tensor:
    """Put an embedding of these rows alone into a loaded encoder; returns the new id of each old one, -1 for what went, int64."""
    model: Any = module.model
    old: Any = model.get_input_embeddings()
    numbers = torch.full((old.num_embeddings,), -1)
    numbers[list(rows)] = torch.arange(len(rows))
    padding = old.padding_idx
    new = nn.Embedding(len(rows), old.embedding_dim, None if padding is None else int(numbers[padding]))
    with torch.no_grad():
        new.weight.copy_(old.weight[list(rows)])
    model.set_input_embeddings(new)
    return numbers


def widen(module: nn.Module, whole: nn.Embedding, numbers: Tensor) -> None:
    """Put the embedding back that was there before `narrow`, which gave `numbers`, with the rows that were trained since."""
    model: Any = module.model
    with torch.no_grad():
        whole.weight[numbers >= 0] = model.get_input_embeddings().weight
    model.set_input_embeddings(whole)


def match_blocks(depth: int, keep: Sequence[int]) -> list[int]:
    """For each student block the teacher's block whose output it learns: the one that it was cut from; for the last, the last.

    On the example, 6 to 3 layers, this ended at a held-out loss of 1.04; even shares of the depth ([1, 3, 5] for blocks cut
    from [0, 2, 5]) ended at 1.12.
    """
    return [*keep[:-1], depth - 1]
