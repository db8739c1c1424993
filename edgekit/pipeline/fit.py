"""`[student] fit = true`: the largest student that keeps the target's budget, by what is predicted before anything is trained.

Students have fewer blocks than the teacher, and are narrower. Bytes and memory follow from shapes. Times are measured: students
of few blocks, which nobody taught, run on the target's device (`edgekit.pace`), and a call of the others takes longer by as many
more blocks and weights as they have. Where the target is elsewhere,
times that were measured here are scaled by the rooflines of both machines. What was chosen is kept in the recipe's lock file, so
that the next build takes the same, whatever it would measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, Any, cast

from edgekit.cost import Candidate, Cost, Fit, size_of
from edgekit.errors import EdgekitError
from edgekit.formats import FLOATS
from edgekit.outputs import OUTPUTS
from edgekit.pipeline.cost import predict_memory
from edgekit.pipeline.lock import REMEDY, lock_path, read_lock, write_lock
from edgekit.pipeline.origin import model_content, split_content
from edgekit.pipeline.plan import Plan, Session, run_step
from edgekit.pipeline.predicted import TAILS, Machines, Timed, Work, find_limits, find_misses, time_of
from edgekit.pipeline.resolve import Checked, draft, resolve
from edgekit.pipeline.shapes import planned_student, trained_model
from edgekit.pipeline.steps import libraries, processor
from edgekit.recipe import Student
from edgekit.report.fit import describe_misses, describe_student
from edgekit.runtimes.request import wants_accelerator
from edgekit.target import Budget, Target
from edgekit.tasks import TASKS
from edgekit.typed_json import read_table, to_table
from edgekit.workspace import Product, fingerprint

if TYPE_CHECKING:
    from edgekit.inputs import Json
    from edgekit.model import Model
    from edgekit.pace import Pace, PaceInputs, Sample
    from edgekit.runtimes.request import Settings

PART = "student"
# Blocks of the deeper of two samples: half of the teacher's, at least so many. A large model has less of the caches than a small
# one, so that a line from small ones alone promises too much (`benchmarks/fit.py`).
_DEEPER = 4
# What of a target's hardware decides.
_HARDWARE = (
    "arch", "cpu", "cores", "memory_mb", "usable_mb", "bandwidth_gbs", "int8_gops", "fp32_gflops", "gpu",
)  # fmt: skip
# Bytes of a weight that stays float, less those that it has in eight bits.
_FLOAT_MORE = 3
_MIB = 1 << 20


def plan_for(
    checked: Checked,
    target: Target,
    prompts: Product,
    session: Session,
    choice: tuple[str | None, str | None] = (None, None),
) -> Plan:
    """`resolve`, with the student and the scheme that fit the target where the recipe asks for that.

    Raises EdgekitError as `resolve` does, where nothing fits, and for a lock file that is damaged.
    """
    student = checked.settings.recipe.student
    if student is None or not student.fit:
        return resolve(checked, target, prompts, session, choice)
    found = _find(checked, target, prompts, session, choice)
    settings = checked.settings
    made = _made(student, found.choice.student)
    fitted = replace(checked, settings=replace(settings, recipe=replace(settings.recipe, student=made)))
    plan = resolve(fitted, target, prompts, session, choice, scheme=found.choice.scheme)
    return replace(plan, fit=found)


def keep_choice(plan: Plan, session: Session) -> None:
    """Write a plan's choice to the recipe's lock file, where it is not kept there already."""
    if plan.fit is None:
        return
    path = lock_path(plan.recipe, session)
    kept, own = read_lock(path, PART), to_table(plan.fit)
    if kept.get(plan.name) != own:
        write_lock(path, PART, {**kept, plan.name: own})


def _made(student: Student, keys: Mapping[str, int]) -> Student:
    """A recipe's student with the keys of a candidate."""
    return replace(student, fit=False, **cast("dict[str, Any]", keys))


def _find(
    checked: Checked, target: Target, prompts: Product, session: Session, choice: tuple[str | None, str | None]
) -> Fit:
    """The choice that the lock file keeps or, where it keeps none of the same, a new one."""
    recipe = checked.settings.recipe
    if checked.teacher is None:
        raise EdgekitError(
            f"{recipe.path}: student.fit: the blocks of a teacher that is there are measured, and this one is still to be"
            " created: make it first (edgekit finetune), name its folder as teacher.source, or give student.layers"
        )
    fitting = Fitting.of(checked, target, prompts, choice)
    if not find_limits(fitting.budget):
        raise EdgekitError(
            f"{recipe.path}: student.fit: {target.path} has no [budget] to fit: give it limits there (bytes, memory_mb, p95_ms,"
            " ...), or student.layers here"
        )
    path = lock_path(recipe, session)
    name = fitting.plan.name
    kept = read_lock(path, PART).get(name)
    if kept is not None:
        locked = fitting.read(kept, f"{path}: {PART}.{name}")
        if not (changed := fitting.changed(locked)):
            return locked
        session.listener.say(
            f"fit: {' and '.join(changed)} changed since {path} was written: the student is chosen anew"
        )
    schemes = fitting.plan.options.outcomes(fitting.output)
    return fitting.choose(fitting.measure(schemes, session))


def students(depth: int, widths: Sequence[Mapping[str, int]]) -> Iterator[dict[str, int]]:
    """The students that may be made of a teacher of so many blocks, as keys of [student]. widths: those that are narrower."""
    for layers in range(depth, 0, -1):
        for narrower in ({}, *widths):
            yield {"layers": layers, **narrower}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A student in a scheme, as far as shapes tell: core, the weights that every token is multiplied by."""

    student: Mapping[str, int]
    scheme: str
    core: int
    weights: int
    cost: Cost
    needed: float

    @property
    def most(self) -> int:
        """The bytes of the file where layers stay float."""
        return self.cost.most.value if self.cost.most else self.cost.file.value


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What is to fit: a plan that names no student yet, and the model that it would be cut from."""

    plan: Plan
    budget: Budget
    whole: Model
    prompts: Product

    @classmethod
    def of(
        cls, checked: Checked, target: Target, prompts: Product, choice: tuple[str | None, str | None] = (None, None)
    ) -> Fitting:
        """What fits a checked recipe, whose teacher is there, to a target; EdgekitError for what `draft` refuses."""
        plan = draft(checked, target, prompts, choice)
        output = TASKS[plan.recipe.task].OUTPUT
        return cls(
            plan=plan,
            budget=target.budget_for(plan.recipe.task),
            whole=trained_model(checked.settings, checked.teacher, output, len(prompts.facts["labels"])),
            prompts=prompts,
        )

    @property
    def output(self) -> str:
        """What the model answers with."""
        return TASKS[self.plan.recipe.task].OUTPUT

    @property
    def limits(self) -> dict[str, float]:
        """The limits that such a model can miss: the budget's, and the memory that the target has."""
        own = find_limits(self.budget)
        if not OUTPUTS[self.output].generates:
            own = {key: value for key, value in own.items() if key not in {"ttft_ms", "tokens_per_second"}}
        return own | {"memory_mb": min(own.get("memory_mb", inf), float(self.plan.usable_mb))}

    @property
    def widths(self) -> list[dict[str, int]]:
        """Which narrower students there may be, as keys of [student]; none where the recipe says how wide its student is."""
        from edgekit.distill.sizes import propose_widths

        student = self.plan.recipe.student
        if student is None or student.widths or student.fit == "layers":
            return []
        try:
            return propose_widths(self.whole, channels=not OUTPUTS[self.output].pools)
        except EdgekitError:
            # Whose configuration does not say its sizes has fewer layers, and is as wide as it is.
            return []

    def made_from(self) -> dict[str, str]:
        """Fingerprints of what decides: another machine, another load and another training do not."""
        recipe, target = self.plan.recipe, self.plan.target
        shapes = {name: list(info.shape) for name, info in self.whole.tensors.items()}
        hardware = {key: getattr(target.hardware, key) for key in _HARDWARE}
        assert recipe.student is not None
        student = {key: value for key, value in vars(recipe.student).items() if value is not None}
        return {
            "the recipe": fingerprint({"student": student, "max_length": recipe.data.max_length, "task": recipe.task}),
            "the teacher's shape": fingerprint(shapes),
            "the target": fingerprint(
                {
                    "hardware": {
                        key: asdict(value) if key == "gpu" and value else value for key, value in hardware.items()
                    },
                    "budget": {**self.limits, "sequence": self.budget.sequence},
                    "export": self.plan.export,
                    "runtime": target.runtime,
                }
            ),
        }

    def changed(self, locked: Fit) -> list[str]:
        """What is not what it was when a choice was made."""
        return [name for name, print_ in self.made_from().items() if locked.made_from.get(name) != print_]

    def read(self, table: object, where: str) -> Fit:
        """A choice from the lock file; EdgekitError for one that edgekit did not write."""
        try:
            found = read_table(Fit, table, where)
        except EdgekitError as damaged:
            raise EdgekitError(f"{damaged.message}; {REMEDY}") from damaged
        known = {field.name for field in fields(Student)}
        if not 0 <= found.chosen < len(found.candidates) or not found.choice.student.keys() <= known:
            raise EdgekitError(f"{where}: names no student that edgekit can make; {REMEDY}")
        narrower = dict(found.choice.student)
        layers, made = narrower.pop("layers", 1), describe_student(found.choice.student)
        schemes = {self.plan.scheme, *self.plan.options.outcomes(self.output)}
        known_widths = narrower in [{}, *self.widths]
        if not self.changed(found) and (
            not 1 <= layers <= self.whole.layers or not known_widths or found.choice.scheme not in schemes
        ):
            raise EdgekitError(
                f"{where}: {made} as {found.choice.scheme} cannot be made of this teacher for this target; {REMEDY}"
            )
        return found

    def choose(self, pace: Pace) -> Fit:
        """The largest student that keeps the budget, by what two samples took; EdgekitError where none does."""
        every = students(self.whole.layers, self.widths)
        options = [option for student in every for option in self.options(student)]
        candidates = [self.candidate(option, pace) for option in sorted(options, key=lambda one: -one.core)]
        together = self.with_auto(candidates)
        fitting = [index for index, one in enumerate(together) if not one.misses]
        if not fitting:
            raise self.nothing_fits(together)
        return Fit(
            made_from=self.made_from(),
            candidates=tuple(together),
            chosen=fitting[0],
            measured_on=f"{pace.cpu} ({pace.device})",
        )

    def options(self, student: Mapping[str, int]) -> Iterator[Option]:
        """A student in each of the schemes that the target allows, that of the most bits first."""
        from edgekit.formats import FORMATS

        assert self.plan.recipe.student is not None
        recipe = replace(self.plan.recipe, student=_made(self.plan.recipe.student, student))
        model = planned_student(self.whole, recipe, len(self.prompts.facts["labels"]))
        size, format_ = size_of(model), FORMATS[self.plan.format]
        names = sorted(self.plan.options.outcomes(self.output), key=_bits(format_.BY_BITS), reverse=True)
        every = [replace(self.plan.options, scheme=name) for name in names]
        for scheme, cost in zip(names, format_.costs(model, self.output, every), strict=True):
            needed = predict_memory(self.plan, model, cost).needed
            yield Option(student=student, scheme=scheme, core=size.core, weights=size.weights, cost=cost, needed=needed)

    def inputs(self, schemes: Sequence[str]) -> PaceInputs:
        """Which samples are made, and how they are timed."""
        from edgekit.distill.options import choose_blocks
        from edgekit.pace import PaceInputs

        plan, depth = self.plan, self.whole.layers
        deeper = min(max(_DEEPER, depth // 2), depth)
        # The narrowest at last, as deep as the deepest: what a width costs is then told of the most that it may save.
        made = [(count, dict[str, int]()) for count in sorted({1, deeper})]
        made += [(deeper, narrower) for narrower in self.widths[-1:]]
        recipe, target = plan.recipe, plan.target
        assert plan.teacher is not None
        fresh = OUTPUTS[self.output].has_classes and recipe.teacher.finetune is not None
        return PaceInputs(
            teacher=model_content(plan.teacher),
            classes=tuple(self.prompts.facts["labels"]) if fresh else (),
            keeps=[choose_blocks(depth, count, None, "student") for count, _ in made],
            widths=[narrower for _, narrower in made],
            prompts=split_content(self.prompts, "calibrate"),
            task=recipe.task,
            max_length=recipe.data.max_length,
            format=plan.format,
            options={scheme: plan.options.sample(scheme) for scheme in dict.fromkeys(schemes)},
            processor=processor(plan) if plan.mixes else None,
            runtime=plan.runtimes[0],
            tables=cast("Mapping[str, Mapping[str, Json]]", target.runtime),
            sequence=self.budget.sequence,
            device=cast("Mapping[str, Json]", target.device),
            libraries=libraries(plan.format, plan.runtimes),
        )

    def measure(self, schemes: Sequence[str], session: Session) -> Pace:
        """What blocks cost on the target's device, kept like every step's product."""
        from edgekit.devices import open_device
        from edgekit.pace import pace, read_pace

        inputs, recipe, target = self.inputs(schemes), self.plan.recipe, self.plan.target
        device = open_device(target.device, f"{target.path}: device")
        try:
            product = run_step(session, inputs, partial(pace, device=device), note="students of few blocks, timed")
        finally:
            device.close()
        found = read_pace(product.folder)
        if found.on_cpu and wants_accelerator(cast("Settings", target.runtime.get(found.runtime, {}))):
            raise EdgekitError(
                f"{recipe.path}: student.fit: {target.path} is for an accelerator, and on {found.device} the CPU did the work,"
                " whose times say nothing of the target; give --device, or student.layers"
            )
        return found

    def candidate(self, option: Option, pace: Pace) -> Candidate:
        """What is predicted of an option, beside the limits."""
        limits = self.limits
        figures = {"p50_ms": 0.0, **self.times(option, pace, limits), "bytes": float(option.most)}
        figures["memory_mb"] = self.memory_mb(option, pace)
        return Candidate(
            student=option.student,
            scheme=option.scheme,
            bytes=option.cost.file.value,
            bytes_most=option.most,
            memory_mb=round(figures["memory_mb"], 1),
            limits={key: _rounded(figures[key]) for key in sorted({"p50_ms", *limits})},
            misses=find_misses(figures, limits),
        )

    def times(self, option: Option, pace: Pace, limits: Mapping[str, float]) -> dict[str, float]:
        """The figures of speed on the target, by the budget's keys."""
        plan, found = self.plan, {}
        hardware, options = plan.target.hardware, plan.target.runtime.get(pace.runtime, {})
        there = options.get("threads")
        machines = Machines(
            hardware=hardware,
            speed=pace.speed,
            threads=pace.threads,
            target_threads=there if isinstance(there, int) else hardware.cores,
        )
        own = OUTPUTS[self.output].generates
        for key, tokens in (("p50_ms", 1 if own else self.budget.sequence), ("ttft_ms", self.budget.sequence)):
            wide, narrow = self.timed(option.scheme, key, pace)
            if not wide:
                continue
            work = Work(
                operations=2.0 * option.core * tokens,
                bytes=option.cost.memory.value * option.core / option.weights,
                in_floats=option.scheme in FLOATS,
            )
            more = 2.0 * tokens * (option.most - option.cost.file.value) / _FLOAT_MORE
            layers = option.student.get("layers", self.whole.layers)
            here = time_of(wide, narrow, layers, option.core) + machines.float_ms(more)
            found[key] = here * (machines.slower(work) if self.scales(pace) else 1.0)
        if own:
            found["tokens_per_second"] = 1e3 / found["p50_ms"]
        return found | {key: found["p50_ms"] * ratio for key, ratio in TAILS.items() if key in limits}

    def scales(self, pace: Pace) -> bool:
        """Whether times are of this machine's CPU, and those of the target are wanted: another device was timed itself."""
        from edgekit.devices import DEVICES

        return pace.on_cpu and not DEVICES[str(self.plan.target.device.get("kind", "local"))].REMOTE

    def timed(self, scheme: str, key: str, pace: Pace) -> tuple[list[Timed], Timed | None]:
        """The samples in a scheme that are as wide as the teacher, and the narrower one; none where this time is not theirs."""
        wide, narrow = [], None
        for one in pace.samples:
            if one.scheme != scheme or key not in one.times:
                continue
            found = Timed(layers=one.layers, core=size_of(self.cut(one)).core, ms=one.times[key])
            if one.widths:
                narrow = found
            else:
                wide.append(found)
        return wide, narrow

    def cut(self, sample: Sample) -> Model:
        """The shapes of a sample: a student of so many blocks with all its teacher's tokens."""
        keys = {"layers": sample.layers, **sample.widths}
        recipe = replace(self.plan.recipe, student=_made(Student(), keys))
        return planned_student(self.whole, recipe, len(self.prompts.facts["labels"]))

    def memory_mb(self, option: Option, pace: Pace) -> float:
        """The peak of a process: that of the deepest sample where it was measured, and what the runtime's own prediction says
        that this student takes more."""
        from edgekit.formats import FORMATS

        if pace.peak_mb is None:
            return option.needed / 1e6
        deepest = max(pace.samples, key=lambda one: one.layers)
        model = self.cut(deepest)
        options = replace(self.plan.options, scheme=deepest.scheme)
        (cost,) = FORMATS[self.plan.format].costs(model, self.output, [options])
        more = option.needed - predict_memory(self.plan, model, cost).needed
        return pace.peak_mb + (more + option.most - option.cost.file.value) / _MIB

    def with_auto(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates; where the target's scheme is decided at export, of each student the case that the worst of its
        schemes becomes it, and those schemes beside it where only some of them fit."""
        if len(self.plan.options.outcomes(self.output)) == 1:
            return list(candidates)
        found: list[Candidate] = []
        for _, group in groupby(candidates, key=lambda one: one.student):
            parts = list(group)
            together = _worst(parts, self.plan.scheme)
            found += [together, *(parts if together.misses and not all(one.misses for one in parts) else [])]
        return found

    def nothing_fits(self, candidates: Sequence[Candidate]) -> EdgekitError:
        """What is told where no candidate keeps the budget: the nearest one, and what it misses by how much."""
        nearest, target = min(candidates, key=lambda one: one.worst), self.plan.target
        told = describe_misses(nearest, self.limits)
        return EdgekitError(
            f"{self.plan.recipe.path}: student.fit: no student fits the budget of {target.path}. The nearest is"
            f" {describe_student(nearest.student)} as {nearest.scheme}: {told}; allow more there, or take a smaller teacher,"
            " fewer tokens (student.vocabulary), or a scheme of fewer bits (--scheme)"
        )


def _worst(parts: Sequence[Candidate], scheme: str) -> Candidate:
    """The case that the worst of several schemes becomes a student's."""
    figures = {
        key: (min if key == "tokens_per_second" else max)(one.limits[key] for one in parts) for key in parts[0].limits
    }
    return Candidate(
        student=parts[0].student,
        scheme=scheme,
        bytes=min(one.bytes for one in parts),
        bytes_most=max(one.bytes_most for one in parts),
        memory_mb=max(one.memory_mb for one in parts),
        limits=figures,
        misses={
            key: max(one.misses.get(key, 0.0) for one in parts)
            for key in dict.fromkeys(k for one in parts for k in one.misses)
        },
    )


def _bits(by_bits: Sequence[str]) -> Callable[[str], int]:
    return lambda scheme: by_bits.index(scheme) if scheme in by_bits else -1


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 1e4 else round(value)
