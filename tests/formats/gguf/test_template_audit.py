"""What llama.cpp's template engine has not is named by edgekit; where llama.cpp's programs can be built, the engine itself agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.artifact import Parity
from edgekit.chat_template import converse, sandbox
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.chat_parity import check_chat_parity
from edgekit.formats.gguf.template_audit import Audit, unreadable
from edgekit.verify.checks import check_reading
from tests.architectures.decoders import BEGIN, END, SPECIAL
from tests.formats.gguf.test_tokenizer import chat_model
from tests.llama_files import write_llama
from tests.llama_programs import serve
from tests.test_chat_template import CHATML, GEMMA, LLAMA3, MISTRAL
from tests.tokenizers_made import write

ASKED = [
    {"role": "system", "content": "Be brief: übrigens."},
    {"role": "user", "content": " Why is the sky blue, é 1 2?\n"},
]
WORDS = "{{ bos_token }}{% for m in messages %}BODY\n{% endfor %}"
SAID = "{{ m['content'] }}"
# What a template's body does -> what of it is named. The first part ends the parser, the second what is run.
REFUSED = {
    "raw": ("{% raw %}>{% endraw %}" + SAID, "{% raw %}"),
    "floordiv": ("{{ loop.index // 2 }}" + SAID, "//"),
    "power": ("{{ loop.index ** 2 }}" + SAID, "**"),
    "with": ("{% with x = 1 %}" + SAID + "{% endwith %}", "{% with %}"),
    "chain": ("{{ 0 < loop.index < 3 }}" + SAID, "a chain of comparisons"),
    "escape in a text": ("{{ '\\x41' }}" + SAID, "the escape \\x"),
    "unknown token": ("{{ pad_token }}" + SAID, "pad_token"),
}
OTHERWISE = {
    "format": ("{{ '%s: %s'|format(m['role'], m['content']) }}", "|format of '%s: %s'"),
    "percent": ("{{ '%s: %s' % (m['role'], m['content']) }}", "% of a text"),
    "escape": ("{{ m['content']|e }}", "|escape of a text"),
    "partition": ("{{ m['content'].partition('?')[0] }}" + SAID, ".partition() of a text"),
    "sort_keys": ("{{ m|tojson(sort_keys=true) }}", "|tojson(sort_keys=true)"),
    "cycle": ("{{ loop.cycle('a', 'b') }}" + SAID, "loop.cycle"),
    "changed": ("{{ loop.changed(m['role']) }}" + SAID, "loop.changed"),
    "length": ("{{ m['content']|length }}" + SAID, "|length of a text that is not ASCII"),
    "upper": ("{{ m['content'].upper() }}", ".upper of letters that are not ASCII"),
    "backwards": ("{{ m['content'][::-1] }}" + SAID, "a part of a text that is not ASCII"),
    "last letter": ("{{ 'abc'[-1] }}" + SAID, "a letter counted from a text's end"),
    "unique": ("{{ messages|map(attribute='role')|unique|list|length }}" + SAID, "|unique of a list"),
    "groupby": ("{{ messages|groupby('role')|length }}" + SAID, "|groupby of a list"),
    "batch": ("{{ messages|batch(2)|list|length }}" + SAID, "|batch of a list"),
    "truncate": ("{{ m['content']|truncate(5) }}" + SAID, "|truncate of a text"),
    "center": ("{{ m['content']|center(80) }}", "|center of a text"),
    "striptags": ("{{ m['content']|striptags }}", "|striptags of a text"),
    "wordcount": ("{{ m['content']|wordcount }}" + SAID, "|wordcount of a text"),
    "round": ("{{ (loop.index / 3)|round(1) }}" + SAID, "|round of a number"),
    "find": ("{{ m['content'].find('sky') }}" + SAID, ".find() of a text"),
    "count": ("{{ m['content'].count('s') }}" + SAID, ".count() of a text"),
    "map": ("{{ messages|map(attribute='role')|map('upper')|join }}" + SAID, "|map('upper')"),
    "join": ("{{ '-'.join(['a', 'b']) }}" + SAID, ".join() of a text"),
    "split": ("{{ m['content'].split()|join('+') }}" + SAID, ".split at any spaces"),
}
FINE = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "usual": WORDS.replace(
        "BODY",
        "{%- set ns = namespace(last=0) -%}{%- for n in messages[::-1] %}{% set ns.last = loop.index %}{% endfor -%}"
        "{{ m['role']|upper }}{{ m.content.strip() }}{% if not loop.last and m.role in ['system', 'user'] %}, {% endif %}"
        "{{ m|tojson(ensure_ascii=False) }}{{ messages|length }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
        "{{ (m.content.split('?')|last).lstrip('\\n') }}{{ m.get('name', 'x')|default('y', true) }}{{ ns.last % 2 }}"
        "{% if m.content.startswith(' ') and 'sky' in m.content %}!{% endif %}{{ ['a', 'b']|join(', ') }}{{ 'x' * 3 }}"
        "{% for key, value in {'a': 1}.items() %}{{ key }}={{ value }}{% endfor %}{{ 'a' if m.tools is defined else 'b' }}",
    ),
}


def named(template: str) -> list[str]:
    """What is named of a template that writes our conversation."""
    if found := unreadable(template):
        return found
    audit = sandbox(Audit)
    audit.watch()
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    for messages in (ASKED[1:], ASKED):
        converse(template, messages, special_tokens=tokens, compiled=audit.from_string(template))
    return list(audit.noted)


@pytest.mark.parametrize("name", [*REFUSED, *OTHERWISE])
def test_what_the_engine_has_not_is_named(name: str) -> None:
    body, what = (REFUSED | OTHERWISE)[name]
    found = named(WORDS.replace("BODY", body))
    assert any(one.startswith(what) for one in found), found
    assert (name in REFUSED) == bool(unreadable(WORDS.replace("BODY", body)))


@pytest.mark.parametrize("name", FINE)
def test_what_the_engine_has_is_not(name: str) -> None:
    messages = ASKED[1:] if name == "gemma" else ASKED
    assert unreadable(FINE[name]) == []
    audit = sandbox(Audit)
    audit.watch()
    converse(
        FINE[name],
        messages,
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        compiled=audit.from_string(FINE[name]),
    )
    assert list(audit.noted) == []


@pytest.mark.parametrize(
    "filters", ["map(attribute='content')|join('; ')", "selectattr('content')|sort(attribute='role')"]
)
def test_what_a_filter_makes_is_still_there_for_the_next(filters: str) -> None:
    """The audit looks at each value before the filter does, and some can be gone through only once."""
    template = "{{ messages|" + filters + " }}"
    audit = sandbox(Audit)
    audit.watch()
    wanted = sandbox(ImmutableSandboxedEnvironment).from_string(template).render(messages=ASKED)
    assert audit.from_string(template).render(messages=ASKED) == wanted
    assert "sky" in wanted


@pytest.mark.parametrize("name", ["percent", "raw", "format", "length", "cycle"])
def test_a_template_that_the_engine_has_not_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    body, what = (REFUSED | OTHERWISE)[name]
    template = WORDS.replace("BODY", body)
    model = chat_model(tmp_path / "model", template)
    file = write(model, tmp_path / "model.gguf")
    with pytest.raises(EdgekitError, match="what llama.cpp's template engine has not: " + re.escape(what)):
        check_chat_parity(model, file, [{"messages": ASKED[1:]}])


def test_what_wrote_a_conversation_is_said(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    model = chat_model(tmp_path / "model", CHATML)
    parity = check_chat_parity(model, write(model, tmp_path / "model.gguf"), [{"messages": ASKED}])
    assert parity.engine == "Python's Jinja, watched for what llama.cpp's engine has not"
    (check,) = check_reading(Parity(texts=1, user_texts=1, kinds=(), limits=(), stops={}, chat=parity), None)
    assert "the template ran in Python's Jinja" in str(check.detail)


@pytest.mark.parametrize("name", [*FINE, "format", "length", "upper", "split", "percent", "raw"])
def test_llama_server_agrees(name: str, tmp_path: Path, talker: Path) -> None:
    """What is named llama-server refuses, or writes otherwise; what is not it writes as transformers does."""
    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    template = FINE.get(name) or WORDS.replace("BODY", (REFUSED | OTHERWISE)[name][0])
    (tmp_path / "template.jinja").write_text(template, encoding="utf-8")
    file = write_llama(talker, tmp_path / "model.gguf")
    options = ("-c", "256", "-t", "1", "-np", "1", "--jinja", "--chat-template-file", str(tmp_path / "template.jinja"))
    if name in {"percent", "raw"}:
        with pytest.raises(pytest.fail.Exception, match="did not start"), serve(file, tmp_path / "log", *options):
            pass
        return
    messages = ASKED[1:] if name == "gemma" else ASKED
    with serve(file, tmp_path / "log", *options) as server:
        found = server.ask("/apply-template", messages=messages)["prompt"]
    tokens = {"bos_token": SPECIAL[BEGIN], "eos_token": SPECIAL[END]}
    wanted = converse(template, messages, generation_prompt=True, special_tokens=tokens)
    assert (found in {wanted, wanted.removeprefix(SPECIAL[BEGIN])}) == (name in FINE)
