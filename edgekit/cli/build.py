"""The command `build`: a recipe becomes a bundle for each target."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import (
    baseline_option,
    complete_target,
    device_option,
    export_option,
    exported_as,
    final_option,
    format_option,
    holding_out,
    junit_option,
    measure_options,
    measured_as,
    on_device,
    open_session,
    output_of,
    read_recipe,
    recipe_options,
    recover_option,
    scheme_option,
)

if TYPE_CHECKING:
    from edgekit.pipeline import Built


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
@export_option
@device_option
@measure_options
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; build nothing.")
@click.option("--fresh", is_flag=True, help="Measure again, even where nothing changed.")
@click.option("--strict", is_flag=True, help="Not proven counts as failed: exit code 3 and no archive.")
@recover_option
@final_option
@baseline_option
@junit_option
def build(
    target_names: tuple[str, ...], recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None, as_json: bool,
    out: Path, formats: tuple[str, ...], schemes: tuple[str, ...], dry_run: bool, fresh: bool, strict: bool,
    final: bool, baseline: Path | None, junit: Path | None, device: str | None, exports: tuple[str, ...],
    processes: int | None, sustained: float | None, sweep: bool, recover: float | None,
) -> int:  # fmt: skip
    """Distill, calibrate, export, verify and package for one or many targets.

    \b
    Examples:
      edgekit build --example assistant --target raspberrypi
      edgekit build -r recipe.toml -t raspberrypi --device ssh://pi@raspberrypi.local
      edgekit build -r recipe.toml -t raspberrypi -t laptop-cpu --strict --json
      edgekit build -r recipe.toml -t raspberrypi --student ngrams
      edgekit build -r chat.toml -t laptop-cpu --format onnx --format gguf
      edgekit build -r chat.toml -t laptop-cpu --scheme q8_0 --scheme q4_k_m
      edgekit build -r recipe.toml -t my-pi --sustained 600 --sweep
      edgekit build -r recipe.toml -t raspberrypi --recover 30
    """
    from edgekit.cli.dry_run import plan_build, plan_lines
    from edgekit.cli.junit import write_junit
    from edgekit.cli.reported import compared_lines
    from edgekit.cli.terminal import print_json
    from edgekit.pipeline import build as run
    from edgekit.pipeline import choices, exit_code
    from edgekit.report.comparison import compare
    from edgekit.target import load_target

    if recover is not None and final:
        raise click.UsageError("--recover chooses, and --final judges what nothing chooses any more: give one of them.")
    session = open_session(cache, out, fresh=fresh, strict=strict, final=final, baseline=baseline, recover=recover)
    targets = on_device([load_target(name) for name in dict.fromkeys(target_names)], device)
    targets = [measured_as(target, processes, sustained, sweep) for target in targets]
    recipe = holding_out(read_recipe(recipe_path, overrides, falls_back=not (strict or as_json)), recover)
    targets = [exported_as(target, recipe.task, exports, formats, schemes) for target in targets]
    wanted = choices([*dict.fromkeys(formats)], [*dict.fromkeys(schemes)], output_of(recipe))
    if dry_run:
        plans = plan_build(recipe, targets, session, wanted)
        if as_json:
            print_json({"plans": [foreseen.facts() for foreseen in plans]})
        else:
            for line in plan_lines(plans):
                click.echo(line)
        return 0
    click.echo(f"{recipe.name} for {', '.join(target.name for target in targets)}", err=True)
    built = run(recipe, targets, session, wanted)
    judged = [(bundle, bundle.report) for bundle in built if bundle.report]
    chosen = compare([report for _, report in judged], [bundle.archive is not None for bundle, _ in judged])
    code = exit_code(built, strict=strict)
    if junit is not None:
        write_junit(built, junit, strict=strict)
    if as_json:
        ship = [{**choice.facts(), **judged[choice.index][0].files()} for choice in chosen.ship]
        print_json({"bundles": [bundle.summary(strict=strict) for bundle in built], "ship": ship}, exit_code=code)
    else:
        for bundle in built:
            show_built(bundle)
        if len(chosen.rows) > 1:
            click.echo("\n" + "\n".join(compared_lines(chosen)))
    return code


def show_built(built: Built) -> None:
    """The table, the verdict and where everything lies, for one target."""
    from edgekit.cli.reported import reason_lines, recovery_lines, report_lines
    from edgekit.cli.tables import wrapped
    from edgekit.cli.terminal import paint, paint_verdict
    from edgekit.report import baseline_lines, control_lines, verdict_text

    click.echo()
    if built.report is not None:
        for line in report_lines(built.report):
            click.echo(line)
        click.echo(f"\nverdict: {paint_verdict(built.report.verdict, verdict_text(built.report))}")
        for line in (*baseline_lines(built.report), *control_lines(built.report)):
            click.echo("\n".join(wrapped(line, "         ", "         ")))
    if built.bundle:
        click.echo(f"bundle:  {built.bundle}")
        click.echo(f"archive: {built.archive}")
    if built.evidence:
        click.echo(f"report:  {built.evidence.with_suffix('.html')}")
    if built.tuning:
        click.echo(f"tuning:  {built.tuning}")
    if built.error:
        click.echo(paint(f"{built.target}: {built.error.message}", "red"), err=True)
    if reasons := reason_lines(built.report.checks if built.report else ()):
        click.echo("\nwhat did not pass, why, and what to do (edgekit explain CHECK says more):")
        for line in reasons:
            click.echo(line)
    if lines := recovery_lines(built.report) if built.report else []:
        click.echo("\n" + "\n".join(lines))
    if built.bundle:
        click.echo("\nwhat to do next:")
        click.echo(f'  try it            edgekit run {shlex.quote(str(built.bundle))} "your own text"')
        click.echo(f"  embed it          {built.bundle / 'README.md'} has the lines for an app")
