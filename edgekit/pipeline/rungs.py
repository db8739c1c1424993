"""Rungs: what may be done where a gate failed, by what failed: as changes of the recipe and of the format's options.

Nothing is made here. What a rung takes is estimated as a build is (`pipeline.cost`); `pipeline.ladder` runs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.evidence import Check, Report
from edgekit.outputs import OUTPUTS
from edgekit.pipeline.cost import estimate, seconds
from edgekit.pipeline.labels import labelled
from edgekit.pipeline.plan import Listener, Plan, Session
from edgekit.pipeline.resolve import check_fits, gather_prompts, needed_splits, read_settings
from edgekit.pipeline.shapes import made_model, trained_model
from edgekit.prompts import sources
from edgekit.recipe import Recipe, Student
from edgekit.recovery import Recovery, Rung
from edgekit.report.figures import human_bytes
from edgekit.workspace import Product

if TYPE_CHECKING:
    from edgekit.architectures.widths import Sizes
    from edgekit.formats import FormatOptions
    from edgekit.grid import Grid

SPEED = frozenset({"p50_ms", "p95_ms", "p99_ms", "ttft_ms", "tokens_per_second"})
SIZE = frozenset({"bytes", "memory_mb"})
# Schemes of fewer bits that are offered.
_SCHEMES = 2
# The steps that a change makes again, beside export and verify; which are all of a float student that changes.
_AFTER_STUDENT = ("record", "calibrate")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A rung as what it changes. keys: of the recipe, dotted, with their new values; options: of the format. makes: the steps
    that it makes again beside export and verify."""

    name: str
    gain: str
    keys: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    makes: tuple[str, ...] = ()

    def arguments(self, plan: Plan) -> tuple[str, ...]:
        """What the command that built `plan` gets to build this, and this alone: a format and a scheme that were chosen by name
        are among it, instead of all that the command chose."""
        whole = self._with_fit(plan)
        format_, scheme = whole._choice(plan)
        told = [("--set", f"{key}={_toml(value)}") for key, value in whole.keys.items()]
        told += [(flag, name) for flag, name in (("--format", format_), ("--scheme", scheme)) if name is not None]
        told += [
            ("--export", f"{key}={_toml(value)}")
            for key, value in whole.options.items()
            if key != "scheme" or scheme is None
        ]
        return tuple(part for pair in told for part in pair)

    def _with_fit(self, plan: Plan) -> Change:
        """The change with what was chosen for the target's budget, which is not chosen anew for this."""
        if plan.fit is None:
            return self
        chosen = plan.fit.choice
        fixed = {"student.fit": False, **{f"student.{key}": value for key, value in chosen.student.items()}}
        keys = {**({} if "student" in self.keys else fixed), **self.keys}
        return replace(self, keys=keys, options={"scheme": chosen.scheme, **self.options})

    def _choice(self, plan: Plan) -> tuple[str | None, str | None]:
        """Format and scheme by name, where the plan's are: of other options than the scheme a format that is not the target's."""
        from edgekit.formats import DEFAULT

        format_, scheme = plan.choice
        if scheme is None:
            return plan.choice
        own = plan.target.export_for(plan.recipe.task).get("format", DEFAULT)
        if plan.format != own and self.options.keys() - {"scheme"}:
            format_ = plan.format
        return format_, str(self.options.get("scheme", scheme))

    def applied(self, plan: Plan, prompts: Product) -> Plan:
        """The plan with this change; EdgekitError where it cannot be built for the target."""
        from edgekit.formats import FORMATS, candidates, parse_options
        from edgekit.tasks import TASKS

        recipe, target = changed(plan.recipe, self.keys), plan.target
        output = TASKS[recipe.task].OUTPUT
        table = {key: value for key, value in {**asdict(plan.options), **self.options}.items() if value is not None}
        format_, options = parse_options({"format": plan.format, **table}, output, f"{target.path}: export")
        made = replace(
            plan,
            settings=read_settings(recipe),
            splits=needed_splits(recipe),
            options=options,
            mixes=format_.mixes(options),
            runtimes=candidates(format_, target.runtime, output, format_.domains(options), str(target.path)),
            choice=self._choice(plan),
        )
        if made.settings.training.qad is not None:
            grid = FORMATS[plan.format].grid(made_model(made, output, len(prompts.facts["labels"])), options, output)
            grid.check(made.settings.training.qad.train)
        made = replace(made, estimate=estimate(made, prompts))
        check_fits(made)
        return made

    def steps(self, plan: Plan) -> set[str]:
        """Of a changed plan the steps that are made again for it."""
        return {*self.makes, "export", "verify"} & {*plan.steps}


_BOTH = Change(
    name="train the weights too",
    gain="the codes of the file learn too, not its scales alone, at the same bytes",
    keys={"qad.train": "both"},
    makes=("qad", *_AFTER_STUDENT),
)


def changed(recipe: Recipe, keys: Mapping[str, object]) -> Recipe:
    """The recipe with other values at dotted keys, as `--set` would give it."""
    for key, value in keys.items():
        given = Student(**value) if key == "student" and isinstance(value, Mapping) else value
        recipe = _with(recipe, key.split("."), given)
    return recipe


def _with(table: Any, path: Sequence[str], value: object) -> Any:
    """A table or a dataclass with another value at a path."""
    key, *rest = path
    if is_dataclass(table) and not isinstance(table, type):
        return replace(table, **{key: _with(getattr(table, key), rest, value) if rest else value})
    known = dict(table or {})
    return {**known, key: _with(known.get(key), rest, value) if rest else value}


def _toml(value: object, *, within: bool = False) -> str:
    """A value as TOML; a word that stands alone is bare, as the command line takes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner, within=True)}" for key, inner in value.items()) + "}"
    return value if isinstance(value, str) and not within else json.dumps(value)


def is_wrong(check: Check, *, strict: bool) -> bool:
    """Whether a check keeps an artifact from shipping by what the artifact is: speed and memory that are not proven are not
    known to be wrong, as another machine may not vouch for the target."""
    unproven = strict and check.verdict == "not proven" and check.name not in SPEED | SIZE
    return check.verdict == "fail" or unproven


def find_failures(report: Report, wrong: Callable[[Check], bool]) -> tuple[str, ...]:
    """Which kinds of failure (of `recovery.FAILURES`) a report has; none where what fails is of another kind.

    A loss against the teacher is the float student's where that one loses more than it may too.
    """
    found: dict[str, None] = {}
    for check in filter(wrong, report.checks):
        if check.name in SPEED or check.name in SIZE:
            found["speed" if check.name in SPEED else "size"] = None
        elif check.name.endswith("_vs_student"):
            found["quantization"] = None
        elif check.name.endswith("_vs_teacher"):
            found["student" if _float_loses(report, check) else "quantization"] = None
        elif check.name == "accuracy":
            found[_below(report, check)] = None
    return tuple(found)


def _float_loses(report: Report, check: Check) -> bool:
    """Whether the float student loses more against the teacher than the artifact may."""
    metric = check.name.removesuffix("_vs_teacher")
    limit = check.limit
    own = [one.loss for one in report.comparisons if (one.candidate, one.metric) == ("student", metric)]
    return isinstance(limit, int | float) and any(loss is not None and loss > limit for loss in own)


def _below(report: Report, check: Check) -> str:
    """Who is less often right than the recipe asks for: the teacher, the student, or only the artifact."""
    for role in ("teacher", "student"):
        right = report.accuracy.get(role)
        if right is not None and isinstance(check.limit, int | float) and right < check.limit:
            return role
    return "quantization"


def find_changes(plan: Plan, report: Report, failures: Sequence[str], prompts: Product) -> list[Change]:
    """What suits all of these failures, in no order. Raises EdgekitError as the preflight does."""
    if "teacher" in failures:
        return _longer("teacher.finetune", plan.settings.training.finetune)
    if "speed" in failures or "size" in failures:
        return _find_lighter(plan, report, failures, prompts)
    if "student" not in failures:
        return _less_rounding(plan, report, prompts) if failures else []
    better = _better_student(plan)
    if "quantization" not in failures:
        return better
    # Quantization alone cannot help, nor can a better student alone.
    return [*better, *_every_two(better[-1:], _gentler(plan, report, prompts))]


def _find_lighter(plan: Plan, report: Report, failures: Sequence[str], prompts: Product) -> list[Change]:
    """What is smaller or quicker, and is not worse in what fails beside that: fewer bits make quantization worse, and fewer
    blocks the float student."""
    coarser = _fewer_bits(plan, report, prompts, smaller="size" in failures)
    if "student" in failures:
        longer = _longer("distill", plan.settings.training.distill) if plan.recipe.student is not None else []
        return [] if "quantization" in failures else _every_two(longer, coarser)
    if "quantization" in failures:
        return [*_every_two(_fewer_blocks(plan), _gentler(plan, report, prompts)), *_table(plan)]
    return [*coarser, *_fewer_blocks(plan), *_table(plan)]


def _gentler(plan: Plan, report: Report, prompts: Product) -> list[Change]:
    """Gentler quantization that goes with another student: training on the grid is of the student that there is."""
    return [one for one in _less_rounding(plan, report, prompts) if "qad" not in one.makes]


def _every_two(some: Sequence[Change], others: Sequence[Change]) -> list[Change]:
    return [_both(one, other) for one in some for other in others]


def _both(one: Change, other: Change) -> Change:
    return Change(
        name=f"{one.name}, {other.name}",
        gain=f"{one.gain}; {other.gain}",
        keys={**one.keys, **other.keys},
        options={**one.options, **other.options},
        makes=(*one.makes, *other.makes),
    )


def _less_rounding(plan: Plan, report: Report, prompts: Product) -> list[Change]:
    """Ways to lose less by quantization; none where nothing was rounded."""
    from edgekit.formats import FLOATS, finer
    from edgekit.tasks import TASKS

    scheme, output = report.artifact.scheme, TASKS[plan.recipe.task].OUTPUT
    if scheme in FLOATS:
        return []
    found = []
    for way in plan.options.gentler(scheme):
        worst = sorted(report.layers, key=lambda layer: -layer.error)[:3] if "float_layers" in way.options else []
        told = ", ".join(f"{layer.name.removesuffix('#0')} {layer.error:.2g}" for layer in worst)
        gain = f"{way.gain}; the largest errors: {told}" if told else way.gain
        again = ("calibrate",) if way.options.get("scheme") == "mixed" else ()
        found.append(Change(name=way.name, gain=gain, options=way.options, makes=again))
    used, there = plan.recipe.calibrate.prompts, int(prompts.facts["rows"]["calibrate"])
    if 0 < used < there:
        more = f"ranges of all {there} calibrate prompts, instead of {used}"
        found.append(Change(name="calibrate on more", gain=more, keys={"calibrate.prompts": 0}, makes=("calibrate",)))
    most = plan.target.budget_for(plan.recipe.task).bytes
    for name in _spread([one for one in finer(plan.format, output, scheme) if one not in FLOATS]):
        size = _bytes(plan, name, prompts)
        if most is None or size <= most:
            gain = f"smaller rounding errors, in {human_bytes(size)} instead of {human_bytes(report.artifact.bytes)}"
            found.append(Change(name=f"scheme {name}", gain=gain, options={"scheme": name}))
    return [*found, *_on_grid(plan, scheme, prompts)]


def _spread(names: Sequence[str]) -> list[str]:
    """Of schemes the nearest, one in the middle, and the last: neighbours differ little."""
    return [*dict.fromkeys([*names[:1], *names[len(names) // 2 :][:1], *names[-1:]])]


def _bytes(plan: Plan, scheme: str, prompts: Product) -> int:
    """What the file would take in another scheme, as its format predicts."""
    from edgekit.formats import FORMATS
    from edgekit.tasks import TASKS

    output = TASKS[plan.recipe.task].OUTPUT
    options = replace(plan.options, scheme=scheme)
    model = made_model(plan, output, len(prompts.facts["labels"]))
    return FORMATS[plan.format].costs(model, output, [options])[0].file.value


def _on_grid(plan: Plan, scheme: str, prompts: Product) -> list[Change]:
    """Training on the grid of the artifact's scheme, or of the nearest that has one; none where the data has no train split."""
    trained = plan.settings.training.qad
    if trained is not None:
        return [*_longer("qad", trained), *([_BOTH] if trained.train == "scales" else [])]
    from edgekit.formats import FORMATS, finer
    from edgekit.tasks import TASKS

    output, data = TASKS[plan.recipe.task].OUTPUT, plan.recipe.data
    if OUTPUTS[output].generates and not (data.answer or data.messages):
        return []  # no answers to learn from
    model = made_model(plan, output, len(prompts.facts["labels"]))
    for name in (scheme, *finer(plan.format, output, scheme)[:1]):
        options: FormatOptions = replace(plan.options, scheme=name)
        # A scheme without a grid, a train split that is not there: no such rung.
        with suppress(EdgekitError):
            grid = FORMATS[plan.format].grid(model, options, output)
            sources(plan.recipe, ("train", "calibrate", "verify"))
            own = {} if name == plan.scheme else {"scheme": name}
            return [replace(change, options=own) for change in _trainings(grid)]
    return []


def _trainings(grid: Grid) -> list[Change]:
    """What may be trained on a grid."""
    makes, gain = ("qad", *_AFTER_STUDENT), "at the same bytes (benchmarks/qad.py: what it wins back)"
    whole = Change(
        name="train on the grid",
        gain=f"the student learns with the file's own numbers, {gain}",
        keys={"qad.epochs": 3},
        makes=makes,
    )
    try:
        grid.check("scales")
    except EdgekitError:
        return [whole]
    scales = Change(
        name="train the scales",
        gain=f"the file's own scales learn, its codes stay, {gain}",
        keys={"qad.train": "scales", "qad.epochs": 1},
        makes=makes,
    )
    return [scales, replace(whole, keys={"qad.train": "both", "qad.epochs": 3})]


def _longer(table: str, options: object) -> list[Change]:
    """Twice the epochs of a training, where there is one."""
    epochs = getattr(options, "epochs", None)
    if epochs is None:
        return []
    makes = {
        "teacher.finetune": ("finetune", "distill", "qad", *_AFTER_STUDENT),
        "distill": ("distill", "qad", *_AFTER_STUDENT),
        "qad": ("qad", *_AFTER_STUDENT),
    }[table]
    gain = "as far as the training ended by its epochs: it stops by itself where held-out rows gain nothing more"
    return [Change(name=f"train longer ({table})", gain=gain, keys={f"{table}.epochs": 2 * epochs}, makes=makes)]


def _depth(plan: Plan) -> int:
    """The blocks of the teacher."""
    from edgekit.tasks import TASKS

    # Of how many classes does not matter here.
    return trained_model(plan.settings, plan.teacher, TASKS[plan.recipe.task].OUTPUT, 2).layers


def _better_student(plan: Plan) -> list[Change]:
    """A student that is trained longer, and larger ones; nothing where the student is the teacher itself."""
    student = plan.recipe.student
    if student is None:
        return []
    found = _longer("distill", plan.settings.training.distill)
    makes = ("distill", "qad", *_AFTER_STUDENT)
    if student.kind == "ngrams":
        rows = 2 * (student.buckets or 20000)
        gain = f"fewer n-grams share a row; {36 * rows / 1e6:.2g} MB of table"
        return [*found, Change(name="a larger table", gain=gain, keys={"student.buckets": rows}, makes=makes)]
    layers, depth = _layers(plan), _depth(plan)
    if student.widths:
        gain = "as many heads, neurons and channels as the teacher's layers have"
        keys = {f"student.{key}": getattr(_sizes(plan), key) for key in student.widths}
        found.append(Change(name="as wide as the teacher", gain=gain, keys=keys, makes=makes))
    for more in sorted({min(depth, layers + max(1, layers // 2)), min(depth, 2 * layers)} - {layers}):
        gain = f"{more} of the teacher's {depth} blocks instead of {layers}; calls take about {more / layers:.2g} times as long"
        found.append(Change(name=f"{more} layers", gain=gain, keys=_of_layers(student, more, depth), makes=makes))
    return found


def _layers(plan: Plan) -> int:
    """The blocks of the student, the teacher's where there is none."""
    student = plan.recipe.student
    return _depth(plan) if student is None else student.layers or len(student.keep or ()) or _depth(plan)


def _sizes(plan: Plan) -> Sizes:
    """How wide the teacher is."""
    from edgekit.distill.sizes import find_widths
    from edgekit.tasks import TASKS

    teacher = trained_model(plan.settings, plan.teacher, TASKS[plan.recipe.task].OUTPUT, 2)
    widths = find_widths(teacher)
    assert widths is not None
    return widths.sizes(teacher.text_config, "teacher")


def _of_layers(student: Student, count: int, depth: int) -> dict[str, object]:
    """The key that makes a student of so many blocks, as the recipe says it."""
    if student.keep is None:
        return {"student.layers": count}
    from edgekit.distill.options import choose_blocks

    return {"student.keep": choose_blocks(depth, count, None, "student")}


def _fewer_bits(plan: Plan, report: Report, prompts: Product, *, smaller: bool) -> list[Change]:
    """Coarser schemes that take no more bytes; smaller: only those that take fewer."""
    from edgekit.formats import coarser
    from edgekit.tasks import TASKS

    names = coarser(plan.format, TASKS[plan.recipe.task].OUTPUT, report.artifact.scheme)
    there = _bytes(plan, report.artifact.scheme, prompts) if names else 0
    found = []
    for name in names:
        size = _bytes(plan, name, prompts)
        less = f"{human_bytes(size)} to keep and to read instead of {human_bytes(there)}"
        gain = less if size < there else "as many bytes, other products, which may be quicker"
        if size < there or (size == there and not smaller):
            found.append(
                Change(name=f"scheme {name}", gain=f"{gain}; accuracy is judged again", options={"scheme": name})
            )
    return found[:_SCHEMES]


def _teaches(plan: Plan) -> bool:
    """Whether a smaller student can be made: the data has a train split, and what ships is not a table of n-grams already."""
    try:
        sources(plan.recipe, ("train", "calibrate", "verify"))
    except EdgekitError:
        return False
    return plan.recipe.student is None or plan.recipe.student.kind != "ngrams"


def _fewer_blocks(plan: Plan) -> list[Change]:
    """A student of half the blocks."""
    if not _teaches(plan):
        return []
    student, depth = plan.recipe.student, _depth(plan)
    layers = _layers(plan)
    if layers <= 1:
        return []
    fewer = layers // 2
    gain = f"{fewer} blocks instead of {layers}: calls take about {fewer / layers:.2g} of the time"
    keys = _of_layers(student, fewer, depth) if student else {"student": {"layers": fewer}}
    return [Change(name=f"{fewer} layers", gain=gain, keys=keys, makes=("distill", "qad", *_AFTER_STUDENT))]


def _table(plan: Plan) -> list[Change]:
    """A table of n-grams instead of a transformer."""
    if plan.recipe.task != "text-classification" or not _teaches(plan):
        return []
    gain = "a table of n-grams: a tenth of a millisecond and less than a megabyte"
    keys: dict[str, object] = {"student": {"kind": "ngrams"}, "distill": {}}
    return [Change(name="n-grams", gain=gain, keys=keys, makes=("distill", "qad", *_AFTER_STUDENT))]


def rungs(plan: Plan, changes: Sequence[Change], prompts: Product, session: Session) -> list[tuple[Change, Rung]]:
    """The changes that can be built for the target, the one that takes the least time here first."""
    found = []
    for change in changes:
        with suppress(EdgekitError):
            made = change.applied(plan, needed_prompts(change, plan, prompts, session))
            by_step = seconds(made.estimate)
            time = sum(by_step.get(step, 0) for step in change.steps(made))
            found.append(
                (change, Rung(name=change.name, gain=change.gain, seconds=time, arguments=change.arguments(plan)))
            )
    return sorted(found, key=lambda pair: pair[1].seconds)


def needed_prompts(change: Change, plan: Plan, prompts: Product, session: Session) -> Product:
    """The prompts, with the train split where a change is the first to train something; EdgekitError where there is none."""
    recipe = changed(plan.recipe, change.keys)
    if needed_splits(recipe) == needed_splits(plan.recipe):
        return prompts
    quiet = replace(session, listener=Listener())
    return labelled(recipe, gather_prompts(recipe, quiet), quiet)


def propose(plan: Plan, report: Report, prompts: Product, session: Session) -> Recovery | None:
    """What may be done about a report's failure; None where nothing failed that a rung is for."""
    failures = find_failures(report, lambda check: is_wrong(check, strict=session.strict))
    if not failures:
        return None
    found = rungs(plan, find_changes(plan, report, failures, prompts), prompts, session)
    return Recovery(failures=failures, rungs=tuple(rung for _, rung in found))
