"""text-generation: what of a prompt is given, what is said, and how answers end, against transformers' own templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.modalities.text import token_ids
from edgekit.model import Model, load_model
from edgekit.prompts import Prompt
from edgekit.tasks.text_generation import choice_passages, encode, endless_turns, load, passages, settings
from tests.architectures.decoders import BEGIN, END, PAD, SPECIAL, TEMPLATE
from tests.conftest import make_checkpoint

TALK = [
    {"role": "user", "content": "turn the light on"},
    {"role": "assistant", "content": "it is on"},
    {"role": "user", "content": "and the music?"},
]
# A prompt begins with an empty thought that a finished turn does not have.
THINKS = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think></think>{% endif %}")


def copied(talker: Path, folder: Path, template: str | None) -> Model:
    """The talker with another chat template, or with none."""
    copy = Path(shutil.copytree(talker, folder / "copy"))
    (copy / "chat_template.jinja").unlink()
    if template is not None:
        (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    return load_model(copy)


@pytest.fixture
def plain(talker: Path, tmp_path: Path) -> Model:
    """A model without a chat template."""
    return copied(talker, tmp_path, None)


@pytest.fixture
def tokenizer(talker: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(talker)


def test_running_text_is_cut_into_blocks(plain: Model) -> None:
    text = "some jazz on the hall speaker would be nice " * 8
    whole = plain.encode([text], 1 << 20)[0]
    found = passages(plain, [Prompt(text="jazz"), Prompt(text=text), Prompt(text="")], 16)
    assert [one.ids for one in found if one.prompt == 1] == [
        whole[begin : begin + 16] for begin in range(0, len(whole), 16) if len(whole) - begin > 1
    ]
    assert found[0].ids[0] == BEGIN
    assert {one.start for one in found} == {1}
    assert {one.prompt for one in found} == {0, 1}, "an empty text says nothing"
    read = encode(plain, [Prompt(text=text)], 16)
    assert token_ids(read) == [one.ids for one in found if one.prompt == 1]
    assert set(read.owners) == {0}


def test_an_answer_follows_its_text_and_ends(plain: Model) -> None:
    (found,) = passages(plain, [Prompt(text="the light is", label=" on")], 32)
    assert found.ids == [*plain.encode(["the light is on"], 32)[0], END]
    assert found.asked == plain.encode(["the light is"], 32)[0]
    # A tokenizer may join the last letters of the text with the first ones of the answer: then they are said, too.
    (joined,) = passages(plain, [Prompt(text="the l", label="amp")], 32)
    assert joined.ids == [*plain.encode(["the lamp"], 32)[0], END]
    assert joined.asked == plain.encode(["the"], 32)[0]


def test_a_tokenizer_that_ends_texts_itself_ends_them_once(talker: Path, tmp_path: Path) -> None:
    model = copied(talker, tmp_path, None)
    path = model.folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"]["single"].append({"SpecialToken": {"id": "<|end|>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["<|end|>"] = {"id": "<|end|>", "ids": [END], "tokens": ["<|end|>"]}
    path.write_text(json.dumps(content), encoding="utf-8")
    model = load_model(model.folder)
    (found,) = passages(model, [Prompt(text="the light is", label=" on")], 32)
    assert found.ids == model.encode(["the light is on"], 32)[0]
    assert found.ids.count(END) == 1
    assert END not in found.asked


@pytest.mark.parametrize("label", ["it plays", None])
def test_a_conversation_is_what_transformers_makes_of_it(talker: Path, tokenizer: Any, label: str | None) -> None:
    model = load_model(talker)
    (found,) = passages(model, [Prompt(text="and the music?", label=label, messages=TALK)], 128)
    asked = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    said = [*TALK, {"role": "assistant", "content": label}]
    whole = tokenizer.apply_chat_template(said, return_dict=False) if label else asked
    assert found.ids == whole
    assert found.asked == asked
    assert found.ids.count(BEGIN) == 1
    if label:
        assert found.ids[-1] == END


def test_a_text_is_what_the_user_says(talker: Path) -> None:
    model = load_model(talker)
    text, talk = (
        Prompt(text="hi", label="yes"),
        Prompt(text="", label="yes", messages=[{"role": "user", "content": "hi"}]),
    )
    assert passages(model, [text], 64)[0].ids == passages(model, [talk], 64)[0].ids
    assert settings(model)["chat"] is True
    assert settings(model)["stop"] == ["<|end|>"]


def test_a_template_that_writes_finished_turns_differently(talker: Path, tmp_path: Path) -> None:
    """The answer stands behind what the model is really given."""
    model = copied(talker, tmp_path, THINKS)
    (found,) = passages(model, [Prompt(text="hi", label="yes")], 64)
    tokenizer = model.tokenizer()
    assert (
        tokenizer.decode(found.asked, skip_special_tokens=False)
        == "<|begin|><|user|>hi<|end|><|assistant|><think></think>"
    )
    assert tokenizer.decode(found.ids[found.start :], skip_special_tokens=False) == "yes<|end|>"


@pytest.mark.parametrize("answer", ["it is late.</think>yes", "  yes "], ids=["a thought", "spaces"])
def test_a_template_that_rewrites_answers(talker: Path, tmp_path: Path, answer: str) -> None:
    """R1's templates keep what lies behind the thought: an answer that is not in the finished turn still ends as one."""
    rewrites = THINKS.replace("message['content']", "message['content'].split('</think>')[-1] | trim")
    assert rewrites != THINKS
    model = copied(talker, tmp_path, rewrites)
    (found,) = passages(model, [Prompt(text="hi", label=answer)], 64)
    said = model.tokenizer().decode(found.ids, skip_special_tokens=False)
    assert said == f"<|begin|><|user|>hi<|end|><|assistant|><think></think>{answer}<|end|>"


def test_choices_share_a_prompt(talker: Path) -> None:
    prompts = [
        Prompt(text="on or off?", label="on", choices=["on", "off", "both of them"]),
        Prompt(text="and now?"),
        Prompt(text="yes or no?", label="no", choices=["yes", "no"]),
    ]
    groups = choice_passages(load_model(talker), prompts, 64)
    assert [len(group) for group in groups] == [3, 0, 2]
    tokenizer = load_model(talker).tokenizer()
    for prompt, group in zip(prompts, groups, strict=True):
        assert len({tuple(one.asked) for one in group}) <= 1
        said = [tokenizer.decode(one.ids[one.start :]) for one in group]
        assert said == list(prompt.choices or [])


def test_where_answers_end(talker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    assert load_model(folder).stops == [END]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, 4]}), encoding="utf-8")
    assert load_model(folder).stops == [END, 4]
    (folder / "generation_config.json").unlink()
    assert load_model(folder).stops == [END], "config.json says it too"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}), encoding="utf-8")
    assert load_model(folder).stops == [END], "and the tokenizer's own eos_token"
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert load_model(folder).stops == []


@pytest.mark.parametrize("template", [TEMPLATE, THINKS, None])
def test_an_unfinished_answer_does_not_end(talker: Path, tmp_path: Path, template: str | None) -> None:
    """It is what a finished one is, up to its last word; the prompt before it is the same."""
    model = copied(talker, tmp_path, template)
    ends, goes_on = passages(
        model, [Prompt(text="jazz", label="some music", unfinished=one) for one in (False, True)], 64
    )
    assert goes_on.ids == ends.ids[: ends.ids.index(END, ends.start)]
    assert ends.asked == goes_on.asked


def test_the_tokenizers_own_end_stops_too(talker: Path, tmp_path: Path) -> None:
    """A fine-tuned model says the tokenizer's eos_token where generation_config.json still has the first model's."""
    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [PAD]}), encoding="utf-8")
    model = load_model(folder)
    assert model.stops == [PAD, END]
    assert settings(model)["stop"] == [SPECIAL[PAD], SPECIAL[END]]
    assert endless_turns(model) is None
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    told = endless_turns(load_model(folder))
    assert told is not None
    assert f"ends an answer with {SPECIAL[END]!r}, in which no token stops a generation" in told
    assert f"({SPECIAL[PAD]!r})" in told.replace("those that do: ", "")


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ({"eos_token_id": [END, 9999]}, r"eos_token_id: 9999: the embedding has \d+ rows"),
        ({"eos_token_id": "<|end|>"}, r"eos_token_id: '<\|end\|>' is no token id"),
        ({"eos_token_id": [END, None]}, r"eos_token_id: None is no token id"),
        ([END], r"generation_config\.json: expected a JSON object"),
    ],
)
def test_ends_that_are_none_are_refused(talker: Path, tmp_path: Path, written: Any, match: str) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    (folder / "generation_config.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(EdgekitError, match=match):
        _ = load_model(folder).stops


PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_template_over_parts_gets_parts(talker: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = copied(talker, tmp_path, PARTS)
    (found,) = passages(model, [Prompt(text="why is it dark?", label="night")], 64)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    talk = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "why is it dark?"), ("assistant", "night"))
    ]
    assert found.ids == tokenizer.apply_chat_template(talk, return_dict=False)
    assert "night" in tokenizer.decode(found.ids)
    assert settings(model)["parts"] is True
    assert settings(load_model(talker))["parts"] is False


def test_text_parts_are_one_text_where_a_template_takes_texts(talker: Path, tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "turn it"}, {"type": "text", "text": "on"}]
    talk = [{"role": "user", "content": parts}]
    (found,) = passages(load_model(talker), [Prompt(text="turn it on", messages=talk)], 64)
    plain = [{"role": "user", "content": "turn it\non"}]
    assert found.ids == tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)


def test_a_prompt_without_the_users_words_is_refused(talker: Path, tmp_path: Path) -> None:
    last = "<|user|>{{ messages[-1]['content'] }}<|end|>{% if add_generation_prompt %}<|assistant|>{% endif %}"
    model = copied(talker, tmp_path, last)
    assert passages(model, [Prompt(text="hi there", label=None)], 64)[0].ids
    with pytest.raises(EdgekitError, match=r"the user says 'turn the light on', and the template does not write it"):
        passages(model, [Prompt(text="x", messages=TALK)], 64)


CALLS = (
    "{% for t in tools or [] %}<|user|>{{ t.function.name }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m['content'] or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments|tojson }}</call>"
    "{% endfor %}{{ m.name }}{{ m.tool_call_id }}{{ m.reasoning_content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_calls_of_tools_reach_the_template(talker: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = copied(talker, tmp_path, CALLS)
    call = {"type": "function", "function": {"name": "light", "arguments": {"room": "hall"}}}
    talk = [
        {"role": "user", "content": "it is dark"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "name": "light", "tool_call_id": "a1", "content": "on"},
    ]
    tools = [{"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}]
    (found,) = passages(model, [Prompt(text="it is dark", label="done", messages=talk, tools=tools)], 256)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    said = [*talk, {"role": "assistant", "content": "done"}]
    assert found.ids == tokenizer.apply_chat_template(said, tools=tools, return_dict=False)
    assert '<call>light{"room": "hall"}</call>' in tokenizer.decode(found.ids)


def test_what_is_refused(talker: Path, plain: Model, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"copy: no chat template in it, so it cannot take conversations"):
        passages(plain, [Prompt(text="hi", messages=[{"role": "user", "content": "hi"}])], 64)
    long = "please turn the light on " * 10
    with pytest.raises(
        EdgekitError, match=r"row 7: the prompt alone has \d+ tokens, data\.max_length is 32: .*'please"
    ):
        passages(load_model(talker), [Prompt(text=long, label="yes", row=7)], 32)
    with pytest.raises(EdgekitError, match=r"row 2: the prompt alone has"):
        passages(plain, [Prompt(text="a"), Prompt(text=long, label="yes")], 32)
    with pytest.raises(EdgekitError, match=r"encoder: the weights do not fit config\.json: .* is missing"):
        load(make_checkpoint(tmp_path / "encoder"))
    (cut,) = passages(load_model(talker), [Prompt(text="hi", label="no " * 100)], 24)
    assert len(cut.ids) == 24
