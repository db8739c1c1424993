"""What a model that talks is asked in Node.js and in Chromium: the very text and tokens of transformers, or one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.bundle.open import Bundle
from edgekit.bundle.platforms import find_embedding
from edgekit.errors import EdgekitError
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.workspace import file_sha256
from tests.architectures.decoders import SPECIAL, TEMPLATE, make_decoder
from tests.bundle.test_chat import RUNTIME, TALK, greedy, read_as_whole
from tests.bundle.test_web import visit
from tests.devices.chromium import need_chromium
from tests.llama_files import write_llama
from tests.node_packages import need_node, node_modules
from tests.test_chat_template import CONVERSATIONS, TEMPLATES, USER

_ANSWER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TALKS = {
    **{name: talk for name, talk in CONVERSATIONS.items() if name != "tool"},
    "empty": [{"role": "user", "content": ""}],
    "long": [USER, {"role": "assistant", "content": "\N{GRINNING FACE} "}] * 20 + [USER],
    "right to left": [{"role": "user", "content": "\N{ARABIC LETTER MEEM}\u202eon\u202c <|user|>"}],
}
MORE = {
    "of the tests": TEMPLATE,
    "parts": "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "<|end|>{% endfor %}" + _ANSWER,
    "blank lines": "\n  {% if messages %}\n\n  {{ messages[-1]['content'] }}\n{% endif %}\n\n" + _ANSWER,
    "the day": "  {%- set said = 1 %}\n<|user|>{{ strftime_now('%A %a %d %B %b %Y %m %%') }} {{ messages[-1]['content'] | trim }}<|end|>"
    + _ANSWER,
}
# Loads each app's template and model, and says what it reads of each conversation.
READ = """
import { readFileSync, writeFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const said = {};
for (const [name, folder] of Object.entries(JSON.parse(readFileSync("apps.json", "utf8")))) {
  const { createTalk } = await import(`./${folder}/talk.mjs`);
  const talk = createTalk(JSON.parse(readFileSync(`${folder}/bundle/bundle.json`, "utf8")));
  const model = await llama.loadModel({ modelPath: `${folder}/bundle/model.gguf`, vocabOnly: true });
  said[name] = {};
  for (const [which, messages] of Object.entries(JSON.parse(readFileSync("talks.json", "utf8")))) {
    try {
      const text = talk(messages);
      said[name][which] = { text, ids: Array.from(model.tokenize(text, true)) };
    } catch (failed) { said[name][which] = { failed: failed.message }; }
  }
}
writeFileSync("said.json", JSON.stringify(said));
process.exit(0);
"""
ASK = """
import { open } from "./load.mjs";
try {
  const { said } = JSON.parse(process.argv[2]), bundle = await open("bundle"), tokens = [];
  for await (const { token } of bundle(said, 24)) tokens.push(token);
  console.log(JSON.stringify({ tokens }));
} catch (failed) { console.log(JSON.stringify({ failed: failed.message })); }
process.exit(0);
"""
# Reads texts, and says what the pieces of their tokens are.
PIECES = """
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";
import { createPieces } from "./pieces.mjs";
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath: "bundle/model.gguf", vocabOnly: true });
const said = JSON.parse(readFileSync("texts.json", "utf8")).map((text) => {
  const [ids, piece] = [Array.from(model.tokenize(text, true)), createPieces(model, [])];
  return { ids, text: ids.map(piece).join(""), cleaned: model.detokenize(ids) };
});
process.stdout.write(`${JSON.stringify(said)}\\n`, () => process.exit(0));
"""
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import { Wllama } from "./node_modules/@wllama/wllama/esm/index.js";
import { open } from "./load.mjs";
const { talks, tell } = await (await fetch("./asked.json")).json(), said = { tokens: [] };
try {
  const bundle = await open("./bundle/", { Wllama, wasm: "./node_modules/@wllama/wllama/esm/" });
  for (const talk of talks) {
    said.tokens.push([]);
    for await (const { token } of bundle(talk, 24)) said.tokens.at(-1).push(token);
  }
} catch (failed) { said.failed = failed.message; }
await fetch(tell, { method: "POST", mode: "no-cors", body: JSON.stringify(said) });
</script>"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return make_decoder("llama", tmp_path_factory.mktemp("talk") / "checkpoint", rope_parameters=rope)


def make_bundle(checkpoint: Path, folder: Path, template: str | None, parts: bool = False) -> Bundle:
    """One that talks, without golden answers: what it reads is compared here."""
    folder.mkdir(parents=True)
    write_llama(checkpoint, folder / "model.gguf", template=template)
    settings = {"chat": True, "stop": ["<|end|>"], **({"parts": True} if parts else {})}
    whole: Manifest = read_as_whole({"name": "talk", "model": "model.gguf", "output": "tokens", "max_length": 256,
                                     "task": "text-generation", "settings": settings, "runtime": RUNTIME})  # fmt: skip
    entry = FileEntry(bytes=(folder / "model.gguf").stat().st_size, sha256=file_sha256(folder / "model.gguf"))
    whole = whole.with_files({"model.gguf": entry})
    (folder / "bundle.json").write_text(whole.to_json(), encoding="utf-8")
    return Bundle(folder=folder, manifest=whole)


def lay(bundle: Bundle, app: Path, platform: str = "node") -> Path:
    """What `edgekit embed` lays out around a bundle that lies in the app."""
    found = find_embedding(bundle.manifest, platform)
    assert found is not None
    assert found.make is not None
    for name, source in {**found.files, **found.make(bundle, app)}.items():
        if source != app / name:
            shutil.copyfile(source, app / name)
    return app


def tokenizer(checkpoint: Path, template: str) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(checkpoint)
    found.chat_template = template
    return found


def ask(app: Path, said: object) -> dict[str, Any]:
    (app / "ask.mjs").write_text(ASK, encoding="utf-8")
    if not (app / "node_modules").exists():
        (app / "node_modules").symlink_to(node_modules())
    command = [need_node(), "--disallow-code-generation-from-strings", "ask.mjs", json.dumps({"said": said})]
    ran = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_pieces_have_the_bytes_of_their_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """As llama.cpp writes each token, where its text of all of them lacks blanks; control tokens have none."""
    llama_cpp = pytest.importorskip("llama_cpp")
    app = tmp_path / "app"
    bundle = make_bundle(checkpoint, app / "bundle", TEMPLATE)
    lay(bundle, app)
    texts = [
        "def f(self): ...",
        "a , b ! it 's ?",
        "é ü 漢字 \N{GRINNING FACE} \x7f\xad\x00",
        "<|user|> a <|end|> .",
        "",
    ]
    (app / "node_modules").symlink_to(node_modules())
    (app / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (app / "pieces_test.mjs").write_text(PIECES, encoding="utf-8")
    ran = subprocess.run(
        [need_node(), "pieces_test.mjs"], cwd=app, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    llama = llama_cpp.Llama(str(app / "bundle" / "model.gguf"), vocab_only=True, verbose=False)
    for found in json.loads(ran.stdout.splitlines()[-1]):
        assert found["text"] == llama.detokenize(found["ids"]).decode(), found["cleaned"]


def test_node_reads_conversations_as_transformers_does(checkpoint: Path, tmp_path: Path) -> None:
    """Text and token ids, of the templates that models ship; what transformers turns down is turned down."""
    (tmp_path / "node_modules").symlink_to(node_modules())
    templates = {**TEMPLATES, **MORE}
    apps = {name: f"app{place}" for place, name in enumerate(templates)}
    for name, folder in apps.items():
        app = tmp_path / folder
        lay(make_bundle(checkpoint, app / "bundle", templates[name], parts=name == "parts"), app)
    for name, content in {"apps": apps, "talks": TALKS}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "read.mjs").write_text(READ, encoding="utf-8")
    before = {name: written(checkpoint, template, name) for name, template in templates.items()}
    ran = subprocess.run(
        [need_node(), "--disallow-code-generation-from-strings", "read.mjs"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    for name, template in templates.items():
        wanted = before[name] if name != "the day" else written(checkpoint, template, name)
        for which, found in said[name].items():
            if wanted[which] is None:
                assert found["failed"].startswith("the chat template does not take this conversation: "), (name, which)
            else:
                assert found == wanted[which], (name, which)
    assert sum(found is not None for wanted in before.values() for found in wanted.values()) > 50


def written(checkpoint: Path, template: str, name: str) -> dict[str, Mapping[str, object] | None]:
    """What transformers makes of each conversation; None where it turns one down."""
    import jinja2

    reads, found = tokenizer(checkpoint, template), dict[str, Mapping[str, object] | None]()
    for which, talk in TALKS.items():
        messages = [
            turn | {"content": [{"type": "text", "text": turn["content"]}]} if name == "parts" else turn
            for turn in talk
        ]
        messages = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
        try:
            text = reads.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError:
            found[which] = None
            continue
        found[which] = {"text": text, "ids": reads(text, add_special_tokens=False).input_ids}
    return found


def test_node_answers_as_transformers_does(checkpoint: Path, tmp_path: Path) -> None:
    app = lay(make_bundle(checkpoint, tmp_path / "app" / "bundle", TEMPLATE), tmp_path / "app")
    reads = tokenizer(checkpoint, TEMPLATE)
    for said in ("turn the light on", TALK):
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        ids = reads.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        tokens = greedy(checkpoint, ids, 24)
        assert ask(app, said) == {"tokens": tokens}
        assert len(tokens) > 8
    failed = "the chat template does not take this conversation: it has no message"
    assert ask(app, []) == {"failed": failed}


def test_chromium_answers_as_transformers_does(checkpoint: Path, tmp_path: Path) -> None:
    """wllama, with the template of ChatML, whose marks are tokens of the model's own."""
    need_chromium()
    marked = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, marked)
    for path in marked.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        for old, new in zip(SPECIAL, ("<|im_start|>", "<|im_end|>"), strict=False):
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    template, app = TEMPLATES["chatml"], tmp_path / "app"
    lay(make_bundle(marked, app / "bundle", template), app, "web")
    shutil.copytree(fetch_packages([*PACKAGES]) / "wllama", app / "node_modules" / "@wllama" / "wllama" / "esm")
    shutil.copytree(node_modules() / "@huggingface" / "jinja", app / "node_modules" / "@huggingface" / "jinja")
    esm = app / "node_modules" / "@wllama" / "wllama" / "esm"
    shutil.copyfile(esm / "index.min.js", esm / "index.js")
    talks = [TALK, *(talk for name, talk in TALKS.items() if name != "long")]
    page = visit(app, PAGE, {"talks": talks})
    reads = tokenizer(marked, template)
    for talk, tokens in zip(talks, page["tokens"], strict=True):
        ids = reads.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert tokens == greedy(marked, ids, 24), talk


def test_what_cannot_be_written_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    """A template that the engine here has not, or runs otherwise; of another model; none at all; a conversation turned down."""
    wraps = "{{ messages[0]['content'] | wordwrap(9) }}"
    app = lay(make_bundle(checkpoint, tmp_path / "wraps" / "bundle", wraps), tmp_path / "wraps")
    failed = ask(app, "hello")["failed"]
    assert failed == (
        'the chat template writes nothing: Unknown StringValue filter: wordwrap, and "turn on\\nthe light" when it was verified: it'
        " cannot be used"
    )
    gemma = lay(make_bundle(checkpoint, tmp_path / "gemma" / "bundle", TEMPLATES["gemma"]), tmp_path / "gemma")
    failed = ask(gemma, [USER, USER])["failed"]
    assert failed == (
        "the chat template does not take this conversation: Conversation roles must alternate user/assistant/user/assistant/..."
    )
    shutil.copyfile(app / "template.mjs", gemma / "template.mjs")
    assert ask(gemma, "hello")["failed"] == (
        "template.mjs: of another model than the bundle's: run `edgekit embed` again"
    )
    (gemma / "node_modules").unlink()
    (gemma / "node_modules").mkdir()
    for package in ("node-llama-cpp", "@node-llama-cpp"):
        (gemma / "node_modules" / package).symlink_to(node_modules() / package)
    failed = ask(gemma, "hello")["failed"]
    assert failed.startswith("@huggingface/jinja: cannot be loaded (Cannot find package '@huggingface/jinja'")
    with pytest.raises(EdgekitError, match=r"talk: model\.gguf has no chat template, and its manifest says it talks"):
        lay(make_bundle(checkpoint, tmp_path / "none" / "bundle", None), tmp_path / "none")
