"""Random recipes, targets, data files and checkpoints of tiny size, most of them with something wrong, and edgekit run on them.

`projects()` is a Hypothesis strategy; `attempt` writes a project into a folder, runs a command there in this process, and says
what must not be: an exception that is none of edgekit's errors, an exit code that is not documented, a half-written folder, a
file outside edgekit's own that was changed. tests/pipeline/test_random_projects.py tries 500 of them, `soak.py --projects N` as
many as one likes.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from random_llama import Shape, write_checkpoint

CODES = {0, 1, 2, 3, 4}
TASKS = ("text-classification", "feature-extraction", "text-generation")
LABELS = ("light_off", "light_on", "music")
SAID = ("please turn the {} {} light on", "switch off every lamp in the {} {}", "some jazz on the {} {} speaker")
ROOMS = ("kitchen", "hall", "porch", "garage", "attic", "cellar", "bathroom", "study", "bedroom", "landing", "pantry")
# What people, editors and exporters put where something else belongs.
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        2**40,
        0.5,
        -0.5,
        1e300,
        float("inf"),
        "",
        " ",
        "x",
        "3",
        "../x",
        "\u00fc",
        "a\nb",
    ),
    *([], [1], ["a", "b"], [[]], {}, {"a": 1}, {"a": {"b": []}}),
)
NAMES = ("rows", "data[1]", "q?", "a b", "t\u00fcr", "[x] y*", "rows.v2")
SUFFIXES = (*(".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".CSV") * 3, ".txt", ".parquet", ".xlsx", "")
RECIPE_KEYS = (
    *("task", "seed", "license", "teacher.source", "teacher.revision", "teacher.finetune", "teacher.create", "student"),
    *("student.layers", "student.keep", "data.path", "data.text", "data.label", "data.answer", "data.messages"),
    *("data.out_of_scope", "data.max_length", "data.split", "data.near_duplicates", "data.group", "data.labels"),
    *("data.delimiter", "data.encoding", "data.min_per_label", "data.final", "data.bad_rows", "distill.epochs"),
    *("distill.losses", "calibrate.prompts", "calibrate.batch", "accuracy.student_margin", "accuracy.at_least"),
    *("accuracy.stages", "rejection.share", "rejection.recall", "name", "unknown", "data.unknown"),
)
TARGET_KEYS = (
    *("title", "hardware.cores", "hardware.arch", "hardware.features", "hardware.memory_mb", "hardware.sources"),
    *("export.TASK", "export.TASK.scheme", "export.TASK.format", "export.TASK.x", "export.TASK.activation"),
    *("runtime.onnxruntime.threads", "runtime.onnxruntime.provider", "runtime.llama-cpp.threads", "runtime.unknown"),
    *("device.kind", "budget.p95_ms", "budget.bytes", "budget.TASK", "budget.TASK.sequence", "unknown"),
)
CONFIG_KEYS = (
    *(
        "model_type",
        "architectures",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "id2label",
    ),
    *(
        "max_position_embeddings",
        "hidden_act",
        "type_vocab_size",
        "pad_token_id",
        "problem_type",
        "num_labels",
        "auto_map",
    ),
    *("quantization_config", "position_embedding_type", "layer_norm_eps", "initializer_range", "eos_token_id"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps", "rope_parameters", "rope_scaling"),
    *("tie_word_embeddings", "torch_dtype", "sliding_window", "text_config"),
)
TOKENIZER_KEYS = (
    *(
        "tokenizer_class",
        "truncation_side",
        "do_lower_case",
        "model_max_length",
        "pad_token",
        "unk_token",
        "chat_template",
    ),
    *("added_tokens_decoder", "add_prefix_space", "add_bos_token", "eos_token", "additional_special_tokens"),
)
GENERATION_KEYS = ("eos_token_id", "bos_token_id", "do_sample", "repetition_penalty", "max_length", "num_beams")
KEYS = {
    "recipe": RECIPE_KEYS,
    "target": TARGET_KEYS,
    "config": CONFIG_KEYS,
    "tokenizer": TOKENIZER_KEYS,
    "generation": GENERATION_KEYS,
}
FILES = (
    *("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors", "README.md", "modules.json"),
    *("generation_config.json", "special_tokens_map.json", "chat_template.jinja", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "adapter_config.json", "tokenizer.model", "1_Pooling"),
)
# What lies in such a file but what should: much is JSON of another kind, much is a template that goes wrong.
CONTENTS = (
    *(b"", b"{}", b"[]", b"null", b"3", b'{"a": 1}', b'"x"', b"[{}]", b'[{"idx": 0, "type": "x", "path": ""}]'),
    *(b"{{ messages }}", b"{% for m in messages %}{{ m.content }}{% endfor %}", b"{{ 1/0 }}", b"{% if %}"),
    *(b"{{ raise_exception('no') }}", b"{{ messages[0]['content'][0]['text'] }}", b"---\nlicense: [\n---\n"),
)
# Put behind `edgekit build`, most often nothing.
ARGUMENTS: tuple[tuple[str, ...], ...] = (
    *((),) * 9,
    *(("--json",), ("--strict",), ("--final",), ("--drop-bad-rows",), ("--fresh",), ("--junit", "made/x.xml")),
    *(("--out", "dist/a b"), ("--out", "recipe.toml"), ("--cache", "recipe.toml")),
    *(("--format", "gguf"), ("--format", "onnx", "--format", "gguf"), ("--scheme", "w4"), ("--scheme", "q8_0")),
    *(("--scheme", "auto"), ("--scheme", "none such"), ("--set", "data.max_length=9999"), ("--set", "=")),
    *(("--set", "accuracy.at_least=0.5"), ("--set", "teacher=1"), ("--set", "data.text"), ("--set", "a.b.c=[")),
)


@dataclass(frozen=True, kw_only=True)
class Project:
    """What lies in a project's folder: texts and tables, and changes to the files of a small checkpoint of a task."""

    task: str
    arguments: tuple[str, ...]
    data: str
    content: bytes
    recipe: Mapping[str, Any]
    target: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    files: Mapping[str, bytes | None]


@st.composite
def projects(draw: st.DrawFn) -> Project:
    """A project that would build, with up to three changes."""
    task = draw(st.sampled_from((*TASKS, *TASKS[:1] * 3)))
    name = draw(st.sampled_from(NAMES)) + draw(st.sampled_from(SUFFIXES))
    schemes = ("fp32", "w8", "w4") if task == "text-generation" else ("fp32", "w8")
    recipe: dict[str, Any] = {
        "task": task,
        "teacher": {"source": "teacher"},
        "data": {"path": name, "max_length": 32, "split": {"calibrate": 0.2, "verify": 0.4}, "near_duplicates": "drop"},
    }
    target: dict[str, Any] = {
        "title": "A test",
        "hardware": {
            "generic": True,
            "arch": "x86_64",
            "cpu": "any",
            "cores": 1,
            "features": [],
            "memory_mb": 4096,
            "sources": ["none"],
        },
        "export": {task: {"format": "onnx", "scheme": draw(st.sampled_from(schemes))}},
        "runtime": {"onnxruntime": {"threads": 1}},
    }
    places = ("recipe", "target", "config", "tokenizer", "generation", "file", "data")
    kinds = draw(st.lists(st.sampled_from(places), max_size=3))
    tables: dict[str, dict[str, Any]] = {"recipe": recipe, "target": target}
    tables |= {kind: {} for kind in ("config", "tokenizer", "generation")}
    files: dict[str, bytes | None] = {}
    for kind in kinds:
        if kind in KEYS:
            _put(tables[kind], draw(st.sampled_from(KEYS[kind])).replace("TASK", task), draw(st.sampled_from(ODD)))
        elif kind == "file":
            content = st.one_of(st.none(), st.binary(max_size=40), st.sampled_from(CONTENTS))
            files[draw(st.sampled_from(FILES))] = draw(content)
    return Project(
        task=task,
        arguments=draw(st.sampled_from(ARGUMENTS)),
        data=name,
        content=draw(_contents(name, damaged="data" in kinds)),
        files=files,
        **tables,
    )


@st.composite
def _contents(draw: st.DrawFn, name: str, *, damaged: bool) -> bytes:
    """A file of rows in the form that its name says, and with `damaged` something that people's files have."""
    rows: list[dict[str, Any]] = [
        {
            "text": SAID[index % 3].format(ROOMS[index // 3 % 11], ROOMS[(index // 3 * 5 + 2) % 11]),
            "label": LABELS[index % 3],
        }
        for index in range(66)
    ]
    if damaged:
        for _ in range(draw(st.integers(0, 3))):
            row = rows[draw(st.integers(0, len(rows) - 1))]
            odd = st.one_of(st.text(max_size=20), st.sampled_from([one for one in ODD if one not in (float("inf"),)]))
            row[draw(st.sampled_from(("text", "label", "more")))] = draw(odd)
    content = _written(name, rows, draw(st.sampled_from(",;\t|")) if damaged else ",")
    if damaged:
        encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "cp1252")))
        content = content.decode("utf-8", "replace").encode(encoding, "replace")
        cut = draw(st.one_of(st.none(), st.integers(0, len(content))))
        content = content[:cut] + draw(st.sampled_from((b"", b"\x00", b'"', b"\r", b"{", b"\xff\xfe")))
    return gzip.compress(content, mtime=0) if name.endswith(".gz") else content


def _written(name: str, rows: list[dict[str, Any]], delimiter: str) -> bytes:
    suffix = name.removesuffix(".gz").rpartition(".")[2].casefold()
    if suffix == "json":
        return json.dumps(rows).encode()
    if suffix == "jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if suffix == "txt":
        return "".join(f"{row['text']}\n" for row in rows).encode("utf-8", "replace")
    if suffix == "tsv":
        delimiter = "\t"
    lines = [delimiter.join(("text", "label"))]
    lines += [delimiter.join(str(row.get(key, "")) for key in ("text", "label")) for row in rows]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; where a table is in the way of one, it is replaced."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.get(parent)
        table[parent] = inner if isinstance(inner, dict) else {}
        table = table[parent]
    table[last] = value


def to_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML: JSON's strings, numbers and lists are TOML's too; what is None is left out."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in table.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items() if one is not None)
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    return "inf" if value == float("inf") else json.dumps(value)


def make_checkpoints(folder: Path) -> dict[str, Path]:
    """A small checkpoint of random weights for each task: a BERT with the labels' head, one without, and a Llama."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for said in (*SAID, *ROOMS) for word in said.split()})]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, pad_token_id=0, **sizes)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: place for place, label in enumerate(LABELS)}
    found = {task: folder / task for task in TASKS}
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(found["text-classification"])
    BertModel(config).save_pretrained(found["feature-extraction"])
    for task in TASKS[:2]:
        tokenizer.save(str(found[task] / "tokenizer.json"))
    found["text-generation"].mkdir()
    shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocabulary=400)
    write_checkpoint(found["text-generation"], shape)
    return found


def write(project: Project, checkpoint: Path, folder: Path) -> None:
    """Make a folder of a project: recipe.toml, target.toml, the data file and ./teacher, a copy of the checkpoint."""
    shutil.copytree(checkpoint, folder / "teacher")
    for name, changes in (
        ("config.json", project.config),
        ("tokenizer_config.json", project.tokenizer),
        ("generation_config.json", project.generation),
    ):
        path = folder / "teacher" / name
        if changes:
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            path.write_text(json.dumps(known | dict(changes)), encoding="utf-8")
    for name, content in project.files.items():
        path = folder / "teacher" / name
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)
    (folder / project.data).write_bytes(project.content)
    (folder / "recipe.toml").write_text(to_toml(project.recipe), encoding="utf-8")
    (folder / "target.toml").write_text(to_toml(project.target), encoding="utf-8")


def attempt(
    project: Project, checkpoints: Mapping[str, Path], folder: Path, *options: str
) -> tuple[int | None, list[str]]:
    """Write a project into an empty folder and run `edgekit build` on it; as `run`, and nothing beside the project changes."""
    own = folder / "project"
    write(project, checkpoints[project.task], own)
    (folder / "of the user's").write_text("kept", encoding="utf-8")
    code, wrong = run(own, "build", "-r", "recipe.toml", "-t", "./target.toml", *project.arguments, *options)
    (folder / "of the user's").unlink()
    wrong += [f"beside the project: {path.name}" for path in folder.iterdir() if path != own]
    return code, wrong


def run(folder: Path, *arguments: str) -> tuple[int | None, list[str]]:
    """Run `edgekit ARGUMENTS` in this process in a project's folder: its exit code, and what must not be, a line each."""
    from edgekit.cli import run_command_line

    before, code = contents(folder), None
    out, wrong = io.StringIO(), []
    environment = {"EDGEKIT_CACHE": ".edgekit", "EDGEKIT_STATE": str(folder / ".state"), "NO_COLOR": "1"}
    here = Path.cwd()
    os.chdir(folder)
    try:
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(sys, "argv", ["edgekit", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
        ):
            code = run_command_line()
        if code not in CODES:
            wrong.append(f"exit code {code}")
    except Exception:
        wrong.append(traceback.format_exc())
    finally:
        os.chdir(here)
    said = out.getvalue()
    if "Traceback" in said:
        wrong.append(said[-2000:])
    after = contents(folder)
    own = (".edgekit", ".state", "dist", "made")
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    wrong += [f"changed: {path}" for path in sorted(changed) if path.split("/")[0] not in own]
    return code, wrong + half_written(folder, dry="--dry-run" in arguments)


def half_written(folder: Path, *, dry: bool) -> list[str]:
    """What an ended command must not leave: partial files, steps and bundles that are not whole; of a dry run any product."""
    from edgekit.bundle.open import open_bundle
    from edgekit.errors import EdgekitError
    from edgekit.workspace import STEPS, open_product

    found = [f"half written: {path}" for path in sorted(folder.rglob("*")) if ".partial" in path.name]
    for step in STEPS:
        for place in sorted(folder.glob(f".edgekit/{step}/[!.]*")):
            try:
                open_product(place, step).check()
            except EdgekitError as damaged:
                found.append(f"half written: {damaged.message}")
            if dry and step not in {"prompts", "check"}:
                found.append(f"made by a dry run: {place}")
    for manifest in sorted(folder.glob("dist/**/bundle.json")):
        try:
            open_bundle(manifest.parent)
        except EdgekitError as damaged:
            found.append(f"half written: {damaged.message}")
    return found + [f"made by a dry run: {path}" for path in sorted(folder.glob("dist/*")) if dry]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
