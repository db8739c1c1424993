"""What ships with an ONNX bundle that talks: it says what the session that verified says, through its own chat template."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgekit.chat_template import converse
from edgekit.formats.onnx import Options
from edgekit.formats.onnx.decoder import write_decoder
from edgekit.model import Model
from edgekit.runtimes.generation import continuation
from edgekit.runtimes.onnxruntime import generator
from edgekit.tasks import text_generation
from edgekit.tasks.decoders import Decoder
from tests.architectures.decoders import END, SPECIAL, make_decoder
from tests.bundle.faults import write_sealed
from tests.conftest import ROOT
from tests.steps import source
from tests.test_chat_template import CHATML, LLAMA3, MISTRAL

LOADER = ROOT / "edgekit" / "bundle" / "loaders" / "generate.py"
RUNTIME = {
    "name": "onnxruntime",
    "minimum": "1.20",
    "threads": 1,
    "provider": "CPUExecutionProvider",
    "disabled_optimizers": [],
    "config_entries": {},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * place for place in range(8)],
    "long_factor": [2.0 + 0.3 * place for place in range(8)],
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"num_hidden_layers": 1},  # a window of 16 tokens
    "phi3": {"num_hidden_layers": 1, "rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "turn the kitchen light on"},
    {"role": "assistant", "content": "done"},
    {"role": "user", "content": "and the hall?"},
]


def shipped() -> ModuleType:
    """The loader as an app has it: the file with check.py beside it, without edgekit around it."""
    module = ModuleType("load")
    module.__file__ = str(LOADER)
    exec(compile(LOADER.read_text(encoding="utf-8"), LOADER.name, "exec"), vars(module))
    return module


def make_bundle(family: str, folder: Path, *, scheme: str = "fp32", **changes: Any) -> Path:
    """What of a bundle the loader reads, made by the parts of edgekit that make it. changes: of the model's configuration."""
    from transformers import AutoModelForCausalLM

    checkpoint = make_decoder(family, folder / "checkpoint", **FAMILIES[family], **changes)
    model = Model(folder=checkpoint)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    given = source(model, lambda: Decoder(loaded).eval(), [list(range(5, 15))])
    made = write_decoder(given, Options(scheme=scheme), folder)
    model.tokenizer(64).save(str(folder / "tokenizer.json"))
    template = text_generation.chat_template(model)
    assert template is not None
    (folder / text_generation.TEMPLATE).write_text(template, encoding="utf-8")
    settings = text_generation.settings(model)
    manifest = {
        "model": "model.onnx",
        "max_length": 64,
        "settings": settings,
        "runtime": RUNTIME | dict(made.runtime_options),
    }
    return write_sealed(folder, manifest)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_bundle(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture
def bundle(bundles: Mapping[str, Path]) -> Path:
    return bundles["mistral"]


def change(bundle: Path, folder: Path, *, runtime: Mapping[str, Any] | None = None, **settings: Any) -> Path:
    """The same bundle with other settings."""
    for name in ("model.onnx", "tokenizer.json", text_generation.TEMPLATE):
        (folder / name).symlink_to(bundle / name)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["settings"] |= settings
    manifest["runtime"] |= runtime or {}
    return write_sealed(folder, manifest)


def verified(bundle: Path, ids: Sequence[int], most: int) -> list[int]:
    """What the runtime that verifies says greedily behind ids."""
    model = Model(folder=bundle / "checkpoint")
    found = generator(bundle / "model.onnx", {"threads": 1})
    return list(continuation(found, list(ids), most, frozenset(model.stops)))


def words(bundle: Path, asked: Sequence[int], said: Sequence[int]) -> str:
    """Tokens as text, without bytes at the end that are no whole character."""
    tokenizer = Model(folder=bundle / "checkpoint").tokenizer()
    before: str = tokenizer.decode([asked[-1]])
    text: str = tokenizer.decode([asked[-1], *said])
    return text[len(before) :].rstrip("\N{REPLACEMENT CHARACTER}")


def test_the_loader_is_short_and_imports_four_packages() -> None:
    """Longer than the others: what llama.cpp does inside (cache, template, sampling) is written out."""
    source = LOADER.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 155
    imported = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"jinja2", "numpy", "onnxruntime", "tokenizers"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_says_what_the_verified_session_says(bundles: Mapping[str, Path], family: str) -> None:
    """Longer than a window, and over the length where longrope changes its factors."""
    from transformers import AutoTokenizer

    folder = bundles[family]
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    opened = shipped().Bundle(folder)
    asked: Any
    for asked in ("turn the light on", TALK, "jazz"):
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert opened.tokens(asked) == ids
        said = verified(folder, ids, 60)
        assert len(said) > 4
        assert opened(asked, max_tokens=60) == words(folder, ids, said)
        assert opened.fed[: len(ids) + len(said) - 1] == [*ids, *said[:-1]]


def test_logits_are_those_of_the_verified_session(bundles: Mapping[str, Path]) -> None:
    """Whatever was read before: the cache grows, is kept as far as a text goes on alike, and made anew otherwise."""
    for folder in bundles.values():
        opened, judge = shipped().Bundle(folder), generator(folder / "model.onnx", {"threads": 1})
        ids = np.random.default_rng(1).integers(5, 500, size=250).tolist()
        for row in (ids[:20], ids[:21], ids[:40], ids[:30], [*ids[:25], 7], ids[100:], ids, ids, ids[:1]):
            judge.clear()
            np.testing.assert_allclose(opened.read(row), judge.logits(row, slice(-1, None))[0], atol=1e-4)


def test_a_conversation_is_not_read_again(bundle: Path) -> None:
    opened, ran = shipped().Bundle(bundle), []
    run = opened.binding.bind_cpu_input
    opened.binding.bind_cpu_input = lambda name, value: (ran.append((name, value.shape[1])), run(name, value))[1]
    answer = opened("turn the light on", max_tokens=6)
    first = len(opened.tokens("turn the light on"))
    talk = [{"role": "user", "content": "turn the light on"}, {"role": "assistant", "content": answer}, TALK[-1]]
    alone = shipped().Bundle(bundle)(talk, max_tokens=6)
    ran.clear()
    assert opened(talk, max_tokens=6) == alone
    # At least the question is still in the cache; the answer is too, where its text is tokenized as it was said.
    assert ran[0] == ("input_ids", ran[0][1])
    assert ran[0][1] <= len(opened.tokens(talk)) - first


def test_a_call_that_fails_does_not_change_what_was_said(bundle: Path) -> None:
    """The caches are written in place: an app that catches an error must not go on with another conversation's."""
    opened = shipped().Bundle(bundle)
    first = opened.tokens(TALK)
    wanted = opened.read([*first, 7])
    session = opened.session

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run_with_iobinding(self, binding: Any) -> None:
            session.run_with_iobinding(binding)
            raise MemoryError

    opened.session = Failing()
    with pytest.raises(MemoryError):
        opened.read([first[0], *(5 for _ in first[1:]), 9, 9])
    opened.session = session
    np.testing.assert_allclose(opened.read([*first, 7]), wanted, atol=1e-5)


def test_an_answer_comes_piece_by_piece(bundle: Path) -> None:
    opened = shipped().Bundle(bundle)
    pieces = list(opened.stream(TALK, max_tokens=24))
    assert len(pieces) > 4
    assert all(not piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)
    assert "".join(pieces) == opened(TALK, max_tokens=24)


def test_a_temperature_samples(bundle: Path) -> None:
    opened = shipped().Bundle(bundle)
    greedy = opened(TALK, max_tokens=16)
    warm = {seed: opened(TALK, max_tokens=16, temperature=2.0, seed=seed) for seed in (1, 2)}
    assert len({greedy, *warm.values()}) == 3
    assert opened(TALK, max_tokens=16, temperature=2.0, seed=1) == warm[1]
    assert opened(TALK, max_tokens=16, temperature=2.0, min_p=1.0) == greedy


def test_samples_follow_the_probabilities(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 first tokens each is as frequent as its softmax says; what is under min_p never comes."""
    opened = shipped().Bundle(bundle)
    shares = np.array([0.5, 0.3, 0.17, 0.03])
    tokens = [opened.tokenizer.token_to_id(letter) for letter in "abcd"]
    logits = np.full(512, -100.0, np.float32)
    logits[tokens] = np.log(shares)
    monkeypatch.setattr(opened, "read", lambda _: logits)
    said = opened("a", max_tokens=100, temperature=1.0, min_p=0.1, seed=3)
    for seed in range(19):
        said += opened("a", max_tokens=100, temperature=1.0, min_p=0.1, seed=100 + seed)
    assert len(said) == 2000
    found = np.array([said.count(letter) for letter in "abcd"]) / 2000
    assert found[3] == 0
    np.testing.assert_allclose(found[:3], shares[:3] / 0.97, atol=0.05)
    cold = opened("a", max_tokens=200, temperature=0.25, min_p=0.001, seed=1)
    assert cold.count("a") > 0.8 * 200


def test_a_stop_token_ends_an_answer(bundle: Path, tmp_path: Path) -> None:
    opened = shipped().Bundle(bundle)
    assert opened.stops == {END}
    ids = opened.tokens(TALK)
    said = verified(bundle, ids, 12)
    tokenizer = Model(folder=bundle / "checkpoint").tokenizer()
    stop = next(token for token in said[3:] if token not in said[:3])
    earlier = shipped().Bundle(change(bundle, tmp_path, stop=[tokenizer.id_to_token(stop)]))
    assert earlier(TALK, max_tokens=12) == words(bundle, ids, said[: said.index(stop)])


def test_without_a_template_a_text_is_continued(bundle: Path, tmp_path: Path) -> None:
    opened = shipped().Bundle(change(bundle, tmp_path, chat=False))
    ids = Model(folder=bundle / "checkpoint").tokenizer().encode("some jazz on the").ids
    assert opened.tokens("some jazz on the") == ids
    assert opened("some jazz on the", max_tokens=24) == words(bundle, ids, verified(bundle, ids, 24))
    # What a person types is text, also where it looks like a token of the model's own.
    assert END not in opened.tokens(SPECIAL[END])
    with pytest.raises(TypeError, match="no chat template"):
        opened(TALK)


def test_words_keep_the_space_before_them(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SentencePiece's decoder takes a text's first space away: an answer's first word would stick to the prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "▁time": 1, "▁there": 2, "▁was": 3, "<0xE2>": 4, "<0x82>": 5, "<0xAC>": 6}
    spelled = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    spelled.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(" ", 1, 0)
    spelled.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    opened = shipped().Bundle(change(bundle, tmp_path, chat=False))
    opened.tokenizer, answer = spelled, [2, 3, 4, 5, 6, 2]
    monkeypatch.setattr(opened, "tokens", lambda *_: [1])
    monkeypatch.setattr(opened, "read", lambda ids: np.eye(7)[answer[len(ids) - 1]])
    assert list(opened.stream("time", max_tokens=6)) == [" there", " was", "\N{EURO SIGN}", " there"]


PARTS = CHATML.replace("message['content']", "message['content'][0]['text']")


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL, PARTS], ids=["chatml", "llama3", "mistral", "parts"])
def test_a_template_is_rendered_as_edgekit_renders_it(bundle: Path, tmp_path: Path, template: str) -> None:
    """With loop controls, JSON, and marks of what the assistant says, each of which one of these has."""
    opened = shipped().Bundle(bundle)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    opened.template, opened.special = (
        shipped()._compile(tmp_path / "chat_template.jinja"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    )
    opened.parts = template == PARTS
    seen: list[str] = []
    encoder = opened.tokenizer
    opened.tokenizer = SimpleNamespace(encode=lambda text, **_: (seen.append(text), encoder.encode(text))[1])
    tools = [{"type": "function", "function": {"name": "größe", "parameters": {"type": "object"}}}]
    for messages in (TALK, TALK[1:2], [{**TALK[1], "name": None}]):
        for given in (None, tools):
            opened.tokens(messages, given)
            wanted = converse(template, messages, generation_prompt=True, tools=given, special_tokens=opened.special)
            assert seen.pop() == wanted


def test_a_template_stays_in_its_sandbox(bundle: Path, tmp_path: Path) -> None:
    import jinja2

    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}", encoding="utf-8")
    with pytest.raises(jinja2.exceptions.SecurityError):
        shipped()._compile(tmp_path / "chat_template.jinja").render()
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}", encoding="utf-8")
    with pytest.raises(ValueError, match="no system role"):
        shipped()._compile(tmp_path / "chat_template.jinja").render()


def test_the_context_is_the_model_s(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = shipped().Bundle(bundle)
    assert opened.context == 256
    opened.stops = set()
    ids = opened.tokens(TALK)
    assert len(list(opened.stream(TALK))) > 100
    assert len(opened.fed) == 255
    monkeypatch.setattr(opened, "tokens", lambda *_: ids * (1 + 256 // len(ids)))
    with pytest.raises(ValueError, match="do not fit: this model goes on with 1 to 255"):
        opened(TALK)
    monkeypatch.setattr(opened, "tokens", lambda *_: [])
    with pytest.raises(ValueError, match=r"^0 tokens do not fit"):
        opened("")


def test_a_runtime_that_is_too_old_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(RuntimeError, match=r"1.9.0 is too old for this bundle: it needs 1.20"):
        shipped().Bundle(bundle)


def test_session_options_of_the_manifest_are_used(bundle: Path, tmp_path: Path) -> None:
    entries = {"session.x64quantprecision": "1"}
    other = change(bundle, tmp_path, runtime={"threads": None, "provider": "NoSuchProvider", "config_entries": entries})
    opened = shipped().Bundle(other, threads=2)
    assert opened.session.get_providers() == ["CPUExecutionProvider"]
    options = opened.session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
