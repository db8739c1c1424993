"""What an Android app is given, on this machine's own JVM: the very Kotlin and C, over a real onnxruntime and a real server."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.embed import embed
from edgekit.bundle.open import load_bundle, open_bundle
from edgekit.bundle.platforms import EMBEDDINGS
from tests.bundle.android_api import write_android
from tests.bundle.faults import FAULTS
from tests.bundle.native_apps import pack_words, run_app
from tests.bundle.test_faults import slug
from tests.conftest import ROOT
from tests.devices.kotlin import compile_kotlin, java_home
from tests.devices.native import HERE, need_compiler
from tests.devices.ort_headers import header_folder, library_folder

EXAMPLES = ROOT / "examples"
ACTIVITY = EXAMPLES / "embed-android" / "app/src/main/java/org/example/assistant/MainActivity.kt"
TEXTS = ["turn on the light", "", "TURN ÖFF the lights!", "\U0001f600 مرحبا on", "on " * 100_000]
MAIN = """
import dev.edgekit.Model
import java.io.File

fun main(words: Array<String>) {
    val folder = File(words[0])
    if (words[1] == "each") {
        for (name in words.drop(2)) println(try { Model(File(folder, name)).close().let { "opened" } } catch (failed: Exception) { failed.message })
        return
    }
    try {
        if (words[1] == "fetch") Model.fetch(folder, words[2])
        if (words[1] == "unpack") Model.unpack(folder) { File(words[2], it).inputStream() }
        Model(folder).use { model ->
            generateSequence(::readlnOrNull).forEach { line -> model.classify(line).let { println("${it.label} ${it.score}") } }
            model.close()
            try { model.classify("on") } catch (closed: IllegalStateException) { println(closed.message) }
        }
    } catch (failed: Exception) {
        System.err.println(failed.message)
        System.exit(1)
    }
}
"""

# Starts the activity of the example, asks as a person does, and shows what its views show.
VISIT = """
import android.os.Bundle
import android.view.ViewGroup
import android.widget.Button
import android.widget.EditText
import android.widget.TextView
import org.example.assistant.MainActivity

object Visit {
    private fun MainActivity.call(name: String, vararg given: Class<*>) =
        MainActivity::class.java.getDeclaredMethod(name, *given).apply { isAccessible = true }

    @JvmStatic
    fun main(words: Array<String>) {
        val activity = MainActivity()
        activity.call("onCreate", Bundle::class.java).invoke(activity, null)
        val views = (activity.shown as ViewGroup).views
        val field = views.filterIsInstance<EditText>().single()
        val ask = views.filterIsInstance<Button>().single()
        val answer = views.last() as TextView
        while (answer.text == "One moment ...") Thread.sleep(5)
        println(answer.text)
        while (ask.isEnabled) {
            val line = readlnOrNull() ?: break
            val before = answer.text
            field.setText(line)
            ask.listener.onClick(ask)
            while (answer.text === before) Thread.sleep(5)
            println(answer.text)
        }
        activity.call("onDestroy").invoke(activity)
    }
}
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[str | Path]]:
    """The app's folder, and the words that run it."""
    need_compiler(HERE)
    folder = tmp_path_factory.mktemp("android")
    packed = pack_words(folder)
    embed(packed.archive, "android", folder / "app")
    app = folder / "app"
    (folder / "ort" / "jni").mkdir(parents=True)
    (folder / "ort" / "headers").symlink_to(header_folder())
    library_folder(folder / "ort" / "jni" / "host")
    includes = f"-I{java_home()}/include -I{java_home()}/include/linux -Wall -Wextra -Werror"
    where = ["-DANDROID_ABI=host", f"-DORT={folder / 'ort'}", f"-DCMAKE_C_FLAGS={includes}"]
    for command in (
        ["cmake", "-S", app / "cpp", "-B", folder / "built", *where],
        ["cmake", "--build", folder / "built"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (folder / "main.kt").write_text(MAIN)
    (folder / "visit.kt").write_text(VISIT)
    api = write_android(folder / "android")
    sources = [*(app / "java/dev/edgekit").iterdir(), folder / "main.kt", folder / "visit.kt", ACTIVITY, *api]
    java = compile_kotlin(sources, folder / "app.jar")
    subprocess.run(["javac", "-d", folder / "classes", *api], check=True, timeout=100)
    return app, [*java, f"-Djava.library.path={folder / 'built'}", "-Dstdout.encoding=UTF-8", "-Dstdin.encoding=UTF-8", "-Dfile.encoding=UTF-8", "MainKt"]  # fmt: skip


def test_answers_are_those_of_the_loader_in_python(app: tuple[Path, Sequence[str | Path]], tmp_path: Path) -> None:
    folder, java = app
    bundle = open_bundle(folder.parent / "out" / "demo-board")
    loaded = load_bundle(bundle, bundle.folder)
    asked = "".join(f"{line}\n" for line in TEXTS)
    code, said, last = run_app(java[0], *java[1:], tmp_path / "files", "unpack", folder / "bundle", said=asked)
    assert code == 0, last
    *lines, closed = said.splitlines()
    assert closed == "this model was closed"
    for text, line in zip(TEXTS, lines, strict=True):
        label, score = loaded(text)[0]  # type: ignore[index]
        assert (line.split()[0], pytest.approx(float(line.split()[1]), abs=1e-4)) == (label, score), text
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["model.onnx", "tokenizer.bin"]
    model = tmp_path / "files" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    code, said, last = run_app(java[0], *java[1:], tmp_path / "files", "open")
    assert (code, said) == (1, "")
    assert re.fullmatch(r".*/model\.onnx: is not the file that was verified: its sha256 is \w+\.\.\., not .*", last)


def test_the_examples_activity_answers_on_a_jvm_not_run_on_android(
    app: tuple[Path, Sequence[str | Path]], tmp_path: Path
) -> None:
    """Its own Kotlin and the real model, with views that keep what they are given in the place of Android's."""
    folder, (java, *words, _main) = app
    bundle = open_bundle(folder.parent / "out" / "demo-board")
    loaded = load_bundle(bundle, bundle.folder)
    path = words.index("-cp") + 1
    words[path] = f"{words[path]}:{folder.parent / 'classes'}"
    where = [f"-Dfiles={tmp_path}", f"-Dassets={folder}"]
    code, said, last = run_app(java, *words, *where, "Visit", said="turn on the light\n  play ÖN \n")
    assert code == 0, last
    wanted = [
        f"{label} ({int(100 * score)}%): {text}"
        for text in ("turn on the light", "play ÖN")
        for label, score in [loaded(text)[0]]  # type: ignore[index]
    ]
    assert said.splitlines() == ["Ready.", *wanted]
    model = tmp_path / "model" / "model.onnx"
    assert model.is_file()
    needs, unpacks = EMBEDDINGS["onnxruntime", "text", "logits", "android"].install
    project = EXAMPLES / "embed-android"
    assert needs.split(" //")[0] in (project / "app/build.gradle.kts").read_text()
    assert unpacks.replace("-d ", "-d app/src/main/") in (project / "README.md").read_text()
    broken = shutil.copytree(folder / "bundle", tmp_path / "assets" / "bundle")
    (broken / "model.onnx").write_bytes(b"no model")
    model.unlink()
    code, said, last = run_app(
        java, *words, f"-Dfiles={tmp_path}", f"-Dassets={tmp_path / 'assets'}", "Visit", said="on\n"
    )
    assert (code, said.strip()) == (0, "model.onnx: what came is not the file that was verified; its sha256 is another")


def test_planted_faults_are_told_as_in_c(app: tuple[Path, Sequence[str | Path]], tmp_path: Path) -> None:
    """Those of files; what is compiled in is the same C."""
    folder, java = app
    names = [
        "no model",
        "an empty model",
        "a cut model",
        "a flipped bit",
        "a folder in a model's place",
        "no tokenizer",
    ]
    for name in names:
        shutil.copytree(folder / "bundle", tmp_path / slug(name))
        FAULTS[name].plant(tmp_path / slug(name))
    shutil.copytree(folder / "bundle", tmp_path / "whole")
    code, said, last = run_app(java[0], *java[1:], tmp_path, "each", "whole", *map(slug, names))
    assert code == 0, last
    whole, *lines = said.splitlines()
    assert whole == "opened"
    for name, line in zip(names, lines, strict=True):
        assert re.search(FAULTS[name].sentence("c") or "", line), line


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a bundle's files; the first answer of each file ends in its middle."""

    folder: Path
    damaged = False
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        content = (self.folder / self.path.strip("/")).read_bytes()
        if self.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        wanted = self.headers["Range"]
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.asked.append((self.path, wanted))
        if begin >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:] if wanted else content[: len(content) // 2])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(app: tuple[Path, Sequence[str | Path]]) -> Iterator[str]:
    """Its address; nothing was asked yet."""
    Server.folder, Server.asked, Server.damaged = app[0] / "bundle", [], False
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/"
    made.shutdown()
    made.server_close()


def test_a_download_goes_on_where_it_was_cut_off(
    app: tuple[Path, Sequence[str | Path]], server: str, tmp_path: Path
) -> None:
    """Each start fetches what is missing; the third has both files."""
    _, java = app
    files, half = tmp_path / "files", (Server.folder / "model.onnx").stat().st_size // 2
    for _ in range(2):
        code, _, last = run_app(java[0], *java[1:], files, "fetch", server)
        assert (code, last.endswith("bytes; they are kept: try again")) == (1, True), last
    code, said, last = run_app(java[0], *java[1:], files, "fetch", server, said="turn on the light\n")
    assert (code, said.split()[0]) == (0, "light_on"), last
    assert Server.asked[:2] == [("/model.onnx", None), ("/model.onnx", f"bytes={half}-")]
    assert [path for path, _ in Server.asked] == ["/model.onnx"] * 2 + ["/tokenizer.bin"] * 2
    assert sorted(path.name for path in files.iterdir()) == ["model.onnx", "tokenizer.bin"]
    shutil.rmtree(files)
    Server.damaged = True
    run_app(java[0], *java[1:], files, "fetch", server)
    code, _, last = run_app(java[0], *java[1:], files, "fetch", server)
    assert last == "model.onnx: what came is not the file that was verified; its sha256 is another"
    assert list(files.iterdir()) == []


def test_a_server_that_has_no_such_file_is_told(app: tuple[Path, Sequence[str | Path]], tmp_path: Path) -> None:
    made = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        _, java = app
        last = run_app(java[0], *java[1:], tmp_path, "fetch", f"http://127.0.0.1:{made.server_port}/")[2]
    finally:
        made.shutdown()
        made.server_close()
    assert last.splitlines()[-1].endswith("/model.onnx: the server answers 501")


def test_an_ios_app_is_given_a_package(app: tuple[Path, Sequence[str | Path]], tmp_path: Path) -> None:
    """Laid out as Swift's package manager wants it; the C compiles as it lies."""
    made = embed(app[0].parent / "out" / "demo-board", "ios", tmp_path / "app")
    sources = tmp_path / "app" / "Sources" / "CEdgekit"
    assert {"Package.swift", "Sources/Edgekit/Model.swift", "Sources/CEdgekit/include/module.modulemap"} <= set(
        made.files
    )
    for source in ("bundle.c", "load.c", "session.c", "engine.c", "checks.c", "tokenizer.c"):
        command = [
            "gcc",
            "-std=c11",
            "-fsyntax-only",
            "-Wall",
            "-Werror",
            f"-I{sources}/include",
            f"-I{header_folder()}",
        ]
        subprocess.run([*command, sources / source], check=True, timeout=60)
    swift = "".join(path.read_text() for path in sorted((tmp_path / "app/Sources/Edgekit").iterdir()))
    header = "".join(path.read_text() for path in (sources / "include").glob("*.h"))
    assert set(re.findall(r"\bek_\w+", swift)) <= set(re.findall(r"\bek_\w+", header))
    example = (EXAMPLES / "embed-ios" / "Assistant.swift").read_text()
    assert set(re.findall(r"\b[mM]odel\??\.(\w+)\(", example)) <= set(
        re.findall(r"public (?:static )?func (\w+)\(", swift)
    )
