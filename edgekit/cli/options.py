"""The options that commands share, and what they become."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from edgekit.build import Session
    from edgekit.recipe import Recipe

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


recipe_option = click.option(
    "-r",
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="A recipe.toml or its folder. [default: recipe.toml here, else the packaged example]",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as distill.epochs=3.",
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
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="EDGEKIT_CACHE",
    show_envvar=True,
    help="Where finished steps are kept. [default: .edgekit]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def recipe_options(command: F) -> F:
    """--recipe, --set, --cache and --json."""
    for option in (json_option, cache_option, set_option, recipe_option):
        command = option(command)
    return command


def read_recipe(path: Path | None, overrides: tuple[str, ...]) -> Recipe:
    """The recipe that the options name."""
    from edgekit.recipe import default_recipe, load_recipe

    return load_recipe(path or default_recipe(), overrides)


def open_session(cache: Path | None, out: Path, **options: bool) -> Session:
    """A session that shows its progress on standard error."""
    from edgekit.build import Session
    from edgekit.cli.show import Terminal
    from edgekit.workspace import Workspace

    root = cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit"))
    return Session(workspace=Workspace(root), out=out, listener=Terminal(), **options)
