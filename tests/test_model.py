"""Model folders: what is read without weights, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.tasks.padding import find_pad_id
from edgekit.weights import read_header, weight_files
from tests.conftest import LABELS, make_checkpoint


def test_what_a_model_says(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    assert (model.architecture, model.layers, model.labels, model.max_positions) == ("bert", 2, LABELS, 64)
    stored = load_file(checkpoint / "model.safetensors")
    assert model.parameters == sum(array.size for array in stored.values())
    assert {name: info.shape for name, info in model.tensors.items()} == {
        name: array.shape for name, array in stored.items()
    }
    assert all(info.dtype == "F32" for info in model.tensors.values())


def test_the_text_model_of_one_that_takes_images(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 from 4B on: what the text model is stands in a table of its own, and the family completes it."""
    from tests.architectures.decoders import END, make_decoder

    folder = make_decoder("gemma3", tmp_path / "model")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"] | {"eos_token_id": END}
    config.pop("eos_token_id", None)
    (folder / "config.json").write_text(json.dumps(config | {"text_config": text}), encoding="utf-8")
    model = load_model(folder)
    assert (model.layers, model.max_positions) == (text["num_hidden_layers"], text["max_position_embeddings"])
    assert model.stops == [END]
    monkeypatch.chdir(tmp_path)
    prompts = (Path(__file__).parents[1] / "calib_data" / "chat").as_posix()
    Path("recipe.toml").write_text(
        f'task = "text-generation"\n[teacher]\nsource = "./model"\n[data]\npath = "{prompts}"\nmessages = "messages"\n'
    )
    told = command("build", "-t", "raspberrypi", "--dry-run", "--json")
    assert told.code == 0, told.err
    (plan,) = json.loads(told.out)["plans"]
    assert plan["estimate"]["bytes_per_token"] > 0
    assert 0 < plan["estimate"]["cache_mb"] < plan["estimate"]["needed_mb"]
    # The scheme is found at export: what it may become, and by what.
    sizes = plan["estimate"]["schemes_mb"]
    assert set(sizes) == {"q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0"}
    assert list(sizes.values()) == sorted(sizes.values())
    assert plan["estimate"]["artifact_mb"] == min(sizes.values())
    assert plan["estimate"]["judged_on"] == 64
    lines = " ".join(command("build", "-t", "raspberrypi", "--dry-run").out.split())
    assert "export format = gguf, scheme = auto scheme auto: the smallest of q4_0 (" in lines
    assert "MB) that keeps the limits of [accuracy] on 64 calibrate prompts, decided at export artifact about" in lines


def with_token(folder: Path, content: str) -> Path:
    """The checkpoint with one more added token than its embedding has rows."""
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    whole["added_tokens"].append({"id": load_model(folder).rows, "content": content, **flags})
    file.write_text(json.dumps(whole), encoding="utf-8")
    return folder


def test_an_added_token_without_an_embedding_is_text(talker: Path, tmp_path: Path) -> None:
    """Gemma 3's tokenizer has <image_soft_token> behind the last row of the sizes that see no images."""
    folder = with_token(Path(shutil.copytree(talker, tmp_path / "copy")), "<image_soft_token>")
    model, text = load_model(folder), "an <image_soft_token> here"
    assert model.encode([text], 64) == load_model(talker).encode([text], 64)
    assert max(model.encode([text], 64)[0]) < model.rows
    assert model.tokenizer().token_to_id("<image_soft_token>") is None


def test_a_padding_token_without_an_embedding(talker: Path, tmp_path: Path) -> None:
    """Whoever adds [PAD] and leaves the embedding as it was can still answer one text at a time, as transformers can."""
    folder = with_token(Path(shutil.copytree(talker, tmp_path / "copy")), "[PAD]")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    settings.write_text(json.dumps(content | {"pad_token": "[PAD]"}), encoding="utf-8")
    change_json("config.json", pad_token_id=None)(folder)
    model = load_model(folder)
    assert find_pad_id(model) in model.stops
    assert max(model.encode(["[PAD] hello"], 64)[0]) < model.rows
    settings.write_text(json.dumps(content | {"bos_token": "[PAD]"}), encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"ids up to 512, but model\.embed_tokens\.weight has 512 rows"):
        load_model(folder)


def test_a_token_that_is_needed_has_an_embedding(talker: Path, tmp_path: Path) -> None:
    folder = with_token(Path(shutil.copytree(talker, tmp_path / "copy")), "<|new|>")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(f"<|new|>{template}", encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"ids up to 512, but model\.embed_tokens\.weight has 512 rows"):
        load_model(folder)


def test_labels_in_the_order_of_the_logits(tmp_path: Path) -> None:
    labels = [f"label {place}" for place in range(12)]
    assert load_model(make_checkpoint(tmp_path / "model", labels=labels)).labels == labels


def test_encode(checkpoint: Path) -> None:
    """Special tokens included, truncated with its last special token kept, never padded."""
    model = load_model(checkpoint)
    ids = model.encode(["please turn the hall light on", "", "please " * 99], 8)
    assert [len(one) for one in ids] == [8, 2, 8]
    assert all(one[0] == 2 and one[-1] == 3 for one in ids)
    assert ids == [model.encode([text], 8)[0] for text in ["please turn the hall light on", "", "please " * 99]]


def change_json(name: str, **changes: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return apply


def change_weights(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        arrays = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return apply


def change_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return apply


def cut(name: str, keep: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    # Runs code if anything unpickles it.
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch RAN'\ntR.")


def tensor(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = header["bert.pooler.dense.weight"]
    return entry


EMBEDDING = "bert.embeddings.word_embeddings.weight"
QUANTIZED = "its weights are quantized already; start from the unquantized checkpoint"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 42\n"


def only_index(content: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return damage


def rename(prefix: str) -> Callable[[Path], object]:
    return change_weights(lambda arrays: [arrays.__setitem__(prefix + name, arrays.pop(name)) for name in list(arrays)])


NOT_A_HEADER = "its header is not a safetensors header; fetch it again"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "no such model folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: not a transformers configuration"),
        (change_json("config.json", model_type=None), "config.json: model_type: missing key"),
        (change_json("config.json", model_type="evil", auto_map={"AutoModel": "evil.Model"}), "config.json: auto_map: this model wants to run code"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors in it"),
        (only_pickle, "pytorch_model.bin: pickled weights can run code and are never loaded"),
        (cut("model.safetensors", 5), "truncated or not a safetensors file"),
        (cut("model.safetensors", 100), "truncated or not a safetensors file"),
        (cut("model.safetensors", -1), "truncated: its header promises more bytes than it has"),
        (cut("model.safetensors", -4096), "truncated: its header promises more bytes than it has"),
        (change_header(lambda _: []), NOT_A_HEADER),
        (change_header(lambda header: tensor(header).update(shape=None)), NOT_A_HEADER),
        (change_header(lambda _: {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}), NOT_A_HEADER),
        (change_header(lambda header: tensor(header).update(shape=[31, 32])), "bert.pooler.dense.weight: its bytes do not match its shape"),
        (change_header(lambda header: tensor(header).update(dtype="F16")), "its bytes do not match its shape"),
        (change_header(lambda header: tensor(header).update(shape=[-32, -32])), "its bytes do not match its shape"),
        (change_header(lambda header: tensor(header).update(shape=["32", 32])), "its bytes do not match its shape"),
        (change_weights(lambda arrays: arrays[EMBEDDING].__setitem__((0, 0), np.nan)), f"tensor {EMBEDDING} has NaN or infinite weights"),
        (change_weights(lambda arrays: arrays.update(x=np.array([np.inf], np.float16))), "tensor x has NaN or infinite weights"),
        (change_weights(lambda arrays: arrays.update({EMBEDDING: arrays[EMBEDDING][:20]})), "the tokenizer belongs to another model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json; write one with transformers"),
        (cut("tokenizer.json", 50), "tokenizer.json: not valid JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (only_index("{}"), "index.json: weight_map: missing"),
        (only_index('{"weight_map": {"x": "../teacher/model.safetensors"}}'), "which is not in the folder"),
        (only_index('{"weight_map": {"x": "model-00002.safetensors"}}'), "names model-00002.safetensors, which is not in the folder"),
        (change_json("config.json", quantization_config={"quant_method": "awq", "bits": 4}), f"quantization_config: {QUANTIZED}"),
        (change_json("config.json", quantization={"group_size": 64, "bits": 4}), f"quantization: {QUANTIZED}"),
        (change_weights(lambda arrays: arrays.update({"bert.x.qweight": np.zeros(2, np.int32)})), f"tensor bert.x.qweight: {QUANTIZED}"),
        (change_weights(lambda arrays: arrays.update({"bert.x.weight_scale": np.ones(2, np.float16)})), f"weight_scale: {QUANTIZED}"),
        (change_weights(lambda arrays: arrays.update({"bert.x.weight": np.zeros(2, np.uint8)})), f"tensor bert.x.weight: {QUANTIZED}"),
        (rename("_orig_mod."), "_orig_mod. is a name that torch.compile adds"),
        (rename("module."), "save it again with model.module.save_pretrained(...), or remove module. from the names"),
        (rename("base_model.model."), "base_model.model. is a name that PEFT adds"),
        (rename("bert._orig_mod."), "save it again with model._orig_mod.save_pretrained(...)"),
        (change_weights(lambda arrays: arrays.update({"bert.x.base_layer.weight": np.ones(2, np.float32)})), "base_layer: an adapter that is not merged"),
        *((lambda folder, name=name: (folder / name).write_bytes(POINTER), f"{name}: a pointer of Git LFS, not the file itself; fetch the file: git lfs pull")
          for name in ("config.json", "model.safetensors", "tokenizer.json")),
        *((lambda folder, name=name: (folder / name).write_text("[" * 100_000), f"{name}: lists or objects inside each other, too deep to be read")
          for name in ("config.json", "tokenizer.json")),
    ],
)  # fmt: skip
def test_refused(
    classifier: Path, damage: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(classifier)
    monkeypatch.chdir(classifier.parent)
    with pytest.raises(EdgekitError) as told:
        load_model(classifier)
    assert said in told.value.message
    assert str(classifier) in told.value.message
    assert "\n" not in told.value.message
    assert not Path("RAN").exists()


def test_pickles_beside_safetensors_are_left_alone(classifier: Path) -> None:
    (classifier / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch RAN'\ntR.")
    assert weight_files(classifier) == [classifier / "model.safetensors"]
    load_model(classifier)


def test_shards(classifier: Path) -> None:
    arrays = load_file(classifier / "model.safetensors")
    names = sorted(arrays)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: arrays[name] for name in inside}, classifier / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (classifier / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(classifier) == [classifier / "model.safetensors"], "as transformers does"
    (classifier / "model.safetensors").unlink()
    whole = load_model(classifier).tensors
    assert set(whole) == set(arrays)
    assert {info.file.name for info in whole.values()} == set(parts)


def test_half_precision_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((2, 3), np.float16), "b": np.zeros((0, 4), np.float32), "c": np.ones((), np.int64)}, path)
    assert {name: info.shape for name, info in read_header(path).items()} == {"a": (2, 3), "b": (0, 4), "c": ()}


@pytest.mark.parametrize(("architecture", "positions"), [("bert", 64), ("roberta", 62), ("mpnet", 62)])
def test_positions(classifier: Path, architecture: str, positions: int) -> None:
    change_json("config.json", model_type=architecture)(classifier)
    assert load_model(classifier).max_positions == positions
