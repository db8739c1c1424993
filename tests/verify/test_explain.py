"""Every check that a report may hold is explained, in few words."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from edgekit.errors import EdgekitError
from edgekit.verify.explain import EXPLANATIONS, explain
from tests.test_house import HOUSE, tree


def names_of_checks() -> Iterator[str]:
    """Every literal that verify gives a check or a comparison for a name."""
    for path in sorted((HOUSE / "verify").glob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "metric" and isinstance(value, ast.Constant):
                        yield str(value.value)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Check", "Comparison", "replace"}:
                for keyword in node.keywords:
                    if keyword.arg in {"name", "metric"}:
                        yield from (
                            inner.value
                            for inner in ast.walk(keyword.value)
                            if isinstance(inner, ast.Constant)
                            and isinstance(inner.value, str)
                            and "_vs_" not in inner.value
                        )


def test_every_check_is_explained() -> None:
    found = {name for name in names_of_checks() if name}
    assert {"plausibility", "tokenizer", "cosine", "agreement"} <= found
    assert found - EXPLANATIONS.keys() == set()


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_an_explanation_is_short(name: str) -> None:
    lines = explain(name).splitlines()
    assert 2 <= len(lines) <= 10
    assert max(map(len, lines[1:])) <= 82
    assert lines[0].endswith(".")
    assert explain(f"{name}_vs_teacher") == explain(name)


def test_an_unknown_check_is_told_its_neighbour() -> None:
    with pytest.raises(EdgekitError, match=r"plausability: no check of this name \(did you mean plausibility\?\)"):
        explain("plausability")
