"""What a build will take: time, memory and disk here, and the bytes of what it makes, from headers and prompts alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.build.plan import Plan
from edgekit.model import EMBEDDINGS, load_model
from edgekit.prompts import PromptSet
from edgekit.recipe import Recipe
from edgekit.workspace import Product

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
# Python with torch, transformers and the spine, MB.
_PROCESS_MB = 700
# Of a core's peak in a matrix product, what training on short texts reaches.
_REACHED = 0.35
# Bits a weight of models that are not there yet, with the head's larger types, as llama.cpp's README states them.
_GGUF_BITS = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q4_k_s": 4.6, "q4_1": 5.1,
    "q4_0": 4.6, "iq4_nl": 4.6, "iq4_xs": 4.4,
}  # fmt: skip
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


def _size(recipe: Recipe, teacher: Path | None) -> Size:
    if teacher is None:
        from edgekit.distill.options import read_create_options

        made = read_create_options(recipe.teacher.create or {}, recipe.data.max_length, "teacher.create")
        block = made.hidden * (
            2 * made.hidden
            + 2 * made.hidden * (made.kv_heads or made.heads) // made.heads
            + 3 * (made.intermediate or 3 * made.hidden)
        )
        embedding = made.vocabulary * made.hidden
        weights = embedding + made.layers * block
        return Size(weights=weights, embedding=embedding, layers=made.layers, hidden=made.hidden)
    model = load_model(teacher)
    tables = [info for name, info in model.tensors.items() if name.endswith(EMBEDDINGS)]
    embedding = sum(info.shape[0] * info.shape[1] for info in tables)
    hidden = int(model.text_config.get("hidden_size") or model.text_config.get("dim") or 0)
    return Size(weights=model.parameters, embedding=embedding, layers=model.layers, hidden=hidden)


def estimate(plan: Plan, prompts: Product) -> dict[str, Any]:
    """Of the build: seconds by step, memory_mb and disk_mb; of the artifact: artifact_mb and what else its format can tell.

    Seconds are of this machine where nothing else runs: a training step costs 6 operations per weight and token (2 forward, 4
    backward; Kaplan et al. 2020, section 2.1), of weights outside the embedding. Memory counts fp32 weights, gradients and
    AdamW's two moments of the model in training, and the teacher's signals where they are kept; disk what stays: the models and
    three times the artifact (step, bundle, archive). Raises EdgekitError for what the format refuses of the checkpoint.
    """
    recipe, size = plan.recipe, _size(plan.recipe, plan.teacher)
    core, share = size.weights - size.embedding, _student_share(recipe, size)
    rows = prompts.facts["rows"]
    texts = PromptSet(folder=prompts.folder).split("verify")[:200]
    tokens = min(recipe.data.max_length, 2 + 1.4 * sum(len(row.text.split()) for row in texts) / len(texts))
    trained = recipe.teacher.finetune if recipe.teacher.create is None else recipe.teacher.create
    # Operations by step.
    work = {"record": 2 * core * tokens * (rows["verify"] + rows["calibrate"]) * (1 + share)}
    work |= {
        "calibrate": 4 * core * share * tokens * rows["calibrate"],
        "verify": 4 * core * share * tokens * rows["verify"],
    }
    work |= {"export": 32 * core * share * tokens * min(rows["calibrate"], 128), "package": 0.0}
    if trained is not None:
        epochs = int(trained.get("epochs", 10))
        work["finetune" if recipe.teacher.create is None else "create"] = 6 * core * tokens * rows["train"] * epochs
    signals = 0.0
    if recipe.student is not None:
        from edgekit.distill.lessons import SIGNAL_BYTES

        epochs = int(recipe.distill.get("epochs", 10))
        signals = 4 * 3 * size.hidden * tokens * rows["train"]
        again = signals > SIGNAL_BYTES
        signals = 0.0 if again else signals
        work["distill"] = (6 * share * epochs + 2 * (epochs if again else 1)) * core * tokens * rows["train"]
    speed = _speed()
    held = size.weights * 4 * (4 if trained is not None or recipe.student is not None else 1)
    artifact = artifact_bytes(plan, size, len(prompts.facts["labels"]))
    measured = _candidates(plan, size)
    # The float file that candidates are compared with, and the largest of them beside the artifact.
    tried = 4 * size.weights + 1e6 * max(measured["schemes_mb"].values()) if measured else 0.0
    if measured:
        work["export"] += 2 * core * share * (_TRIED_TOKENS * (1 + len(measured["schemes_mb"])) + _SAID_TOKENS)
    made = 4 * (size.weights * (trained is not None) + (size.embedding + core * share) * (recipe.student is not None))
    told = {
        "seconds": {step: round(_STARTS[step] + operations / speed) for step, operations in work.items()},
        "memory_mb": round(_PROCESS_MB + (2 * held + signals) / 1e6),
        "disk_mb": round((made + 3 * artifact + tried) / 1e6, 1),
        "artifact_mb": round(artifact / 1e6, 2),
    }
    return told | _predict(plan) | measured


def busy() -> str | None:
    """Why this machine cannot tell how long a build takes: what other programs use of it now. None where it is idle."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > _BUSY * cores else None


def _candidates(plan: Plan, size: Size) -> dict[str, Any]:
    """Where the scheme is found at export: schemes_mb, the size of each that may become the artifact, the smallest first, and
    judged_on, how many calibrate prompts decide at most.

    artifact_mb is the smallest then: which one passes is not known before.
    """
    from edgekit.formats import parse_options
    from edgekit.formats.smallest import PASSAGES
    from edgekit.tasks import TASKS

    output = TASKS[plan.recipe.task].OUTPUT
    format_, options = parse_options(plan.export, output, "export")
    if options.scheme != "auto" or output not in format_.AUTO:
        return {}
    plans = {name: replace(plan, export={**plan.export, "scheme": name}) for name in format_.AUTO[output]}
    sizes = {
        name: float(_predict(one).get("artifact_mb") or round(artifact_bytes(one, size, 0) / 1e6, 1))
        for name, one in plans.items()
    }
    sizes = dict(sorted(sizes.items(), key=lambda item: item[1]))
    judged = min(int(plan.data["rows"]["calibrate"]), PASSAGES)
    return {"artifact_mb": min(sizes.values()), "schemes_mb": sizes, "judged_on": judged}


def artifact_bytes(plan: Plan, size: Size, classes: int) -> int:
    """The bytes of the artifact's files in the plan's format and scheme, as far as headers tell; of "auto" the smallest's."""
    from edgekit.formats import parse_options
    from edgekit.formats.onnx import DECODER_BITS
    from edgekit.formats.onnx.sizes import predict_bytes, predict_decoder_bytes
    from edgekit.tasks import TASKS

    output = TASKS[plan.recipe.task].OUTPUT
    format_, options = parse_options(plan.export, output, "export")
    share = _student_share(plan.recipe, size)
    kept = size.embedding + (size.weights - size.embedding) * share
    scheme = format_.AUTO[output][0] if options.scheme == "auto" and output in format_.AUTO else options.scheme
    if format_.NAME == "onnx" and plan.teacher is not None:
        model, layers = load_model(plan.teacher), round(size.layers * share)
        block = int(options.block)
        if output == "tokens":
            return predict_decoder_bytes(model, scheme, block, layers=layers)
        return predict_bytes(model, options.scheme, block, layers=layers, classes=classes if output == "logits" else 0)
    bits: Mapping[str, float] = DECODER_BITS if format_.NAME == "onnx" else _GGUF_BITS
    return round(kept * bits.get(scheme, 4.8) / 8)


def _student_share(recipe: Recipe, size: Size) -> float:
    """The share of the teacher's blocks that the student keeps."""
    if recipe.student is None:
        return 1.0
    kept = len(recipe.student.keep) if recipe.student.keep else recipe.student.layers
    return (kept or size.layers) / size.layers


def _predict(plan: Plan) -> dict[str, Any]:
    """What the artifact will be, where its format can tell from the teacher's headers: sizes in MB, memory at the context.

    Memory is weights, cache (16 bits, or as the runtime's kv_k and kv_v say), buffers of a step of the prompt and 40 MB of the
    process itself. Raises EdgekitError for what the format refuses of the checkpoint. {} where nothing is known yet.
    """
    from edgekit.formats import parse_options
    from edgekit.runtimes import RUNTIMES
    from edgekit.tasks import TASKS

    if plan.teacher is None or plan.recipe.student is not None:
        return {}
    format_, options = parse_options(plan.export, TASKS[plan.recipe.task].OUTPUT, "export")
    model = load_model(plan.teacher)
    told = format_.predict(model, options)
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
        "artifact_mb": round(told["bytes"] / 1e6, 1),
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
