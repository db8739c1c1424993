"""A small decoder made from nothing: its tokenizer and its weights, both learned from the train split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit.distill.decoders import Body, next_token_lesson
from edgekit.distill.lessons import hold_out, save
from edgekit.distill.loop import reproducible, train
from edgekit.distill.machine import choose_precision
from edgekit.distill.options import CreateOptions
from edgekit.distill.students import Tap
from edgekit.errors import EdgekitError
from edgekit.progress import Progress
from edgekit.tasks.text_generation import Passage
from edgekit.workspace import fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
BEGIN_ID, END_ID = 0, 1
# How Llama 3's tokenizer.json cuts a text into words, which llama.cpp knows as the pre-tokenizer "llama-bpe".
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def create_decoder(
    texts: Sequence[str],
    options: CreateOptions,
    *,
    max_length: int,
    out: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train a tokenizer and a decoder on texts that end with the end token, packed into blocks of max_length tokens.

    Texts are held out whole, and neither the tokenizer nor the weights see them. Returns the facts of `train`, and the
    perplexity on the held-out texts. Raises EdgekitError where the texts do not fill one block.
    """
    kept, held = hold_out(texts, options.holdout)
    progress(0, 0, f"learning {options.vocabulary} tokens")
    tokenizer = train_tokenizer([texts[place] for place in kept], options.vocabulary)
    progress(0, 0, "cutting the texts into blocks")
    blocks = [
        list(pack(tokenizer, [texts[place] for place in side], max_length, seed=seed)) for side in (sorted(kept), held)
    ]
    if not blocks[0]:
        raise EdgekitError(f"the train split has less than {max_length} tokens to create a model from; add texts")
    passages = [Passage(ids=block, start=1, prompt=place) for place, block in enumerate([*blocks[0], *blocks[1]])]
    options = replace(options, learning_rate=options.learning_rate or 2e-3 * 256 / options.hidden)
    with reproducible(seed):
        body = Body(make_decoder(options, tokenizer.get_vocab_size()))
        precision = choose_precision(options.precision)
        numbers = range(len(passages))
        lesson = next_token_lesson(
            body, Tap(body, precision=precision), passages, numbers[: len(blocks[0])], numbers[len(blocks[0]) :]
        )
        facts = train(
            body,
            lesson,
            options,
            width=options.hidden,
            seed=seed,
            folder=out,
            run=_fingerprint(tokenizer, passages, options, seed),
            progress=progress,
        )
    save_tokenizer(tokenizer, options.context, out)
    save(body, out, out, ())
    return facts | {
        "parameters": sum(one.numel() for one in body.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "train_texts": len(kept),
        "held_texts": len(held),
        "train_tokens": sum(map(len, blocks[0])),
        "perplexity": round(math.exp(min(facts["scores"])), 4) if facts["scores"] else None,
        "precision": precision,
    }


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most this many tokens: any text can be written, and equal texts give equal tokenizers.

    It puts the begin token before a text; the end token is only there where somebody writes it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    # ignore_merges as Llama 3 has it, and llama.cpp does for this pre-tokenizer: a word that is a token is that token.
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


def pack(tokenizer: Tokenizer, texts: Sequence[str], length: int, *, seed: int) -> Iterator[list[int]]:
    """Blocks of `length` tokens of the texts behind each other, in an order drawn by the seed; a rest too short is left out.

    A block's last token is the next one's first, so that every token but the very first is predicted once.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    held: list[int] = []
    for start in range(0, len(order), 256):
        for encoding in tokenizer.encode_batch([texts[place] for place in order[start : start + 256]]):
            held += [*encoding.ids, END_ID]
        whole = max(0, (len(held) - 1) // (length - 1))
        for place in range(whole):
            yield held[place * (length - 1) : place * (length - 1) + length]
        held = held[whole * (length - 1) :]


def make_decoder(options: CreateOptions, vocabulary: int) -> Any:
    """A causal language model of the asked size with fresh weights, in train mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        options.family,
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate or 3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads or options.heads,
        head_dim=options.hidden // options.heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=options.tied,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
    )
    if getattr(config, "sliding_window", None):
        config.sliding_window = None  # Mistral's own is 4,096 tokens
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_tokenizer(tokenizer: Tokenizer, context: int, out: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers writes them."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
    fast.save_pretrained(out)


def _fingerprint(tokenizer: Tokenizer, passages: Sequence[Passage], options: CreateOptions, seed: int) -> str:
    """What a checkpoint must agree with to be continued."""
    ids = np.array([token for passage in passages for token in passage.ids], dtype=np.int32)
    return fingerprint(
        {
            "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
            "ids": hashlib.sha256(ids.tobytes()).hexdigest(),
            "options": asdict(options),
            "seed": seed,
        }
    )
