"""The house rules of the design, read from the source: who may import whom, sizes, names, errors, tables."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "edgekit"
MODULES = sorted(HOUSE.rglob("*.py"))

# From the top down. A part imports parts of lower layers, and parts of its own layer where ALSO says so.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(layer.split())
    for layer in (
        "__main__",
        "cli",
        "diff",
        "release",
        "pipeline",
        "hindrances",
        "compare qad linear pace",
        "distill record calibrate export verify bundle inspect cache target_probe doctor init written",
        "report",
        "probes",
        "formats runtimes devices tasks",
        "cost",
        "model",
        "weights configuration calibration artifact grid",
        "architectures",
        "chat_template",
        "embedding_files",
        "checkpoint_keys owners_tokenizer reference history",
        "recipe target prompts workspace loaders",
        "duplicates state model_card closure tables evidence outcomes",
        "schema apart tokenizing gate inputs outputs modalities times hashing recovery stored",
        "typed_json",
        "errors progress",
        "__init__",
    )
)
# A noun lives in the module of the verb that makes it: who reads a calibration or shows a report imports that verb.
ALSO = {
    ("export", "calibrate"),
    ("inspect", "calibrate"),
    ("inspect", "bundle"),
    ("target", "recipe"),
    ("target", "workspace"),
    ("prompts", "recipe"),
    ("recipe", "workspace"),
    ("devices", "runtimes"),
    ("formats", "runtimes"),
    ("tasks", "runtimes"),
}
LIBRARIES = {
    "loaders": {"numpy", "onnxruntime", "openvino", "tokenizers", "llama_cpp", "jinja2", "cryptography"},
    "runtimes": {"numpy", "onnxruntime", "llama_cpp", "openvino", "torch"},
}
# One file opens each engine; what an app copies opens its own: a loader, and what ships beside it.
SHIPS = {"runtimes/onnxruntime/bound.py"}
OWNERS = {
    "onnxruntime": "runtimes/onnxruntime/library.py",
    "llama_cpp": "runtimes/llamacpp/library.py",
    "openvino": "runtimes/openvino/library.py",
}
HEAVY = {"torch", "transformers"}
HEAVY_PARTS = {
    "distill",
    "record",
    "calibrate",
    "export",
    "model",
    "tasks",
    "architectures",
    "formats",
    "owners_tokenizer",
    "written",
}
# Packages whose inner modules are all torch, and are imported inside functions only.
HEAVY_INSIDE = {"distill", "tasks"}
TABLES = {
    "TASKS": "tasks/__init__.py",
    "FORMATS": "formats/__init__.py",
    "RUNTIMES": "runtimes/__init__.py",
    "LOADERS": "bundle/loaders/__init__.py",
    "OPERATORS": "runtimes/onnxruntime/operators.py",
    "DEVICES": "devices/__init__.py",
    "PROBES": "probes/__init__.py",
    "PUBLISHERS": "release/publish.py",
    "SIDECARS": "bundle/sidecars/__init__.py",
    "LOSSES": "distill/losses.py",
    "SOURCES": "distill/batches.py",
    "STUDENTS": "distill/students.py",
    "REWARDS": "distill/rewards.py",
    "TEACHERS": "distill/teachers.py",
    "ARCHITECTURES": "architectures/__init__.py",
    "MODALITIES": "modalities/__init__.py",
    "OUTPUTS": "outputs/__init__.py",
}
FORBIDDEN = {"manager", "handler", "helper", "helpers", "util", "utils", "engine", "base", "common", "misc"}
# Modules where a person's words arrive: their errors are EdgekitError, never a bare ValueError.
FACING_USERS = {
    "cli",
    "pipeline",
    "recipe",
    "target",
    "prompts",
    "tables",
    "duplicates",
    "schema",
    "model",
    "workspace",
    "bundle",
    "release",
    "devices",
    "probes",
    "doctor",
    "target_probe",
}


def part(path: Path) -> str:
    """The part of the house that a file belongs to: a module's or a folder's name. What an app copies is a part of its own."""
    inside = path.relative_to(HOUSE)
    if inside.parts[:2] == ("bundle", "loaders") and path.name != "__init__.py":
        return "loaders"
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def name(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


@cache
def imports(path: Path) -> tuple[tuple[str, ast.stmt, bool], ...]:
    """(dotted module, statement, is it at the top) of every import but those under TYPE_CHECKING."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, ast.stmt, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                yield module, child, top
                if module == "edgekit":
                    yield from ((f"edgekit.{alias.name}", child, top) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(ast.Module(body=child.orelse, type_ignores=[]), top)
            else:
                yield from visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return tuple(visit(tree(path), True))


def of_each(paths: Sequence[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """One test of all files, which lists every file that breaks the rule: thousands of tests would take longer than they say."""

    def over(rule: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            assert paths
            broken = []
            for path in paths:
                try:
                    rule(path)
                except (AssertionError, pytest.fail.Exception) as bad:
                    broken.append(str(bad))
            assert not broken, "\n".join(broken)

        test.__doc__ = rule.__doc__
        return test

    return over


def layer(of: str) -> int:
    found = [place for place, names in enumerate(LAYERS) if of in names]
    assert found, f"edgekit/{of}: in no layer of the house; give it a place in LAYERS or find it a home"
    return found[0]


@of_each(MODULES)
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    for module, statement, _ in imports(path):
        if not module.startswith("edgekit.") or module == "edgekit.__version__":
            continue
        there = module.split(".")[1]
        allowed = there == here or layer(there) > layer(here) or (here, there) in ALSO
        assert allowed, f"{name(path)}:{statement.lineno}: {here} may not import {there}"


@of_each(MODULES)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    here = part(path)
    for module, statement, top in imports(path):
        library, place = module.split(".")[0], f"{name(path)}:{statement.lineno}"
        if isinstance(statement, ast.ImportFrom) and statement.level:
            pytest.fail(f"{place}: relative import")
        if here in LIBRARIES and library not in sys.stdlib_module_names:
            ours = here == "runtimes" and module.startswith("edgekit.runtimes")
            assert ours or library in LIBRARIES[here], f"{place}: {here} imports {module}"
        if library in OWNERS and here != "loaders" and name(path) not in SHIPS:
            assert name(path) == OWNERS[library], f"{place}: {library} is opened in {OWNERS[library]} only"
        if library in HEAVY:
            own = name(path).startswith("runtimes/torch/")
            assert own or here in HEAVY_PARTS, f"{place}: {library} does not belong under {here}"
            inner = here in HEAVY_INSIDE and path.name != "__init__.py"
            assert not top or inner, f"{place}: {library} is imported at the top"
        if library == "click":
            assert here in {"errors", "cli"}, f"{place}: only errors and cli know click"
        assert library not in {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}, f"{place}: {library}"


def test_heavy_libraries_stay_out_of_light_commands() -> None:
    """Importing the command line, the spine, the nouns and `inspect` loads neither torch nor transformers."""
    code = (
        "import sys; sys.argv = ['edgekit']\n"
        "import edgekit.cli, edgekit.pipeline, edgekit.prompts, edgekit.model, edgekit.target, edgekit.workspace\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'onnxruntime', 'numpy', 'pydantic', 'rich') "
        "if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@of_each(MODULES)
def test_only_cli_prints(path: Path) -> None:
    # These answer as processes of their own.
    answering = {
        "__main__.py",
        "runtimes/probe.py",
        "runtimes/turns.py",
        "runtimes/proof.py",
        "runtimes/survey.py",
        "record/__main__.py",
    }
    if part(path) == "cli" or name(path) in answering:
        return
    for node in nodes(path):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"}, (
                f"{name(path)}:{node.lineno}: {called}; return a value, or use logging"
            )


@of_each(MODULES)
def test_sizes_and_docstrings(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), f"{name(path)}: no docstring"
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 500, f"{name(path)}: {lines} lines; find its seam"
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{name(path)}:{node.lineno}: {node.name} has {length} lines; find its seam"
    for node in public(module):
        assert ast.get_docstring(node), f"{name(path)}:{node.lineno}: {node.name} has no docstring"


def public(module: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and public methods of its public classes."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    inner
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
                )


@of_each(MODULES)
def test_names(path: Path) -> None:
    """Functions, classes, modules and arguments are named for what they are."""
    named = [(1, path.stem), (1, part(path))]
    definitions = ast.FunctionDef | ast.ClassDef
    named += [(node.lineno, node.name) for node in nodes(path) if isinstance(node, definitions)]
    for line, word in named:
        pieces = set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", word).lower()))
        assert not pieces & FORBIDDEN, f"{name(path)}:{line}: {word}: say what it is"


@of_each(MODULES)
def test_errors_are_meant(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.ExceptHandler):
            caught = {ast.unparse(one) for one in _caught(node)}
            cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if name(path) in {"__main__.py", "bundle/loaders/check.py"}:
                continue  # an interrupt becomes whatever error the library under import makes of it; engines raise any
            everything = not caught or caught & {"Exception", "BaseException"}
            assert not everything or cleans_up, f"{name(path)}:{node.lineno}: catches everything; name what is expected"
        if isinstance(node, ast.Raise) and node.exc is not None and part(path) in FACING_USERS:
            raised = ast.unparse(node.exc).split("(")[0]
            assert raised not in {"ValueError", "Exception", "RuntimeError", "KeyError"}, (
                f"{name(path)}:{node.lineno}: raises {raised}; users get an EdgekitError"
            )


def _caught(node: ast.ExceptHandler) -> list[ast.expr]:
    if node.type is None:
        return []
    return list(node.type.elts) if isinstance(node.type, ast.Tuple) else [node.type]


@of_each(MODULES)
def test_nothing_runs_what_it_should_not(path: Path) -> None:
    """No shell, no eval, no pickled weights, no path that only one machine has."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            called, place = ast.unparse(node.func), f"{name(path)}:{node.lineno}"
            runs = called in {"os.system", "os.popen", "eval", "exec", "torch.load", "torch.save"}
            assert not runs or ast.unparse(node) == "exec('')", (
                f"{place}: {called}"
            )  # which runs nothing: see __main__.py
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) not in {
                    ("shell", "True"),
                    ("trust_remote_code", "True"),
                    ("allow_pickle", "True"),
                    ("weights_only", "False"),
                }, f"{place}: {keyword.arg}={value}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.search(r"(^|[\s'\"=])(/(home|root|work|Users|mnt)/\w|[A-Z]:\\)", node.value)
            assert not found, f"{name(path)}:{node.lineno}: a path of one machine: {node.value!r}"


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_dict_literals(table: str) -> None:
    """One list per kind of thing, in one place, as a literal."""
    homes = []
    for path in MODULES:
        for node in tree(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == table for target in targets):
                assert isinstance(node, ast.Assign | ast.AnnAssign)
                if isinstance(node.value, ast.Tuple):
                    continue  # names of entries, such as those of the runtimes that a format has
                assert isinstance(node.value, ast.Dict), f"{name(path)}: {table} is not a dict literal"
                assert node.value.keys, f"{name(path)}: {table} is empty"
                assert None not in node.value.keys, f"{name(path)}: {table} unpacks another table"
                homes.append(name(path))
    assert len(homes) == 1, f"{table} is defined in {homes or 'no module'}"
    assert homes == [TABLES[table]]


def test_one_table_of_operators() -> None:
    """No module but the table's lists operators that hold quantized weights: a key or a member of a list is one of them."""
    from edgekit.runtimes.onnxruntime.operators import OPERATORS

    known = {name for name, operator in OPERATORS.items() if operator.quantized}
    for path in MODULES:
        if name(path) == "runtimes/onnxruntime/operators.py":
            continue
        for node in nodes(path):
            listed = (
                node.keys
                if isinstance(node, ast.Dict)
                else node.elts
                if isinstance(node, ast.Set | ast.List | ast.Tuple)
                else []
            )
            named = {one.value for one in listed if isinstance(one, ast.Constant)} & known
            assert len(named) < 2, f"{name(path)}:{node.lineno}: a second list of operators: {sorted(named)}"


@of_each(MODULES)
def test_what_a_kind_of_answer_means_is_in_tables(path: Path) -> None:
    """No branch compares an output with the word for tokens: `OUTPUTS` and the tables by output say what follows from it."""
    if name(path) == "outputs/tokens.py":
        return
    for node in nodes(path):
        if isinstance(node, ast.Compare):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            compares = "'tokens'" in sides and any("output" in side.lower() or side == "kind" for side in sides)
            assert not compares, f"{name(path)}:{node.lineno}: {ast.unparse(node)}; ask OUTPUTS, or a table by output"


def test_package_imports_nothing() -> None:
    """edgekit/__init__.py travels to devices."""
    assert not imports(HOUSE / "__init__.py")


def test_loader_is_short() -> None:
    """What a bundle ships is at most 60 lines."""
    assert len((HOUSE / "bundle" / "loaders" / "load.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_no_link_leaves_the_house() -> None:
    for folder, names, files in os.walk(HOUSE):
        assert not [one for one in (*names, *files) if (Path(folder) / one).is_symlink()]


def test_the_architecture_page_is_true() -> None:
    """Every path that it names is there, every part of the house is named, and every table is where it says."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:edgekit|pipeline|formats|bundle|targets|calib_data|examples|tests|benchmarks)/[^`\s]*)`", text
    )
    for path in named:
        assert (ROOT / path).exists() or (HOUSE / path).exists(), f"docs/architecture.md names {path}"
    for folder in sorted(path.name for path in HOUSE.iterdir() if (path / "__init__.py").is_file()):
        assert f"`edgekit/{folder}/" in text, f"docs/architecture.md does not name edgekit/{folder}/"
    for table, home in re.findall(r"\| `([A-Z_]+)` \| `([^`]+)` \|", text):
        assert re.search(rf"^{table}\b", (ROOT / home).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{table} is not in {home}"
        )
    assert TABLES.keys() <= set(re.findall(r"\| `([A-Z_]+)` \|", text))


@of_each([path for path in MODULES if path.name == "__init__.py"])
def test_no_module_hides_a_function(path: Path) -> None:
    """A package's function that has the name of a module in it is that module once somebody imports it."""
    defined = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    inside = {inner.stem for inner in path.parent.iterdir() if inner.suffix == ".py" or inner.is_dir()}
    assert not defined & inside, f"{name(path)}: {defined & inside}"
