"""The commands that make something whole: build, run, init."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import complete_target, json_option, open_session, read_recipe, recipe_options
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.build import Built
    from edgekit.recipe import Recipe

# The keys of TASKS, written out because --help loads no table; a test compares them.
TASK_NAMES = ("text-classification", "feature-extraction")


@click.command()
@click.option(
    "-t", "--target", "target_names", multiple=True, required=True, shell_complete=complete_target,
    help="A target's name or .toml file; give it again for more.",
)  # fmt: skip
@recipe_options
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("dist"), show_default=True,
              help="Where bundles, archives and reports go.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; build nothing.")
@click.option("--fresh", is_flag=True, help="Measure again, even where nothing changed.")
@click.option("--strict", is_flag=True, help="Not proven counts as failed: exit code 3 and no archive.")
def build(
    target_names: tuple[str, ...], recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None, as_json: bool,
    out: Path, dry_run: bool, fresh: bool, strict: bool,
) -> int:  # fmt: skip
    """Distill, calibrate, export, verify and package for one or many targets.

    \b
    Examples:
      edgekit build --target raspberrypi
      edgekit build -r recipe.toml -t raspberrypi -t laptop-cpu --strict --json
    """
    from edgekit.build import build as run
    from edgekit.build import exit_code, gather_prompts, resolve
    from edgekit.cli.show import print_json
    from edgekit.target import load_target

    session = open_session(cache, out, fresh=fresh, strict=strict)
    targets = [load_target(name) for name in dict.fromkeys(target_names)]
    recipe = read_recipe(recipe_path, overrides)
    if dry_run:
        prompts = gather_prompts(recipe, session)
        plans = [resolve(recipe, target, prompts, session).describe() for target in targets]
        if as_json:
            print_json({"plans": plans})
        else:
            _show_plans(plans)
        return 0
    click.echo(f"{recipe.name} for {', '.join(target.name for target in targets)}", err=True)
    built = run(recipe, targets, session)
    if as_json:
        print_json({"bundles": [one.summary() for one in built]})
    else:
        for one in built:
            show_built(one)
    return exit_code(built, strict=strict)


def show_built(built: Built) -> None:
    """The table, the verdict and where everything lies, for one target."""
    from edgekit.cli.show import paint, paint_verdict
    from edgekit.report import terminal_table

    click.echo()
    if built.report is not None:
        for line in terminal_table(dict(built.report)):
            click.echo(line)
        click.echo(f"\nverdict: {paint_verdict(str(built.report['verdict']))}")
    if built.bundle:
        click.echo(f"bundle:  {built.bundle}")
        click.echo(f"archive: {built.archive}")
    if built.evidence:
        click.echo(f"report:  {built.evidence.with_suffix('.html')}")
    if built.error:
        click.echo(paint(f"{built.target}: {built.error.message}", "red"), err=True)
    if built.bundle:
        click.echo("\nwhat to do next:")
        click.echo(f'  try it            edgekit run {built.bundle} "your own text"')
        click.echo(f"  embed it          {built.bundle / 'README.md'} has the three lines of Python")
        for remedy in _remedies(built):
            click.echo(f"  prove the rest    {remedy}")


def _remedies(built: Built) -> list[str]:
    checks = (built.report or {}).get("checks", [])
    return list(
        dict.fromkeys(check["remedy"] for check in checks if check["verdict"] != "pass" and check.get("remedy"))
    )[:3]


def _show_plans(plans: Sequence[dict[str, Any]]) -> None:
    for plan in plans:
        guess = plan["estimate"]
        click.echo(f"{plan['recipe']} for {plan['target']} ({plan['task']})")
        click.echo(f"  teacher   {plan['teacher']}")
        click.echo(f"  steps     {' '.join(plan['steps'])}")
        click.echo(f"  export    {', '.join(f'{key} = {value}' for key, value in plan['export'].items())}")
        click.echo(
            f"  estimate  {guess['seconds']:.0f} s, {guess['memory_mb']:.0f} MB of memory, {guess['disk_mb']:.0f} MB of disk;"
            f" an artifact of about {guess['artifact_mb']:.1f} MB"
        )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1)
@click.option(
    "--file", "file", type=click.Path(path_type=Path), help="A file with one text a line; - for standard input."
)
@json_option
def run(bundle: Path, text: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Answer texts with a bundle, through the loader that ships in it.

    \b
    Examples:
      edgekit run dist/assistant-raspberrypi "turn on the kitchen light"
      edgekit run dist/assistant-raspberrypi --file texts.txt --json
    """
    from edgekit.build import run as answer
    from edgekit.cli.show import print_json
    from edgekit.schema import read_text

    if text and file:
        raise click.UsageError("Give texts or --file, not both.")
    if text:
        texts = list(text)
    elif file and str(file) != "-":
        texts = read_text(file).splitlines()
    elif not sys.stdin.isatty() or file:
        texts = sys.stdin.read().splitlines()
    else:
        raise click.UsageError("Give a text, --file, or texts on standard input.")
    answers = answer(bundle, texts)
    if as_json:
        print_json({"answers": [{"text": one, "answer": said} for one, said in zip(texts, answers, strict=True)]})
        return
    for one, said in zip(texts, answers, strict=True):
        click.echo(f"{_format_answer(said)}\t{one}")


def _format_answer(answer: Any) -> str:
    if isinstance(answer, dict) and "label" in answer:
        return f"{answer['label']}\t{answer['score']:.3f}"
    values = list(answer)
    return f"[{', '.join(f'{value:.4f}' for value in values[:4])}, ...] ({len(values)} numbers)"


@click.command()
@click.option("--task", type=click.Choice(TASK_NAMES), help="What the model does.")
@click.option("--teacher", help="A folder, a hub id or package:NAME/FOLDER.")
@click.option("--data", "data", help="A CSV, TSV, JSONL or Parquet file, a folder with splits, or a datasets id.")
@click.option("--text", "text_column", help="The column with the texts. [default: guessed from the file]")
@click.option("--label", "label_column", help="The column with the labels. [default: guessed from the file]")
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
    layers: int | None, finetune: bool | None, out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a recipe.toml for your own model and data, and check it. Asks for what no flag gives.

    \b
    Example:
      edgekit init --task text-classification --teacher ./my-model --data tickets.csv
    """
    from edgekit.cli.show import print_json
    from edgekit.recipe import init as write

    if out.exists() and not force:
        raise EdgekitError(f"{out}: already there; --force replaces it, -o writes another")
    asks = sys.stdin.isatty()
    if task is None:
        task = click.prompt("Task", default=TASK_NAMES[0], type=click.Choice(TASK_NAMES)) if asks else TASK_NAMES[0]
    teacher = teacher or _ask("Teacher (folder, hub id or package:NAME/FOLDER)", "--teacher", asks)
    data = data or _ask("Data (file, folder or datasets id)", "--data", asks)
    if layers is None and asks:
        layers = click.prompt("Layers of the student (0: quantize the teacher itself)", default=0, type=int) or None
    if finetune is None and asks and task == "text-classification":
        finetune = click.confirm("Fine-tune the teacher on this data first?", default=False)
    content = write(
        out, task=task, teacher=teacher, data=data, text=text_column, label=label_column, layers=layers,
        finetune=bool(finetune), check=_check_data,
    )  # fmt: skip
    if as_json:
        print_json({"recipe": str(out), "content": content})
        return
    click.echo(f"wrote {out}; next: edgekit build --recipe {out} --target laptop-cpu --dry-run")


def _check_data(recipe: Recipe) -> None:
    """Read data that lies here as a build would; what a hub has is left to the build."""
    from tempfile import TemporaryDirectory

    from edgekit.build import needed_splits
    from edgekit.prompts import gather, sources

    splits = needed_splits(recipe)
    if all(isinstance(place, Path) for place in sources(recipe, splits).values()):
        with TemporaryDirectory() as scratch:
            gather(recipe, splits, Path(scratch))


def _ask(question: str, flag: str, asks: bool) -> str:
    if not asks:
        raise click.UsageError(f"Missing option '{flag}'.")
    return str(click.prompt(question))
