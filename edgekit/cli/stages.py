"""The stage commands: each is one step of a build, on folders that others made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import (
    baseline_option,
    final_option,
    format_option,
    junit_option,
    measure_options,
    measured_as,
    open_session,
    out_option,
    output_of,
    read_recipe,
    recipe_options,
    scheme_option,
    target_option,
)
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.pipeline import Plan, Session
    from edgekit.recipe import Recipe
    from edgekit.workspace import Product

folder = click.Path(path_type=Path)


@click.command()
@recipe_options
@out_option
def finetune(
    recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None, as_json: bool, out: Path
) -> None:  # fmt: skip
    """Fine-tune the recipe's teacher on the train split, or create it there from nothing.

    \b
    Example:
      edgekit finetune --recipe recipe.toml --out work/teacher
    """
    from edgekit import pipeline as spine

    recipe, prompts, session = _open(recipe_path, overrides, cache)
    if recipe.teacher.finetune is None and recipe.teacher.create is None:
        raise click.UsageError(f"{recipe.name} has no [teacher.finetune] table: its teacher is used as it is.")
    checked = spine.check_recipe(recipe, prompts, session)
    _keep_apart(out, checked.teacher)
    if checked.teacher is None:
        _done(spine.create(checked.settings, prompts, session, at=out), as_json)
        return
    _done(spine.finetune(checked.settings, checked.teacher, prompts, session, at=out), as_json)


@click.command()
@click.argument("teacher", type=folder)
@recipe_options
@out_option
def distill(
    teacher: Path, recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None, as_json: bool, out: Path
) -> None:  # fmt: skip
    """Distill the recipe's student from a TEACHER folder.

    \b
    Example:
      edgekit distill work/teacher --recipe recipe.toml --out work/student
    """
    from edgekit import pipeline as spine

    recipe, prompts, session = _open(recipe_path, overrides, cache)
    if recipe.student is None:
        raise click.UsageError(f"{recipe.name} has no [student] table: nothing is distilled.")
    _keep_apart(out, teacher)
    prompts = spine.answered(recipe, teacher, prompts, session)
    _done(spine.distill(spine.read_settings(recipe), teacher, prompts, session, at=out), as_json)


@click.command()
@click.argument("teacher", type=folder)
@click.argument("student", type=folder)
@target_option
@recipe_options
@out_option
@format_option
@scheme_option
def qad(
    teacher: Path, student: Path, target_name: str, recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None,
    as_json: bool, out: Path, formats: tuple[str, ...], schemes: tuple[str, ...],
) -> None:  # fmt: skip
    """Train STUDENT beside TEACHER with the weights that the target's file will hold (quantization-aware distillation).

    \b
    Example:
      edgekit qad work/teacher work/student -t raspberrypi --recipe recipe.toml --scheme q4_0 --out work/rounded
    """
    from edgekit import pipeline as spine

    recipe, prompts, session = _open(recipe_path, overrides, cache)
    if recipe.qad is None:
        raise click.UsageError(f"{recipe.name} has no [qad] table: its student is exported as it is.")
    _keep_apart(out, teacher, student)
    plan = _plan(recipe, target_name, prompts, session, formats, schemes)
    prompts = spine.answered(recipe, teacher, prompts, session)
    _done(spine.qad(plan, teacher, student, prompts, session, at=out), as_json)


@click.command()
@click.argument("teacher", type=folder, required=False)
@click.argument("student", type=folder, required=False)
@recipe_options
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="The folder to write, of TEACHER and STUDENT."
)
@click.option(
    "--with-student", is_flag=True, help="Without folders: also record the recipe's student, as a build does."
)
@final_option
def record(
    teacher: Path | None, student: Path | None, recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None,
    as_json: bool, out: Path | None, with_student: bool, final: bool,
) -> None:  # fmt: skip
    """Record what TEACHER and STUDENT answer in float: the reference of `verify`.

    Without folders: make the recordings of the recipe's teacher that are not there yet: what it says of the train split, its
    activations on calibrate, its answers to verify.

    \b
    Examples:
      edgekit record --recipe recipe.toml
      edgekit record work/teacher work/student --recipe recipe.toml --out work/reference
    """
    from edgekit import pipeline as spine

    if teacher is None:
        if out is not None:
            raise click.UsageError("--out is for TEACHER and STUDENT: the recipe's recordings are kept in the cache.")
        _record_splits(*_open(recipe_path, overrides, cache, final=final), with_student=with_student, as_json=as_json)
        return
    if student is None or out is None:
        raise click.UsageError("Give TEACHER, STUDENT and --out, or none of them to record the recipe's teacher.")
    if with_student:
        raise click.UsageError("--with-student is for the recipe's own student: leave out TEACHER and STUDENT.")
    recipe, prompts, session = _open(recipe_path, overrides, cache, final=final)
    _keep_apart(out, teacher, student)
    _done(spine.record(spine.read_settings(recipe), teacher, student, prompts, session, at=out).folder, as_json)


@click.command()
@click.argument("student", type=folder)
@recipe_options
@out_option
@click.option("--gradients", is_flag=True, help="Also what the scheme mixed weighs by (text-generation).")
def calibrate(
    student: Path, recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None, as_json: bool, out: Path,
    gradients: bool,
) -> None:  # fmt: skip
    """Collect the activation statistics of STUDENT on the calibrate split.

    \b
    Example:
      edgekit calibrate work/student --recipe recipe.toml --out work/calibration
    """
    from edgekit import pipeline as spine

    recipe, prompts, session = _open(recipe_path, overrides, cache)
    _keep_apart(out, student)
    product = spine.calibrate(spine.read_settings(recipe), student, prompts, session, at=out, gradients=gradients)
    _done(product.folder, as_json)


@click.command()
@click.argument("student", type=folder)
@click.argument("calibration", type=folder)
@target_option
@recipe_options
@out_option
@format_option
@scheme_option
def export(
    student: Path, calibration: Path, target_name: str, recipe_path: Path | None, overrides: tuple[str, ...],
    cache: Path | None, as_json: bool, out: Path, formats: tuple[str, ...], schemes: tuple[str, ...],
) -> None:  # fmt: skip
    """Export STUDENT with its CALIBRATION in the target's format and scheme.

    \b
    Example:
      edgekit export work/student work/calibration -t raspberrypi --recipe recipe.toml --out work/artifact
    """
    from edgekit import pipeline as spine
    from edgekit.workspace import open_product

    recipe, prompts, session = _open(recipe_path, overrides, cache)
    _keep_apart(out, student, calibration)
    plan = _plan(recipe, target_name, prompts, session, formats, schemes)
    _done(spine.export(plan, student, open_product(calibration, "calibrate"), prompts, session, at=out).folder, as_json)


@click.command()
@click.argument("artifact", type=folder)
@click.argument("reference", type=folder)
@target_option
@recipe_options
@out_option
@click.option("--student", type=folder, help="With --calibration: say how the calibration covers the prompts.")
@click.option("--calibration", type=folder, help="The folder of the student's `calibrate`.")
@click.option("--fresh", is_flag=True, help="Measure again, even where nothing changed.")
@click.option("--strict", is_flag=True, help="Not proven counts as failed: exit code 3.")
@measure_options
@final_option
@baseline_option
@junit_option
def verify(
    artifact: Path, reference: Path, target_name: str, recipe_path: Path | None, overrides: tuple[str, ...],
    cache: Path | None, as_json: bool, out: Path, student: Path | None, calibration: Path | None, fresh: bool, strict: bool,
    final: bool, baseline: Path | None, junit: Path | None, processes: int | None, sustained: float | None, sweep: bool,
) -> int:  # fmt: skip
    """Run ARTIFACT on the target's device and judge it against REFERENCE.

    ARTIFACT is the folder of an `export`, or an .onnx or .gguf file that something else made. REFERENCE is the folder of a
    `record`, or a checkpoint.

    \b
    Examples:
      edgekit verify work/artifact work/reference -t raspberrypi --recipe recipe.toml --out work/report
      edgekit verify model_quantized.onnx ./my-model -t laptop-cpu --recipe recipe.toml --out work/report
    """
    from edgekit import pipeline as spine
    from edgekit.cli.build import show_built
    from edgekit.cli.junit import write_junit
    from edgekit.cli.terminal import print_json
    from edgekit.evidence import read_report
    from edgekit.typed_json import to_table
    from edgekit.workspace import open_product

    if (student is None) != (calibration is None):
        raise click.UsageError("Give --student and --calibration together: neither says anything without the other.")
    recipe, prompts, session = _open(recipe_path, overrides, cache, baseline, fresh=fresh, strict=strict, final=final)
    _keep_apart(out, artifact, reference, student, calibration)
    plan = _plan(recipe, target_name, prompts, session)
    plan = replace(plan, target=measured_as(plan.target, processes, sustained, sweep))
    checked = spine.open_artifact(plan, artifact, reference, prompts, session)
    recorded = spine.open_reference(spine.read_settings(recipe), reference, prompts, session)
    covering = None
    if student is not None and calibration is not None:
        covering = spine.Covering(student=student, calibration=open_product(calibration, "calibrate"))
    product = spine.verify(plan, checked, recorded, prompts, session, covering=covering, at=out)
    report, built = read_report(product.folder), spine.held(plan, product, session)
    code = spine.exit_code([built], strict=strict)
    if junit is not None:
        write_junit([built], junit, strict=strict)
    if as_json:
        told = {"verdict": report.verdict, "report": str(built.evidence), "content": to_table(report)}
        against = {"against": to_table(built.against)} if built.against else {}
        print_json({**told, **against}, exit_code=code)
    else:
        show_built(built)
    return code


@click.command()
@click.argument("artifact", type=folder)
@click.argument("report", type=folder)
@target_option
@recipe_options
@out_option
@format_option
@scheme_option
@click.option("--strict", is_flag=True, help="Not proven counts as failed: exit code 3 and no archive.")
@final_option
def package(
    artifact: Path, report: Path, target_name: str, recipe_path: Path | None, overrides: tuple[str, ...], cache: Path | None,
    as_json: bool, out: Path, formats: tuple[str, ...], schemes: tuple[str, ...], strict: bool, final: bool,
) -> None:  # fmt: skip
    """Package ARTIFACT, which REPORT judged, as a bundle and an archive.

    \b
    Example:
      edgekit package work/artifact work/report -t raspberrypi --recipe recipe.toml --out dist
    """
    from edgekit import pipeline as spine
    from edgekit.cli.build import show_built
    from edgekit.cli.terminal import print_json
    from edgekit.workspace import open_product

    recipe, prompts, session = _open(recipe_path, overrides, cache, out=out, strict=strict, final=final)
    _keep_apart(out / "NAME", artifact, report)
    plan = _plan(recipe, target_name, prompts, session, formats, schemes)
    built = spine.package(plan, open_product(artifact, "export"), open_product(report, "verify"), prompts, session)
    if as_json:
        print_json({"bundles": [built.summary()]})
    else:
        show_built(built)


COMMANDS = (finetune, distill, qad, record, calibrate, export, verify, package)


def _open(
    recipe_path: Path | None,
    overrides: tuple[str, ...],
    cache: Path | None,
    baseline: Path | None = None,
    out: Path = Path("dist"),
    **options: bool,
) -> tuple[Recipe, Product, Session]:
    from edgekit.pipeline import check_recipe, gather_prompts, labelled

    recipe = read_recipe(recipe_path, overrides)
    session = open_session(cache, out, baseline=baseline, **options)
    prompts = gather_prompts(recipe, session)
    if recipe.labelling is not None:
        check_recipe(recipe, prompts, session)
    return recipe, labelled(recipe, prompts, session), session


def _record_splits(recipe: Recipe, prompts: Product, session: Session, *, with_student: bool, as_json: bool) -> None:
    """Make and show the recordings of a recipe."""
    from edgekit import pipeline as spine
    from edgekit.cli.tables import table_lines
    from edgekit.cli.terminal import print_json
    from edgekit.typed_json import to_table

    if with_student and recipe.student is None:
        raise click.UsageError(f"{recipe.name} has no [student] table: leave out --with-student.")
    checked = spine.check_recipe(recipe, prompts, session)
    found = spine.record_splits(checked, prompts, session, with_student=with_student)
    if as_json:
        print_json({"recordings": [to_table(one) for one in found]})
        return
    head = ["split", "of", "is", "rows", "tokens", "bytes", "model", "tokenizer", "template", "data", "folder"]
    rows = [
        [
            one.split,
            one.of,
            "made" if one.made else "kept",
            f"{one.rows:,}",
            "-" if one.tokens is None else f"{one.tokens:,}",
            f"{one.bytes:,}",
            *("-" if digest is None else digest[:8] for digest in (one.model, one.tokenizer, one.template, one.data)),
            one.folder,
        ]
        for one in found
    ]
    for line in table_lines([head, *rows], right={3, 4, 5}):
        click.echo(line)


def _keep_apart(out: Path, *inputs: Path | None) -> None:
    """Refuse an --out that is, holds or lies in a folder that the step reads: its product would replace or change that."""
    place = out.resolve()
    for one in inputs:
        source = one.resolve() if one is not None else None
        if source is not None and (place.is_relative_to(source) or source.is_relative_to(place)):
            raise EdgekitError(f"{out}: --out would change {one}, which this step reads; choose another folder")


def _plan(
    recipe: Recipe,
    target_name: str,
    prompts: Product,
    session: Session,
    formats: Sequence[str] = (),
    schemes: Sequence[str] = (),
) -> Plan:
    from edgekit.pipeline import check_recipe, check_room, choices, plan_for
    from edgekit.target import load_target

    wanted = choices(formats, schemes, output_of(recipe))
    if len(wanted) > 1:
        raise click.UsageError("One format and one scheme: a stage makes one artifact.")
    plan = plan_for(check_recipe(recipe, prompts, session), load_target(target_name), prompts, session, wanted[0])
    check_room(plan, session)
    return plan


def _done(made: Path, as_json: bool) -> None:
    from edgekit.cli.terminal import print_json

    if as_json:
        print_json({"folder": str(made)})
    else:
        click.echo(str(made))
