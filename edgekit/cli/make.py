"""The commands that make something whole: build, init."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import (
    complete_target,
    final_option,
    format_option,
    json_option,
    junit_option,
    open_session,
    output_of,
    read_recipe,
    recipe_options,
    scheme_option,
)
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.build import Built
    from edgekit.recipe import Recipe

# The keys of TASKS, written out because --help loads no table; a test compares them.
TASK_NAMES = ("text-classification", "feature-extraction", "text-generation")


@click.command()
@click.option(
    "-t", "--target", "target_names", multiple=True, required=True, shell_complete=complete_target,
    help="A target's name or .toml file; give it again for more.",
)  # fmt: skip
@recipe_options
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("dist"), show_default=True,
              help="Where bundles, archives and reports go.")  # fmt: skip
@format_option
@scheme_option
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; build nothing.")
@click.option("--fresh", is_flag=True, help="Measure again, even where nothing changed.")
@click.option("--strict", is_flag=True, help="Not proven counts as failed: exit code 3 and no archive.")
@final_option
@junit_option
def build(
    target_names: tuple[str, ...], recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None, as_json: bool,
    out: Path, formats: tuple[str, ...], schemes: tuple[str, ...], dry_run: bool, fresh: bool, strict: bool,
    final: bool, junit: Path | None,
) -> int:  # fmt: skip
    """Distill, calibrate, export, verify and package for one or many targets.

    \b
    Examples:
      edgekit build --example assistant --target raspberrypi
      edgekit build -r recipe.toml -t raspberrypi -t laptop-cpu --strict --json
      edgekit build -r chat.toml -t laptop-cpu --format onnx --format gguf
      edgekit build -r chat.toml -t laptop-cpu --scheme q8_0 --scheme q4_k_m
    """
    from edgekit.build import build as run
    from edgekit.build import choices, exit_code
    from edgekit.cli.dry_run import plan_build, plan_lines
    from edgekit.cli.junit import write_junit
    from edgekit.cli.reported import compared_lines
    from edgekit.cli.show import print_json
    from edgekit.report_compare import compare
    from edgekit.target import load_target

    session = open_session(cache, out, fresh=fresh, strict=strict, final=final)
    targets = [load_target(name) for name in dict.fromkeys(target_names)]
    recipe = read_recipe(recipe_path, overrides, falls_back=not (strict or as_json))
    wanted = choices([*dict.fromkeys(formats)], [*dict.fromkeys(schemes)], output_of(recipe))
    if dry_run:
        plans = plan_build(recipe, targets, session, wanted)
        if as_json:
            print_json({"plans": plans})
        else:
            for line in plan_lines(plans):
                click.echo(line)
        return 0
    click.echo(f"{recipe.name} for {', '.join(target.name for target in targets)}", err=True)
    built = run(recipe, targets, session, wanted)
    judged = [one for one in built if one.report]
    chosen = compare([one.report or {} for one in judged], [one.archive is not None for one in judged])
    code = exit_code(built, strict=strict)
    if junit is not None:
        write_junit(built, junit, strict=strict)
    if as_json:
        ship = [{**choice.facts(), **judged[choice.place].files()} for choice in chosen.ship]
        print_json({"bundles": [one.summary(strict=strict) for one in built], "ship": ship}, exit_code=code)
    else:
        for one in built:
            show_built(one)
        if len(chosen.rows) > 1:
            click.echo("\n" + "\n".join(compared_lines(chosen)))
    return code


def show_built(built: Built) -> None:
    """The table, the verdict and where everything lies, for one target."""
    from edgekit.cli.reported import reason_lines, report_lines
    from edgekit.cli.show import paint, paint_verdict
    from edgekit.report import verdict_text

    click.echo()
    if built.report is not None:
        for line in report_lines(built.report):
            click.echo(line)
        click.echo(f"\nverdict: {paint_verdict(str(built.report['verdict']), verdict_text(built.report))}")
    if built.bundle:
        click.echo(f"bundle:  {built.bundle}")
        click.echo(f"archive: {built.archive}")
    if built.evidence:
        click.echo(f"report:  {built.evidence.with_suffix('.html')}")
    if built.error:
        click.echo(paint(f"{built.target}: {built.error.message}", "red"), err=True)
    if reasons := reason_lines((built.report or {}).get("checks", ())):
        click.echo("\nwhat did not pass, why, and what to do (edgekit explain CHECK says more):")
        for line in reasons:
            click.echo(line)
    if built.bundle:
        click.echo("\nwhat to do next:")
        click.echo(f'  try it            edgekit run {shlex.quote(str(built.bundle))} "your own text"')
        click.echo(f"  embed it          {built.bundle / 'README.md'} has the three lines of Python")


@click.command()
@click.option("--task", type=click.Choice(TASK_NAMES), help="What the model does.")
@click.option(
    "--teacher", help="A folder, a hub id or package:NAME/FOLDER. [default: a small English encoder, to fine-tune]"
)
@click.option(
    "--data", "data", help="A file (CSV, TSV, JSON, JSONL, Parquet, txt), a folder with splits, or a datasets id."
)
@click.option("--text", "text_column", help="The column with the texts. [default: guessed from the file]")
@click.option("--label", "label_column", help="The column with the labels. [default: guessed from the file]")
@click.option("--messages", "messages_column", help="text-generation: the column with whole conversations.")
@click.option("--answer", "answer_column", help="text-generation: the column with the wanted answers.")
@click.option(
    "--group", "group_column", help="The column of what texts have in common: speaker, document, template, ticket."
)
@click.option("--delimiter", help="What is between the columns of a CSV file. [default: guessed]")
@click.option("--encoding", help="Of the files, such as cp1252. [default: guessed]")
@click.option("--drop-bad-rows", is_flag=True, help="Go on without the rows that cannot be read; they are counted.")
@click.option(
    "--layers", type=int, help="Distill a student of so many layers; without it the teacher itself is quantized."
)
@click.option("--finetune/--no-finetune", default=None, help="Fine-tune the teacher on the data first.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("recipe.toml"),
              show_default=True, help="The file to write.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a recipe that is there.")
@json_option
def init(
    task: str | None, teacher: str | None, data: str | None, text_column: str | None, label_column: str | None,
    messages_column: str | None, answer_column: str | None, group_column: str | None, delimiter: str | None,
    encoding: str | None, drop_bad_rows: bool, layers: int | None, finetune: bool | None, out: Path, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a recipe.toml for your own model and data, and check it. On a terminal, asks for what no flag gives.

    \b
    Examples:
      edgekit init --data tickets.csv
      edgekit init --task text-classification --teacher ./my-model --data tickets.csv
      edgekit init --task text-generation --teacher org/name --data chats.jsonl --messages messages
    """
    from edgekit.cli.show import print_json
    from edgekit.init import PROPOSED, Asked
    from edgekit.init import init as write

    if out.exists() and not force:
        raise EdgekitError(f"{out}: already there; --force replaces it, -o writes another")
    asks = sys.stdin.isatty()
    if task is None:
        task = click.prompt("Task", default=TASK_NAMES[0], type=click.Choice(TASK_NAMES)) if asks else TASK_NAMES[0]
    data = data or _ask("Data (file, folder or datasets id)", "--data", asks)
    if teacher is None and asks:
        teacher = click.prompt("Teacher (folder, hub id or package:NAME/FOLDER)", default=PROPOSED)
        finetune = True if teacher == PROPOSED and task == TASK_NAMES[0] else finetune
    if layers is None and asks:
        layers = click.prompt("Layers of the student (0: quantize the teacher itself)", default=0, type=int) or None
    if finetune is None and asks and task == "text-classification":
        finetune = click.confirm("Fine-tune the teacher on this data first?", default=False)
    columns = {"text": text_column, "label": label_column, "messages": messages_column, "answer": answer_column}
    asked = Asked(
        task=task, teacher=teacher, data=data, columns=columns | {"group": group_column}, delimiter=delimiter,
        encoding=encoding, layers=layers, finetune=bool(finetune), drop_bad_rows=drop_bad_rows,
    )  # fmt: skip
    written = write(out, asked, positions=_positions(Path(teacher)) if teacher else None, check=_check)
    if as_json:
        print_json({"recipe": str(out), "content": written.content, "found": written.lines})
        return
    for line in written.lines:
        click.echo(line)
    click.echo(f"wrote {out}; next: edgekit build --recipe {out} --target laptop-cpu --dry-run")


def _positions(teacher: Path) -> int | None:
    from edgekit.model import load_model

    return load_model(teacher).max_positions if (teacher / "config.json").is_file() else None


def _check(recipe: Recipe) -> Mapping[str, Any] | None:
    """Read data and teacher as a build would, where they lie here; what a hub has is left to the build.

    Returns what was found in the data.
    """
    from tempfile import TemporaryDirectory

    from edgekit.build import Listener, check_recipe, gather_prompts, is_local, needed_splits
    from edgekit.prompts import sources

    if not all(isinstance(place, Path) for place in sources(recipe, needed_splits(recipe)).values()):
        return None
    with TemporaryDirectory() as scratch:
        session = replace(open_session(Path(scratch), Path(scratch)), listener=Listener())
        prompts = gather_prompts(recipe, session)
        if is_local(recipe):
            check_recipe(recipe, prompts, session)
        return prompts.facts


def _ask(question: str, flag: str, asks: bool) -> str:
    if not asks:
        raise click.UsageError(f"Missing option '{flag}'.")
    return str(click.prompt(question))
