"""A small decoder made from nothing: its tokenizer, learned from texts, and its weights, fresh."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit.distill.corpus import write_corpus
from edgekit.distill.options import CreateOptions
from edgekit.errors import EdgekitError
from edgekit.tasks.text_generation import Passage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
BEGIN_ID, END_ID = 0, 1
# How Llama 3's tokenizer.json cuts a text into words, which llama.cpp knows as the pre-tokenizer "llama-bpe".
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocabulary: int, tokens: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer of at most this many tokens: any text can be written, and equal texts give equal tokenizers.

    It puts the begin token before a text; the end token is only there where somebody writes it. tokens: texts that are one token
    each, of which no word is learned.
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
        special_tokens=[BEGIN, END, *tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    if tokens:
        apart = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
        texts = (piece for text in texts for piece in apart.split(text))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


def cut_blocks(
    tokenizer: Tokenizer, sides: Sequence[Sequence[str]], length: int, *, seed: int, folder: Path | None = None
) -> tuple[Sequence[Passage], int]:
    """The blocks (`pack`) of the texts that are trained on and of those held out, behind each other, and how many the first are.

    folder: where they lie, in a file; None for a list. Raises EdgekitError where the first fill no block.
    """
    counts = [0 for _ in sides]

    def blocks() -> Iterator[Passage]:
        for side, texts in enumerate(sides):
            for block in pack(tokenizer, texts, length, seed=seed):
                yield Passage(ids=block, start=1, prompt=sum(counts))
                counts[side] += 1
            if not counts[0]:
                raise EdgekitError(f"the train split has less than {length} tokens to create a model from; add texts")

    read = [*blocks()] if folder is None else write_corpus(blocks(), folder)
    return read, counts[0]


def pack(tokenizer: Tokenizer, texts: Sequence[str], length: int, *, seed: int) -> Iterator[list[int]]:
    """Blocks of `length` tokens of the texts behind each other, in an order drawn by the seed; a rest too short is left out.

    A block's last token is the next one's first, so that every token but the very first is predicted once.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    stream: list[int] = []
    for start in range(0, len(order), 256):
        for encoding in tokenizer.encode_batch([texts[index] for index in order[start : start + 256]]):
            stream += [*encoding.ids, END_ID]
        whole = max(0, (len(stream) - 1) // (length - 1))
        for block in range(whole):
            yield stream[block * (length - 1) : block * (length - 1) + length]
        stream = stream[whole * (length - 1) :]


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
