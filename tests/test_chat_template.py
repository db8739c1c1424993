"""Chat templates of the shapes that models ship: the same text as transformers, and nothing outside the sandbox."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from edgekit.chat_template import TODAY, find_templates, render, special_tokens
from edgekit.errors import EdgekitError

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{%- if tools is not none %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}{%- continue %}{%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = """\
{%- set ns = namespace(turns=0, system='') -%}
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}
{% elif message['role'] == 'user' %}[INST] {{ ns.system if loop.last or ns.turns == 0 else '' }}{{ message['content'] }} [/INST]{% set ns.turns = ns.turns + 1 %}
{% else %}{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}
"""
PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query_index %}{{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "phi": PHI, "qwen3": QWEN3}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wärme",
            "description": 'Sets <a> room\'s "warmth" & more.',
            "parameters": {"type": "object", "properties": {"room": {"type": "string"}, "degrees": {"type": "number"}}},
        },
    }
]
USER = {"role": "user", "content": "  Grüße, 世界! <b>&amp;</b>\n"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "Be brief. "}, USER],
    "turns": [USER, {"role": "assistant", "content": " Hello 👋🏽"}, {"role": "user", "content": "{{ 7 * 7 }}"}],
    "answered": [USER, {"role": "assistant", "content": "Yes.\n", "reasoning": "short", "tool_calls": None}],
    "tool": [
        USER,
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "wärme", "arguments": {"room": "ä<", "degrees": 2.5}}}],
        },
        {"role": "tool", "content": '{"ok": true}'},
    ],
}
# The others' templates have no turn without content.
CASES = [(name, case) for name in TEMPLATES for case in CONVERSATIONS if case != "tool" or name in {"qwen3"}]


@lru_cache
def original() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)


@pytest.mark.parametrize(("name", "case"), CASES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("prompt", [False, True], ids=["", "prompt"])
def test_text_is_that_of_transformers(name: str, case: str, tools: list[Any] | None, prompt: bool) -> None:
    template, messages = TEMPLATES[name], CONVERSATIONS[case]
    wanted = original().apply_chat_template(
        messages, tools, chat_template=template, add_generation_prompt=prompt, tokenize=False
    )
    said = render(template, messages, generation_prompt=prompt, tools=tools, special_tokens=TOKENS)
    assert said == wanted
    assert str(messages[0]["content"]).strip() in said
    if name in {"llama3", "qwen3"}:
        assert ("wärme" in said.split("Grüße")[0]) == bool(tools)


def test_the_date_is_the_same_every_day() -> None:
    """What is trained, calibrated and verified on must not depend on when: the same inputs give the same bytes."""
    template = "{{ strftime_now('%Y-%m-%d') }}|{% set d = dict(a=1) %}{{ d.a }}{{ dict.fromkeys('xy', 2) | tojson }}"
    said = render(template, [USER], special_tokens={})
    theirs = original().apply_chat_template([USER], chat_template=template, tokenize=False)
    assert said.startswith(f"{TODAY:%Y-%m-%d}|")
    assert said.partition("|")[2] == theirs.partition("|")[2]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("first\n{% for x in messages %}\nno end", "line 3"),
        ("one\ntwo\n{{ messages[0]['content'] + 1 }}", "line 3"),
        ("{{ messages.nothing.at_all }}", "line 1"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ raise_exception('only users speak here') }}", "only users speak here"),
        ("{% include 'other' %}", "chat template"),
        ("{% macro deep(n) %}{{ deep(n + 1) }}{% endmacro %}{{ deep(0) }}", "recursion"),
        ("{{ range(1000000) | list }}", "too big"),
    ],
)
def test_a_template_that_fails_is_an_error_with_its_line(template: str, says: str) -> None:
    with pytest.raises(EdgekitError, match="chat template") as raised:
        render(template, [USER], special_tokens={})
    assert says in raised.value.message


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir(PLACE) }}",
    "{{ raise_exception.__globals__['jinja2'].loaders.os.mkdir(PLACE) }}",
    "{{ (namespace).__init__.__globals__.__builtins__.open(PLACE, 'w') }}",
    "{{ namespace(__class__=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 3 %}{{ n }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(lipsum) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{% for x in (messages,) %}{{ x.clear() }}{% endfor %}",
    "{{ lipsum.__globals__['os'].popen('touch ' + PLACE).read() }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_out_never_runs(template: str, tmp_path: Path) -> None:
    place = tmp_path / "touched"
    messages = [dict(USER)]
    with pytest.raises(EdgekitError, match="chat template"):
        render(template.replace("PLACE", repr(str(place))), messages, special_tokens={})
    assert not place.exists()
    assert messages == [USER]


def test_only_json_values_reach_a_template() -> None:
    class Open:
        def __str__(self) -> str:
            raise AssertionError("called")

    with pytest.raises(EdgekitError, match="Open"):
        render("{{ messages[0].content }}", [{"role": "user", "content": Open()}], special_tokens={})
    with pytest.raises(EdgekitError, match="without messages"):
        render(CHATML, [], special_tokens={})


def test_templates_are_found_where_transformers_saves_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = original()
    for saved, names in {"one": CHATML, "many": {"default": CHATML, "tool_use": QWEN3, "rag": PHI}}.items():
        for jinja in (True, False):
            folder = tmp_path / f"{saved}-{jinja}"
            again = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **TOKENS)
            again.chat_template = names
            again.save_pretrained(folder, save_jinja_files=jinja)
            (folder / "config.json").write_text('{"model_type": "llama"}')
            expected = AutoTokenizer.from_pretrained(folder).chat_template
            assert find_templates(folder) == (expected if isinstance(expected, dict) else {"default": expected})
            assert find_templates(folder)["default"] == CHATML
            assert special_tokens(folder) == TOKENS


def test_a_jinja_file_comes_before_the_configuration(tmp_path: Path) -> None:
    assert find_templates(tmp_path) == {}
    assert special_tokens(tmp_path) == {}
    config = {"chat_template": "old", "bos_token": {"content": "<b>", "__type": "AddedToken"}, "eos_token": None}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert find_templates(tmp_path) == {"default": "processor"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert find_templates(tmp_path) == {"default": "old"}
    assert special_tokens(tmp_path) == {"bos_token": "<b>"}
    (tmp_path / "chat_template.jinja").write_text("new")
    assert find_templates(tmp_path) == {"default": "new"}
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(EdgekitError, match="UTF-8"):
        find_templates(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": 3}]}')
    with pytest.raises(EdgekitError, match="chat_template"):
        find_templates(tmp_path)
