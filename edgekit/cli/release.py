"""The commands `release`, `verify-release` and `push`: a bundle as somebody else gets it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

from edgekit.cli.options import cache_option, json_option
from edgekit.errors import CheckFailed, EdgekitError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--sign",
    "key",
    metavar="KEY",
    help="Sign with a private key in PEM; env: the one in $EDGEKIT_SIGNING_KEY; keyless.",
)
@click.option("--certificate", type=click.Path(path_type=Path), help="The certificate of the key, in PEM.")
@click.option(
    "--chain", type=click.Path(path_type=Path), multiple=True, help="A certificate that vouches for it; repeatable."
)
@click.option("--report", "reports", type=click.Path(path_type=Path), multiple=True,
              help="What verify measured; again for more devices. [default: the report beside the bundle]")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The folder to write. [default: BUNDLE.release]")
@click.option("--builder", metavar="URI", help="Who built it, for the provenance.")
@click.option("--measured-at", metavar="DATE", help="When it was measured, where this machine's history does not know.")
@click.option("--policy", type=click.Path(path_type=Path), help="A policy.toml that the release must keep.")
@click.option(
    "--check", "checks", is_flag=True, help="BUNDLE is a release: make it again, and name the first difference."
)
@click.option(
    "-r", "--recipe", "recipe_path", type=click.Path(path_type=Path), help="With --check: build the bundle too."
)
@cache_option
@json_option
def release(
    bundle: Path,
    key: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    reports: tuple[Path, ...],
    out: Path | None,
    builder: str | None,
    measured_at: str | None,
    policy: Path | None,
    checks: bool,
    recipe_path: Path | None,
    cache: Path | None,
    as_json: bool,
) -> int:
    """Make a release of a bundle: signed, with its bill of materials, provenance, evidence and notices.

    BUNDLE is a bundle's folder or archive. The release is one folder, the same bytes for the same bundle and reports but for the
    signature. A key's password is taken from $EDGEKIT_SIGNING_PASSWORD.

    \b
    Examples:
      edgekit release dist/assistant-raspberrypi --sign key.pem
      edgekit release dist/chat-laptop-cpu --sign env --report pi.report.json --report laptop.report.json
    """
    from edgekit.cli.terminal import print_json
    from edgekit.release.policy import measured
    from edgekit.release.signature import Signer
    from edgekit.release.statements import BUILDER
    from edgekit.release.write import ReleaseInputs, gather
    from edgekit.release.write import release as write

    kept = cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit"))
    if checks or recipe_path is not None:
        return _check(bundle, kept, recipe_path, checks=checks, as_json=as_json)
    if certificate is None and chain:
        raise EdgekitError("--chain: vouches for a certificate; name that one too: --certificate CERT.pem")
    if key is None and certificate is not None:
        raise EdgekitError("--certificate: signs with its key; name that one too: --sign KEY.pem")
    if measured_at is not None:
        measured(measured_at)
    place = out or bundle.with_name(f"{bundle.name.removesuffix('.tar.gz')}.release")
    inputs = ReleaseInputs(
        bundle=bundle,
        evidence=gather(bundle, reports, measured_at),
        cache=kept,
        signer=Signer(key=key, certificate=certificate, chain=chain) if key else None,
        builder=builder or BUILDER,
        policy=policy,
    )
    made = write(inputs, place)
    if as_json:
        told = {"files": sorted(made.files), "verdict": made.verdict, "signed": key is not None, "digest": made.digest}
        print_json({"release": str(place), **told})
        return 0
    click.echo(f"{place}: {len(made.files)} files, verdict: {made.verdict}, {'signed' if key else 'unsigned'}")
    if key is None:
        click.echo("nobody vouches for it yet: sign it with --sign KEY.pem", err=True)
    return 0


def _check(folder: Path, cache: Path, recipe_path: Path | None, *, checks: bool, as_json: bool) -> int:
    """Make a release again and show what came of it; 3 where something differs."""
    if not checks:
        raise EdgekitError("--recipe: builds a release's bundle again; name the release with --check")
    from edgekit.cli.terminal import print_json
    from edgekit.release.check import check
    from edgekit.typed_json import to_table

    found = check(folder, cache, partial(_build_again, folder, recipe_path) if recipe_path else None)
    code = CheckFailed.exit_code if found.difference else 0
    if as_json:
        print_json({"release": str(folder), **to_table(found)}, exit_code=code)
        return code
    for line in found.not_remade:
        click.echo(f"not made again: {line}")
    if found.difference:
        raise CheckFailed(f"{folder}: {found.difference}")
    click.echo(f"{folder}: {len(found.same)} files made again, the same bytes")
    return code


def _build_again(folder: Path, recipe_path: Path, scratch: Path) -> Path:
    """The bundle of a release, built from its recipe with a cache of its own."""
    from edgekit.bundle.open import open_bundle
    from edgekit.cli.options import open_session
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    manifest = open_bundle(folder / "bundle").manifest
    plain = manifest.name == f"{manifest.recipe}-{manifest.target}"
    wanted = (None, None) if plain else (manifest.artifact.format, manifest.artifact.scheme)
    session = open_session(scratch / "cache", scratch / "dist")
    (built,) = build(load_recipe(recipe_path), [load_target(manifest.target)], session, [wanted])
    if built.bundle is None:
        raise built.error or EdgekitError(f"{recipe_path}: no bundle came of it")
    return built.bundle


@click.command("verify-release")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="The public key, in PEM, of who must have signed.")
@click.option("--certificate", "certificates", type=click.Path(path_type=Path), multiple=True,
              help="A certificate that must vouch for who signed; again for more.")  # fmt: skip
@click.option("--identity", help="Who must have signed without a key, as sigstore's certificate names them.")
@click.option("--issuer", metavar="URL", help="Who vouches for that identity.")
@click.option("--policy", type=click.Path(path_type=Path), help="A policy.toml that it must keep, today.")
@click.option(
    "--unsigned", is_flag=True, help="Leave the signature out: whether files fit together, not whose they are."
)
@json_option
def verify_release(
    folder: Path,
    key: Path | None,
    certificates: tuple[Path, ...],
    identity: str | None,
    issuer: str | None,
    policy: Path | None,
    unsigned: bool,
    as_json: bool,
) -> int:
    """Verify a release offline: its files, bundle, bill of materials, statements, evidence and signature.

    Every fault is a line; exit code 3 where there is one.

    \b
    Examples:
      edgekit verify-release dist/assistant-raspberrypi.release --key key.pub
      edgekit verify-release dist/assistant-raspberrypi.release --certificate root.pem
    """
    from edgekit.cli.terminal import print_json
    from edgekit.release.policy import read_policy
    from edgekit.release.signature import Trusted
    from edgekit.release.verify import find_faults

    if sum((key is not None, bool(certificates), identity is not None, unsigned)) != 1:
        raise EdgekitError(
            "name who must have signed: --key KEY.pub, --certificate ROOT.pem, or --identity; or --unsigned"
        )
    if (identity is None) != (issuer is None):
        raise EdgekitError("--identity and --issuer go together: who signed, and who vouches for them")
    trusted = None if unsigned else Trusted(key=key, certificates=certificates, identity=identity, issuer=issuer)
    faults = find_faults(folder, trusted, policy=read_policy(policy) if policy else None)
    code = CheckFailed.exit_code if faults else 0
    if as_json:
        print_json(
            {"release": str(folder), "faults": faults, "signature": "not asked" if unsigned else "asked"},
            exit_code=code,
        )
        return code
    for fault in faults:
        click.echo(fault)
    if faults:
        raise CheckFailed(
            f"{folder}: {len(faults)} fault{'s' if len(faults) > 1 else ''}: do not use it, fetch it again"
        )
    click.echo(f"{folder}: whole{'' if unsigned else ', and signed by who was named'}")
    return 0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("address")
@json_option
def push(folder: Path, address: str, as_json: bool) -> None:
    """Push a release to an OCI registry, an OCI layout on disk, or the Hugging Face Hub.

    ADDRESS is HOST/REPOSITORY:TAG; oci:FOLDER:TAG; hf:OWNER/NAME; or hf-folder:FOLDER. A registry's credentials are those of
    `docker login`, or $EDGEKIT_REGISTRY_USER and $EDGEKIT_REGISTRY_PASSWORD. A push that was cut off goes on where it was.

    \b
    Examples:
      edgekit push dist/assistant-raspberrypi.release registry.example.org/team/assistant:1.0
      edgekit push dist/assistant-raspberrypi.release oci:layout:1.0
    """
    from edgekit.cli.terminal import print_json
    from edgekit.release.publish import publish

    name = publish(folder, address, lambda line: click.echo(line, err=True))
    if as_json:
        print_json({"release": str(folder), "address": address, "name": name})
    else:
        click.echo(f"{address}: {name}")
