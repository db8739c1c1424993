"""What a sentence-transformers folder says of its embeddings: modules.json and the files that it names.

Definitions: sentence-transformers 6.2, base/modules and sentence_transformer/modules. Everything is applied, or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.checkpoint_keys import (
    DENSE,
    DROPOUT,
    LAYER_NORM,
    MODULES,
    NORMALIZE,
    POOLING,
    SENTENCE_TRANSFORMERS,
    TRANSFORMER,
    check_known,
    read_known,
)
from edgekit.errors import EdgekitError
from edgekit.schema import nearest, read_json
from edgekit.typed_json import as_table

# sentence-transformers' key in 1_Pooling/config.json before version 6 -> the mode's name since, in the order of joined modes.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(_OLD_POOLING_KEYS.values())
# What may follow the pooling -> the table of its config.json's keys.
_STEPS = {"Dense": DENSE, "LayerNorm": LAYER_NORM, "Normalize": NORMALIZE}
_SETTINGS_OF_TRANSFORMER = (TRANSFORMER, *(f"sentence_{name}_config.json" for name in (
    "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")))  # fmt: skip
# modality_config of a model that reads texts, as sentence-transformers writes it.
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A module that follows the pooling: its kind (Dense, LayerNorm, Normalize), folder and config.json."""

    kind: str
    folder: Path
    settings: Mapping[str, object]

    @property
    def where(self) -> Path:
        """The file of its settings."""
        return self.folder / "config.json"

    def size(self, key: str) -> int:
        """A whole number of its settings; EdgekitError where it is missing or something else."""
        value = self.settings.get(key)
        if type(value) is not int:
            raise EdgekitError(f"{self.where}: {key!r}: missing, or not a number; fetch the checkpoint again")
        return value


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How token vectors become one embedding. Without sentence-transformers' modules.json: their mean, as it is."""

    modes: tuple[str, ...] = ("mean",)
    """Poolings, whose results stand behind each other."""
    include_prompt: bool = True
    """Whether the prompt's own tokens are pooled too."""
    steps: tuple[Step, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt_name: str | None = None
    """The prompt that is put before every text."""
    max_seq_length: int | None = None
    lower_case: bool = False
    truncate_dim: int | None = None
    similarity: str | None = None

    @property
    def prompt(self) -> str:
        """What is put before every text."""
        return self.prompts[self.prompt_name] if self.prompt_name else ""

    @property
    def normalise(self) -> bool:
        """Whether embeddings have length 1."""
        return bool(self.steps) and self.steps[-1].kind == "Normalize" and self.truncate_dim is None


def read_embedding(folder: Path) -> Embedding:
    """What the folder's files say; the defaults where it has no modules.json.

    Raises EdgekitError for a module, a key or a value that edgekit cannot put into a graph.
    """
    path = folder / MODULES
    if not path.is_file():
        return Embedding()
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(entry, dict) for entry in modules):
        raise EdgekitError(f"{path}: expected a list of modules; fetch the checkpoint again")
    embedding, pools = Embedding(), False
    steps = []
    for position, entry in enumerate(modules):
        check_known(entry, MODULES, path)
        kind, inside = _kind(entry, path), folder / str(entry.get("path", ""))
        if kind == "Transformer" and position == 0:
            _check_root(entry, path)
        elif kind == "Pooling" and position == 1:
            embedding, pools = _pooled(embedding, inside / "config.json"), True
        elif kind in _STEPS and position > 1:
            steps.append(_step(kind, inside, folder))
        elif kind == "Dropout" and position > 1:
            read_known(inside / "config.json", DROPOUT)
        else:
            raise EdgekitError(
                f"{path}: module {kind} in place {position}: edgekit reads Transformer, Pooling, and behind them Dense,"
                " LayerNorm and Normalize"
            )
    if not pools:
        raise EdgekitError(f"{path}: no Pooling behind the Transformer: its outputs are not one row per text")
    embedding = _encoded(replace(embedding, steps=tuple(steps)), folder)
    return _prompted(embedding, folder / SENTENCE_TRANSFORMERS)


def _kind(entry: Mapping[str, object], path: Path) -> str:
    named = str(entry.get("type"))
    if not named.startswith("sentence_transformers."):
        raise EdgekitError(f"{path}: type {named}: code of its own, which edgekit never runs")
    return named.rpartition(".")[2]


def _check_root(entry: Mapping[str, object], path: Path) -> None:
    if entry.get("path"):
        raise EdgekitError(
            f"{path}: its Transformer lies in {entry['path']!r}, edgekit looks for it beside {MODULES}; save the model again"
            " with a newer sentence-transformers"
        )


def _pooled(embedding: Embedding, path: Path) -> Embedding:
    """With the poolings, by the file of their module's settings."""
    settings = read_known(path, POOLING)
    given = settings.get("pooling_mode")
    modes = [str(mode) for mode in given] if isinstance(given, list) else [str(given)]
    if given is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if settings.get(key)] or ["mean"]
    for mode in modes:
        if mode not in POOLING_MODES:
            raise EdgekitError(f"{path}: pooling_mode: unknown value {mode!r}{nearest(mode, POOLING_MODES)}")
    return replace(embedding, modes=tuple(modes), include_prompt=bool(settings.get("include_prompt", True)))


def _step(kind: str, inside: Path, root: Path) -> Step:
    path = inside / "config.json"
    # A module without a folder of its own has no settings: the root's config.json is the transformer's.
    settings = read_known(path, _STEPS[kind]) if inside != root else {}
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise EdgekitError(
                f"{path}: {key}: {settings[key]}: edgekit passes the sentence_embedding from module to module"
            )
    if kind != "Normalize" and not (inside / "model.safetensors").is_file():
        raise EdgekitError(
            f"{inside}: no model.safetensors in it (pickled weights can run code and are never loaded); save the model with"
            " SentenceTransformer(...).save_pretrained(..., safe_serialization=True)"
        )
    return Step(kind=kind, folder=inside, settings=settings)


def _encoded(embedding: Embedding, folder: Path) -> Embedding:
    """With max_seq_length and do_lower_case, of the first of the files that sentence-transformers looks for."""
    path = next((folder / name for name in _SETTINGS_OF_TRANSFORMER if (folder / name).is_file()), folder / TRANSFORMER)
    settings = read_known(path, TRANSFORMER)
    modality = settings.get("modality_config")
    for key, wanted in (("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")):
        if settings.get(key, wanted) != wanted:
            raise EdgekitError(f"{path}: {key}: {settings[key]}: edgekit embeds by {wanted}")
    if modality is not None and as_table(modality).get("text") != _TEXT:
        raise EdgekitError(f"{path}: modality_config: edgekit embeds texts by the model's last_hidden_state")
    length = _whole(settings, "max_seq_length", path) or None
    return replace(embedding, max_seq_length=length, lower_case=bool(settings.get("do_lower_case")))


def _prompted(embedding: Embedding, path: Path) -> Embedding:
    """With the prompts, and what is done to a finished embedding."""
    settings = read_known(path, SENTENCE_TRANSFORMERS)
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise EdgekitError(f"{path}: model_type: {settings['model_type']}: its answers are not one embedding per text")
    prompts = {str(name): str(text or "") for name, text in as_table(settings.get("prompts")).items()}
    name, similarity = settings.get("default_prompt_name"), settings.get("similarity_fn_name")
    if name is not None and name not in prompts:
        raise EdgekitError(
            f"{path}: default_prompt_name: {name!r} is none of its prompts ({', '.join(prompts) or 'none'})"
        )
    return replace(
        embedding,
        prompts=prompts,
        prompt_name=None if name is None else str(name),
        truncate_dim=_whole(settings, "truncate_dim", path),
        similarity=None if similarity is None else str(similarity),
    )


def _whole(settings: Mapping[str, object], key: str, path: Path) -> int | None:
    value = settings.get(key)
    if value is not None and type(value) is not int:
        raise EdgekitError(f"{path}: {key}: {value!r:.60} is not a whole number; fetch the checkpoint again")
    return value
