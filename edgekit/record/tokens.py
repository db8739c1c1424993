"""What teacher and float student say token by token: likelihoods on the verify prompts, and their own greedy answers.

reference.npz, flat arrays of all passages behind each other:
ids, offsets int64 [passages + 1], starts, prompts int64 [passages]: passages as `tasks.text_generation.Passage` has them; a
conversation without a wanted answer ends in the student's own.
{role}_ids int32 [T, K], {role}_logprobs float32 [T, K], {role}_nll float32 [T]: the K likeliest next tokens of each of the T
tokens that passages say, and the negative log-likelihood of the one that they do say. T is at most MOST_TOKENS, K at most
MOST_LIKELY, so that a reference stays under 2 x 134 MB: of long passages a window is scored, and beyond LEAST tokens of each
whole prompts are left out.
asked, asked_offsets, asked_prompts: what was asked for answers; asked_worded bool: whether the answer is compared with a wanted
one; {role}_answers, {role}_answer_offsets: what was said.
answers.json has these answers in words, {role: [text]}.
choice_ids, choice_offsets, choice_starts, choice_prompts: a passage for each choice, as the student reads it; {role}_choice_nll:
one value for each, the teacher's of its own tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint_keys import strange_keys
from edgekit.errors import EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.model import Model, load_model
from edgekit.outputs.tokens import TOKENS
from edgekit.progress import Progress
from edgekit.prompts import Prompt, PromptSet
from edgekit.record.alone import TIMING, by_role, measure_alone
from edgekit.record.inputs import RecordInputs
from edgekit.record.original import compare_decoders, greedy_changes
from edgekit.reference import Reference, Sequences
from edgekit.schema import dump_json
from edgekit.tasks.text_generation import Passage, Voice, choice_passages, endless_turns, passages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgekit.modalities.encoded import Encoded

MOST_TOKENS, MOST_LIKELY = 32_768, 512
# Tokens of a passage that are scored at least: a mean over fewer says little about the prompt.
LEAST = 64
# Greedy answers are compared by their length; of prompts with a wanted answer also by what they say. So many of the others
# are asked: 300 of which none is far off prove that at most one in a hundred is, each costs as many steps as it has tokens.
ANSWERS, ANSWER_TOKENS = 300, 64
# Questions that are answered for the clock.
TIMED = 8
# Running text is continued from its first tokens.
CONTINUED = 16
_ANY_LENGTH = 1 << 30
# The probe times new tokens behind its longest prompt (`verify.generation.TIMING`).
DEPTH = 256


def record_tokens(inputs: RecordInputs, out: Path, progress: Progress | None) -> Reference:
    """Run teacher and student over the verify prompts and write reference.npz (see above) into `out`.

    A teacher of another vocabulary gives answers only. Raises EdgekitError for models that are no decoders and for likelihoods
    that are not finite.
    """
    models = {"teacher": inputs.teacher.path, "student": inputs.student.path}
    said = _say(models, inputs.prompts.path, inputs.max_length, out, progress)
    if progress:
        progress(0, 0, TIMING)
    once = dict.fromkeys(folder.resolve() for folder in models.values())
    measured = measure_alone(dict.fromkeys(once, said.timed), inputs.task, inputs.max_length)
    return Reference(
        output=TOKENS.name,
        classes=(),
        rows={"verify": said.rows},
        max_length=inputs.max_length,
        models=by_role(models, measured),
        warnings=tuple(said.warnings),
        sequences=said.sequences,
    )


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What was recorded of `rows` prompts, what is to be known of it, and questions that are answered for the clock."""

    rows: int
    sequences: Sequences
    warnings: Sequence[str]
    timed: Encoded


def _say(models: Mapping[str, Path], prompts: Path, max_length: int, out: Path, progress: Progress | None) -> _Said:
    from edgekit.tasks.decoders import load_decoder

    rows = PromptSet(folder=prompts).split("verify")
    teacher, student = models["teacher"], models["student"]
    model, module = load_model(student), load_decoder(student)
    speakers = {"student": (model, module)}
    if teacher.resolve() != student.resolve():
        speakers["teacher"] = (load_model(teacher), load_decoder(teacher))
    questions = _questions({role: spoken for role, (spoken, _) in speakers.items()}, rows, max_length)
    asked = questions.asked["student"]
    steps = _Steps(progress)
    arrays = _asked_arrays(questions)
    answers: dict[str, list[list[int]]] = {}
    for role, (spoken, decoder) in speakers.items():
        answers[role] = _answers(decoder, questions.asked[role], spoken.stops, questions.most, steps, role)
        arrays |= _flat(f"{role}_answers", answers[role], f"{role}_answer_offsets")
    steps.tell(0, 0, "asking transformers' generate the same")
    original = compare_decoders(speakers, rows, questions.ids, answers, questions.most)
    words = {role: _words(speakers[role][0], rows_) for role, rows_ in answers.items()}
    (out / "answers.json").write_text(dump_json(words), encoding="utf-8", newline="\n")
    said = _chosen(_said(model, rows, max_length, asked, answers["student"]))
    if not said:
        raise EdgekitError(
            f"{prompts}: nothing in the verify prompts is said by the model: they have no answers, and {student} gives none to"
            " any; give longer texts, or prompts with wanted answers (data.answer)"
        )
    left_out = len(rows) - len({one.prompt for one in said})
    choices = _choices(model, rows, max_length)
    arrays |= _passages("", said) | _passages("choice_", choices)
    shared = _share_vocabulary(*(speakers.get(role, speakers["student"])[0] for role in ("teacher", "student")))
    for role, (spoken, decoder) in speakers.items():
        if role == "student" or shared:
            arrays |= _likelihoods(role, decoder, said, steps)
        # Each in its own tokens: choices are compared within a model, and then what was chosen.
        arrays[f"{role}_choice_nll"] = _choice_nll(role, decoder, _choices(spoken, rows, max_length), steps)
    _write(out, arrays)
    # Where all prompts are choices, nothing is asked.
    questioned = [passage.ids for passage in asked or choices][:TIMED]
    return _Said(
        rows=len(rows),
        sequences=Sequences(
            passages=len(said),
            tokens=sum(len(passage.ids) - passage.start for passage in said),
            left_out=left_out,
            choices=len(choices),
            shared_vocabulary=shared,
            max_new=questions.most,
            stop=tuple(model.stops),
            as_original=original,
        ),
        warnings=_warnings(model, rows, left_out, sum(questions.worded)),
        timed=of_tokens(questioned, 0),
    )


def _asked_arrays(questions: _Questions) -> dict[str, NDArray[np.generic]]:
    import numpy as np

    asked = questions.asked["student"]
    return _flat("asked", [one.ids for one in asked]) | {
        "asked_prompts": np.array([one.prompt for one in asked], np.int64),
        "asked_worded": np.array(questions.worded, np.bool_),
    }


def _warnings(model: Model, rows: Sequence[Prompt], left_out: int, worded: int) -> list[str]:
    """What of the model's own settings is not applied, and what of the prompts the verdict does not rest on."""
    found = [warning for warning in (endless_turns(model), greedy_changes(model)) if warning]
    found += strange_keys(model.folder)
    if left_out:
        found.append(
            f"{left_out} of {len(rows)} verify prompts are not scored: of those without a wanted answer {ANSWERS} are asked for"
            f" one, and no more than {MOST_TOKENS} tokens of answers are scored"
        )
    long = sum(row.label is not None and not row.choices for row in rows) - worded
    if long:
        found.append(
            f"{long} wanted answers take more than {ANSWER_TOKENS} tokens: how likely the model finds them and how long its own"
            " are is compared, not their words"
        )
    return found


def _words(model: Model, answers: Sequence[Sequence[int]]) -> list[str]:
    return list(model.tokenizer().decode_batch([list(row) for row in answers]))


def _write(out: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    import numpy as np

    # NumPy stamps every member with one fixed date: equal arrays are equal bytes.
    with (out / "reference.npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})


def _share_vocabulary(teacher: Model, student: Model) -> bool:
    """Whether a token means the same to both."""
    vocabularies = [model.tokenizer().get_vocab(with_added_tokens=True) for model in (teacher, student)]
    return vocabularies[0] == vocabularies[1] and teacher.rows == student.rows


def _choices(model: Model, rows: Sequence[Prompt], max_length: int) -> list[Passage]:
    return [one for group in choice_passages(model, rows, max_length) for one in group]


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """What each model is asked, in the same order; whether its answer is compared with a wanted one; room in tokens for it."""

    asked: dict[str, list[Passage]]
    worded: list[bool]
    most: int

    @property
    def ids(self) -> dict[str, list[list[int]]]:
        """What each model is asked, as token ids."""
        return {role: [one.ids for one in found] for role, found in self.asked.items()}


def _questions(models: dict[str, Model], rows: Sequence[Prompt], max_length: int) -> _Questions:
    """All prompts whose wanted answers an answer has room for, and some of the others, whose answers are compared by length.

    The longest wanted answer, twice over, is room enough. A text may be too short for one of the models to be asked.
    """
    lengths = _answer_lengths(models["student"], rows)
    worded = {place for place, length in lengths.items() if length <= ANSWER_TOKENS}
    others = [place for place, row in enumerate(rows) if not row.choices and place not in worded]
    some = sorted(others, key=lambda place: _hash(rows[place]))[:ANSWERS]
    asked = {role: _asked(model, rows, sorted([*worded, *some]), max_length) for role, model in models.items()}
    common = sorted(set.intersection(*map(set, asked.values())))
    enough = 2 * max((lengths[place] for place in worded), default=ANSWER_TOKENS)
    return _Questions(
        asked={role: [found[place] for place in common] for role, found in asked.items()},
        worded=[place in worded for place in common],
        most=ANSWER_TOKENS if some else min(ANSWER_TOKENS, enough),
    )


def _answer_lengths(model: Model, rows: Sequence[Prompt]) -> dict[int, int]:
    """Of each prompt with a wanted answer and no choices, the answer's tokens with the one that ends it."""
    voice = Voice(model)
    labelled = [(place, row) for place, row in enumerate(rows) if row.label is not None and not row.choices]
    found = {place: voice.passages(row, row.label, place, max_length=_ANY_LENGTH)[0] for place, row in labelled}
    return {place: len(passage.ids) - passage.start for place, passage in found.items()}


def _asked(model: Model, rows: Sequence[Prompt], places: Sequence[int], max_length: int) -> dict[int, Passage]:
    """What the model is asked of each prompt: the prompt before its answer, or the beginning of a running text."""
    voice = Voice(model)
    found = {}
    for place in places:
        for passage in voice.passages(rows[place], rows[place].label, place, max_length)[:1]:
            running = voice.template is None and rows[place].label is None
            ids = passage.ids[: min(CONTINUED, len(passage.ids) - 1)] if running else passage.asked
            found[place] = replace(passage, ids=ids, start=len(ids))
    return found


def _said(
    model: Model, rows: Sequence[Prompt], max_length: int, asked: Sequence[Passage], answers: Sequence[Sequence[int]]
) -> list[Passage]:
    """The passages to score: as the prompts have them, with the student's own answers where they have none."""
    own = {one.prompt: [*one.ids, *answer] for one, answer in zip(asked, answers, strict=True)}
    found = []
    for passage in passages(model, rows, max_length):
        if passage.start < len(passage.ids):
            found.append(passage)
        elif len(own.get(passage.prompt, ())) > passage.start:
            found.append(replace(passage, ids=own[passage.prompt][:max_length]))
    return found


def _chosen(said: Sequence[Passage]) -> list[Passage]:
    """Passages, in their order, of no more than MOST_TOKENS: of long ones a window, so that as many prompts as can be are scored.

    Windows have LEAST tokens or more; where even those are too many, a hash decides which passages are left out.
    """
    room = _room([len(one.ids) - one.start for one in said])
    order = sorted(range(len(said)), key=lambda place: _digest(said[place]))
    kept: dict[int, Passage] = {}
    tokens = 0
    for place in order:
        window = _window(said[place], room)
        tokens += len(window.ids) - window.start
        if tokens > MOST_TOKENS and kept:
            break
        kept[place] = window
    return [kept[place] for place in sorted(kept)]


def _room(lengths: Sequence[int]) -> int:
    """How many tokens of each passage can be scored for MOST_TOKENS in all, where short ones leave theirs to long ones."""
    left = MOST_TOKENS
    for index, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - index)
        if length > share:
            return max(share, LEAST)
        left -= length
    return max(lengths, default=0)


def _window(passage: Passage, room: int) -> Passage:
    """The passage up to the end of `room` tokens that it says, which are scored; a hash decides where they begin."""
    spare = len(passage.ids) - passage.start - room
    if spare <= 0:
        return passage
    start = passage.start + int.from_bytes(_digest(passage)[:8], "big") % (spare + 1)
    return replace(passage, ids=passage.ids[: start + room], start=start)


def _digest(passage: Passage) -> bytes:
    return hashlib.sha256(repr(passage.ids).encode()).digest()


def _hash(prompt: Prompt) -> bytes:
    return hashlib.sha256(f"{prompt.text}\0{prompt.label}".encode()).digest()


def _answers(
    decoder: nn.Module, asked: Sequence[Passage], stops: Sequence[int], most: int, steps: _Steps, role: str
) -> list[list[int]]:
    found = []
    steps.tell(0, len(asked), f"{role}'s answers")
    for place, passage in enumerate(asked):
        found.append(greedy(decoder, passage.ids, stops, most))
        steps.tell(place + 1, len(asked), f"{role}'s answers")
    return found


def greedy(decoder: nn.Module, ids: Sequence[int], stops: Sequence[int], most: int) -> list[int]:
    """The likeliest continuation token by token, without the stop token that ends it; `decoder` as a task loads it."""
    return [token for token, _ in stream(decoder, ids, stops, most)]


def stream(decoder: nn.Module, ids: Sequence[int], stops: Sequence[int], most: int) -> Iterator[tuple[int, float]]:
    """Greedy tokens one after the other, each with the milliseconds that it took."""
    import torch

    model: Any = decoder.model
    feed, cache = torch.tensor([list(ids)]), None
    for _ in range(most):
        begin = time.perf_counter()
        with torch.inference_mode():
            told = model(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, token = told.past_key_values, int(told.logits[0, -1].argmax())
        if token in stops:
            return
        yield token, 1e3 * (time.perf_counter() - begin)
        feed = torch.tensor([[token]])


def _likelihoods(
    role: str, decoder: nn.Module, said: Sequence[Passage], steps: _Steps
) -> dict[str, NDArray[np.generic]]:
    import numpy as np
    import torch

    found: dict[str, list[Tensor]] = {"ids": [], "logprobs": [], "nll": []}
    steps.tell(0, len(said), f"{role}'s likelihoods")
    for place, passage in enumerate(said):
        logits = _logits(decoder, passage)
        likely = torch.log_softmax(logits.double(), dim=-1)
        if not torch.isfinite(likely).all():
            raise EdgekitError(f"the {role} gives NaN or infinite likelihoods on verify prompt {passage.prompt + 1}")
        top = likely.topk(min(MOST_LIKELY, likely.shape[1]), dim=-1)
        spoken = torch.tensor(passage.ids[passage.start :])
        found["ids"].append(top.indices.int())
        found["logprobs"].append(top.values.float())
        found["nll"].append(-likely[torch.arange(len(spoken)), spoken].float())
        steps.tell(place + 1, len(said), f"{role}'s likelihoods")
    return {f"{role}_{key}": np.concatenate([one.numpy() for one in parts]) for key, parts in found.items()}


def _logits(decoder: nn.Module, passage: Passage) -> Tensor:
    """Logits [tokens said, vocabulary] before each token that the passage says."""
    import torch

    ids = torch.tensor([passage.ids])
    with torch.inference_mode():
        logits: Tensor = decoder(ids, torch.ones_like(ids))
    return logits[0, passage.start - 1 : -1]


def _choice_nll(role: str, decoder: nn.Module, choices: Sequence[Passage], steps: _Steps) -> NDArray[np.float32]:
    """The mean negative log-likelihood per token of each choice: long ones lose nothing by their length."""
    import numpy as np
    import torch

    found = []
    for place, passage in enumerate(choices):
        steps.tell(place, len(choices), f"{role}'s likelihoods of choices")
        likely = torch.log_softmax(_logits(decoder, passage).double(), dim=-1)
        spoken = torch.tensor(passage.ids[passage.start :])
        found.append(-float(likely[torch.arange(len(spoken)), spoken].mean()))
    return np.array(found, np.float32)


def _flat(name: str, rows: Sequence[Sequence[int]], offsets: str = "") -> dict[str, NDArray[np.generic]]:
    import numpy as np

    return {
        name: np.array([token for row in rows for token in row], np.int64),
        offsets or f"{name}_offsets": np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    }


def _passages(prefix: str, said: Sequence[Passage]) -> dict[str, NDArray[np.generic]]:
    import numpy as np

    return _flat(f"{prefix}ids", [one.ids for one in said], f"{prefix}offsets") | {
        f"{prefix}starts": np.array([one.start for one in said], np.int64),
        f"{prefix}prompts": np.array([one.prompt for one in said], np.int64),
    }


class _Steps:
    """Progress over parts that come one after the other."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def tell(self, done: int, total: int, note: str) -> None:
        if self._progress is not None:
            self._progress(done, total, note)
