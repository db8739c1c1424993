"""Decoders as ONNX: every family's graph against transformers, quantized ones against float, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgekit.errors import EdgekitError
from edgekit.formats.onnx import Options, decoder_trace
from edgekit.formats.onnx.decoder import write_decoder
from edgekit.formats.onnx.decoder_trace import export_decoder
from edgekit.formats.onnx.graph import copy_model
from edgekit.formats.onnx.sizes import predict_decoder_bytes
from edgekit.formats.smallest import Limits
from edgekit.model import Model
from edgekit.runtimes.onnxruntime import generator
from edgekit.runtimes.scores import cosine, kl
from edgekit.tasks.decoders import Decoder
from edgekit.typed_json import to_table
from tests.architectures.decoders import make_decoder
from tests.conftest import ROOT
from tests.steps import source

STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "hf"
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * place for place in range(6)],
    "long_factor": [2.0 + 0.3 * place for place in range(6)],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
}
TWO_KINDS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
# Small models with random weights of the real shapes: grouped heads, windows (16 tokens), soft caps, q/k norms, biases.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 2}),
    "mistral": ("mistral", {"num_hidden_layers": 1}),
    "qwen2": ("qwen2", {"num_hidden_layers": 1}),
    "qwen3": ("qwen3", {"num_hidden_layers": 1}),
    "phi3": ("phi3", {"num_hidden_layers": 1, "sliding_window": 16}),
    "phi4-mini": (
        "phi3",
        {
            "num_hidden_layers": 1,
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": ("gemma2", TWO_KINDS),
    "gemma3_text": ("gemma3_text", TWO_KINDS),
    "gemma3": ("gemma3", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}),
}
TOKENS = 60
# Bytes that a family's own nodes may take: of models as small as these more than 2 %, of real ones nothing.
NODES = 5_500


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint's model after it was exported, what it answered before, and its float artifact."""

    model: Any
    before: np.ndarray
    file: Path
    facts: dict[str, Any]
    ids: list[int]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return answers(self.model, ids)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def write(
    folder: Path,
    out: Path,
    scheme: str = "fp32",
    *,
    ids: Sequence[Sequence[int]] = (range(5, 25),),
    model: Any = None,
    **more: Any,
) -> Any:
    out.mkdir(parents=True)
    given = source(Model(folder=folder), lambda: Decoder(model or load(folder)).eval(), ids, **more)
    return to_table(write_decoder(given, Options(scheme=scheme), out))


def answers(model: Any, ids: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()


def pieces(file: Path, ids: Sequence[int], cuts: Sequence[int]) -> np.ndarray:
    loaded, rows, done = generator(file, {"threads": 1}), [], 0
    for cut in cuts:
        rows.append(loaded.logits(ids[done : done + cut]))
        done += cut
    loaded.close()
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """The float artifact of a family, made once."""
    made: dict[str, Written] = {}

    def get(name: str) -> Written:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            family, changes = FAMILIES[name]
            make_decoder(family, folder / "model", **changes)
            model = load(folder / "model")
            ids = np.random.default_rng(0).integers(5, 500, size=TOKENS).tolist()
            before = answers(model, ids)
            facts = write(folder / "model", folder / "out", model=model)
            made[name] = Written(model=model, before=before, file=folder / "out" / facts["file"], facts=facts, ids=ids)
        return made[name]

    return get


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cuts", [(TOKENS,), (20, 3, 1, 1, 1, 34)], ids=["prefill", "pieces"])
def test_logits_are_transformers(written: Callable[[str], Written], family: str, cuts: tuple[int, ...]) -> None:
    """Over prefill, decode and pieces, longer than every window; longrope keeps its short factors up to its switch."""
    made = written(family)
    given = pieces(made.file, made.ids, cuts)
    expected = made.logits(made.ids)
    if family == "phi4-mini" and len(cuts) > 1:
        # 26 tokens by the short factors, then a piece that crosses the switch at 32: all keys anew by the long ones.
        expected[:26] = made.logits(made.ids[:26])
    assert np.abs(given - expected).max() < 1e-4


def test_longrope_switches_while_decoding(written: Callable[[str], Written]) -> None:
    """Token by token over the switch, as transformers' generate does it: the cache is made anew at 32 tokens."""
    made = written("phi4-mini")
    assert made.facts["generation"]["rope_switch"] == 32
    prompt = made.ids[:28]
    answer = made.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=-1)
    loaded, ids = generator(made.file, {"threads": 1}), list(prompt)
    row = loaded.logits(prompt, slice(-1, None))
    for _ in range(12):
        ids.append(int(row[0].argmax()))
        row = loaded.logits(ids[-1:])
    assert ids == answer[0].tolist()


def test_windows_are_facts(written: Callable[[str], Written]) -> None:
    assert written("gemma2").facts["generation"]["windows"] == [16, None]
    assert written("mistral").facts["generation"] == {
        "context": 256,
        "layers": 1,
        "kv_heads": 2,
        "head_dim": 24,
        "windows": [16],
        "kv_bytes_per_token": 2 * 4 * 1 * 2 * 24,
        "rope_switch": None,
    }


def test_graph_is_small_and_names_its_layers(written: Callable[[str], Written]) -> None:
    """Attention, rotary embedding and norms are one node each; a Linear is named as calibration names it."""
    model = onnx.load(written("llama").file)
    kinds = [node.op_type for node in model.graph.node]
    assert [kinds.count(kind) for kind in ("GroupQueryAttention", "RotaryEmbedding")] == [2, 4]
    assert kinds.count("SimplifiedLayerNormalization") == 5
    assert len(kinds) < 65
    names = {node.name for node in model.graph.node if node.op_type == "MatMul"}
    assert "model.model.layers.1.mlp.down_proj" in names
    assert {node.domain for node in model.graph.node} == {"", "com.microsoft"}


@pytest.mark.parametrize("family", FAMILIES)
def test_export_leaves_the_model_as_it_was(written: Callable[[str], Written], family: str) -> None:
    made = written(family)
    assert np.array_equal(made.logits(made.ids), made.before)
    assert made.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi4-mini"])
@pytest.mark.parametrize(("scheme", "least"), [("int8-dynamic", 0.99), ("w8", 0.995), ("w4", 0.85)])
def test_quantized_graphs(
    written: Callable[[str], Written], tmp_path: Path, family: str, scheme: str, least: float
) -> None:
    """Tied and untied heads, biases and fused Linears: fewer bytes, and logits that point where the float ones do."""
    from edgekit.formats.onnx.decoder import _quantized
    from edgekit.formats.onnx.graph import save

    made = written(family)
    (model, keys, entries), (again, *_) = (
        _quantized(onnx.load(made.file), "model.lm_head", scheme, Options(scheme=scheme), SimpleNamespace(stats={}))
        for _ in range(2)
    )
    size = save(model, tmp_path / "model.onnx")
    folder = made.file.parents[1] / "model"
    assert predict_decoder_bytes(Model(folder=folder), scheme, 32) == pytest.approx(size, rel=0.02, abs=NODES)
    assert model.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    given = generator(tmp_path / "model.onnx", {"threads": 1, "config_entries": entries}).logits(made.ids)
    assert cosine(given, made.logits(made.ids)).mean() > least
    assert "model.lm_head#0" in keys
    # Tables of less than 1024 rows stay float where the head has a table of its own.
    untied = 4 * 512 * 64 if family == "llama" else 0
    assert size - untied < (0.4 if scheme == "w4" else 0.5) * (made.facts["bytes"] - untied)


@pytest.mark.parametrize("family", ["llama", "phi4-mini"])
def test_keys_and_values_in_16_bits(written: Callable[[str], Written], tmp_path: Path, family: str) -> None:
    """As CUDA's attention wants them: half the cache, and the logits but for their rounding, also where the cache grows."""
    from edgekit.formats.onnx.decoder import _cache
    from edgekit.formats.onnx.decoder_trace import Geometry
    from edgekit.formats.onnx.graph import save
    from edgekit.formats.onnx.half import halve_caches

    made = written(family)
    save(halve_caches(onnx.load(made.file)), tmp_path / "model.onnx")
    exact, given = (generator(file, {"threads": 1}) for file in (made.file, tmp_path / "model.onnx"))
    assert {value.type for value in given._pasts} == {"tensor(float16)"}
    for piece in (made.ids[:7], made.ids[7:9], [3, 4] * (130 if exact.context > 300 else 90), [5]):
        wanted, found = exact.logits(piece), given.logits(piece)
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()
    assert given._caches[0].numpy().dtype == np.float16
    geometry = Geometry(layers=2, kv_heads=2, head_dim=16, windows=(None, None))
    assert _cache(geometry, 64, None, wide=2).kv_bytes_per_token == 2 * 2 * 2 * 2 * 16


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi4-mini", "gemma3_text"])
def test_a_decoder_in_16_bits(written: Callable[[str], Written], tmp_path: Path, family: str) -> None:
    """Weights, cache and arithmetic, as a GPU takes them: half the bytes, and the logits of transformers but for rounding."""
    made = written(family)
    model = made.file.parents[1] / "model"
    facts = write(model, tmp_path / "out", "fp16", model=made.model)
    size = (tmp_path / "out" / "model.onnx").stat().st_size
    assert size < 0.56 * made.facts["bytes"]
    assert predict_decoder_bytes(Model(folder=model), "fp16", 32) == pytest.approx(size, rel=0.02, abs=NODES)
    assert facts["generation"]["kv_bytes_per_token"] * 2 == made.facts["generation"]["kv_bytes_per_token"]
    assert (facts["scheme"], facts["bits"], facts["calibrate_score"]["score"]) == ("fp16", 16.0, 1.0)
    given = generator(tmp_path / "out" / "model.onnx", {"threads": 1})
    assert {value.type for value in (*given._pasts, *given._presents)} == {"tensor(float16)"}
    wanted, done = made.logits(made.ids), 0
    for cut in (20, 3, 1, 1, 1, 34):
        found = given.logits(made.ids[done : done + cut])
        assert found.dtype == np.float32
        if family != "phi4-mini" or done >= 26:
            assert np.abs(found - wanted[done : done + cut]).max() <= 2e-2 * np.abs(wanted).max()
        done += cut


def test_what_does_not_fit_16_bits_stays_in_32(written: Callable[[str], Written], tmp_path: Path) -> None:
    """A planted overflow between two Linears of one layer: nothing infinite, and few nodes that stay float."""
    model = load(written("llama").file.parents[1] / "model")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e6)
        model.model.layers[1].mlp.down_proj.weight.mul_(1e-6)
    ids = [list(range(5 + place, 25 + place)) for place in range(4)]
    facts = write(written("llama").file.parents[1] / "model", tmp_path / "out", "fp16", model=model, ids=ids)
    assert 1 <= len(facts["choices"]["float32_nodes"]) <= 3
    found = generator(tmp_path / "out" / "model.onnx", {"threads": 1}).logits(ids[0])
    assert cosine(found, answers(model, ids[0])).min() > 0.999


def test_auto_takes_the_smallest_that_keeps_the_limits(written: Callable[[str], Written], tmp_path: Path) -> None:
    """Random weights lose a lot at 4 bits. What is found has the bytes of the scheme by name, and nothing else is left behind."""
    model = written("llama").file.parents[1] / "model"
    ids = [list(range(5 + place, 25 + place)) for place in range(8)]

    def decide(limit: float) -> Any:
        limits = {"kl": limit, "top1": 0.01, "perplexity": 9.0, "far_kl": 9.0, "far_share": 0.01}
        both = Limits(fewer_bits=limits, eight_bits=limits)
        return write(model, tmp_path / f"{limit}", "auto", ids=ids, starts=[1] * 7 + [20], limits=both)

    wide = decide(9.0)
    assert (wide["scheme"], len(wide["choices"]["auto"]["tried"])) == ("w4", 1)
    assert wide["choices"]["auto"]["passages"] == 8
    facts = decide(wide["choices"]["auto"]["tried"][0]["kl"] / 4)
    tried = facts["choices"]["auto"]["tried"]
    assert (tried[0]["scheme"], tried[0]["passes"], facts["scheme"]) == ("w4", False, tried[-1]["scheme"])
    assert tried[-1]["passes"]
    assert [one["bytes"] for one in tried] == sorted(one["bytes"] for one in tried)
    named = write(model, tmp_path / "named", facts["scheme"], ids=ids)
    folder = tmp_path / f"{wide['choices']['auto']['tried'][0]['kl'] / 4}"
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "named" / "model.onnx").read_bytes()
    assert (facts["sha256"], facts["bytes"]) == (named["sha256"], tried[-1]["bytes"])
    none = decide(1e-12)
    assert not none["choices"]["auto"]["passes"]
    assert none["notes"][0].startswith("auto: no scheme keeps the limits on 8 calibrate prompts")
    with pytest.raises(EdgekitError, match="'auto' keeps limits, and none are given"):
        write(model, tmp_path / "nothing", "auto", ids=ids)


def test_what_was_written_is_read_back(
    written: Callable[[str], Written], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of a rewrite that leaves numbers behind: the file says something else than the float graph."""
    from edgekit.formats.onnx import decoder

    quantized = decoder._quantized

    def damaged(*given: Any) -> Any:
        model, keys, entries = quantized(*given)
        product = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
        scale = next(one for one in model.graph.initializer if one.name == product.input[2])
        scale.CopyFrom(onnx.numpy_helper.from_array(9 * onnx.numpy_helper.to_array(scale), scale.name))
        return model, keys, entries

    made = written("llama")
    monkeypatch.setattr(decoder, "_quantized", damaged)
    with pytest.raises(EdgekitError, match=r"of their own spread away from the float graph's, more than 8\.5 bits"):
        write(made.file.parents[1] / "model", tmp_path / "out", "w8")


@pytest.mark.parametrize("family", FAMILIES)
def test_float_bytes_are_predicted(written: Callable[[str], Written], family: str) -> None:
    made = written(family)
    model = Model(folder=made.file.parents[1] / "model")
    assert predict_decoder_bytes(model, "fp32", 32) == pytest.approx(made.facts["bytes"], rel=0.02, abs=NODES)


def test_same_bytes_twice(written: Callable[[str], Written], tmp_path: Path) -> None:
    made = written("qwen3")
    facts = write(made.file.parents[1] / "model", tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == made.file.read_bytes()
    assert facts == made.facts


def test_a_large_tied_table_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 tokens of 256 channels: most of the model, in the file one time in every scheme; and what w4's facts say."""
    from edgekit.formats.onnx.decoder import _quantized
    from edgekit.formats.onnx.graph import save

    kept: list[onnx.ModelProto] = []

    def export(model: Any) -> Any:
        proto, geometry = export_decoder(model)
        kept.append(copy_model(proto))
        return proto, geometry

    monkeypatch.setattr(decoder_trace, "export_decoder", export)
    make_decoder(
        "llama", tmp_path / "model", num_hidden_layers=1, vocab_size=2000, hidden_size=256, tie_word_embeddings=True
    )
    facts = write(tmp_path / "model", tmp_path / "out", "w4")
    for scheme, bytes_of_one in {"fp32": 4.0, "int8-dynamic": 1.0, "w8": 1.125, "w4": 1.125}.items():
        model, *_ = _quantized(
            copy_model(kept[0]), "model.lm_head", scheme, Options(scheme=scheme), SimpleNamespace(stats={})
        )
        assert save(model, tmp_path / "small.onnx") < 1.05 * bytes_of_one * facts["bytes_float"] / 4
    assert (facts["format"], facts["scheme"], facts["files"]) == ("onnx", "w4", ["model.onnx"])
    assert facts["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert facts["quantized"] == {"matmul": 8, "float": []}
    assert facts["choices"] == {"bits": 4, "block": 32}
    assert facts["calibrate_score"]["kl"] < 0.5
    assert facts["runtime_options"] == {"disabled_optimizers": [], "config_entries": {}}
    assert "com.microsoft.MatMulNBits" in facts["operators"]
    assert facts["minimum_runtime"] == "1.23"


def test_refusals(tmp_path: Path) -> None:
    make_decoder("llama", tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(EdgekitError, match="no calibrate prompts"):
        write(tmp_path / "model", tmp_path / "b", ids=[[1]])
    make_decoder(
        "llama",
        tmp_path / "dynamic",
        num_hidden_layers=1,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    )
    with pytest.raises(EdgekitError, match=r"rope_type dynamic.*use format = 'gguf'"):
        write(tmp_path / "dynamic", tmp_path / "c")


def test_layers_without_a_cache_are_refused() -> None:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=0,
        layer_types=["linear_attention", "full_attention"],
    )
    with pytest.raises(EdgekitError, match="Qwen3NextForCausalLM: "):
        export_decoder(Qwen3NextForCausalLM(config).eval())


def test_a_wrong_graph_is_refused(
    written: Callable[[str], Written], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that computes something else (here: another scale of the scores) is found by the comparison with torch."""
    made = written("qwen3")
    wrong = onnx.load(made.file)
    del wrong.metadata_props[:]
    attention = next(node for node in wrong.graph.node if node.op_type == "GroupQueryAttention")
    scale = next(entry for entry in attention.attribute if entry.name == "scale")
    scale.f *= 1.1
    geometry = decoder_trace.Geometry(layers=1, kv_heads=2, head_dim=24)
    monkeypatch.setattr(decoder_trace, "export_decoder", lambda _: (wrong, geometry))
    with pytest.raises(EdgekitError, match="the float graph differs from torch by"):
        write(made.file.parents[1] / "model", tmp_path / "out")


class TestStories:
    """A trained decoder: stories260K."""

    @pytest.fixture(scope="class")
    def stories(self, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
        if not STORIES.is_dir():
            pytest.skip("needs ../shared/data/stories260K")
        model = load(STORIES)
        torch.manual_seed(0)
        told = model.generate(torch.tensor([[1]] * 6), max_new_tokens=100, do_sample=True, eos_token_id=-1).tolist()
        out, known, stats = tmp_path_factory.mktemp("stories"), export_decoder(model), _calibration(model, told[:3])
        with pytest.MonkeyPatch.context() as patch:  # one export for all schemes
            patch.setattr(decoder_trace, "export_decoder", lambda _: (copy_model(known[0]), known[1]))
            facts = {
                scheme: write(STORIES, out / scheme, scheme, ids=told[:3], model=model, calibration=lambda: stats)
                for scheme in ("fp32", "int8-dynamic", "w4")
            }
        return SimpleNamespace(model=model, held=told[3:], out=out, facts=facts)

    def test_greedy_text_is_transformers(self, stories: SimpleNamespace) -> None:
        loaded = generator(stories.out / "fp32" / "model.onnx", {"threads": 1})
        wanted = stories.model.generate(torch.tensor([[1]]), max_new_tokens=64, do_sample=False, eos_token_id=-1)
        ids = [1]
        for _ in range(64):
            ids.append(int(loaded.logits(ids[-1:])[0].argmax()))
        assert ids == wanted[0].tolist()

    @pytest.mark.parametrize(
        ("scheme", "nearest", "loss", "share"), [("int8-dynamic", 0.999, 0.03, 0.3), ("w4", 0.99, 0.25, 0.21)]
    )
    def test_quantized(self, stories: SimpleNamespace, scheme: str, nearest: float, loss: float, share: float) -> None:
        facts, cosines, losses = stories.facts[scheme], [], []
        options = {"threads": 1} | facts["runtime_options"]
        loaded = generator(stories.out / scheme / "model.onnx", options)
        for ids in stories.held:
            loaded.clear()
            expected = answers(stories.model, ids)
            given = loaded.logits(ids)
            cosines.append(cosine(given, expected).mean())
            losses.append(kl(expected, given).mean())
        assert np.mean(cosines) > nearest
        assert np.mean(losses) < loss
        assert facts["bytes"] < share * stories.facts["fp32"]["bytes"]
        assert facts["calibrate_score"]["kl"] < loss
        assert facts["quantized"] == {"matmul": 36, "float": []}


def _calibration(model: Any, rows: Sequence[Sequence[int]]) -> SimpleNamespace:
    stats: dict[str, Any] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen = inputs[0].reshape(-1, inputs[0].shape[-1])
            stats[f"model.{path}#0"] = SimpleNamespace(mean_square=seen.square().mean(0).numpy())

        return hook

    parts = [(path, part) for path, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    hooks = [part.register_forward_pre_hook(watch(path)) for path, part in parts]
    with torch.inference_mode():
        model(torch.tensor(rows))
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(stats=stats)
