"""An Android app that writes, for tests: its own Kotlin and C on this machine's JVM, over the libllama.so that is installed here."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from edgekit.devices.native import llama as llama_cpp
from edgekit.workspace import fingerprint
from tests.bundle.native_apps import FLAGS, run_app
from tests.conftest import ROOT
from tests.devices.kotlin import compile_kotlin, compiler_folder, java_home
from tests.devices.ort_headers import header_folder, library_folder
from tests.llama_programs import made_once

_OWN = ROOT / "edgekit" / "bundle" / "loaders" / "android"
# Opens folders, or answers lines: a piece ends in U+E001, an answer in U+E002.
MAIN = """
import dev.edgekit.Writer
import java.io.File

fun tell(text: String) = print(text + "\\uE002")
fun told(task: () -> Unit) = try { task(); "opened" } catch (failed: Exception) { failed.message ?: "$failed" }

fun main(words: Array<String>) {
    val folder = File(words[0])
    if (words[1] == "each") return words.drop(2).forEach { name -> println(told { Writer(File(folder, name)).close() }) }
    Writer.unpack(folder) { File(words[1], it).inputStream() }
    val writer = Writer(folder)
    val lines = generateSequence(::readlnOrNull).toList()
    for (line in lines) {
        var shown = ""
        val all = writer.write(line, 64) { print(it + "\\uE001"); shown += it }
        if (shown != all) error("the pieces are $shown, and all is $all")
        tell("")
    }
    tell(told { writer.write("on ".repeat(3000)) })
    tell(told { writer.write("on", -1) })
    var count = 0
    tell(writer.write(lines[0]) { if (++count == 3) writer.stop() })
    tell(told { writer.write(lines[0]) { throw IllegalStateException("the app's own \\uD83D\\uDE00") } })
    tell(told { writer.write(lines[0]) { writer.close() } })
    tell(writer.write(lines[0], 64))
    writer.close()
    writer.close()
    tell(told { writer.write("on") })
}
"""


@cache
def java() -> Sequence[str | Path]:
    """The words that run the app but for its library and its own words; Kotlin is compiled once."""
    sources = [_OWN / "Writer.kt", _OWN / "Files.kt"]
    name = f"writer-{fingerprint([MAIN, *(path.read_text(encoding='utf-8') for path in sources)])[:16]}"

    def compile_all(folder: Path) -> None:
        folder.mkdir()
        (folder / "main.kt").write_text(MAIN, encoding="utf-8")
        compile_kotlin([*sources, folder / "main.kt"], folder / "app.jar")

    path = f"{made_once(name, compile_all) / 'app.jar'}:{compiler_folder() / 'kotlin-stdlib.jar'}"
    return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Xcheck:jni", "-Dstdout.encoding=UTF-8", "-Dstdin.encoding=UTF-8", "-cp", path]  # fmt: skip


def ask(library: Path, *words: str | Path, said: str = "", before: Sequence[str | Path] = ()) -> str:
    """What the app writes. library: the folder of its libedgekit.so."""
    command = [*before, *java(), f"-Djava.library.path={library}", "MainKt", *words]
    code, out, last = run_app(command[0], *command[1:], said=said)
    assert code == 0, last
    return out


def _flags() -> list[str]:
    return [f"-I{java_home()}/include", f"-I{java_home()}/include/linux", *FLAGS[2:]]


def build(app: Path, built: Path) -> None:
    """A folder with libedgekit.so, by the app's own CMakeLists.txt, with the libllama.so that is installed here."""
    headers, library = llama_cpp.headers(), llama_cpp.installed()
    assert headers is not None
    assert library is not None
    llama = built.parent / f"llama-{built.name}"
    (llama / "lib").mkdir(parents=True)
    (llama / "include").symlink_to(headers)
    (llama / "lib" / "host").symlink_to(library)
    _make(app, built, f"-DLLAMA={llama}")


def build_decoder(app: Path, built: Path) -> None:
    """The same of an app whose model is in ONNX, with the libonnxruntime.so that is installed here."""
    ort = built.parent / f"ort-{built.name}"
    (ort / "jni").mkdir(parents=True)
    (ort / "headers").symlink_to(header_folder())
    library_folder(ort / "jni" / "host")
    _make(app, built, f"-DORT={ort}")


def _make(app: Path, built: Path, engine: str) -> None:
    where = ["-DANDROID_ABI=host", engine, f"-DCMAKE_C_FLAGS={' '.join(_flags())}"]
    for command in (["cmake", "-S", app / "cpp", "-B", built, *where], ["cmake", "--build", built]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def link(app: Path, verified: Path, out: Path) -> Path:
    """A folder with libedgekit.so of the app's sources, around another bundle.c."""
    headers, library = llama_cpp.headers(), llama_cpp.installed()
    out.mkdir()
    sources = [*(path for path in (app / "cpp").glob("*.c") if path.name != "bundle.c"), verified]
    where = [f"-I{app / 'cpp'}", f"-I{headers}", f"-L{library}", f"-Wl,-rpath,{library}"]
    command = ["gcc", "-std=c11", "-shared", "-fPIC", *_flags(), *sources, *where, "-lllama", "-lggml", "-lggml-base"]
    subprocess.run([*command, "-o", out / "libedgekit.so"], check=True, timeout=100)
    return out
