"""Two bundles paired by what verify kept of each prompt's answer: counted here by hand, and by a second route through the archive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import gate
from edgekit.bundle.embed import embed
from edgekit.bundle.package import Lineage, PackageInputs, package
from edgekit.diff import diff
from edgekit.diff.sides import open_side
from edgekit.errors import EdgekitError
from edgekit.outcomes import FILE, Outcomes, read_outcomes
from edgekit.release.write import ReleaseInputs, gather, release
from edgekit.workspace import file_sha256
from tests.artifacts import LABELS, make_report, make_target
from tests.cli.test_json import read
from tests.conftest import Answer

Command = Callable[..., Answer]
COUNT = 120
TRUTH = [LABELS[index % 3] for index in range(COUNT)]


def answer(wrong: set[int]) -> tuple[str, ...]:
    return tuple(LABELS[(index + (index in wrong)) % 3] for index in range(COUNT))


def outcomes_of(bundle: Path, wrong: set[int], **changes: Any) -> Outcomes:
    """Of a classifier that is wrong about these prompts; every fifth prompt has no label."""
    answers = answer(wrong)
    right = [None if index % 5 == 0 else answers[index] == TRUTH[index] for index in range(COUNT)]
    made = Outcomes(
        artifact=file_sha256(bundle / "model.onnx"),
        prompts=tuple(f"{index:016x}" for index in range(COUNT)),
        groups=tuple(range(COUNT)),
        right=tuple(right),
        answers=answers,
    )
    return replace(made, **changes)


@pytest.fixture
def pair(a: Path, b: Path, tmp_path: Path) -> Callable[[Outcomes | None, Outcomes | None], tuple[Path, Path]]:
    """Both bundles with these outcomes beside them."""

    def lay(mine: Outcomes | None, theirs: Outcomes | None) -> tuple[Path, Path]:
        for bundle, outcomes in ((a, mine), (b, theirs)):
            shutil.copytree(bundle, tmp_path / bundle.name, dirs_exist_ok=True)
            path = tmp_path / f"{bundle.name}.outcomes.json"
            path.unlink(missing_ok=True)
            if outcomes is not None:
                path.write_text(outcomes.to_json())
        return tmp_path / "a", tmp_path / "b"

    return lay


Pair = Callable[[Outcomes | None, Outcomes | None], tuple[Path, Path]]


def test_prompts_are_paired_by_their_hashes(a: Path, b: Path, pair: Pair, command: Command) -> None:
    """B lists them in another order; what each alone gets right is counted by hand, the bounds are Tango's of those counts."""
    lost, gained, both = {1, 2, 3, 4, 6, 5}, {11}, {21, 22}
    mine, theirs = outcomes_of(a, gained | both), outcomes_of(b, lost | both)
    back = {name: tuple(reversed(getattr(theirs, name))) for name in ("prompts", "groups", "right", "answers")}
    sides = pair(mine, replace(theirs, **back))
    found = diff(*map(open_side, sides), asks=False).verified
    assert found is not None
    # 5 has no label; of those in both, both are wrong.
    labelled = COUNT - COUNT // 5
    assert (found.prompts, found.changed, found.why_not) == (COUNT, len(lost | gained), ())
    right = found.right
    assert right is not None
    assert (right.prompts, right.lost, right.gained) == (labelled, 5, 1)
    assert right.a == pytest.approx((labelled - 3) / labelled)
    assert right.difference == pytest.approx(-4 / labelled)
    least, most = gate.paired_bounds(5, 1, labelled)
    assert right.interval == pytest.approx((-most, -least))
    told = read(command("diff", *sides, "--no-ask", "--json"))["verified"]
    assert (told["right"]["lost"], told["changed"], told["nats"]) == (5, 7, None)
    shown = " ".join(command("diff", *sides, "--no-ask").out.split())
    assert "7 of 120 verify prompts answered otherwise" in shown
    assert "on 96 prompts, 5 lost and 1 gained" in shown
    # A group is one observation: six prompts of one that are lost together say less.
    together = tuple(0 if index in lost else index for index in range(COUNT))
    sides = pair(replace(mine, groups=together), theirs)
    grouped = diff(*map(open_side, sides), asks=False).verified
    assert grouped is not None
    assert grouped.right is not None
    assert grouped.right.difference == right.difference
    assert grouped.right.interval[0] is not None
    assert right.interval[0] is not None
    assert grouped.right.interval[0] < right.interval[0]


def test_surprise_is_paired_by_token(a: Path, b: Path, pair: Pair) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 40, COUNT)
    before = counts * rng.normal(2.0, 0.2, COUNT)
    more = counts * rng.normal(0.05, 0.02, COUNT)
    bare = {"right": (None,) * COUNT, "answers": None, "tokens": tuple(counts.tolist())}
    mine = outcomes_of(a, set(), nats=tuple(before.tolist()), **bare)
    theirs = outcomes_of(b, set(), nats=tuple((before + more).tolist()), **bare)
    found = diff(*map(open_side, pair(mine, theirs)), asks=False).verified
    assert found is not None
    assert (found.right, found.changed, found.why_not) == (None, None, ())
    nats = found.nats
    assert nats is not None
    assert nats.a == pytest.approx(before.sum() / counts.sum())
    assert nats.difference == pytest.approx(more.sum() / counts.sum())
    low, high = nats.interval
    assert low is not None
    assert high is not None
    assert 0.03 < low < nats.difference < high < 0.07
    for change, why in (
        ({"tokens": tuple((counts + 1).tolist())}, "another number of tokens for B"),
        ({"nats": (None, *theirs.nats[1:])}, "not every likelihood is a number"),  # type: ignore[index]
    ):
        other = diff(*map(open_side, pair(mine, replace(theirs, **change))), asks=False).verified
        assert other is not None
        assert other.nats is None
        assert why in other.why_not[0]


def test_what_cannot_be_paired_is_told(a: Path, b: Path, pair: Pair, tmp_path: Path) -> None:
    mine, theirs = outcomes_of(a, {1}), outcomes_of(b, {2})

    def why(*sides: Path) -> str:
        found = diff(*map(open_side, sides), asks=False).verified
        assert found is not None
        assert (found.prompts, found.right, found.changed) == (0, None, None)
        (reason,) = found.why_not
        return reason

    fewer = {name: getattr(theirs, name)[:50] for name in ("prompts", "groups", "right", "answers")}
    assert why(*pair(mine, replace(theirs, **fewer))) == (
        "A was verified on 120 prompts and B on 50, of which 50 are the same: name the prompts that both are to be asked (--prompts)"
    )
    other = replace(theirs, prompts=(*theirs.prompts[1:], "f" * 16))
    assert "and B on 120, of which 119 are the same" in why(*pair(mine, other))
    assert why(*pair(None, theirs)).startswith("what A answered to its verify prompts is not known: no outcomes.json")
    assert why(*pair(mine, replace(theirs, artifact="0" * 64))).startswith("what B answered")
    sides = pair(mine, theirs)
    (tmp_path / "b.outcomes.json").write_text('{"format_version": 2}')
    assert why(*sides).startswith("what B answered")
    release(ReleaseInputs(bundle=b, evidence=gather(b, []), cache=tmp_path / "none"), tmp_path / "b.release")
    assert why(sides[0], tmp_path / "b.release").startswith(
        "B is a release, which says nothing of single verify prompts"
    )
    assert not list((tmp_path / "b.release").rglob("*outcomes*"))
    same = diff(*map(open_side, (sides[0], sides[0])), asks=False)
    assert same.verified is None


def test_they_lie_beside_the_bundle_and_never_in_it(made: Path, a: Path, tmp_path: Path) -> None:
    """No byte of folder or archive follows from them, no app is given them, and somebody else's file is not replaced."""
    work = made / "made-a"
    report, out = make_report(tmp_path / "report", work / "artifact"), tmp_path / "dist"
    inputs = PackageInputs(
        artifact=work / "artifact",
        report=report,
        name="a",
        recipe="demo",
        target=make_target(tmp_path),
        lineage=Lineage(),
    )
    bare = package(inputs, out)
    assert not (out / "a.outcomes.json").exists()
    before = file_sha256(bare.archive)
    outcomes = outcomes_of(a, {1})
    (report / FILE).write_text(outcomes.to_json())
    made_again = package(inputs, out)
    assert file_sha256(made_again.archive) == before
    assert read_outcomes(out / "a.outcomes.json") == outcomes
    assert (out / "a.outcomes.json").read_bytes() == (report / FILE).read_bytes()
    app = tmp_path / "app"
    embed(made_again.bundle, "python", app)
    assert not list(app.rglob("*outcomes*"))
    (report / FILE).unlink()
    package(inputs, out)
    assert not (out / "a.outcomes.json").exists()
    (out / "a.outcomes.json").write_text('{"mine": 1}')
    with pytest.raises(EdgekitError, match=r"a\.outcomes\.json: is there and edgekit did not write it"):
        package(inputs, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it | {"format_version": 2}, "format_version 2: written by another edgekit"),
        (lambda it: it | {"right": it["right"][1:]}, "its columns are not equally long"),
        (lambda it: {key: value for key, value in it.items() if key != "groups"}, "groups: missing key"),
    ],
)
def test_a_file_that_is_none_is_refused(
    a: Path, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    path = tmp_path / FILE
    assert read_outcomes(path) is None
    path.write_text(json.dumps(change(json.loads(outcomes_of(a, set()).to_json()))))
    with pytest.raises(EdgekitError, match=message):
        read_outcomes(path)
