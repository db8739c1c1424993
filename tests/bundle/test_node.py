"""The loader for Node.js, run by Node.js: the answers of the session that verified; planted faults are in `test_faults.py`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.platforms import EMBEDDINGS
from tests.bundle.faults import change_golden, write_sealed
from tests.bundle.test_chat import make_manifest
from tests.bundle.test_chat import shipped as llama_shipped
from tests.bundle.test_golden import pack_golden
from tests.bundle.test_load import TEXTS, shipped
from tests.conftest import ROOT, make_checkpoint
from tests.llama_files import write_bert
from tests.node_packages import NODE, need_node, node_modules
from tests.stories import write_stories

EXAMPLE = ROOT / "examples" / "embed-node"
LONG = [
    *TEXTS,
    "turn on the light " * 60_000,
    "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH} light",
    "\u202eon\u202c",
    "\u00bd \u2167",
]
# Answers the texts of a file, and says how long the opening took.
ASK = """
import { readFileSync } from "node:fs";
import { open } from "./load.mjs";
const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
try {
  const bundle = await open("bundle");
  const answers = [];
  for (const [text, options] of asked) answers.push(Array.from(await bundle(text, options)));
  console.log(JSON.stringify({ answers, times: bundle.times, keys: Object.keys(bundle) }));
} catch (failed) {
  console.log(JSON.stringify({ failed: failed.message }));
}
"""


def put(bundle: Path, folder: Path, platform: str = "node") -> Path:
    """An app with the bundle in it."""
    embed(bundle, platform, folder)
    (folder / "node_modules").symlink_to(node_modules())
    (folder / "ask.mjs").write_text(ASK, encoding="utf-8")
    return folder


def ask(app: Path, texts: Sequence[str], **options: str) -> dict[str, Any]:
    (app / "asked.json").write_text(json.dumps([[text, options] for text in texts]), encoding="utf-8")
    ran = subprocess.run(
        [need_node(), "--disallow-code-generation-from-strings", "ask.mjs", "asked.json"],
        cwd=app, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_golden(tmp_path_factory.mktemp("node")).bundle


@pytest.fixture(scope="module")
def app(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(bundle, tmp_path_factory.mktemp("node") / "app")


def test_it_answers_as_the_python_loader_does(bundle: Path, app: Path) -> None:
    """Long, empty, emoji, right-to-left and 1 MB texts included; and no code is made from text."""
    found = ask(app, LONG)
    assert "failed" not in found, found
    assert found["times"]["open"] > 0
    assert found["times"]["cold"] > 0
    opened = shipped(bundle).Bundle(bundle)
    for text, said in zip(LONG, found["answers"], strict=True):
        wanted = opened(text)
        assert [label for label, _ in said] == [label for label, _ in wanted], text[:40]
        np.testing.assert_allclose([score for _, score in said], [score for _, score in wanted], atol=1e-6)


def test_the_example_answers_lines(bundle: Path, app: Path) -> None:
    """examples/embed-node: an action a line, and a folder that is no bundle is one sentence."""
    shutil.copy(EXAMPLE / "app.mjs", app)

    def run(*words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
        command = [need_node(), "app.mjs", *words]
        return subprocess.run(command, cwd=app, input=lines, capture_output=True, text=True, check=False, timeout=300)

    texts = [text.strip() for text in TEXTS if text.strip() and "\n" not in text and len(text) < 1000]
    opened, ran = shipped(bundle).Bundle(bundle), run("bundle", lines="\n".join(texts) + "\n")
    assert ran.returncode == 0, ran.stderr
    wanted = []
    for text in texts:
        label, score = opened(text)[0]
        understood = label != opened.manifest["out_of_scope"]
        wanted.append(f"{label} ({100 * score:.0f}%): {text}" if understood else f"did not understand: {text}")
    assert ran.stdout.splitlines() == wanted
    assert "ms an answer" in ran.stderr
    assert run().returncode == 2
    failed = run("nothing")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    assert (EXAMPLE / "README.md").read_text().count(NODE.install[0]) == 1


def test_an_embedding_and_its_prompts(tmp_path: Path) -> None:
    made = pack_golden(
        tmp_path / "made", output="embedding", settings={"prompt": "play ", "prompts": {"order": "turn off the "}}
    ).bundle
    app, opened = put(made, tmp_path / "app"), shipped(made).Bundle(made)
    np.testing.assert_array_equal(ask(app, ["music"])["answers"], [opened("music")])
    for name in ("order", ""):
        np.testing.assert_array_equal(ask(app, ["light"], prompt=name)["answers"], [opened("light", prompt=name)])
    assert ask(app, ["x"], prompt="ordr") == {"failed": 'no prompt "ordr": those of this model are order'}


def test_one_that_writes_says_what_llama_cpp_says(tmp_path: Path) -> None:
    """64 tokens of stories260K behind a text, the golden ones asked first; a wrong one is named."""
    llama_cpp = pytest.importorskip("llama_cpp")
    app, found = tmp_path / "app", EMBEDDINGS["llama-cpp", "text", "tokens", "node"]
    (app / "bundle").mkdir(parents=True)
    for name, source in found.files.items():
        shutil.copyfile(source, app / name)
    (app / "node_modules").symlink_to(node_modules())
    write_stories(app / "bundle" / "model.gguf")
    llama = llama_cpp.Llama(
        str(app / "bundle" / "model.gguf"), n_ctx=256, n_threads=1, flash_attn=False, type_k=0, type_v=0, verbose=False
    )
    asked = llama.tokenize(b"Once upon a time")
    greedy = llama.generate(asked, temp=0.0)
    wanted = [next(greedy) for _ in range(64)]
    row = {"text": "Once upon a time", "asked": asked, "tokens": wanted[:8]}
    golden = json.dumps({"format": 1, "of": "", "tolerance": 0.0, "rows": [row]})
    (app / "bundle" / "golden.json").write_text(golden, encoding="utf-8")
    write_sealed(app / "bundle", make_manifest(settings={}))
    (app / "ask.mjs").write_text(
        'import { open } from "./load.mjs";\ntry {\n  const bundle = await open("bundle"), tokens = [];\n  let text = "";\n'
        '  for await (const one of bundle("Once upon a time", 64)) { tokens.push(one.token); text += one.text; }\n'
        "  console.log(JSON.stringify({ tokens, text, cold: bundle.times.cold }));\n  await bundle.close();\n"
        "} catch (failed) { console.log(JSON.stringify({ failed: failed.message })); }\nprocess.exit(0);\n",
        encoding="utf-8",
    )

    def said() -> dict[str, Any]:
        ran = subprocess.run(
            [need_node(), "ask.mjs"], cwd=app, capture_output=True, text=True, check=False, timeout=300
        )
        answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1]) if ran.stdout else {"failed": ran.stderr}
        return answer

    answer = said()
    assert answer.get("tokens") == wanted, answer
    assert answer["text"].strip() == llama.detokenize(wanted).decode().strip()
    assert answer["cold"] > 0
    change_golden(app / "bundle", tokens=[*wanted[:7], wanted[7] + 1])
    assert said()["failed"].startswith('golden answer to "Once upon a time": tokens ')


def test_an_embedder_of_llama_cpp_gives_what_llama_cpp_gives(tmp_path: Path) -> None:
    """Empty, long, of special tokens, of 1 MB, with prompts; a golden answer that is another is named, and a pooling of its own."""
    pytest.importorskip("llama_cpp")
    app, found = tmp_path / "app", EMBEDDINGS["llama-cpp", "text", "embedding", "node"]
    folder = app / "bundle"
    folder.mkdir(parents=True)
    for name, source in found.files.items():
        shutil.copyfile(source, app / name)
    (app / "node_modules").symlink_to(node_modules())
    write_bert(make_checkpoint(tmp_path / "checkpoint"), folder / "model.gguf")
    settings = {"prompt": "play ", "prompts": {"order": "switch off the "}}
    manifest = make_manifest(output="embedding", max_length=16, settings=settings)
    write_sealed(folder, manifest)
    opened = llama_shipped("embed.py").Bundle(folder, check=False)
    row = {"text": "the hall lamp", "embedding": opened("the hall lamp").tolist()}
    golden = {"format": 1, "of": "", "tolerance": 1e-4, "rows": [row]}
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    write_sealed(folder, manifest)
    (app / "ask.mjs").write_text(
        ASK.replace(
            "console.log(JSON.stringify({ answers", "await bundle.close();\n  console.log(JSON.stringify({ answers"
        )
        + "process.exit(0);\n",
        encoding="utf-8",
    )
    asked = [*LONG, "[SEP] hall", "[CLS] the lamp [SEP]", "[PAD]"]
    said = ask(app, asked)
    assert "failed" not in said, said
    for text, embedding in zip(asked, said["answers"], strict=True):
        np.testing.assert_allclose(embedding, opened(text), atol=1e-4, err_msg=text[:40])
    for name in ("order", ""):
        said = ask(app, ["lamp"], prompt=name)
        np.testing.assert_allclose(said["answers"], [opened("lamp", prompt=name)], atol=1e-4)
    assert ask(app, ["x"], prompt="ordr") == {"failed": 'no prompt "ordr": those of this model are order'}
    change_golden(folder, embedding=[-value for value in row["embedding"]])
    assert "an embedding 2.0000 away (1 - cosine), and at most" in ask(app, ["x"])["failed"]
    program = (app / "ask.mjs").read_text(encoding="utf-8")
    refuses = 'open("bundle", { accept() { throw new Error("not this one"); } })'
    (app / "ask.mjs").write_text(program.replace('open("bundle")', refuses), encoding="utf-8")
    assert ask(app, ["x"]) == {"failed": "not this one"}
    (app / "ask.mjs").write_text(program, encoding="utf-8")
    write_sealed(folder, manifest | {"runtime": manifest["runtime"] | {"pooling": "cls"}})
    assert ask(app, ["x"])["failed"] == ("node-llama-cpp pools as the model's file says; this bundle asks for cls")


def test_what_apps_import_is_short_and_typed(bundle: Path, tmp_path: Path) -> None:
    """60 lines a file that is a platform's own; TypeScript takes an app in TypeScript, and Electron's two files as they are."""
    for (_, _, _, platform), found in EMBEDDINGS.items():
        for name, source in found.files.items():
            own = name in {"load.mjs", "app.mjs", "worker.mjs", "store.mjs", "main.mjs", "preload.cjs", "load.py"}
            lines = source.read_text(encoding="utf-8").splitlines()
            assert not own or len(lines) <= 60 or source.name == "generate.py", f"{platform}: {name}"
            assert name != "load.mjs" or "accept" in "\n".join(lines), f"{platform}: who refuses a bundle is not asked"
            assert name.endswith(".py") or not re.search(r"\beval\(|new Function", "\n".join(lines))
    app = put(bundle, tmp_path / "app", "electron")
    (app / "app.mts").write_text(
        'import { open, type Answer } from "./load.mjs";\n'
        'const bundle = await open("bundle", { threads: 1 });\n'
        'const answer: Answer = await bundle("turn on the light", { prompt: "" });\n'
        "export const cold: number | null = bundle.times.cold;\n"
        "// @ts-expect-error a text is wanted\nawait bundle(3);\nexport default answer;\n",
        encoding="utf-8",
    )
    shutil.copyfile(EMBEDDINGS["onnxruntime", "text", "tokens", "node"].files["load.d.mts"], app / "decodes.d.mts")
    (app / "writes.mts").write_text(
        'import { open } from "./decodes.mjs";\n'
        'const answer = await open("bundle", { threads: 1 });\n'
        'for await (const { text } of answer("Once", 64, { temperature: 0.7, signal: AbortSignal.timeout(9) })) text.trim();\n'
        'answer([{ role: "user", content: "Once" }]);\n'
        '// @ts-expect-error a number is wanted\nanswer("Once", "many");\nawait answer.close();\n',
        encoding="utf-8",
    )
    ran = subprocess.run(
        [need_node(), "node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--target", "es2022", "--module", "nodenext",
         "--allowJs", "--checkJs", "--skipLibCheck", "--types", "node", "app.mts", "writes.mts", "main.mjs", "preload.cjs"],
        cwd=app, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout


def test_electrons_half_answers_windows(bundle: Path, tmp_path: Path) -> None:
    """What it registers is asked here by Node.js; `test_electron.py` has windows."""
    app = put(bundle, tmp_path / "app", "electron")
    (app / "main_test.mjs").write_text(
        'import { answerWindows } from "./main.mjs";\nlet asked;\n'
        'await answerWindows({ handle: (name, answer) => { asked = { name, answer }; } }, "bundle");\n'
        'console.log(asked.name, (await asked.answer({}, "turn on the light")).answer[0][0]);\n'
        "console.log((await asked.answer({}, 3)).failed);\n",
        encoding="utf-8",
    )
    ran = subprocess.run(
        [need_node(), "main_test.mjs"], cwd=app, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.stdout == "edgekit light_on\nedgekit answers a text\n", ran.stderr
