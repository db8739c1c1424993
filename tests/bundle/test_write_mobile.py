"""Texts on phones, on this machine: the very Kotlin and C of an Android app over a real llama.cpp, and what an iOS app is given."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.open import Bundle, load_bundle
from edgekit.devices.native import llama as llama_cpp
from tests.architectures.decoders import TEMPLATE
from tests.bundle.faults import FAULTS, change_text
from tests.bundle.native_apps import decoder_bundle, writing_bundle, written
from tests.bundle.phone_apps import ask, build, build_decoder, link
from tests.bundle.test_write import say
from tests.devices.native import HERE, need_compiler
from tests.devices.ort_headers import header_folder

TEXTS = ["turn the kitchen light on", "on \U0001f600", "", "\u062a\u0634\u063a\u064a\u0644 \u65e5\u672c play"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return writing_bundle(tmp_path_factory.mktemp("phone") / "model", TEMPLATE)


@pytest.fixture(scope="module")
def app(bundle: Bundle) -> Path:
    """The app's folder, which has the bundle; its library is in `built` beside it."""
    need_compiler(HERE)
    folder = bundle.folder.parent
    embed(bundle.folder, "android", folder / "app")
    build(folder / "app", folder / "built")
    return folder / "app"


def test_texts_are_llama_cpps(app: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Several questions in one session, each piece of whole characters; too long, stopped, ended by the app, closed."""
    files = tmp_path / "files"
    out = ask(app.parent / "built", files, app / "bundle", said="".join(f"{line}\n" for line in TEXTS))
    *answers, long, negative, stopped, thrown, inside, again, closed, rest = out.split("\ue002")
    llama = load_bundle(bundle, bundle.folder).llama  # type: ignore[attr-defined]
    for text, answer in zip(TEXTS, answers, strict=True):
        *pieces, end = answer.split("\ue001")
        assert "".join(pieces) == written(llama, text, TEMPLATE)
        assert (len(pieces) > 20, end, "" in pieces) == (True, "", False)
    assert re.fullmatch(r"\d+ tokens do not fit the context of \d+, of which one is for the answer", long)
    assert negative == "an answer has 0 tokens or more at most, not -1"
    assert stopped == "".join(answers[0].split("\ue001")[:3])
    assert thrown == "the app's own \U0001f600"
    assert inside == "an answer is being written: stop it, and go on behind it"
    assert again == answers[0].replace("\ue001", "")
    assert (closed, rest) == ("this model was closed", "")
    assert [path.name for path in files.iterdir()] == ["model.gguf"]


def test_a_sentence_has_any_character(app: Path, tmp_path: Path) -> None:
    """Also where it cuts one: JNI's own strings are of another encoding, and Android ends a process that gives it UTF-8."""
    text = "\U0001f600 \u65e5" + "\u672c" * 40  # of which a sentence has 60 bytes
    quoted = "".join(f"\\{byte:03o}" for byte in text.encode())
    shutil.copyfile(app / "cpp/bundle.c", tmp_path / "bundle.c")
    first, tokens = '.text = "turn the kitchen light on"', ".tokens = (const int32_t[]){"
    change_text(tmp_path / "bundle.c", {first: f'.text = "{quoted}"', tokens: f"{tokens}1"})
    said = ask(link(app, tmp_path / "bundle.c", tmp_path / "built"), app, "each", "bundle")
    assert re.search(FAULTS["a wrong golden answer"].sentence("c-llama") or "", said), said
    assert said.startswith('behind "\U0001f600 \u65e5\u672c\u672c')


def test_a_decoder_in_onnx_writes_the_python_loaders_text(tmp_path: Path) -> None:
    """By the same Kotlin, over onnxruntime; and the same Swift is laid out over the same C."""
    need_compiler(HERE)
    decoder = decoder_bundle(tmp_path / "model")
    embed(decoder.folder, "android", tmp_path / "app")
    build_decoder(tmp_path / "app", tmp_path / "built")
    said = "".join(f"{line}\n" for line in TEXTS if line)
    out = ask(tmp_path / "built", tmp_path / "files", tmp_path / "app" / "bundle", said=said)
    *answers, long, negative, _, thrown, inside, again, closed, rest = out.split("\ue002")
    # Bytes that are no character are shown, and left out, at other places.
    shown = [answer.replace("\ue001", "").replace("\N{REPLACEMENT CHARACTER}", "") for answer in answers]
    wanted = [found["text"] for text in TEXTS if text for found in say(decoder, [text], check=False)]
    assert shown == [text.replace("\N{REPLACEMENT CHARACTER}", "") for text in wanted]
    assert re.fullmatch(r"\d+ tokens do not fit the context of \d+, of which one is for the answer", long)
    assert negative == "an answer has 0 tokens or more at most, not -1"
    assert thrown == "the app's own \U0001f600"
    assert inside == "an answer is being written: stop it, and go on behind it"
    assert again == answers[0].replace("\ue001", "")
    assert (closed, rest) == ("this model was closed", "")
    made = embed(decoder.folder, "ios", tmp_path / "swift")
    assert "Sources/Edgekit/Writer.swift" in made.files
    assert "onnxruntime" in (tmp_path / "swift" / "Package.swift").read_text()
    sources = tmp_path / "swift" / "Sources" / "CEdgekit"
    for source in sorted(sources.glob("*.c")):
        flags = ["-std=c11", "-fsyntax-only", "-Wall", "-Werror", f"-I{sources}/include", f"-I{header_folder()}"]
        subprocess.run(["gcc", *flags, source], check=True, timeout=60)


def test_an_ios_app_is_given_a_package(bundle: Bundle, tmp_path: Path) -> None:
    """Laid out as Swift's package manager wants it; the C compiles as it lies, and Swift calls nothing else."""
    made = embed(bundle.folder, "ios", tmp_path / "app")
    sources = tmp_path / "app" / "Sources" / "CEdgekit"
    wanted = {"Package.swift", "Sources/Edgekit/Writer.swift", "Sources/CEdgekit/include/module.modulemap"}
    assert wanted <= set(made.files)
    for source in sorted(sources.glob("*.c")):
        flags = ["-std=c11", "-fsyntax-only", "-Wall", "-Werror", f"-I{sources}/include", f"-I{llama_cpp.headers()}"]
        subprocess.run(["gcc", *flags, source], check=True, timeout=60)
    swift = "".join(path.read_text() for path in sorted((tmp_path / "app/Sources/Edgekit").iterdir()))
    header = "".join(path.read_text() for path in (sources / "include").glob("*.h"))
    assert set(re.findall(r"\bek_\w+", swift)) <= set(re.findall(r"\bek_\w+", header))
