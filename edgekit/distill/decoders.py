"""What a decoder is taught: the next token, by the data or by a teacher, over as many tokens at a time as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgekit.distill.lessons import (
    CHAT_FILES,
    READING,
    TOKENIZER_FILES,
    ask_teacher,
    hold_out,
    identify,
    save,
)
from edgekit.distill.loop import Lesson, reproducible, train
from edgekit.distill.losses import LOSSES, Batch, Signal, labels
from edgekit.distill.machine import choose_precision
from edgekit.distill.options import SIGNAL_BYTES, DistillOptions, TrainingOptions
from edgekit.distill.students import Tap, cut, match_blocks
from edgekit.errors import EdgekitError
from edgekit.model import Model, load_model
from edgekit.progress import Progress
from edgekit.prompts import Prompt
from edgekit.tasks import pad
from edgekit.tasks.text_generation import Passage, load, passages

# Logits of at most this many bytes are there at once (a few copies of them within a loss), however long the texts are.
LOGIT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A batch of passages, and for each token that the model is to say: its passage, its id, and where it is predicted."""

    tokens: Tensor
    """input_ids, int64 [batch, sequence]."""
    mask: Tensor
    """1 for a real token, 0 for padding [batch, sequence]."""
    rows: Tensor
    """Which passage of the batch, int64 [tokens]."""
    places: Tensor
    """The place before the token, int64 [tokens]."""
    wanted: Tensor
    """The token's id, int64 [tokens]."""


class Body(nn.Module):
    """A causal language model up to its last hidden states; its head is a call of its own, so that the logits of a whole
    batch, [batch, sequence, vocabulary], are never there."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Several times less memory than eager attention; soft-capped attention scores (Gemma 2) exist in eager only.
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is None:
            model.set_attn_implementation("sdpa")

    @property
    def vocabulary(self) -> int:
        """How wide the logits are."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice, padded on the right -> [batch, sequence, channels]."""
        inside = self.model.base_model
        states: Tensor = inside(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [tokens, channels] -> float32 logits [tokens, vocabulary], soft-capped where the family does."""
        said: Tensor = self.model.get_output_embeddings()(states).float()
        # Gemma 2 (arXiv:2408.00118), section 2: cap * tanh(logits / cap).
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return said if cap is None else torch.tanh(said / cap) * cap


def teach_answers(
    base: Path,
    rows: Sequence[Prompt],
    options: TrainingOptions,
    *,
    max_length: int,
    out: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train a decoder on the wanted answers, or on all of running text. Early stop: the same loss on the held-out rows."""
    model = load_model(base)
    progress(0, 0, READING)
    read = read_passages(model, rows, max_length)
    kept, held = _sides(read, rows, options.holdout)
    progress(0, 0, f"loading {base.name}")
    with reproducible(seed):
        body = Body(load(base).model)
        precision = choose_precision(options.precision)
        lesson = next_token_lesson(body, Tap(body, precision=precision), read, kept, held)
        run = identify(base, *_numbers(read), options, seed, {})
        width = body.model.config.get_text_config().hidden_size
        facts = train(body, lesson, options, width=width, seed=seed, folder=out, run=run, progress=progress)
    save(body, base, out, TOKENIZER_FILES + CHAT_FILES)
    return facts | {"precision": precision} | _count(read, kept)


def teach_decoder(
    teacher: Path,
    rows: Sequence[Prompt],
    kept: Sequence[int],
    options: DistillOptions,
    weights: Mapping[str, float],
    *,
    max_length: int,
    out: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train a decoder of the kept layers on the weighted sum of losses. Early stop: the same sum on the held-out rows."""
    model = load_model(teacher)
    progress(0, 0, READING)
    read = read_passages(model, rows, max_length)
    train_on, held = _sides(read, rows, options.holdout)
    matched = match_blocks(model.layers, kept) if "hidden" in weights else []
    progress(0, 0, f"loading the teacher, {teacher.name}")
    with reproducible(seed):
        body, shown = Body(load(teacher).model), Body(load(teacher).model)
        cut(body, kept)
        precision = choose_precision(options.precision)
        tap = Tap(body, blocks=range(len(kept)) if matched else (), precision=precision)
        ask = ask_teacher(Tap(shown, blocks=matched), _numbers(read)[0], 0, SIGNAL_BYTES, progress)

        loss = _distillation(body, tap, shown, ask, read, weights, options.temperature)
        lesson = make_lesson(read, train_on, held, loss)
        run = identify(teacher, *_numbers(read), options, seed, {"keep": list(kept), "losses": dict(weights)})
        width = body.model.config.get_text_config().hidden_size
        facts = train(body, lesson, options, width=width, seed=seed, folder=out, run=run, progress=progress)
    save(body, teacher, out, TOKENIZER_FILES + CHAT_FILES)
    return (
        facts
        | _count(read, train_on)
        | {
            "keep": list(kept),
            "teacher_layers": model.layers,
            "matched_layers": matched,
            "losses": dict(weights),
            "temperature": options.temperature,
            "precision": precision,
        }
    )


def _distillation(
    body: Body,
    tap: Tap,
    teacher: Body,
    ask: Callable[[list[int]], Signal],
    read: Sequence[Passage],
    weights: Mapping[str, float],
    temperature: float,
) -> Callable[[list[int]], Tensor]:
    """The weighted sum of losses: of the tokens that the student is to say, and of the matched blocks at every token."""
    by_token = {name: weight for name, weight in weights.items() if name != "hidden"}

    def loss(places: list[int]) -> Tensor:
        batch = score([read[place] for place in places])
        said, shown = tap(batch.tokens, batch.mask), ask(places)
        facts = Batch(mask=batch.mask, targets=batch.wanted)
        mine, theirs = (one.output[batch.rows, batch.places] for one in (said, shown))

        def compare(part: slice) -> Tensor:
            with tap.autocast():
                heard = Signal(output=body.logits(mine[part]))
            with torch.no_grad():
                wanted = Signal(output=teacher.logits(theirs[part])) if "logits" in by_token else heard
            here = Batch(mask=batch.mask, targets=batch.wanted[part])
            terms = [weight * LOSSES[name](heard, wanted, here, temperature) for name, weight in by_token.items()]
            return torch.stack(terms).sum()

        total = torch.zeros(())
        if by_token:
            total = total + mean_over_tokens(len(batch.wanted), body.vocabulary, compare)
        if "hidden" in weights:
            total = total + weights["hidden"] * LOSSES["hidden"](said, shown, facts, temperature)
        return total

    return loss


def read_passages(model: Model, rows: Sequence[Prompt], max_length: int) -> list[Passage]:
    """What there is to say in each row. The end of a running text is said too, else a model would forget how to stop.

    Raises EdgekitError where no row has anything to say: conversations without an answer.
    """
    found = [passage for passage in passages(model, rows, max_length) if passage.start < len(passage.ids)]
    if not found:
        raise EdgekitError(f"{model.folder}: no train row has an answer to learn; name their column in data.answer")
    end = model.stops[:1]
    last = {passage.prompt: place for place, passage in enumerate(found) if rows[passage.prompt].label is None}
    for prompt, place in last.items():
        ids = found[place].ids
        if len(ids) < max_length and ids[-1:] != end:
            found[place] = Passage(ids=ids + end, start=found[place].start, prompt=prompt)
    return found


def _sides(read: Sequence[Passage], rows: Sequence[Prompt], holdout: float) -> tuple[list[int], list[int]]:
    """Places of the passages to train on, and of those held out: a row's passages stay together."""
    chosen = set(hold_out([row.text for row in rows], holdout)[1])
    held = [place for place, passage in enumerate(read) if passage.prompt in chosen]
    kept = [place for place, passage in enumerate(read) if passage.prompt not in chosen]
    return (kept, held) if kept else (held, [])


def _numbers(read: Sequence[Passage]) -> tuple[list[list[int]], Tensor]:
    return [passage.ids for passage in read], torch.tensor([passage.start for passage in read])


def _count(read: Sequence[Passage], kept: Sequence[int]) -> dict[str, int]:
    return {"train_tokens": sum(len(read[place].ids) - read[place].start for place in kept)}


def score(read: Sequence[Passage]) -> Scored:
    """Passages as one batch, padded on the right: a decoder sees nothing to the right of a token."""
    tokens, mask = pad([passage.ids for passage in read], 0)
    lengths = torch.tensor([len(passage.ids) - passage.start for passage in read])
    return Scored(
        tokens=tokens,
        mask=mask,
        rows=torch.repeat_interleave(torch.arange(len(read)), lengths),
        places=torch.cat([torch.arange(passage.start - 1, len(passage.ids) - 1) for passage in read]),
        wanted=torch.tensor([token for passage in read for token in passage.ids[passage.start :]]),
    )


def mean_over_tokens(count: int, width: int, loss: Callable[[slice], Tensor]) -> Tensor:
    """The mean of a loss over `count` tokens with logits of this width; `loss` is the mean over a slice of them.

    Where one slice does not hold all, each slice's logits are computed again for its gradient instead of kept
    (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).
    """
    step = max(1, LOGIT_BYTES // (4 * width))
    if count <= step:
        return loss(slice(0, count))
    total = torch.zeros(())
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        mean: Any = checkpoint(loss, part, use_reentrant=False, preserve_rng_state=False)
        total = total + mean * (part.stop - part.start)
    return total / count


def next_token_lesson(
    body: Body, tap: Tap, read: Sequence[Passage], kept: Sequence[int], held: Sequence[int]
) -> Lesson:
    """Cross-entropy with the passages' own tokens, mean over those that the model is to say."""

    def loss(rows: list[int]) -> Tensor:
        batch = score([read[row] for row in rows])
        states = tap(batch.tokens, batch.mask).output[batch.rows, batch.places]

        def surprise(part: slice) -> Tensor:
            with tap.autocast():
                said = Signal(output=body.logits(states[part]))
            return labels(said, said, Batch(mask=batch.mask, targets=batch.wanted[part]), 1.0)

        return mean_over_tokens(len(batch.wanted), body.vocabulary, surprise)

    return make_lesson(read, kept, held, loss)


def make_lesson(
    read: Sequence[Passage], kept: Sequence[int], held: Sequence[int], loss: Callable[[list[int]], Tensor]
) -> Lesson:
    """A lesson whose score counts every held-out token alike, whatever batch it is in: of cross-entropy, the logarithm of the
    perplexity."""
    said = [len(passage.ids) - passage.start for passage in read]
    mean = sum(said[row] for row in held) / max(len(held), 1)
    return Lesson(
        lengths=[len(passage.ids) for passage in read],
        train=kept,
        held=held,
        loss=loss,
        judge=lambda rows: loss(rows) * (sum(said[row] for row in rows) / (mean * len(rows))),
    )
