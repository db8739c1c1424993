"""A LoRA adapter and its base make the checkpoint that PEFT makes of them; what cannot be merged is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.distill.adapter import MergeInputs, merge
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.tasks import TASKS
from tests.architectures.decoders import make_decoder
from tests.conftest import LABELS, make_checkpoint
from tests.steps import content

peft = pytest.importorskip("peft")
CLASSIFY, GENERATE = "text-classification", "text-generation"
IDS = torch.tensor([[2, 7, 9, 11, 3]])


def make_adapter(base: Path, folder: Path, task: str, **options: Any) -> tuple[Path, torch.Tensor]:
    """An adapter with random weights, as PEFT saves it, and the logits of PEFT's own model on IDS."""
    import transformers

    kind = {CLASSIFY: "AutoModelForSequenceClassification", GENERATE: "AutoModelForCausalLM"}[task]
    more = {"num_labels": 4} if task == CLASSIFY else {}
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_pretrained(base, ignore_mismatched_sizes=True, **more)
    targets = ["query", "value"] if task == CLASSIFY else ["q_proj", "down_proj"]
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": targets,
        "task_type": "SEQ_CLS" if task == CLASSIFY else "CAUSAL_LM",
    }
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**(settings | options))).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(folder)
    with torch.inference_mode():
        return folder, wrapped(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (GENERATE, {}),
        (GENERATE, {"use_rslora": True, "alpha_pattern": {"down_proj": 3}}),
        (GENERATE, {"use_dora": True}),
        (GENERATE, {"modules_to_save": ["lm_head"]}),
        (CLASSIFY, {}),
        (CLASSIFY, {"bias": "lora_only"}),
    ],
    ids=["lora", "rslora", "dora", "head", "classifier", "bias"],
)  # fmt: skip
def test_the_merged_checkpoint_answers_as_peft_does(tmp_path: Path, task: str, options: dict[str, Any]) -> None:
    base = (
        make_checkpoint(tmp_path / "base")
        if task == CLASSIFY
        else make_decoder("llama", tmp_path / "base", num_hidden_layers=2)
    )
    adapter, wanted = make_adapter(base, tmp_path / "adapter", task, **options)
    out = tmp_path / "merged"
    out.mkdir()
    assert merge(MergeInputs(adapter=content(adapter), base=content(base), task=task), out)["rank"] == 4
    model = load_model(out)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    with torch.inference_mode():
        found = TASKS[task].load(out)(IDS, torch.ones_like(IDS))
        before = None if task == CLASSIFY else TASKS[task].load(base)(IDS, torch.ones_like(IDS))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert before is None or (found - before).abs().max() > 0.01
    if task == CLASSIFY:
        assert model.labels == [f"LABEL_{place}" for place in range(4)]
    else:
        assert (out / "chat_template.jinja").is_file()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("adapter")
    base = make_decoder("llama", place / "base", num_hidden_layers=2)
    return base, make_adapter(base, place / "adapter", GENERATE)[0]


def drop_one(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, folder / "adapter_model.safetensors")


def add_one(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        tensors | {"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(4, 4)},
        folder / "adapter_model.safetensors",
    )


def say(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (say(peft_type="PREFIX_TUNING"), "adapter_config.json: peft_type: 'PREFIX_TUNING' cannot be merged here"),
        (say(peft_type=None), "peft_type: None cannot be merged"),
        (say(use_lora_of_tomorrow=True), "use_lora_of_tomorrow: PEFT .* does not know this key"),
        (say(megatron_config={"x": 1}, megatron_core="os"), "megatron_config: asks for another library's code"),
        (say(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens: the adapter works behind these tokens alone"),
        (say(base_model_name_or_path=None), "base_model_name_or_path: missing"),
        (say(r=8), "does not fit .*base"),
        (say(target_modules=["no_such_layer"]), "does not fit .*base: .*no_such_layer"),
        (drop_one, "lora_A.weight: missing"),
        (add_one, "layers.9.x.lora_A.weight: PEFT finds no place for it"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "no adapter_model.safetensors in it; pickled"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged(
    made: tuple[Path, Path], tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    import shutil

    base, adapter = made
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    damage(copy)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EdgekitError, match=said) as told:
        merge(MergeInputs(adapter=content(copy), base=content(base), task=GENERATE), out)
    assert "\n" not in told.value.message
    assert not list(out.iterdir())


def test_a_recipe_names_an_adapter(command: Callable[..., Any], project: Path) -> None:
    """It is merged once into the cache; a dry run alone leaves nothing behind."""
    folder = project.parent
    adapter, wanted = make_adapter(folder / "teacher", folder / "adapter", CLASSIFY)
    say(base_model_name_or_path="../teacher")(adapter)
    (adapter / "config.json").write_text(json.dumps({"id2label": dict(enumerate([*LABELS, "other"]))}))
    project.write_text(project.read_text().replace('source = "teacher"', 'source = "adapter"'))
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--out", "dist")
    assert answer.code == 0, answer.err
    assert not (folder / "cache").exists()
    (folder / "cache").mkdir()
    for _ in range(2):
        assert command("build", "-t", "laptop-cpu", "--dry-run", "--out", "dist").code == 0
    (merged,) = (folder / "cache" / "merge").glob("[!.]*")
    assert load_model(merged).labels == [*LABELS, "other"]
    with torch.inference_mode():
        found = TASKS[CLASSIFY].load(merged)(IDS, torch.ones_like(IDS))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    told = command("record", "adapter", "adapter", "--out", "dist/reference")
    assert (
        "adapter_config.json: an adapter, not a model; name it as a recipe's teacher.source to have it merged"
        in told.err
    )


def test_an_adapter_whose_base_is_not_there(command: Callable[..., Any], project: Path) -> None:
    folder = project.parent
    adapter, _ = make_adapter(folder / "teacher", folder / "adapter", CLASSIFY)
    say(base_model_name_or_path="gone")(adapter)
    project.write_text(project.read_text().replace('source = "teacher"', 'source = "adapter"'))
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--out", "dist")
    assert answer.code == 1
    assert "adapter_config.json: base_model_name_or_path: no such folder: gone" in answer.err
