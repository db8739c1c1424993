"""Whether a decoder is read as transformers reads it: equal where it is, and the first difference where it is not."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.record.original import compare_decoders, greedy_changes
from edgekit.record.tokens import greedy
from edgekit.reference import OwnersAnswers
from edgekit.tasks.decoders import load_decoder
from edgekit.tasks.text_generation import Voice, conversation
from edgekit.verify.checks import check_as_original
from tests.hub_variants import DECODERS
from tests.tasks.test_text_generation import CALLS, PARTS

CALL = {"type": "function", "function": {"name": "light", "arguments": {"room": "hall"}}}
TOOLS = [{"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}]
PROMPTS = [
    Prompt(text="turn the light on"),
    Prompt(
        text="and off",
        messages=[
            {"role": "user", "content": "and off"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "light", "content": "ok"},
        ],
        tools=TOOLS,
    ),
]
HUB_PROMPTS = [
    Prompt(text="please turn the kitchen light on"),
    Prompt(text="some jazz  on the <think> hall speaker,  Señor Müller <|end|> 中文"),
    Prompt(text="switch off every lamp in the porch", tools=TOOLS),
]
DATED = "<|user|>{{ strftime_now('%Y') }}{{ messages[0]['content'] }}<|end|><|assistant|>"


def compared(folder: Path, prompts: list[Prompt] = PROMPTS, answers: list[list[int]] | None = None) -> dict[str, Any]:
    model, decoder = load_model(folder), load_decoder(folder)
    asked = [Voice(model).asked(prompt) for prompt in prompts]
    answers = answers or [greedy(decoder, ids, model.stops, 64) for ids in asked]
    return compare_decoders({"student": (model, decoder)}, prompts, {"student": asked}, {"student": answers}, 64)


@pytest.mark.parametrize(
    "template", ["its own", CALLS, PARTS, DATED, None], ids=["own", "calls", "parts", "dated", "none"]
)
def test_ids_and_answers_are_transformers(talker: Path, tmp_path: Path, template: str | None) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    if template is None:
        (folder / "chat_template.jinja").unlink()
    elif template != "its own":
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    prompts = PROMPTS if template == CALLS else PROMPTS[:1]
    found = compared(folder, prompts)
    counts = dict.fromkeys(("rows", "ids_equal", "answers", "answers_equal"), len(prompts))
    assert found == OwnersAnswers(difference=None, **counts)
    (check,) = check_as_original(found)
    assert (check.name, check.verdict, check.measured) == ("as_original", "pass", "as the original")


@pytest.mark.parametrize("variant", DECODERS)
def test_decoders_of_the_hub(talker: Path, tmp_path: Path, variant: str) -> None:
    """Ids of AutoTokenizer, answers of `generate` by the folder's own settings; only a penalty and luck are left out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    DECODERS[variant](folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, decoder = load_model(folder), load_decoder(folder)
    voice = Voice(model)
    for prompt in HUB_PROMPTS:
        ids = voice.asked(prompt, today=datetime.now())
        turns: list[Any] = [dict(turn) for turn in conversation(prompt)]
        if variant == "parts":
            turns = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        if tokenizer.chat_template is None:
            wanted = tokenizer(prompt.text).input_ids
        else:
            wanted = tokenizer.apply_chat_template(
                turns, tools=prompt.tools, add_generation_prompt=True, return_dict=False
            )
        assert ids == wanted
        feed = torch.tensor([wanted])
        said = theirs.generate(
            feed, attention_mask=torch.ones_like(feed), do_sample=False, repetition_penalty=1.0, max_new_tokens=16
        )[0, len(wanted) :].tolist()
        assert said[: -1 if said[-1] in model.stops else None] == greedy(decoder, ids, model.stops, 16)
    assert (greedy_changes(model) is None) == (variant != "repetition_penalty")


def test_the_decoders_differ(talker: Path, tmp_path: Path) -> None:
    """Each of these changes what is read or said, or is harmless and known to be."""
    harmless = {"as saved", "ends in config.json alone", "sampling", "repetition_penalty", "sides"}
    harmless |= {"clean_up_tokenization_spaces"}
    seen: dict[str, str] = {}
    for place, variant in enumerate(DECODERS):
        folder = Path(shutil.copytree(talker, tmp_path / str(place)))
        DECODERS[variant](folder)
        model = load_model(folder)
        asked = [Voice(model).asked(prompt) for prompt in HUB_PROMPTS]
        seen[variant] = repr((asked, sorted(model.stops)))
    same = {variant for variant, told in seen.items() if variant != "as saved" and told == seen["as saved"]}
    assert same == harmless - {"as saved"}


def test_a_setting_that_only_transformers_applies_is_a_difference(talker: Path, tmp_path: Path) -> None:
    """A tokenizer whose configuration overrides tokenizer.json: edgekit reads one, AutoTokenizer both."""
    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    found = compared(talker, [Prompt(text="Turn The Light On")])
    assert found.ids_equal == 1
    model, decoder = load_model(folder), load_decoder(folder)
    theirs = {"student": (load_model(talker), decoder)}
    asked = {"student": [Voice(model).asked(PROMPTS[0])]}
    wrong = compare_decoders(theirs, PROMPTS[:1], asked, {"student": [[5, 6]]}, 64)
    assert (wrong.ids_equal, wrong.answers_equal) == (1, 0)
    assert "the student's answer: from token 0 on edgekit has 5(" in wrong.difference
    (check,) = check_as_original(wrong)
    assert check.verdict == "fail"
    assert "0 of 1 answers" in str(check.detail)
    assert "from token 0 on" in str(check.remedy)


def test_other_ids_are_a_difference(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Voice.asked
    monkeypatch.setattr(Voice, "asked", lambda *given, **named: [*asked(*given, **named), 9])
    found = compared(talker, PROMPTS[:1])
    assert found.ids_equal == 0
    assert found.difference.startswith("the student's tokens of 'turn the light on': from token ")


def test_what_changes_greedy_answers_is_told(talker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "copy"))
    assert greedy_changes(load_model(folder)) is None
    written = {"repetition_penalty": 1.3, "temperature": 0.7, "num_beams": 1}
    (folder / "generation_config.json").write_text(json.dumps(written), encoding="utf-8")
    told = greedy_changes(load_model(folder))
    assert told is not None
    assert "repetition_penalty = 1.3: transformers' `generate` applies it" in told
    assert "temperature" not in told
    found = compared(folder, PROMPTS[:1])
    assert found.answers_equal == 1, "compared without"


def test_a_record_without_a_comparison_checks_nothing() -> None:
    assert check_as_original(None) == []
