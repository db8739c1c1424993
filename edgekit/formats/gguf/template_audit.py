"""What of a chat template llama.cpp's own Jinja engine has not, or does otherwise than Python's.

llama.cpp's server and llama-cli run a file's template in an engine of their own, which no Python package brings along. What it
has was read from its source (https://github.com/ggml-org/llama.cpp, common/jinja: lexer, parser, runtime, value.cpp; the state of
llama-cpp-python 0.3.36): `unreadable` names what its parser refuses, wherever that stands in a template; an `Audit` runs a
template in Python and names each step at which the engine would stop, or write something else, on these very values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol, cast

from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from edgekit.chat_template import SPECIAL_TOKENS, sandbox

# The engine's statements and expressions, as Jinja's nodes. Anything else ends its parser ("Unknown statement", ...).
_KNOWN = tuple(
    getattr(nodes, name)
    for name in (
        *(
            "Template",
            "Output",
            "TemplateData",
            "Const",
            "Name",
            "NSRef",
            "Getattr",
            "Getitem",
            "Slice",
            "Call",
            "Keyword",
            "Filter",
        ),
        *(
            "Test",
            "And",
            "Or",
            "Not",
            "Neg",
            "Pos",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Mod",
            "Concat",
            "Compare",
            "Operand",
            "CondExpr",
        ),
        *(
            "For",
            "If",
            "Assign",
            "AssignBlock",
            "Macro",
            "CallBlock",
            "FilterBlock",
            "List",
            "Tuple",
            "Dict",
            "Pair",
            "Continue",
        ),
        *("Break", "ExtensionAttribute"),
    )
)
_WRITTEN = {"FloorDiv": "//", "Pow": "**", "ScopedEvalContextModifier": "{% autoescape %}"}
_ESCAPES = set("ntrbfv\\'\"")
_ALIASES = {"count": "length", "d": "default", "e": "escape", "trim": "strip"}
# value.cpp, get_builtins of each type: what may stand behind "|", and behind "." to be called.
_OF_NUMBERS = {"default", "abs", "int", "float", "safe", "string", "tojson"}
_OF_TEXTS = {
    *(
        "default",
        "upper",
        "lower",
        "strip",
        "rstrip",
        "lstrip",
        "title",
        "capitalize",
        "length",
        "startswith",
        "endswith",
        "split",
    ),
    *("rsplit", "replace", "format", "int", "float", "string", "slice", "safe", "tojson", "indent"),
}
_OF_LISTS = {
    *(
        "default",
        "list",
        "first",
        "last",
        "length",
        "slice",
        "selectattr",
        "select",
        "rejectattr",
        "reject",
        "join",
        "string",
    ),
    *("tojson", "map", "append", "pop", "sort", "reverse", "min", "max"),
}
_OF_OBJECTS = {"get", "keys", "values", "items", "tojson", "string", "length", "dictsort"}
_OF_NONE = {
    "default",
    "tojson",
    "string",
    "safe",
    "items",
    "map",
    "reject",
    "rejectattr",
    "select",
    "selectattr",
    "unique",
}
_OF_UNDEFINED = {
    *(
        "default",
        "capitalize",
        "first",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
    ),
    *(
        "rejectattr",
        "replace",
        "reverse",
        "safe",
        "select",
        "selectattr",
        "sort",
        "string",
        "strip",
        "sum",
        "title",
        "truncate",
    ),
    *("unique", "upper", "wordcount"),
}
# runtime.cpp, apply_filter: what is not a text becomes one before these.
_OF_ANY_AS_TEXT = {"capitalize", "lower", "replace", "strip", "title", "upper"}
_TESTS = {
    *(
        "boolean",
        "callable",
        "odd",
        "even",
        "false",
        "true",
        "divisibleby",
        "string",
        "integer",
        "float",
        "number",
        "iterable",
    ),
    *(
        "sequence",
        "mapping",
        "lower",
        "upper",
        "none",
        "defined",
        "undefined",
        "eq",
        "equalto",
        "ge",
        "gt",
        "greaterthan",
        "lt",
    ),
    *("lessthan", "ne", "in", "test", "sameas"),
}
_GLOBALS = {"raise_exception", "dict", "namespace", "strftime_now", "range", "tojson"}
_LOOP = {"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"}
# Special tokens that the engine is given; the others are undefined there.
_GIVEN = {"bos_token", "eos_token"}
Arguments = tuple[object, ...]
Named = Mapping[str, object]
# A name that no template can write.
_SLICE = "a slice"
# C's isspace, which "trim" goes by.
_SPACES = " \t\n\r\v\f"


def unreadable(template: str) -> list[str]:
    """What the engine's parser refuses, in words; the server then ends at start. Of what is no template at all, nothing is said.

    Raises jinja2.TemplateSyntaxError where Python's own parser refuses it.
    """
    environment = sandbox(ImmutableSandboxedEnvironment)
    refused: dict[str, None] = {}
    for line, kind, text in environment.lex(template):
        if kind in {"raw_begin", "raw_end"}:
            refused[f"{{% raw %}} (line {line})"] = None
        elif kind == "string" and (
            odd := [letter for letter in re.findall(r"\\(.)", text, re.DOTALL) if letter not in _ESCAPES]
        ):
            refused[f"the escape \\{odd[0]} in a text (line {line})"] = None
        elif kind in {"integer", "float"} and not re.fullmatch(r"\d+(\.\d+)?", text):
            refused[f"the number {text} (line {line})"] = None
        elif kind in {"block_begin", "variable_begin"} and text.strip().endswith("+"):
            refused[f"{text.strip()} (line {line})"] = None
    for node in environment.parse(template).find_all(nodes.Node):
        if what := _refused(node):
            refused[f"{what} (line {node.lineno})"] = None
    return list(refused)


def _refused(node: nodes.Node) -> str | None:
    kind = type(node).__name__
    if isinstance(node, nodes.Helper | nodes.Expr | nodes.Stmt | nodes.Template) and not isinstance(node, _KNOWN):
        return _WRITTEN.get(kind, f"{{% {kind.lower()} %}}")
    if isinstance(node, nodes.For):
        flat = isinstance(node.target, nodes.Name) or all(
            isinstance(name, nodes.Name) for name in node.target.iter_child_nodes()
        )
        return "{% for ... recursive %}" if node.recursive else None if flat else "nested names in {% for %}"
    if isinstance(node, nodes.AssignBlock) and node.filter is not None:
        return "a filter in {% set %}"
    if isinstance(node, nodes.Call) and node.dyn_kwargs is not None:
        return "** in a call"
    if isinstance(node, nodes.Compare) and len(node.ops) > 1:
        return "a chain of comparisons"
    if isinstance(node, nodes.Name) and node.ctx == "load" and node.name in {"lipsum", "cycler", "joiner"}:
        return node.name
    if isinstance(node, nodes.Name) and node.ctx == "load" and node.name in set(SPECIAL_TOKENS) - _GIVEN:
        return f"{node.name}, which llama.cpp does not tell a template"
    return None


class Audit(ImmutableSandboxedEnvironment):
    """Chat templates as `chat_template` runs them, noting in `noted` what llama.cpp's engine has not or does otherwise."""

    intercepted_binops = frozenset({"+", "*", "%"})

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.noted: dict[str, None] = {}

    def note(self, what: str) -> None:
        """Keep something in `noted`, once."""
        self.noted.setdefault(what)

    def watch(self) -> None:
        """From here on filters and tests are noted as they are called: to be called once, when all of them are there."""
        # jinja2 says no more of these than that they are functions.
        filters = cast("dict[str, Callable[..., object]]", dict(self.filters))
        tests = cast("dict[str, Callable[..., object]]", dict(self.tests))
        self.filters |= {name: _taking_context(call, partial(self._filter, name)) for name, call in filters.items()}
        self.tests |= {name: _taking_context(call, partial(self._test, name)) for name, call in tests.items()}

    def _filter(self, name: str, value: object, arguments: Arguments, named: Named) -> None:
        name = _ALIASES.get(name, name)
        kind, known = _kind(value)
        if name not in known | (_OF_ANY_AS_TEXT if kind != "an undefined value" else set()):
            self.note(f"|{name} of {kind}")
            return
        if isinstance(value, str):
            self._of_text(name, value, arguments, named, "|")
        elif kind == "a list" and isinstance(value, Iterable):
            self._of_list(name, value, arguments, named)
        if name == "default" and value is None and arguments[:1] != (None,):
            self.note("|default of None, for which llama.cpp takes the default")
        if name == "tojson" and named.get("sort_keys"):
            self.note("|tojson(sort_keys=true)")
        if name == "dictsort" and isinstance(value, Mapping) and _sorts_otherwise(value):
            self.note("|dictsort by capitals")

    def _of_text(self, name: str, value: str, arguments: Arguments, named: Named, mark: str) -> None:
        """What the engine does otherwise with this text: it counts bytes, and knows letters and spaces of ASCII only."""
        shown = f"{mark}{name}"
        if name == "length" and not value.isascii():
            self.note(f"{shown} of a text that is not ASCII, of which llama.cpp counts bytes")
        elif (
            name in {"upper", "lower", "capitalize"}
            and _by_letters(getattr(str, name), value) != getattr(value, name)()
        ):
            self.note(f"{shown} of letters that are not ASCII, which llama.cpp leaves")
        elif name == "title" and (not value.isascii() or re.search(r"[-({\[<']\w", value)):
            self.note(f"{shown} of more than words of ASCII")
        elif name in {"strip", "lstrip", "rstrip"}:
            chars = arguments[0] if arguments else named.get("chars")
            if chars is None and getattr(value, name)() != getattr(value, name)(_SPACES):
                self.note(f"{shown} of spaces that are not ASCII, which llama.cpp leaves")
            elif chars is not None and not str(chars).isascii():
                self.note(f"{shown} of characters that are not ASCII")
        elif name == "format" and (mark == "|" or _placeholders(value)):
            self.note(f"{shown} of {value[:20]!r}: llama.cpp fills {{}} only")
        elif name == "replace" and (len(arguments) > 2 or "count" in named):
            self.note(f"{shown} with a count")
        elif name in {"split", "rsplit"} and (named or (not arguments and value.split() != value.split(" "))):
            self.note(f"{shown} at any spaces, where llama.cpp cuts at single ones")
        elif name in {"startswith", "endswith"} and not all(isinstance(text, str) for text in arguments[:1]):
            self.note(f"{shown} with several texts")
        elif name == "slice":
            self.note(f"{shown}: llama.cpp cuts the text there")

    def _of_list(self, name: str, value: Iterable[object], arguments: Arguments, named: Named) -> None:
        if name == "map" and "attribute" not in named:
            self.note(f"|map({', '.join(map(repr, arguments[:1]))}), which llama.cpp has for attributes only")
        elif name in {"select", "reject"} and len(arguments) != 2:
            self.note(f"|{name} with {len(arguments)} arguments")
        elif name in {"selectattr", "rejectattr"} and len(arguments) == 2:
            self.note(f"|{name} with a test of no argument")
        elif name == "join" and not all(
            isinstance(item, str | int | float) and not isinstance(item, bool) for item in _joined(value, named)
        ):
            self.note("|join of other things than texts and numbers")
        elif name == "sort" and _sorts_otherwise(value):
            self.note("|sort by capitals")
        elif name == "slice":
            self.note("|slice: llama.cpp cuts the list there")

    def _test(self, name: str, value: object, arguments: Arguments, named: Named) -> None:
        if name not in _TESTS and not re.fullmatch(r"\W+", name):
            self.note(f"is {name}")

    def getattr(self, obj: object, attribute: str) -> object:
        """As in Jinja; a method that the engine's type has not is noted, and a key that is a method there."""
        value: object = super().getattr(obj, attribute)
        if isinstance(obj, LoopContext) and attribute not in _LOOP:
            self.note(f"loop.{attribute}")
        elif isinstance(obj, Mapping) and attribute in _OF_OBJECTS and not callable(value):
            self.note(f".{attribute} as a key: it is a method in llama.cpp; write ['{attribute}']")
        elif isinstance(obj, str | list | tuple | dict) and callable(value) and not isinstance(value, Undefined):
            kind, known = _kind(obj)
            if attribute not in known or attribute in {"default", "slice"}:
                self.note(f".{attribute}() of {kind}")
            elif isinstance(obj, str):
                return _Method(self, attribute, obj, value)
        return value

    def getitem(self, obj: object, argument: object) -> object:
        """As in Jinja; the engine counts a text's bytes, and cannot count from its end."""
        if isinstance(obj, str) and isinstance(argument, int) and argument < 0:
            self.note("a letter counted from a text's end")
        self._cut(obj, argument)
        value: object = super().getitem(obj, argument)
        return value

    def _cut(self, obj: object, argument: object) -> None:
        if isinstance(obj, str) and isinstance(argument, slice | int) and not obj.isascii():
            self.note("a part of a text that is not ASCII: llama.cpp counts bytes")

    def _slice(self, obj: Sliceable, start: int | None, stop: int | None, step: int | None) -> object:
        """obj[start:stop:step], noted."""
        self._cut(obj, slice(start, stop, step))
        return obj[start:stop:step]

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        # Jinja's own code for a slice asks no environment.
        self.filters.setdefault(_SLICE, self._slice)
        return super()._generate(_Slices().visit(source), name, filename, defer_init)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """As in Jinja; arithmetic with texts and lists that the engine has not is noted."""
        if operator == "%" and isinstance(left, str):
            self.note("% of a text")
        elif operator == "%" and (_is_negative(left) or _is_negative(right)):
            self.note("% of a negative number")
        elif operator == "*" and (isinstance(left, list | tuple) or isinstance(right, list | tuple)):
            self.note("a list times a number")
        value: object = super().call_binop(context, operator, left, right)
        return value


class Sliceable(Protocol):
    """What a slice can be taken of."""

    def __getitem__(self, key: slice, /) -> object:
        """obj[start:stop:step]."""


class _Slices(NodeTransformer):
    """Slices as a filter, which can be noted."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 (the class of the node)
        """obj[a:b:c] -> obj|_SLICE(a, b, c)."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        nothing = nodes.Const(None)
        bounds = [bound or nothing for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return nodes.Filter(node.node, _SLICE, bounds, [], None, None).set_lineno(node.lineno)


class _Method:
    """A text's method that is noted when it is called."""

    def __init__(self, audit: Audit, name: str, value: str, method: Callable[..., object]) -> None:
        self._audit, self._name, self._value, self._method = audit, name, value, method

    def __call__(self, *arguments: object, **named: object) -> object:
        self._audit._of_text(self._name, self._value, arguments, named, ".")
        return self._method(*arguments, **named)


def _taking_context(
    call: Callable[..., object], noted: Callable[[object, Arguments, Named], None]
) -> Callable[..., object]:
    """A filter or test that is noted before it runs; Jinja gives some of them the context or environment first."""
    leads = 1 if hasattr(call, "jinja_pass_arg") else 0

    def wrapped(*arguments: object, **named: object) -> object:
        value, rest = arguments[leads], arguments[leads + 1 :]
        if isinstance(value, Iterator):
            # What another filter makes can be gone through once: the filter itself gets it whole.
            items = list(value)
            noted(items, rest, named)
            value = iter(items)
        else:
            noted(value, rest, named)
        return call(*arguments[:leads], value, *rest, **named)

    if leads:
        wrapped.jinja_pass_arg = call.jinja_pass_arg  # type: ignore[attr-defined]
    return wrapped


def _kind(value: object) -> tuple[str, set[str]]:
    """A value's type in words, and what the engine has for it."""
    if isinstance(value, Undefined):
        return "an undefined value", _OF_UNDEFINED
    if value is None:
        return "None", _OF_NONE
    if isinstance(value, bool):
        return "a truth value", _OF_NUMBERS - {"abs"}
    if isinstance(value, int | float):
        return "a number", _OF_NUMBERS
    if isinstance(value, str):
        return "a text", _OF_TEXTS
    if isinstance(value, Mapping):
        return "an object", _OF_OBJECTS
    return ("a function", set()) if isinstance(value, Macro) else ("a list", _OF_LISTS)


def _by_letters(change: Callable[[str], str], text: str) -> str:
    """A text of which ASCII's letters alone are changed."""
    changed = change("".join(letter if letter.isascii() else "\0" for letter in text))
    return "".join(new if old.isascii() else old for old, new in zip(text, changed, strict=True))


def _placeholders(text: str) -> bool:
    """Whether str.format does more with a text than to fill {}."""
    return bool(re.search(r"[{}]", text.replace("{}", "")))


def _is_negative(value: object) -> bool:
    return isinstance(value, int | float) and value < 0


def _joined(value: Iterable[object], named: Named) -> list[object]:
    attribute = named.get("attribute")
    return [item.get(attribute) if attribute and isinstance(item, Mapping) else item for item in value]


def _sorts_otherwise(value: Iterable[object]) -> bool:
    texts = [item for item in value if isinstance(item, str)]
    return sorted(texts) != sorted(texts, key=str.lower)
