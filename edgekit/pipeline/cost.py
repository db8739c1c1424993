"""What a build will take: the costs that formats, runtimes and trainings tell of themselves, added up, and turned into seconds.

From headers and prompts alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from edgekit.cost import Cost, Estimate, Size, TrainingCost, size_of
from edgekit.model import Model
from edgekit.outputs import OUTPUTS
from edgekit.pipeline.plan import Plan
from edgekit.pipeline.shapes import planned_student, trained_model
from edgekit.prompts import PromptSet
from edgekit.recipe import Recipe
from edgekit.typed_json import as_list
from edgekit.workspace import Product

if TYPE_CHECKING:
    from edgekit.runtimes.memory import Memory

# What each step takes at any size, s: libraries are imported, graphs exported, processes of the probe started.
_STARTS = {
    "create": 8,
    "finetune": 8,
    "answers": 8,
    "importance": 8,
    "signals": 8,
    "distill": 8,
    "control": 16,
    "linear": 2,
    "qad": 8,
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
_WRITTEN = 10
# What a weight that is rounded with feedback takes, as so many operations: measured on a Llama of 46 million weights.
_FITTED = 7000
# A machine whose other programs use more than this share of its cores says nothing about how long a build takes.
_BUSY = 0.25


def estimate(plan: Plan, prompts: Product) -> Estimate:
    """What the plan's build and artifact will take.

    Memory is the peak of the build's own process, disk what stays in cache
    and bundle; `benchmarks/estimates.py` compares both with what happens. Raises EdgekitError for what the format refuses of the
    checkpoint.
    """
    from edgekit.tasks import TASKS

    recipe, output, labels = plan.recipe, TASKS[plan.recipe.task].OUTPUT, len(prompts.facts["labels"])
    whole = trained_model(plan.settings, plan.teacher, output, labels)
    made = planned_student(whole, recipe, labels)
    work = _Work(
        plan=plan,
        output=output,
        teacher=size_of(whole),
        made=size_of(made),
        rows=prompts.facts["rows"],
        tokens=_tokens(recipe, prompts),
    )
    # Which of several passes is not known before: the smallest is counted.
    costs = _costs(plan, output, made)
    artifact, operations, tried = costs[0].file.value, work.operations(), 0.0
    schemes, judged_on = None, None
    if len(costs) > 1:
        from edgekit.formats.smallest import PASSAGES

        schemes = {cost.scheme: round(cost.file.value / 1e6, 2) for cost in costs}
        judged_on = min(int(prompts.facts["rows"]["calibrate"]), PASSAGES)
        operations["export"] += 2 * work.made.core * (_TRIED_TOKENS * (1 + len(costs)) + _SAID_TOKENS)
        # The float file that candidates are compared with, and the largest of them beside the artifact.
        tried = 4 * work.made.weights + costs[-1].file.value
    # What [qad] trained for a scheme is written as it is.
    if plan.settings.training.qad is None and any(cost.fitted for cost in costs):
        operations["export"] += work.fitting()
    guess = Estimate(
        operations=operations,
        control=work.control(),
        memory_mb=round(_PROCESS_MB + max(work.memory(artifact).values()) / 1e6),
        disk_mb=round((work.disk(artifact) + costs[0].kept + tried) / 1e6, 1),
        artifact_mb=round(artifact / 1e6, 2),
        artifact_most_mb=round(costs[0].most.value / 1e6, 2) if costs[0].most else None,
        schemes_mb=schemes,
        judged_on=judged_on,
    )
    return _with_needs(guess, plan, made, costs[0])


def seconds(guess: Estimate) -> dict[str, int]:
    """How long each step takes on this machine where nothing else runs: its speed is measured now, in a fraction of a second."""
    speed = _speed()
    return {step: round(_STARTS[step] + count / speed) for step, count in guess.operations.items()}


def control_seconds(guess: Estimate) -> int | None:
    """How long the control run of a build takes that has none, on this machine; None where there can be none."""
    return None if guess.control is None else round(_STARTS["control"] + guess.control / _speed())


def _costs(plan: Plan, output: str, model: Model) -> list[Cost]:
    """What may come of a model, the smallest first; several where the scheme is found at export."""
    from edgekit.formats import FORMATS, finds_scheme

    format_, options = FORMATS[plan.format], plan.options
    names = format_.AUTO[output] if finds_scheme(format_, options, output) else (plan.scheme,)
    every = [replace(options, scheme=name) for name in names]
    return sorted(format_.costs(model, output, every), key=lambda cost: cost.file.value)


def _with_needs(guess: Estimate, plan: Plan, model: Model, cost: Cost) -> Estimate:
    """The estimate with what the artifact and its runtime need on the target, and of a decoder what its context takes."""
    memory = predict_memory(plan, model, cost)
    if memory.context is None:
        return replace(guess, needed_mb=memory.needed / 1e6)
    return replace(
        guess,
        context=memory.context,
        cache_mb=round(memory.cache / 1e6, 1),
        needed_mb=round(memory.needed / 1e6, 0),
        bytes_per_token=cost.read_per_token.value if cost.read_per_token else None,
    )


def predict_memory(plan: Plan, model: Model, cost: Cost) -> Memory:
    """What an artifact of a model needs on the plan's target, in that of its runtimes that needs most."""
    from edgekit.runtimes import RUNTIMES
    from edgekit.runtimes.memory import Demand

    demand = Demand(
        weights=cost.memory.value,
        cache_per_token=cost.cache_per_token.value if cost.cache_per_token else None,
        tokens=plan.recipe.data.max_length,
        longest=model.max_positions,
        hidden=model.size("hidden_size"),
        inner=model.size("intermediate_size"),
    )
    every = [RUNTIMES[name].memory(demand, plan.target.runtime.get(name, {})) for name in plan.runtimes]
    return max(every, key=lambda one: one.needed)


def _tokens(recipe: Recipe, prompts: Product) -> float:
    """Tokens of a prompt on average: English words have 1.4 each in vocabularies of 30,000, and two are added."""
    texts = PromptSet(folder=prompts.folder).split("verify")[:200]
    return min(recipe.data.max_length, 2 + 1.4 * sum(len(row.text.split()) for row in texts) / max(len(texts), 1))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the steps of a build take, in operations and bytes. teacher, made: how large the teacher and the artifact's model are;
    tokens: of a prompt, on average."""

    plan: Plan
    output: str
    teacher: Size
    made: Size
    rows: Mapping[str, int]
    tokens: float

    def trainings(self) -> dict[str, TrainingCost]:
        """What each training step takes."""
        from edgekit.distill.cost import training_cost
        from edgekit.distill.finetuning import passes
        from edgekit.distill.options import answers_anew, at

        recipe, training = self.plan.recipe, self.plan.settings.training
        own, tokens = (
            {"create": training.create, "finetune": training.finetune},
            self.tokens * self.rows.get("train", 0),
        )
        costs = {
            step: training_cost(self.teacher, tokens=tokens, epochs=passes(options))
            for step, options in own.items()
            if options is not None
        }
        if recipe.student is not None:
            writing, teacher = training.distill.on_policy, self.teachers
            for student in (*self.assistants, self.made):
                cost = training_cost(
                    student,
                    tokens=tokens * (1 + training.distill.spliced),
                    epochs=training.distill.epochs,
                    teacher=None if self.records else teacher,
                    projections=0 if OUTPUTS[self.output].generates else 3,
                    anew=answers_anew(training.distill),
                    writes=0.0 if writing is None else at(writing.share, 0.5),
                )
                costs["distill"] = costs["distill"].and_then(cost) if "distill" in costs else cost
                teacher = student
        if training.control:
            seen = tokens * (1 + training.distill.spliced)
            costs["control"] = training_cost(self.made, tokens=seen, epochs=training.distill.epochs)
        if training.qad is not None:
            costs["qad"] = training_cost(
                self.made,
                tokens=tokens * (1 + training.qad.spliced),
                epochs=training.qad.epochs,
                teacher=self.teacher,
                anew=answers_anew(training.qad),
            )
        return costs

    @property
    def teachers(self) -> Size:
        """All teachers together, of which the others are taken to be as large as the first."""
        count, one = 1 + len(self.plan.recipe.teacher.others), self.teacher
        return replace(one, weights=count * one.weights, embedding=count * one.embedding)

    @property
    def assistants(self) -> list[Size]:
        """The students between teacher and student."""
        one = self.teacher
        cores = {layers: one.core * layers // max(one.layers, 1) for layers in self.plan.settings.training.assistants}
        return [replace(one, weights=one.embedding + core, layers=layers) for layers, core in cores.items()]

    @property
    def records(self) -> bool:
        """Whether the teacher's answers are recorded before the student learns."""
        return "signals" in self.plan.steps

    @property
    def writes(self) -> bool:
        """Whether the teacher writes answers; how long others take to write theirs nobody knows before."""
        answers = self.plan.recipe.answers
        return answers is not None and answers.by == "teacher"

    def answers(self) -> float:
        """Of the teacher's answers: each prompt is read, and each token written, which costs what reading ten does."""
        answers = self.plan.recipe.answers
        assert answers is not None
        tokens = self.tokens + _WRITTEN * answers.max_tokens
        return 2.0 * self.teacher.core * tokens * answers.samples * self.rows.get("train", 0)

    def operations(self) -> dict[str, float]:
        """Of each step: 2 a weight outside the embedding and token forward, and what trainings take."""
        from edgekit.distill import RANKED

        core, made, rows, tokens = self.teacher.core, self.made.core, self.rows, self.tokens
        several = core if self.plan.recipe.student is None else core + made
        return {
            "record": 2 * several * tokens * (rows["verify"] + rows["calibrate"]),
            "calibrate": 4 * made * tokens * rows["calibrate"],
            "verify": 4 * made * tokens * rows["verify"],
            "export": 32 * made * tokens * min(rows["calibrate"], 128),
            "package": 0.0,
            **({"linear": 0.0} if "linear" in self.plan.steps else {}),
            **({"answers": self.answers()} if self.writes else {}),
            **(
                {"importance": 2 * core * tokens * min(RANKED, rows.get("train", 0))}
                if "importance" in self.plan.steps
                else {}
            ),
            **({"signals": 2 * core * tokens * rows.get("train", 0)} if self.records else {}),
            **{step: float(cost.operations.value) for step, cost in self.trainings().items()},
            **({"control": self.control() or 0.0} if "control" in self.plan.steps else {}),
        }

    def fitting(self) -> float:
        """Of rounding with feedback: prompts are read and their inputs' products summed, then columns are rounded one by one."""
        from edgekit.formats.gptq import MOST_TOKENS

        return self.made.core * (2.0 * min(self.tokens * self.rows["calibrate"], MOST_TOKENS) + _FITTED)

    def control(self) -> float | None:
        """What a control run takes, its record included; None where the recipe's student can have none."""
        from edgekit.distill.cost import training_cost

        training, classes = self.plan.settings.training, OUTPUTS[self.output].has_classes
        if training.why_no_control or (classes and len(as_list(self.plan.prompts.get("labels"))) < 2):
            return None
        tokens = self.tokens * self.rows.get("train", 0) * (1 + training.distill.spliced)
        asked = self.rows["verify"] + self.rows["calibrate"]
        taught = training_cost(self.made, tokens=tokens, epochs=training.distill.epochs).operations.value
        return float(taught) + 2.0 * self.made.core * self.tokens * asked

    def memory(self, artifact: int) -> dict[str, float]:
        """The bytes that each step holds beside the process itself.

        The export of an ONNX file holds the module, the traced graph, and copies of it that are rewritten and compared.
        """
        return {
            "record": 4.0 * self.teacher.weights,
            "export": 4.0 * self.made.weights * _EXPORT_COPIES + 2 * artifact,
            **{step: float(cost.memory.value) for step, cost in self.trainings().items()},
        }

    def disk(self, artifact: int) -> float:
        """The bytes that stay: the models that were made, what was recorded, and the artifact in its step, its bundle and its
        archive."""
        trained = self.trainings()
        models = 4.0 * self.teacher.weights * bool(trained.keys() - {"distill", "control", "qad"})
        models += 4.0 * self.made.weights * len(trained.keys() & {"distill", "control", "qad"})
        return models + 3 * artifact + self._recorded() + self._signals()

    def _signals(self) -> float:
        """Of a recorded teacher: a record of each train token, or a row of each text, whose width is the teacher's at most."""
        if not self.records:
            return 0.0
        if not OUTPUTS[self.output].generates:
            width = max(self.teacher.hidden, len(as_list(self.plan.prompts.get("labels"))))
            return 4.0 * width * self.rows.get("train", 0)
        from edgekit.distill.recorded import RECORD

        return float(RECORD.itemsize * self.tokens * self.rows.get("train", 0))

    def _recorded(self) -> float:
        """Of decoders the reference: ids and likelihoods of the likeliest tokens."""
        if not OUTPUTS[self.output].generates:
            return 0.0
        from edgekit.record.tokens import MOST_LIKELY, MOST_TOKENS

        roles = 1 if self.plan.recipe.student is None else 2
        vocabulary = self.teacher.embedding // max(self.teacher.hidden, 1)
        return 8.0 * roles * min(self.rows["verify"] * self.tokens, MOST_TOKENS) * min(MOST_LIKELY, vocabulary)


def busy() -> str | None:
    """Why this machine cannot tell how long a build takes: what other programs use of it now. None where it is idle."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > _BUSY * cores else None


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
