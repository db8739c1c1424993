"""The options that commands share, and what they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from edgekit.cli.terminal import Terminal
    from edgekit.pipeline import Session
    from edgekit.recipe import Recipe
    from edgekit.target import Target

# The keys of FORMATS, written out because --help loads no table; a test compares them.
FORMAT_NAMES = ("onnx", "gguf")
# The folders of examples/ that hold a recipe, written out because --help reads no files; a test compares them.
EXAMPLES = ("assistant", "chat", "code-completion", "stories")
# The keys of PLATFORMS; a test compares them.
PLATFORM_NAMES = ("python", "node", "electron", "web", "c", "android", "ios")
_EXAMPLE = "edgekit.example"
# Kinds of student that need no more than their name; a test compares them with the recipe's.
STUDENT_KINDS = ("ngrams",)
_STUDENT = "edgekit.student"
# Of the train rows, for a recipe that names no recovery split; and how long --recover goes on where it is not told.
HELD_OUT = 0.1
RECOVER_MINUTES = 30
F = TypeVar("F", bound=Callable[..., Any])


def complete_target(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The targets whose names begin so."""
    from click.shell_completion import CompletionItem

    from edgekit.target import find_targets

    return [CompletionItem(name) for name in find_targets() if name.startswith(incomplete)]


def complete_check(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The checks whose names begin so."""
    from click.shell_completion import CompletionItem

    from edgekit.verify.explain import EXPLANATIONS

    return [CompletionItem(name) for name in EXPLANATIONS if name.startswith(incomplete)]


def complete_scheme(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The schemes whose names begin so."""
    from click.shell_completion import CompletionItem

    from edgekit.formats import FORMATS

    known = {scheme for format_ in FORMATS.values() for schemes in format_.SCHEMES.values() for scheme in schemes}
    return [CompletionItem(name) for name in sorted(known) if name.startswith(incomplete)]


recipe_option = click.option(
    "-r",
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="A recipe.toml or its folder. [default: recipe.toml here]",
)
example_option = click.option(
    "--example",
    type=click.Choice(EXAMPLES),
    expose_value=False,
    callback=lambda ctx, _param, value: ctx.meta.update({_EXAMPLE: value}),
    help="A recipe that comes with edgekit, instead of one of yours.",
)
student_option = click.option(
    "--student",
    "student_kind",
    type=click.Choice(STUDENT_KINDS),
    expose_value=False,
    callback=lambda ctx, _param, value: ctx.meta.update({_STUDENT: value}),
    help="Teach this kind of student, as it is taught by default, instead of what the recipe says of student and distill.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as distill.epochs=3.",
)
format_option = click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMAT_NAMES),
    help="Build this format instead of the target's own; give it again to compare.",
)
scheme_option = click.option(
    "--scheme",
    "schemes",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_scheme,
    help="Build this scheme (q5_k_m, w8, ...) instead of the target's own; give it again to compare.",
)
export_option = click.option(
    "--export",
    "exports",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override an option of the target's export table, such as float_layers=4.",
)
device_option = click.option(
    "--device",
    metavar="URL",
    help="Measure on this device, with one target: ssh://user@host:port, adb:, adb:SERIAL, browser: or browser://own.",
)


def measure_options(command: F) -> F:
    """--processes, --sustained and --sweep, over the target's [measure] table: see `measured_as`."""
    options = (
        click.option(
            "--sweep", is_flag=True, help="Also find the best threads and cores, for NAME.tuning.json beside the archive."
        ),
        click.option(
            "--sustained", type=click.FloatRange(min=0, min_open=True, max=3000), metavar="SECONDS",
            help="Also call without a pause for so long, and show the curve with temperature and clock.",
        ),
        click.option(
            "--processes", type=click.IntRange(5, 64), metavar="N",
            help="Time in so many processes at most, to prove a limit that is nearly reached. [default: 8]",
        ),
    )  # fmt: skip
    for option in options:
        command = option(command)
    return command


def measured_as(target: Target, processes: int | None, sustained: float | None, sweep: bool) -> Target:
    """The target with what --processes, --sustained and --sweep ask for, where they do."""
    asked = target.measure
    return replace(
        target,
        measure=replace(
            asked,
            processes=processes or asked.processes,
            sustained_s=sustained or asked.sustained_s,
            sweep=sweep or asked.sweep,
        ),
    )


def holding_out(recipe: Recipe, recover: float | None) -> Recipe:
    """The recipe with a recovery split, where --recover needs one and it names none: a share of the train rows."""
    if recover is None or recipe.data.recover is not None:
        return recipe
    click.echo(f"--recover: {HELD_OUT:.0%} of the train rows are held out to choose by (data.recover)", err=True)
    return replace(recipe, data=replace(recipe.data, recover=HELD_OUT))


def exported_as(
    target: Target, task: str, exports: Sequence[str], formats: Sequence[str], schemes: Sequence[str]
) -> Target:
    """The target with what --export asks of a task's table, where it does.

    Raises UsageError where it goes with several formats, or with a scheme of another format than the target's; EdgekitError for
    what is no KEY=VALUE.
    """
    if not exports:
        return target
    if len({*formats}) > 1:
        raise click.UsageError("--export goes with one --format: formats have other options.")
    from edgekit.pipeline import check_target
    from edgekit.recipe import read_override
    from edgekit.target import with_export

    own, _ = check_target(target, task)
    for scheme in () if formats else schemes:
        found, _ = check_target(target, task, None, scheme)
        if found != own:
            raise click.UsageError(
                f"--export changes {target.name}'s table of {own}, but --scheme {scheme} is of {found}: add --format {found}."
            )

    changes = dict(read_override("--export", one, "float_layers=4") for one in exports)
    return with_export(target, task, changes, formats[0] if formats else None)


recover_option = click.option(
    "--recover",
    type=click.FloatRange(min=0, min_open=True),
    is_flag=False,
    flag_value=RECOVER_MINUTES,
    metavar="[MINUTES]",
    help=f"Where the gate fails, try what the report proposes for so many minutes ({RECOVER_MINUTES} without a number).",
)
baseline_option = click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Earlier measurements (of `edgekit history`): exit code 3 where it is slower or less accurate than the last of them.",
)
junit_option = click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the checks as a JUnit XML file, for a CI system to show.",
)
# Kept beside the parameters, so that a command need not hand it on.
_DROP_BAD_ROWS = "edgekit.drop_bad_rows"


def _remember_drop(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[_DROP_BAD_ROWS] = value


drop_bad_rows_option = click.option(
    "--drop-bad-rows",
    is_flag=True,
    expose_value=False,
    callback=_remember_drop,
    help="Go on without the rows of the data that cannot be read; they are counted.",
)
target_option = click.option(
    "-t",
    "--target",
    "target_name",
    required=True,
    shell_complete=complete_target,
    help="A target's name or .toml file.",
)
out_option = click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write."
)
final_option = click.option(
    "--final", is_flag=True, help="Judge on the prompts of data.final, which nothing else reads, instead of on verify."
)
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="EDGEKIT_CACHE",
    show_envvar=True,
    help="Where finished steps are kept. [default: .edgekit]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def recipe_options(command: F) -> F:
    """--recipe, --example, --student, --set, --drop-bad-rows, --cache and --json."""
    shared = (
        json_option,
        cache_option,
        drop_bad_rows_option,
        set_option,
        student_option,
        example_option,
        recipe_option,
    )
    for option in shared:
        command = option(command)
    return command


def read_recipe(path: Path | None, overrides: tuple[str, ...], *, falls_back: bool = False) -> Recipe:
    """The recipe that the options name, else recipe.toml of this folder.

    falls_back: where there is neither, take the packaged assistant and say so. Raises EdgekitError where no recipe is named and
    none is here, and UsageError where two are named.
    """
    from edgekit.recipe import load_recipe, packaged

    example = click.get_current_context().meta.get(_EXAMPLE)
    if example is not None:
        if path is not None:
            raise click.UsageError("Give --recipe or --example, not both.")
        path = packaged(f"examples/{example}/recipe.toml")
    if path is None and Path("recipe.toml").is_file():
        path = Path("recipe.toml")
    if path is None:
        path = _fall_back(falls_back)
    if click.get_current_context().meta.get(_DROP_BAD_ROWS):
        overrides = (*overrides, 'data.bad_rows="drop"')
    if student := click.get_current_context().meta.get(_STUDENT):
        overrides = (f'student={{kind="{student}"}}', "distill={}", *overrides)
    return load_recipe(path, overrides)


def on_device(targets: Sequence[Target], url: str | None) -> list[Target]:
    """The targets, measured on the device that --device names where it does.

    Raises UsageError where one device would have to be several targets, EdgekitError for what is no device's address.
    """
    if url is None:
        return [*targets]
    if len(targets) > 1:
        raise click.UsageError("--device goes with one --target: a device is one machine.")
    from edgekit.devices import device_table

    return [replace(targets[0], device=device_table(url))]


def output_of(recipe: Recipe) -> str:
    """What the recipe's task answers with: the OUTPUT of its entry in TASKS."""
    from edgekit.schema import pick
    from edgekit.tasks import TASKS

    return pick(TASKS, recipe.task, f"{recipe.path}: task").OUTPUT


def _fall_back(allowed: bool) -> Path:
    """The packaged assistant's recipe, loudly; EdgekitError where it may not be taken, or the user's has another name."""
    from edgekit.recipe import find_recipes, packaged

    found = find_recipes(Path())
    if found:
        named = ", ".join(str(one) for one in found[:3])
        raise EdgekitError(f"no recipe.toml here, but found {named}: did you mean --recipe {found[0]}?")
    if not allowed:
        raise EdgekitError(
            "no recipe.toml here: name a recipe (--recipe FILE), or take a packaged one by its name (--example assistant);"
            " `edgekit init` writes your own"
        )
    told = "no recipe.toml here: this builds the PACKAGED EXAMPLE, a voice assistant (--example assistant)"
    click.echo(f"{told}; your own: edgekit init", err=True)
    return packaged("examples/assistant/recipe.toml")


def open_listener() -> Terminal:
    """What shows progress on standard error until the command ends."""
    from edgekit.cli.terminal import Terminal

    terminal = Terminal()
    if context := click.get_current_context(silent=True):
        context.call_on_close(terminal.close)
    return terminal


def open_session(
    cache: Path | None,
    out: Path,
    *,
    fresh: bool = False,
    strict: bool = False,
    final: bool = False,
    baseline: Path | None = None,
    recover: float | None = None,
) -> Session:
    """A session that shows its progress on standard error. baseline: a file or folder of the history. recover: minutes."""
    from edgekit.history import read
    from edgekit.pipeline import Session
    from edgekit.workspace import Workspace

    workspace = Workspace(cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit")))
    earlier = tuple(read(baseline)) if baseline else ()
    shown = open_listener()
    return Session(
        workspace=workspace,
        out=out,
        listener=shown,
        fresh=fresh,
        strict=strict,
        final=final,
        baseline=earlier,
        recover=recover,
    )
