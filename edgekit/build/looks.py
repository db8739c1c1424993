"""How often verify prompts were looked at: each further look at them proves less."""

from __future__ import annotations

from edgekit.build.plan import Plan
from edgekit.schema import dump_json, read_json
from edgekit.workspace import Product, Workspace, locked, write_atomically


class Looks:
    """How many different artifacts of a recipe and a target a set of verify prompts has judged, an artifact's own included.

    An artifact that was judged before keeps its place. The lists lie in the workspace's looks.json.
    """

    def __init__(self, workspace: Workspace, plan: Plan, artifact: Product, prompts: Product) -> None:
        self._root = workspace.root
        # Of all formats: to choose among them is to look again.
        self._key = f"{plan.recipe.name}-{plan.target.name}:{split_digests(prompts, 'verify')['verify'][:16]}"
        self._artifact = str(artifact.facts["sha256"])
        judged = self._read().get(self._key, [])
        self.count = (judged.index(self._artifact) if self._artifact in judged else len(judged)) + 1

    def remember(self) -> None:
        """The artifact has been judged."""
        path = self._root / "looks.json"
        with locked(path.with_suffix(".lock"), f"{path}: another build is writing it; waiting for it"):
            seen = self._read()
            if self._artifact not in seen.setdefault(self._key, []):
                seen[self._key].append(self._artifact)
                write_atomically(path, dump_json(seen))

    def _read(self) -> dict[str, list[str]]:
        path = self._root / "looks.json"
        return dict(read_json(path)) if path.is_file() else {}


def split_digests(prompts: Product, *splits: str) -> dict[str, str]:
    """The hashes of the splits that a step reads: another split may change without it."""
    return {name: str(prompts.manifest["files"][f"{name}.jsonl"]["sha256"]) for name in splits}
