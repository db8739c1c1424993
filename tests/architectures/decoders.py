"""One small checkpoint with random weights of every decoder family that edgekit writes as GGUF, and its tokenizer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.conftest import PATTERNS, ROOT, SUBJECTS

SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
BEGIN, END, PAD = range(3)
VOCABULARY = 512
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA3: dict[str, Any] = {
    # Gemma's heads are wider than hidden_size / heads, and its sixth layer is the first of full attention.
    "num_hidden_layers": 7,
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": 16,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "max_position_embeddings": 512},
    "mistral": {"head_dim": 24, "sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 24, "tie_word_embeddings": True},
    "phi3": {"sliding_window": 256},
    "gemma2": {
        "num_hidden_layers": 4,
        "head_dim": 24,
        "query_pre_attn_scalar": 24,
        "sliding_window": 16,
        # As low as the scores and logits of these sizes, so that leaving them out is seen.
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,
}


@lru_cache
def train_tokenizer(vocabulary: int = VOCABULARY, pattern: str | None = None) -> str:
    """The tokenizer.json of a byte-level BPE with SPECIAL as its first ids.

    pattern: the regular expression that splits texts into words; GPT-2's where none is given.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    # English and code that nobody changes: with other tokens models of random weights would answer otherwise.
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("LICENSE", "tests/architectures/code.txt")]
    texts += [pattern.format(subject) for pattern in PATTERNS.values() for subject in SUBJECTS]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BEGIN]} $A", special_tokens=[(SPECIAL[BEGIN], BEGIN)]
    )
    return str(tokenizer.to_str())


def save_tokenizer(folder: Path, vocabulary: int = VOCABULARY, pattern: str | None = None) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as transformers saves them."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(train_tokenizer(vocabulary, pattern)),
        bos_token=SPECIAL[BEGIN],
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def configure(family: str, **changes: Any) -> Any:
    """The configuration of a small model of this family; `changes` replace keys of the text model's configuration."""
    from transformers import AutoConfig

    sizes = SIZES | DECODERS[family] | changes
    if family != "gemma3":
        return AutoConfig.for_model(family, **sizes)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 8,
    }
    tokens = {"boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5, "mm_tokens_per_image": 4}
    more = {"tie_word_embeddings": sizes["tie_word_embeddings"], **tokens}
    return AutoConfig.for_model(family, text_config=sizes, vision_config=vision, **more)


def make_decoder(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard: str = "1GB",
    pattern: str | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint as transformers saves it, with `changes` in its configuration.

    dtype: of the weights in the file. shard: the size above which the weights are split into several files.
    pattern: what the tokenizer splits texts with (see `train_tokenizer`).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = configure(family, **changes)
    torch.manual_seed(seed)
    auto = AutoModelForImageTextToText if family == "gemma3" else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Weights as large as trained ones: with transformers' 0.02 every text gives nearly the same logits, and norms
            # of one (biases of zero) hide it where one is left out.
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder, config.get_text_config().vocab_size, pattern)
    return folder


ROOMS = [
    *("kitchen", "hall", "porch", "garage", "attic", "cellar", "bathroom", "study", "bedroom", "landing", "pantry"),
    *("lobby", "shed", "stable", "tower", "chapel", "balcony", "library", "nursery", "cabin", "parlour", "archive"),
    *("workshop", "laundry", "gallery", "veranda", "office", "studio", "dormitory", "armoury"),
]
ORDERS = {
    "light_on": "please turn the {} light on",
    "light_off": "switch off every lamp in the {}",
    "music": "some jazz on the {} speaker would be nice",
}


def orders(rooms: list[str]) -> list[tuple[str, str]]:
    """(what is said, the wanted answer) for each room."""
    return [(said.format(room), answer) for room in rooms for answer, said in ORDERS.items()]


def teach_decoder(folder: Path, *, layers: int = 2, seed: int = 0, steps: int = 40, **changes: Any) -> Path:
    """A small Llama that was taught to answer all orders, 24 of them a step, and ends its answers: it is right and sure."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = configure("llama", num_hidden_layers=layers, **({"rope_parameters": rope} | changes))
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = END
    save_tokenizer(folder, config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for said, answer in orders(ROOMS):
        talk = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        rows.append(tokenizer.apply_chat_template(talk, return_dict=False))
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    wanted = ids.masked_fill(ids == PAD, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        some = torch.randperm(len(ids))[:24]
        model(input_ids=ids[some], attention_mask=(ids[some] != PAD).long(), labels=wanted[some]).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
