"""The figures of the house: how typed, how narrow, how free of cycles and of global state edgekit's code is.

`python tests/house_figures.py` prints them (`make check` does). Each has a goal, and a bar that today's code keeps: a change may
lower a figure and its bar, never raise them. Exit code 1 where a bar is not kept.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1] / "edgekit"
MANY = 8
# Functions that give a fresh value of a kind that can be changed.
CHANGEABLE = {"list", "dict", "set", "defaultdict", "Counter", "deque", "OrderedDict"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is counted, what it is now, the bar, and the goal."""

    name: str
    value: float
    bar: float
    goal: float
    where: tuple[str, ...] = ()


@cache
def modules() -> Mapping[str, ast.Module]:
    """Every module of edgekit by its dotted name; a package's own is the package's name."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = ("edgekit", *path.relative_to(HOUSE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def any_names() -> Iterator[str]:
    """Every `Any` in an annotation or cast, by its module."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "Any":
                yield module


def wide_functions() -> Iterator[str]:
    """Functions of MANY parameters or more; click's commands apart, whose parameters are the user's options."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            wide = len([name for name in names if name not in {"self", "cls"}]) >= MANY
            if wide and not any(_is_click(decorator) for decorator in node.decorator_list):
                yield f"{module}.{node.name}"


def _is_click(decorator: ast.expr) -> bool:
    text = ast.unparse(decorator)
    return "click." in text or ".command" in text or text.endswith(("_option", "_options"))


def cycles() -> list[list[str]]:
    """Modules that import each other, through imports inside functions and for type checkers too (Tarjan 1972)."""
    graph = {module: sorted(_imported(tree) - {module}) for module, tree in modules().items()}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph[module]:
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def _imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return found & modules().keys()


def module_state() -> Iterator[str]:
    """Names of modules that functions change: by `global`, or by a method or an item of a list, dict or set at the top."""
    for module, tree in modules().items():
        tops = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_changeable(node.value)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                yield from (f"{module}.{name}" for name in _changed(function, tops))


def _is_changeable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1].split("[")[0] in CHANGEABLE
    return isinstance(value, ast.List | ast.Dict | ast.Set)


def _changed(function: ast.FunctionDef, tops: set[str]) -> set[str]:
    local = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found = {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}
    for node in ast.walk(function):
        target = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changes = {"append", "add", "update", "pop", "clear", "extend", "setdefault", "remove", "insert", "popitem"}
            target = node.func.value if node.func.attr in changes else None
        if isinstance(target, ast.Name) and target.id in tops - local:
            found.add(target.id)
    return found


def lines() -> int:
    """Of all files."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in HOUSE.rglob("*.py"))


def figures() -> list[Figure]:
    """All of them, in the order in which they are shown."""
    wide, rings, state = sorted(wide_functions()), cycles(), sorted(set(module_state()))
    return [
        Figure(
            name="Any per 1,000 lines",
            value=round(1000 * sum(1 for _ in any_names()) / lines(), 1),
            bar=BARS["any"],
            goal=6,
        ),
        Figure(
            name=f"functions of {MANY} parameters or more", value=len(wide), bar=BARS["wide"], goal=0, where=tuple(wide)
        ),
        Figure(
            name="import cycles",
            value=len(rings),
            bar=BARS["cycles"],
            goal=0,
            where=tuple(" ".join(ring) for ring in rings),
        ),
        Figure(name="state of modules", value=len(state), bar=BARS["state"], goal=0, where=tuple(state)),
    ]


BARS = {"any": 1.9, "wide": 0, "cycles": 0, "state": 0}


def main() -> int:
    """Print the table; 1 where a bar is not kept."""
    print(f"{'figure':<36}{'now':>8}{'bar':>8}{'goal':>8}")
    for figure in figures():
        print(f"{figure.name:<36}{figure.value:>8g}{figure.bar:>8g}{figure.goal:>8g}")
        if figure.value > figure.goal:
            print("".join(f"    {place}\n" for place in figure.where), end="")
    return int(any(figure.value > figure.bar for figure in figures()))


if __name__ == "__main__":
    sys.exit(main())
