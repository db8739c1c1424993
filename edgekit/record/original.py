"""Whether a decoder is read as its owner reads it: ids against AutoTokenizer's, greedy answers against `generate`'s.

What edgekit compares an artifact with is its own reading of a checkpoint; that this reading is right is for transformers to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edgekit.chat_template import in_form, template_form
from edgekit.errors import EdgekitError, first_line
from edgekit.model import Model
from edgekit.owners_tokenizer import quiet
from edgekit.prompts import Prompt
from edgekit.reference import OwnersAnswers
from edgekit.schema import read_json
from edgekit.tasks.text_generation import Voice, conversation

if TYPE_CHECKING:
    from torch import nn

# Answers that are compared, and the tokens of each: what differs in positions, masks or caches shows in the first ones.
ANSWERS, ANSWER_TOKENS = 8, 16
# Keys of generation_config.json that change even greedy answers, and the values with which they do not (transformers'
# GenerationConfig). Neither edgekit nor the engines apply them.
_CHANGES = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "remove_invalid_values": False,
    "token_healing": False,
    "encoder_no_repeat_ngram_size": 0,
    "constraints": None,
    "dola_layers": None,
    "force_words_ids": None,
    "penalty_alpha": None,
    "stop_strings": None,
    "watermarking_config": None,
}


def compare_decoders(
    speakers: Mapping[str, tuple[Model, nn.Module]],
    prompts: Sequence[Prompt],
    asked: Mapping[str, Sequence[Sequence[int]]],
    answers: Mapping[str, Sequence[Sequence[int]]],
    most: int,
) -> OwnersAnswers:
    """Each model's ids of all prompts against AutoTokenizer's, and its first answers against `generate`'s.

    asked, answers: token ids of questions and of greedy answers, by role; most: tokens that an answer had room for. Raises
    EdgekitError for a tokenizer that transformers does not read.
    """
    most = min(most, ANSWER_TOKENS)
    same_ids: list[bool] = []
    same_answers: list[bool] = []
    difference: str | None = None
    for role, (model, decoder) in speakers.items():
        for prompt, ours, theirs in _ids(model, prompts):
            same_ids.append(ours == theirs)
            if ours != theirs and difference is None:
                difference = _differs(f"the {role}'s tokens of {prompt.text[:60]!r}", model, ours, theirs)
        for ids, answer in list(zip(asked[role], answers[role], strict=True))[:ANSWERS]:
            theirs = _generated(decoder, ids, model.stops, most)
            ours = list(answer[:most])
            same_answers.append(ours == theirs)
            if ours != theirs and difference is None:
                difference = _differs(f"the {role}'s answer", model, ours, theirs)
    return OwnersAnswers(
        rows=len(same_ids),
        ids_equal=sum(same_ids),
        answers=len(same_answers),
        answers_equal=sum(same_answers),
        difference=difference,
    )


def greedy_changes(model: Model) -> str | None:
    """A warning where generation_config.json changes greedy answers by more than where they end; None where it does not."""
    path = model.folder / "generation_config.json"
    told = read_json(path) if path.is_file() else {}
    keys = [f"{key} = {told[key]}" for key, usual in _CHANGES.items() if told.get(key) not in (None, usual)]
    if not keys:
        return None
    return (
        f"{path}: {', '.join(keys)}: transformers' `generate` applies it, llama.cpp and the bundles' loaders do not unless they"
        " are told to: answers are compared without"
    )


def _ids(model: Model, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[int], list[int]]]:
    """(prompt, our ids of what the model is asked, transformers')."""
    from transformers import AutoTokenizer

    voice = Voice(model)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as refused:
            raise EdgekitError(
                f"{model.folder}: transformers does not read its tokenizer: {first_line(refused)[:200]}; fetch it again"
            ) from refused
        for prompt in prompts:
            if voice.template is None:
                theirs = tokenizer(prompt.text, verbose=False).input_ids
            else:
                theirs = tokenizer.apply_chat_template(
                    in_form(template_form(voice.template, voice.special), conversation(prompt)),
                    tools=prompt.tools,
                    add_generation_prompt=True,
                    return_dict=False,
                )
            # A template may ask for the day: transformers tells it today's.
            yield prompt, voice.asked(prompt, today=datetime.now()), list(theirs)


def _generated(decoder: nn.Module, ids: Sequence[int], stops: Sequence[int], most: int) -> list[int]:
    """What transformers' own loop answers, without the token that ends it."""
    import torch
    from transformers import GenerationConfig

    model: Any = decoder.model
    settings = GenerationConfig(max_new_tokens=most, do_sample=False, **_CHANGES)
    settings.eos_token_id, settings.pad_token_id = list(stops) or None, next(iter(stops), 0)
    usual, model.generation_config = model.generation_config, settings
    try:
        with torch.inference_mode(), quiet():
            feed = torch.tensor([list(ids)])
            told = model.generate(feed, attention_mask=torch.ones_like(feed), generation_config=settings)[0]
    finally:
        model.generation_config = usual
    said: list[int] = told[len(ids) :].tolist()
    return said[: next((place for place, token in enumerate(said) if token in stops), len(said))]


def _differs(what: str, model: Model, ours: Sequence[int], theirs: Sequence[int]) -> str:
    place = next(
        (place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    tokenizer = model.tokenizer()

    def shown(ids: Sequence[int]) -> str:
        return " ".join(f"{token}({tokenizer.id_to_token(token)})" for token in ids[max(place - 2, 0) : place + 4])

    return f"{what}: from token {place} on edgekit has {shown(ours)}, transformers has {shown(theirs)}"
