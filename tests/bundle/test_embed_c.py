"""Apps in C: the answers of the loader in Python, over the same engines, and what they refuse; planted faults are in `test_faults.py`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.native import native_files
from edgekit.bundle.open import load_bundle, open_bundle
from edgekit.devices.native import LIBRARY
from edgekit.errors import EdgekitError
from tests.architectures.decoders import TEMPLATE
from tests.bundle.native_apps import (
    EXAMPLE,
    WRITES,
    compile_app,
    compile_writer,
    lay_app,
    pack_words,
    run_app,
    writing_bundle,
    written,
)
from tests.bundle.test_golden import pack_golden
from tests.devices.arm_llama import arm_library
from tests.devices.emulated import need_board, root_file_system
from tests.devices.native import ARM, HERE, cached_probe, need_compiler

TEXTS = [
    "turn on the light",
    "TURN ÖFF the lights!",
    "",
    "... ?!",
    "play some jazz music music music music music",
    "[SEP] on [PAD]",
    "\U0001f600 مرحبا on",
    "on " * 300_000,
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/embed-c around a bundle, compiled."""
    need_compiler(HERE)
    folder = tmp_path_factory.mktemp("native")
    packed = pack_words(folder)
    made = embed(packed.archive, "c", folder / "app")
    assert {"bundle.c", "load.c", "bundle/tokenizer.bin", "bundle/model.onnx"} <= set(made.files)
    shutil.copyfile(EXAMPLE / "main.c", folder / "app" / "main.c")
    compile_app(folder / "app")
    return folder / "app"


def test_answers_are_those_of_the_loader_in_python(app: Path) -> None:
    bundle = open_bundle(app.parent / "out" / "demo-board")
    loaded = load_bundle(bundle, bundle.folder)
    code, said, last = run_app(app / "app", app / "bundle", said="".join(f"{line}\n" for line in TEXTS))
    assert code == 0, last
    assert re.fullmatch(r"opened in \d+ ms, [\d.]+ ms an answer", last)
    for text, line in zip(TEXTS, said.splitlines(), strict=True):
        label, score = loaded(text)[0]  # type: ignore[index]
        assert (line.split()[0], pytest.approx(float(line.split()[1]), abs=1e-4)) == (label, score), text


def test_what_the_command_shows_compiles_and_answers(app: Path, tmp_path: Path) -> None:
    """With the very lines of `use`, from the folder that they name."""
    made = embed(app.parent / "out" / "demo-board", "c", tmp_path / "app")
    (tmp_path / "app" / "main.c").write_text(made.embedding.use)
    program = compile_app(tmp_path / "app")
    assert run_app(program, before=["env", "-C", tmp_path / "app"]) == (0, "light_on 1.00\n", "")


def test_embeddings_are_those_of_the_loader_in_python(tmp_path: Path) -> None:
    need_compiler(HERE)
    settings = {"prompt": "play ", "prompts": {"query": "turn on ", "nothing": ""}}
    packed = pack_words(tmp_path, output="embedding", settings=settings)
    bundle = open_bundle(packed.bundle)
    loaded = load_bundle(bundle, bundle.folder)
    app = lay_app(bundle, tmp_path / "app")
    (app / "main.c").write_text(r"""
        #include <stdio.h>
        #include "load.h"
        int main(int count, char **words) {
          ek_error error;
          float found[3];
          ek_model *model = ek_open(ek_verified(), "bundle", &error);
          if (!model || !ek_embed(model, words[1], count > 2 ? words[2] : NULL, found, &error)) return fprintf(stderr, "%s\n", error.text), 1;
          for (int at = 0; at < 3; ++at) printf("%.9g\n", (double)found[at]);
          ek_close(model);
          return 0;
        }""")
    program = compile_app(app)
    for text, prompt in [("the light", None), ("the light", "query"), ("jazz", ""), ("jazz", "nothing")]:
        words = [text] if prompt is None else [text, prompt]
        code, said, last = run_app(program, *words, before=["env", "-C", app])
        assert code == 0, last
        np.testing.assert_allclose(np.array(said.split(), float), np.asarray(loaded(text, prompt=prompt)), atol=1e-4)
    assert "no prompt of this name" in run_app(program, "jazz", "other", before=["env", "-C", app])[2]


@pytest.mark.parametrize("template", [None, TEMPLATE, TEMPLATE.replace("['content']", "['content'] | trim")])
def test_what_is_written_is_what_the_loader_in_python_writes(tmp_path: Path, template: str | None) -> None:
    """Behind a question whose reading was ended: nothing of it is written."""
    need_compiler(HERE)
    bundle = writing_bundle(tmp_path / "model", template)
    loaded = load_bundle(bundle, bundle.folder)
    app = lay_app(bundle, tmp_path / "app")
    (app / "main.c").write_text(WRITES, encoding="ascii")
    program = compile_writer(app)
    texts = ["turn the kitchen light on", "play", "on \U0001f600", " \u3000play \n\x85"]
    code, said, last = run_app(program, app / "bundle", *texts)
    assert code == 0, last
    llama = loaded.llama  # type: ignore[attr-defined]
    for text, ours in zip(texts, said.split("\0"), strict=False):
        llama.reset()  # else what two texts begin with is read once, in another order of additions
        # Not streamed: a piece of text that ends amid a character is shown in other pieces.
        if template is None:
            asked = llama.tokenize(text.encode())
            found = llama.create_completion(asked, temperature=0.0, max_tokens=64)["choices"][0]["text"]
        else:
            talk = [{"role": "user", "content": text}]
            found = llama.create_chat_completion(talk, temperature=0.0, max_tokens=64)["choices"][0]["message"][
                "content"
            ]
        # Where the last token ends amid a character, llama-cpp-python writes one token more.
        assert (ours, len(ours) > 8) == (found[: len(ours)], True)
        assert len(found) - len(ours) <= 12
    assert "do not fit the context" in run_app(program, app / "bundle", "on " * 500)[2]


def test_it_writes_on_an_emulated_board(tmp_path: Path) -> None:
    """The program for aarch64, in qemu with a Raspberry Pi 4's CPU, over a llama.cpp for it: the tokens of this machine's."""
    need_board()
    need_compiler(ARM)
    bundle = writing_bundle(tmp_path / "model", TEMPLATE)
    app, board, library = lay_app(bundle, tmp_path / "app"), root_file_system(), arm_library()
    (app / "main.c").write_text(WRITES, encoding="ascii")
    program = compile_writer(app, compiler="aarch64-linux-gnu-gcc", library=library)
    for path in library.iterdir():
        (app / path.name).symlink_to(path)  # this llama.cpp looks for its part for the CPU beside the program
    texts = ["turn the kitchen light on", "on \U0001f600"]
    code, said, last = run_app(program, app / "bundle", *texts, before=emulator(board, library))
    assert code == 0, last
    llama = load_bundle(bundle, bundle.folder).llama  # type: ignore[attr-defined]
    wanted = [written(llama, text, TEMPLATE).replace("\N{REPLACEMENT CHARACTER}", "") for text in texts]
    assert said.split("\0") == [*wanted, ""]
    assert min(map(len, wanted)) > 40


def test_what_programs_in_c_cannot_read_is_refused(tmp_path: Path) -> None:
    """A word tokenizer; nothing is written."""
    bundle = open_bundle(pack_golden(tmp_path / "words").bundle)
    with pytest.raises(EdgekitError, match="does not know the pre-tokenizer Whitespace"):
        embed(bundle.folder, "c", tmp_path / "app")
    assert not (tmp_path / "app").exists()
    assert native_files


def emulator(board: Path, library: Path) -> list[str | Path]:
    """What the command of a program for the board begins with here."""
    path = f"LD_LIBRARY_PATH={library}:/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu"
    return [board / "qemu", "-cpu", "cortex-a72", "-L", board / "root", "-E", path]


def test_it_answers_on_an_emulated_board(app: Path, tmp_path: Path) -> None:
    """The same program for aarch64, in qemu with a Raspberry Pi 4's CPU, over onnxruntime's own wheel for it."""
    need_board()
    need_compiler(ARM)
    shutil.copytree(app, tmp_path / "app", ignore=shutil.ignore_patterns("lib", "app"))
    board = root_file_system()
    library = tmp_path / "lib"
    library.mkdir()
    for name in (LIBRARY, f"{LIBRARY}.1"):
        (library / name).symlink_to(cached_probe(ARM) / LIBRARY)
    program = compile_app(tmp_path / "app", compiler="aarch64-linux-gnu-gcc", library=library)
    asked = "".join(f"{line}\n" for line in TEXTS[:-1])
    here = run_app(app / "app", app / "bundle", said=asked)[1].splitlines()
    code, said, last = run_app(program, tmp_path / "app" / "bundle", said=asked, before=emulator(board, library))
    assert code == 0, last
    assert [line.split()[0] for line in said.splitlines()] == [line.split()[0] for line in here]
    scores = [[float(line.split()[1]) for line in lines] for lines in (said.splitlines(), here)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
