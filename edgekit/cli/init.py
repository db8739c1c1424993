"""The command `init`: a first recipe for a user's own data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import (
    json_option,
    open_session,
)
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.recipe import Recipe

# The keys of TASKS, written out because --help loads no table; a test compares them.
TASK_NAMES = ("text-classification", "feature-extraction", "text-generation")


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
    from edgekit.cli.terminal import print_json
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


def _check(recipe: Recipe) -> Mapping[str, object] | None:
    """Read data and teacher as a build would, where they lie here; what a hub has is left to the build.

    Returns what was found in the data.
    """
    from tempfile import TemporaryDirectory

    from edgekit.pipeline import Listener, check_recipe, gather_prompts, is_local, needed_splits
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
