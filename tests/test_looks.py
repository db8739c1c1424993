"""How often prompts were looked at: across formats, and once for each artifact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgekit.build.looks import Looks
from edgekit.workspace import Workspace


def look(
    root: Path, artifact: str, *, variant: str | None = None, target: str = "board", verify: str = "v" * 64
) -> int:
    """What count an artifact is judged with, and remember that it was."""
    plan: Any = SimpleNamespace(
        recipe=SimpleNamespace(name="chat"),
        target=SimpleNamespace(name=target),
        variant=variant,
        name="-".join(filter(None, ("chat", target, variant))),
    )
    product: Any = SimpleNamespace(facts={"sha256": artifact})
    prompts: Any = SimpleNamespace(manifest={"files": {"verify.jsonl": {"sha256": verify}}})
    looks = Looks(Workspace(root=root), plan, product, prompts)
    looks.remember()
    return looks.count


def test_to_choose_among_formats_is_to_look_again(tmp_path: Path) -> None:
    assert look(tmp_path, "a", variant="onnx") == 1
    assert look(tmp_path, "b", variant="gguf") == 2
    assert look(tmp_path, "c") == 3
    assert look(tmp_path, "b") == 2, "what was judged before keeps its place"


def test_another_target_or_other_prompts_begin_anew(tmp_path: Path) -> None:
    assert [look(tmp_path, "a"), look(tmp_path, "b", target="phone"), look(tmp_path, "c", verify="w" * 64)] == [1, 1, 1]
