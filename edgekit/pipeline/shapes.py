"""The checkpoint that a build exports, before it is there: shapes and configuration, from headers and the recipe alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.model import EMBEDDINGS, Model
from edgekit.outputs import OUTPUTS
from edgekit.typed_json import as_list
from edgekit.weights import TensorInfo, read_header

if TYPE_CHECKING:
    from edgekit.architectures.widths import Sizes
    from edgekit.distill.options import CreateOptions
    from edgekit.pipeline.plan import Plan, Settings
    from edgekit.recipe import Recipe

Shapes = dict[str, tuple[int, ...]]

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
# What an encoder's embeddings do not pass through, and a new classifier replaces: pooler, pretraining's heads, old classifiers.
_HEADS = re.compile(
    r"(^|\.)pooler\.|^(cls|lm_head|vocab_\w+|generator_\w+|discriminator_predictions|lm_predictions|mask_predictions|head"
    r"|decoder|classifier|pre_classifier|qa_outputs|score)\."
)
# Numbers that a model computes itself.
_COMPUTED = re.compile(r"(position_ids|token_type_ids|inv_freq|masked_bias)$")
_COUNTS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")


def trained_model(settings: Settings, teacher: Path | None, output: str, classes: int) -> Model:
    """The recipe's teacher with the head that it is trained with.

    Its `config` and the shapes of its `tensors` are right; positions in files are the teacher's, or none. teacher: None where it
    is created; then no folder is there. output: the task's OUTPUT. classes: of a head that is trained.
    """
    if teacher is None:
        options = settings.training.create
        assert options is not None
        return _primed(Model(folder=Path("to-be-created")), _created_config(options), _infos(created_shapes(options)))
    model = Model(folder=teacher)
    return _primed(model, model.config, dict(_task_tensors(model, settings.recipe, output, classes)))


def made_model(plan: Plan, output: str, classes: int) -> Model:
    """The student that a plan will export, as its headers will be."""
    whole = trained_model(plan.settings, plan.teacher, output, classes)
    return planned_student(whole, plan.recipe, classes)


def planned_student(model: Model, recipe: Recipe, classes: int) -> Model:
    """A teacher's model cut to the blocks that the recipe's student keeps, or its table of n-grams for so many classes; the same
    where there is no student."""
    if recipe.student is None:
        return model
    from edgekit.distill import choose_layers, choose_ngrams
    from edgekit.distill.sizes import choose_sizes

    if table := choose_ngrams(recipe.student):
        shapes: Shapes = {
            "ngram_embedding.weight": (table.buckets, table.width),
            "classifier.weight": (classes, table.width),
            "classifier.bias": (classes,),
        }
        # Of every token of the teacher's vocabulary so many characters, a byte each.
        rows = 0 if math.isinf(model.rows) else int(model.rows)
        spelled = TensorInfo(file=Path("to-be-created"), dtype="U8", shape=(rows, table.characters), begin=0, end=0)
        return _primed(model, {"model_type": table.FAMILY}, _infos(shapes) | {"spelled": spelled})

    # Blocks are of one shape: which ones stay by influence does not matter here.
    sizes = choose_sizes(model, recipe.student, "student")
    made = _cut(model, choose_layers(model, recipe.student, "student"))
    if sizes is not None:
        made = _narrower(made, sizes)
    return made if recipe.student.vocabulary is None else _with_tokens(made, recipe.student.vocabulary)


def created_shapes(options: CreateOptions) -> Shapes:
    """The tensors of a decoder that is made from nothing, as transformers names them (biases and norms as the family has)."""
    width, inner = options.hidden, options.intermediate or 3 * options.hidden
    head = width // options.heads
    narrow = head * (options.kv_heads or options.heads)
    block: Shapes = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (narrow, width),
        "self_attn.v_proj.weight": (narrow, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    if options.family == "qwen2":
        block |= {f"self_attn.{part}_proj.bias": block[f"self_attn.{part}_proj.weight"][:1] for part in "qkv"}
    if options.family == "qwen3":
        block |= {f"self_attn.{part}_norm.weight": (head,) for part in "qk"}
    shapes: Shapes = {"model.embed_tokens.weight": (options.vocabulary, width), "model.norm.weight": (width,)}
    for layer in range(options.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | ({} if options.tied else {"lm_head.weight": (options.vocabulary, width)})


def _created_config(options: CreateOptions) -> dict[str, object]:
    return {
        "model_type": options.family,
        "architectures": [],
        "vocab_size": options.vocabulary,
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate or 3 * options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads or options.heads,
        "head_dim": options.hidden // options.heads,
        "max_position_embeddings": options.context,
        "tie_word_embeddings": options.tied,
    }


def _task_tensors(model: Model, recipe: Recipe, output: str, classes: int) -> Iterator[tuple[str, TensorInfo]]:
    """The checkpoint's tensors that its task's module has, with those of a new head."""
    fresh = OUTPUTS[output].has_classes and recipe.teacher.finetune is not None
    for name, info in model.tensors.items():
        if not _COMPUTED.search(name) and (
            OUTPUTS[output].generates or not (fresh or OUTPUTS[output].pools) or not _HEADS.search(name)
        ):
            yield name, info
    if fresh:
        width = model.hidden
        # Every family's classifier has one more layer before it: a pooler, or a part of the head.
        yield from _infos(
            {
                "head.dense.weight": (width, width),
                "head.dense.bias": (width,),
                "classifier.weight": (classes, width),
                "classifier.bias": (classes,),
            }
        ).items()
    if OUTPUTS[output].pools:
        for file in sorted(model.folder.glob("*_*/model.safetensors")):
            yield from ((f"{file.parent.name}.{name}", info) for name, info in read_header(file).items())


def _infos(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    nowhere = Path("to-be-created")
    return {name: TensorInfo(file=nowhere, dtype="F32", shape=shape, begin=0, end=0) for name, shape in shapes.items()}


def _cut(model: Model, kept: Sequence[int]) -> Model:
    """The model of the kept blocks, which are numbered anew."""
    numbers = {str(block): str(index) for index, block in enumerate(kept)}
    tensors = {}
    for name, info in model.tensors.items():
        block = _LAYER.search(name)
        if block is None:
            tensors[name] = info
        elif block[0] in numbers:
            tensors[name[: block.start()] + numbers[block[0]] + name[block.end() :]] = info
    text = dict(model.text_config) | {key: len(kept) for key in _COUNTS if key in model.text_config}
    if kinds := as_list(text.get("layer_types")):
        text["layer_types"] = [kinds[block] for block in kept]
    config = text if model.text_config is model.config else model.config | {"text_config": text}
    return _primed(model, config, tensors)


def _narrower(model: Model, after: Sizes) -> Model:
    """The model with these sizes."""
    from edgekit.architectures import find_architecture
    from edgekit.distill.sizes import find_widths

    widths = find_widths(model)
    assert widths is not None
    layers = find_architecture(model.architecture, "model").LAYERS
    before = widths.sizes(model.text_config, "model")
    tensors = {}
    for name, info in model.tensors.items():
        _, axes = widths.axes(name, layers)
        cut = [after.extent(axis) if axis else extent for axis, extent in zip(axes, info.shape, strict=False)]
        tensors[name] = replace(info, shape=(*cut, *info.shape[len(cut) :]))
    return _primed(model, model.config | widths.changed(before, after), tensors)


def _with_tokens(model: Model, most: int) -> Model:
    """The model with so many tokens at most."""
    tensors = {
        name: replace(info, shape=(min(most, info.shape[0]), *info.shape[1:])) if name.endswith(EMBEDDINGS) else info
        for name, info in model.tensors.items()
    }
    return _primed(model, model.config, tensors)


def _primed(model: Model, config: Mapping[str, object], tensors: Mapping[str, TensorInfo]) -> Model:
    """The model with another configuration and other tensors than its folder has."""
    changed = replace(model)
    # Both are cached properties: what is there is not read from the folder.
    vars(changed).update(config=dict(config), tensors=dict(tensors))
    return changed
