"""The table of operators, against the schemas that onnx and onnxruntime have of them."""

from __future__ import annotations

import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgekit.runtimes.onnxruntime.operators import MICROSOFT, OPERATORS


def inputs(name: str) -> list[str]:
    """The names of an operator's inputs."""
    domain = OPERATORS[name].domain
    if not domain:
        return [entry.name for entry in onnx.defs.get_schema(name).inputs]
    schemas = [schema for schema in state.get_all_operator_schema() if (schema.domain, schema.name) == (domain, name)]
    return [entry.name for entry in schemas[-1].inputs]


@pytest.mark.parametrize("name", OPERATORS)
def test_inputs_lie_where_the_table_says(name: str) -> None:
    operator, names = OPERATORS[name], inputs(name)
    assert operator.domain in {"", MICROSOFT}
    if operator.weight is not None:
        assert names[operator.weight].lower() in {"b", "w", "weight"}
    if operator.scale is not None:
        assert "scale" in names[operator.scale].lower() or "zero" in names[operator.scale].lower()
    if operator.left_zero is not None:
        assert "zero" in names[operator.left_zero].lower()
        assert names[operator.left_zero][0].lower() in {"a", "x"}
