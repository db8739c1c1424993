"""What a build will take: time, memory and disk here, and the bytes of what it makes, from headers and prompts alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekit.model import EMBEDDINGS, Model
from edgekit.pipeline.plan import Plan
from edgekit.pipeline.shapes import made_model
from edgekit.prompts import PromptSet
from edgekit.recipe import Recipe
from edgekit.workspace import Product

if TYPE_CHECKING:
    from edgekit.formats import Format

# What each step takes at any size, s: libraries are imported, graphs exported, processes of the probe started.
_STARTS = {
    "create": 8,
    "finetune": 8,
    "distill": 8,
    "record": 4,
    "calibrate": 4,
    "export": 25,
    "verify": 20,
    "package": 2,
}
# Python with torch, transformers and the spine, MB: measured on Linux with torch 2.13 for CPUs.
_PROCESS_MB = 420
# How often an ONNX export holds a model's weights at its peak.
_EXPORT_COPIES = 8
# Of a core's peak in a matrix product, what training on short texts reaches.
_REACHED = 0.35
# Tokens that scheme = "auto" of a decoder has each candidate read, and that the float model writes one by one, each of which
# costs what reading ten does (`formats.smallest`).
_TRIED_TOKENS, _SAID_TOKENS = 4096, 10 * 1024
# A machine whose other programs use more than this share of its cores says nothing about how long a build takes.
_BUSY = 0.25


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the teacher is: weights in all, those of the embedding, blocks, and channels."""

    weights: int
    embedding: int
    layers: int
    hidden: int

    @property
    def core(self) -> int:
        """Weights that every token is multiplied by."""
        return self.weights - self.embedding


def _size(model: Model) -> Size:
    tables = [info for name, info in model.tensors.items() if name.endswith(EMBEDDINGS)]
    embedding = sum(info.shape[0] * info.shape[1] for info in tables)
    hidden = int(model.text_config.get("hidden_size") or model.text_config.get("dim") or 0)
    return Size(weights=model.parameters, embedding=embedding, layers=model.layers, hidden=hidden)


def estimate(plan: Plan, prompts: Product) -> dict[str, Any]:
    """Of the build: seconds by step, memory_mb and disk_mb; of the artifact: artifact_mb and what else its format can tell.

    Where the scheme is found at export: schemes_mb, the size of each that may become the artifact, the smallest first, and
    judged_on, how many calibrate prompts decide at most.
    Seconds are of this machine where nothing else runs: a training step costs 6 operations per weight and token (2 forward, 4
    backward; Kaplan et al. 2020, section 2.1), of weights outside the embedding. Memory is the peak of the build's own process,
    disk what stays in cache and bundle; `benchmarks/estimates.py` compares both with what happens. Raises EdgekitError for what
    the format refuses of the checkpoint.
    """
    from edgekit.formats import FORMATS, finds_scheme
    from edgekit.formats.smallest import PASSAGES
    from edgekit.tasks import TASKS

    recipe, output, labels = plan.recipe, TASKS[plan.recipe.task].OUTPUT, len(prompts.facts["labels"])
    made = made_model(recipe, plan.teacher, output, labels)
    whole = _size(
        made if recipe.student is None else made_model(replace(recipe, student=None), plan.teacher, output, labels)
    )
    work = _Work(
        recipe=recipe,
        output=output,
        teacher=whole,
        made=_size(made),
        rows=prompts.facts["rows"],
        tokens=_tokens(recipe, prompts),
    )
    format_, options = FORMATS[plan.format], plan.options
    files = _files(format_, options, output, made)
    # Which of several passes is not known before: the smallest is counted.
    speed, artifact, operations, tried = _speed(), files[0].bytes, work.operations(), 0.0
    measured: dict[str, Any] = {}
    if finds_scheme(format_, options, output):
        measured["schemes_mb"] = {one.scheme: round(one.bytes / 1e6, 2) for one in files}
        measured["judged_on"] = min(int(plan.data["rows"]["calibrate"]), PASSAGES)
        operations["export"] += 2 * work.made.core * (_TRIED_TOKENS * (1 + len(files)) + _SAID_TOKENS)
        # The float file that candidates are compared with, and the largest of them beside the artifact.
        tried = 4 * work.made.weights + files[-1].bytes
    told = {
        "seconds": {step: round(_STARTS[step] + count / speed) for step, count in operations.items()},
        "memory_mb": round(_PROCESS_MB + max(work.memory(artifact).values()) / 1e6),
        "disk_mb": round((work.disk(artifact) + tried) / 1e6, 1),
        "artifact_mb": round(artifact / 1e6, 2),
    }
    return told | _needs(plan, format_, made, files[0].told) | measured


def _tokens(recipe: Recipe, prompts: Product) -> float:
    """Tokens of a prompt on average: English words have 1.4 each in vocabularies of 30,000, and two are added."""
    texts = PromptSet(folder=prompts.folder).split("verify")[:200]
    return min(recipe.data.max_length, 2 + 1.4 * sum(len(row.text.split()) for row in texts) / max(len(texts), 1))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the steps of a build take, in operations and bytes."""

    recipe: Recipe
    output: str
    teacher: Size
    made: Size
    rows: Mapping[str, int]
    tokens: float

    @property
    def trained(self) -> Mapping[str, Any] | None:
        """The options of the teacher's own training."""
        teacher = self.recipe.teacher
        return teacher.finetune if teacher.create is None else teacher.create

    @property
    def first(self) -> str:
        """The step that trains the teacher."""
        return "finetune" if self.recipe.teacher.create is None else "create"

    @property
    def signals(self) -> float:
        """Bytes of what the teacher says of all train texts: outputs of as many blocks as the student has, and three projections
        of the last; 0 where they are too many to be kept."""
        from edgekit.distill.options import SIGNAL_BYTES

        kept = self.made.layers + (0 if self.output == "tokens" else 3)
        found = 4 * kept * self.teacher.hidden * self.tokens * self.rows.get("train", 0)
        return found if found <= SIGNAL_BYTES else 0.0

    def operations(self) -> dict[str, float]:
        """Of each step: 2 a weight outside the embedding and token forward, 4 backward."""
        core, made, rows, tokens = self.teacher.core, self.made.core, self.rows, self.tokens
        several = core if self.recipe.student is None else core + made
        found = {
            "record": 2 * several * tokens * (rows["verify"] + rows["calibrate"]),
            "calibrate": 4 * made * tokens * rows["calibrate"],
            "verify": 4 * made * tokens * rows["verify"],
            "export": 32 * made * tokens * min(rows["calibrate"], 128),
            "package": 0.0,
        }
        if self.trained is not None:
            found[self.first] = 6 * core * tokens * rows["train"] * int(self.trained.get("epochs", 10))
        if self.recipe.student is not None:
            epochs = int(self.recipe.distill.get("epochs", 10))
            asked = 1 if self.signals else epochs
            found["distill"] = (6 * made * epochs + 2 * core * asked) * tokens * rows["train"]
        return found

    def memory(self, artifact: int) -> dict[str, float]:
        """The bytes that each step holds beside the process itself.

        A model in training has weights, gradients, AdamW's two moments and its best epoch's weights; the export of an ONNX file
        holds the module, the traced graph, and copies of it that are rewritten and compared.
        """
        found = {
            "record": 4.0 * self.teacher.weights,
            "export": 4.0 * self.made.weights * _EXPORT_COPIES + 2 * artifact,
        }
        if self.trained is not None:
            found[self.first] = 5 * 4.0 * self.teacher.weights
        if self.recipe.student is not None:
            found["distill"] = 5 * 4.0 * self.made.weights + 4.0 * self.teacher.weights + self.signals
        return found

    def disk(self, artifact: int) -> float:
        """The bytes that stay: the models that were made, what was recorded, and the artifact in its step, its bundle and its
        archive."""
        models = 4.0 * self.teacher.weights * (self.trained is not None)
        models += 4.0 * self.made.weights * (self.recipe.student is not None)
        return models + 3 * artifact + self._recorded()

    def _recorded(self) -> float:
        """Of decoders the reference: ids and likelihoods of the likeliest tokens."""
        if self.output != "tokens":
            return 0.0
        from edgekit.record.tokens import MOST_LIKELY, MOST_TOKENS

        roles = 1 if self.recipe.student is None else 2
        vocabulary = self.teacher.embedding // max(self.teacher.hidden, 1)
        return 8.0 * roles * min(self.rows["verify"] * self.tokens, MOST_TOKENS) * min(MOST_LIKELY, vocabulary)


def busy() -> str | None:
    """Why this machine cannot tell how long a build takes: what other programs use of it now. None where it is idle."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > _BUSY * cores else None


@dataclass(frozen=True, kw_only=True)
class _File:
    """What the artifact may become: its scheme, its bytes, and what its format tells from headers (`Format.predict`)."""

    scheme: str
    bytes: int
    told: Mapping[str, Any] | None


def _files(format_: Format, options: Any, output: str, model: Model) -> list[_File]:
    """What may come of a model as `made_model` gives it, the smallest first; several where the scheme is found at export."""
    from edgekit.formats import finds_scheme

    names = format_.AUTO[output] if finds_scheme(format_, options, output) else (options.scheme,)
    found = [_file(format_, replace(options, scheme=name), output, model) for name in names]
    return sorted(found, key=lambda one: one.bytes)


def _file(format_: Format, options: Any, output: str, model: Model) -> _File:
    from edgekit.formats.onnx.sizes import predict_bytes, predict_decoder_bytes

    told = format_.predict(model, options)
    if told is not None:
        size = int(told["bytes"] + told["metadata_bytes"])
    elif output == "tokens":
        size = predict_decoder_bytes(model, options.scheme, int(options.block))
    else:
        size = predict_bytes(model, options.scheme, int(options.block))
    return _File(scheme=options.scheme, bytes=size, told=told)


def _needs(plan: Plan, format_: Format, model: Model, told: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a decoder in llama.cpp will need at its context, where its format can tell from headers.

    Memory is weights, cache (16 bits, or as the runtime's kv_k and kv_v say), buffers of a step of the prompt and 40 MB of the
    process itself. {} where nothing is known.
    """
    from edgekit.runtimes import RUNTIMES

    if told is None:
        return {}
    runtime = vars(RUNTIMES[format_.RUNTIME].Options(**plan.target.runtime.get(format_.RUNTIME, {})))
    context = min(int(runtime.get("context") or plan.recipe.data.max_length), model.max_positions or 1 << 30)
    width = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}
    share = (width[str(runtime.get("kv_k", "f16"))] + width[str(runtime.get("kv_v", "f16"))]) / 4
    cache = context * (told["cache_bytes_per_token"] or 0) * share
    hidden, inner = (int(model.text_config[key]) for key in ("hidden_size", "intermediate_size"))
    step = 4 * int(runtime.get("batch", 512)) * (8 * hidden + 2 * inner)
    return {
        "context": context,
        "cache_mb": round(cache / 1e6, 1),
        "needed_mb": round((told["bytes"] + cache + step) / 1e6 + 40, 0),
        "bytes_per_token": told["bytes_per_token"],
    }


@cache
def _speed() -> float:
    """Operations per second of small fp32 matrix products on all cores here, what short texts in training reach.

    Counted in CPU time: other programs that share the cores do not change it.
    """
    import time

    import numpy as np

    left, right = np.ones((256, 384), np.float32), np.ones((384, 384), np.float32)
    best = float("inf")
    for _ in range(12):
        begin = time.process_time()
        for _ in range(8):
            left @ right
        best = min(best, (time.process_time() - begin) / 8)
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return _REACHED * 2 * 256 * 384 * 384 / max(best, 1e-6) * threads
