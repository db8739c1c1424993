"""Where a gate fails: what is proposed, and what --recover makes of it, on a classifier that int8 breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.pipeline import ladder as climbing
from edgekit.pipeline.looks import row_hashes
from edgekit.pipeline.origin import texts_read
from edgekit.workspace import open_product
from tests.cli.test_json import VALIDATOR
from tests.conftest import Answer
from tests.pipeline.fragile import make_fragile

ROWS = {"train": 200, "calibrate": 40, "verify": 200}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder, whose finished steps its tests share."""
    folder = tmp_path_factory.mktemp("fragile")
    make_fragile(folder, ROWS)
    return folder


@pytest.fixture
def build(fragile: Path, command: Callable[..., Answer]) -> Callable[..., Answer]:
    """A build of it; each test has looks of its own."""

    def run(*arguments: str | Path, target: str = "target") -> Answer:
        places = ("-r", fragile / "recipe.toml", "-t", fragile / f"{target}.toml", "--cache", fragile / "cache")
        return command("build", *places, *arguments)

    return run


def bundle_of(answer: Answer) -> dict[str, Any]:
    found = json.loads(answer.out)
    VALIDATOR.validate(found)
    return dict(found["bundles"][0])


def test_a_failed_gate_proposes_what_suits_it(build: Callable[..., Answer]) -> None:
    """Quantization took the accuracy: no other student is proposed, the cheapest comes first, and the page says the same."""
    told = build()
    assert told.code == 3
    assert "recovery: quantization takes more accuracy than it may" in told.out
    assert "-> the same command with: --export float_layers=4" in told.out
    bundle = bundle_of(build("--json"))
    recovery = bundle["recovery"]
    assert recovery["failures"] == ["quantization"]
    names = [rung["name"] for rung in recovery["rungs"]]
    assert names == ["smoothing", "keep the worst layers float", "scheme w8", "train on the grid"]
    assert [rung["seconds"] for rung in recovery["rungs"]] == sorted(rung["seconds"] for rung in recovery["rungs"])
    assert "ladder" not in recovery
    page = Path(bundle["report"]).with_suffix(".html").read_text(encoding="utf-8")
    assert all(name in page for name in names)


def test_recovery_goes_on_where_it_was_killed_and_ships_what_passes(
    build: Callable[..., Answer], fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the first rung was exported and not yet judged; then the choice is kept with what is printed."""
    judged: list[Path] = []
    rehearse = climbing.rehearse

    def killed(plan: Any, artifact: Any, *others: Any) -> Any:
        if judged:
            raise KeyboardInterrupt
        judged.append(artifact.folder)
        return rehearse(plan, artifact, *others)

    with monkeypatch.context() as patch:
        patch.setattr(climbing, "rehearse", killed)
        with pytest.raises(KeyboardInterrupt):
            build("--recover", "5")
    exported = len(list(fragile.glob("cache/export/*/export.json")))
    answer = build("--recover", "5", "--json")
    assert len(list(fragile.glob("cache/export/*/export.json"))) == exported
    bundle = bundle_of(answer)
    assert (answer.code, bundle["verdict"]) == (0, "pass")
    ladder = bundle["recovery"]["ladder"]
    assert (ladder["chosen"], [entry["name"] for entry in ladder["tried"]]) == ("smoothing", ["smoothing"])
    assert ladder["start"]["loss"] > 0.3
    assert ladder["tried"][0]["loss"] <= 0.025
    # Its export was kept, and judging it took its time.
    assert ladder["tried"][0]["seconds"] > 0.3
    assert ladder["stopped"] == "stopped at 'smoothing', which passes there"
    report = json.loads(Path(bundle["report"]).read_text())
    assert (report["look"]["index"], report["recovery"]["ladder"]["prompts"]) == (2, 100)
    again = bundle_of(build(*ladder["keep"], "--json"))
    assert (again["sha256"], again["archive_sha256"]) == (bundle["sha256"], bundle["archive_sha256"])


def test_verify_prompts_choose_nothing(build: Callable[..., Answer], fragile: Path) -> None:
    """With other verify prompts each rung is seen to do the same, and nothing that was tried has read a prompt of the split."""
    tried = []
    path = fragile / "data" / "verify.jsonl"
    whole = path.read_text(encoding="utf-8")
    try:
        for lines in (slice(0, 200), slice(0, 100)):
            path.write_text("".join(whole.splitlines(keepends=True)[lines]), encoding="utf-8")
            ladder = bundle_of(build("--recover", "5", "--json"))["recovery"]["ladder"]
            timeless = [{**entry, "seconds": 0} for entry in (ladder["start"], *ladder["tried"])]
            tried.append((timeless, ladder["chosen"], ladder["keep"]))
    finally:
        path.write_text(whole, encoding="utf-8")
    assert tried[0] == tried[1]
    gathered = [open_product(path.parent, "prompts") for path in fragile.glob("cache/prompts/*/prompts.json")]
    prompts = next(product for product in gathered if "recover" in product.facts["rows"])
    held = {digest[:8] for digest in row_hashes(prompts, "recover")}
    assert len(held) == 100
    for manifest in fragile.glob("cache/export/*/export.json"):
        read = texts_read(open_product(manifest.parent, "export"))
        assert not any(held & texts for texts in read.values())


def test_what_is_hopeless_ends_within_its_time(build: Callable[..., Answer], fragile: Path) -> None:
    """No scheme is as small as this target wants: what is too long for the time is not begun."""
    text = (fragile / "target.toml").read_text(encoding="utf-8")
    (fragile / "hopeless.toml").write_text(f"{text}\n[budget]\nbytes = 1000\n", encoding="utf-8")
    answer = build("--recover", "0.9", "--json", target="hopeless")
    bundle = bundle_of(answer)
    assert (answer.code, bundle["archive"]) == (3, None)
    recovery, ladder = bundle["recovery"], bundle["recovery"]["ladder"]
    assert "scheme w8" not in [rung["name"] for rung in recovery["rungs"]]
    assert "size" in recovery["failures"]
    assert ladder["chosen"] is None
    assert ladder["stopped"].startswith("the time was spent, and none passes there")
    assert any((entry["reason"] or "").startswith("not begun: ") for entry in ladder["tried"])
    assert ladder["start"]["seconds"] + sum(entry["seconds"] for entry in ladder["tried"]) < 54
