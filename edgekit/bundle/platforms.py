"""EMBEDDINGS: what an app on a platform is given to use a bundle, by runtime, modality, output and platform."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bundle.loaders import BOUND, CHECK, LOADERS
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.native import SOURCE, native_files
from edgekit.bundle.open import Bundle
from edgekit.bundle.talks import talk_files
from edgekit.modalities import text
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.probes.web import CHECKS, LOADER, ROWS, WORDS, WRITER
from edgekit.probes.web.npm import PACKAGES
from edgekit.runtimes import RUNTIMES, llamacpp, onnxruntime
from edgekit.tasks import TASKS

PLATFORMS: Mapping[str, str] = {
    "python": "Python",
    "node": "Node.js",
    "electron": "Electron",
    "web": "a web page",
    "c": "C",
    "android": "Android",
    "ios": "iOS",
}
"""The names that `edgekit embed --for` takes, and what they are called."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What an app on one platform is given to use a bundle that lies as `bundle/` beside it.

    files: by their names in the app, the files here that they are copies of. install: command lines. use: an app's lines, in
    `language`. notes: what else the app's author must know, a sentence each. ran: where this ran, for README's table; "not run"
    where it did not. make: writes what is made of the bundle itself into a folder; these files, by their names in the
    app. talks: what is given instead for a model that talks; None: the same.
    """

    files: Mapping[str, Path]
    install: tuple[str, ...]
    use: str
    language: str
    ran: str
    notes: tuple[str, ...] = field(default=())
    make: Callable[[Bundle, Path], Mapping[str, Path]] | None = None
    talks: Embedding | None = None


def _python(key: tuple[str, str, str]) -> Embedding:
    loader = LOADERS[key]
    return Embedding(
        files={"load.py": loader.path, CHECK.name: CHECK, "trust.py": _OWN / "trust.py"},
        install=(f"pip install {' '.join(loader.needs)}",),
        use=f'from load import Bundle\n\nbundle = Bundle("bundle")\n{loader.use}',
        language="python",
        ran="Python 3.11 on x86-64",
    )


# The loaders in C by their source, and how each is asked.
_OWN = Path(__file__).parent / "loaders"
_C = _OWN / "c"
_ROWS, _WRITER = ("load", "session", "engine", "checks", "tokenizer"), ("generate", "checks")
_DECODER = ("decode", "engine", "checks", "tokenizer")
_C_OPEN = """\
#include <stdio.h>

#include "{header}.h"

int main(void) {{
  ek_error error;
"""
_C_USES = {
    LOGITS.name: """\
  ek_answer answer;
  ek_model *model = ek_open(ek_verified(), "bundle", &error);
  if (!model || !ek_classify(model, "turn on the light", &answer, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
  printf("%s %.2f\\n", answer.label, answer.score);
}""",
    EMBEDDING.name: """\
  float embedding[4096]; /* at least as many as ek_verified()->width */
  ek_model *model = ek_open(ek_verified(), "bundle", &error);
  if (!model || !ek_embed(model, "turn on the light", NULL, embedding, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
}""",
    TOKENS.name: """\
  ek_writer *writer = ek_open_writer(ek_verified(), "bundle", &error);
  if (!writer || !ek_write(writer, "Once upon a time", 64, show, NULL, &error)) return fprintf(stderr, "%s\\n", error.text), 1;
}""",
}
_C_SHOW = """\
static int show(void *to, const char *piece, size_t length) {
  (void)to;
  return fwrite(piece, 1, length, stdout) == length;
}

"""


def _c_files(output: str, runtime: str) -> tuple[list[str], list[str]]:
    """The names of the loader in C: sources, and headers; what writes has one, whatever the runtime."""
    if output != TOKENS.name:
        return [f"{name}.c" for name in _ROWS], [f"{name}.h" for name in _ROWS]
    names = _WRITER if runtime == llamacpp.NAME else _DECODER
    return [f"{name}.c" for name in names], ["generate.h", *(f"{name}.h" for name in names[1:])]


def _c_shipped(output: str, runtime: str) -> str:
    """What the loader in C reads of a bundle, in words."""
    return (
        "the model"
        if runtime == llamacpp.NAME
        else f"the model{', pieces.bin' if output == TOKENS.name else ''} and tokenizer.bin"
    )


def _c(output: str, runtime: str = onnxruntime.NAME) -> Embedding:
    writes, llama = output == TOKENS.name, runtime == llamacpp.NAME
    sources, headers = _c_files(output, runtime)
    start = _C_OPEN.format(header="generate" if writes else "load")
    if writes:
        start = start.replace("int main", _C_SHOW + "int main")
    libraries = (
        "-I LLAMA/include -L LLAMA/lib -lllama -lggml -lggml-base"
        if llama
        else "-I ORT/include -L ORT/lib -lonnxruntime"
    )
    return Embedding(
        files={name: _C / name for name in sorted([*sources, *headers])},
        install=(f"cc -O2 main.c bundle.c {' '.join(sources)} {libraries} -lm -o app",),
        use=start + _C_USES[output],
        language="c",
        ran="x86-64 (gcc)" if writes and not llama else "x86-64 (gcc), and the emulated aarch64 board",
        notes=(
            f"The program reads {_c_shipped(output, runtime)} of bundle/ only, by the hashes that bundle.c holds: ship these.",
        ),
        make=native_files,
    )


_ANDROID_USE = """\
import dev.edgekit.{kind}

// In a worker, not on the main thread. Ship bundle/'s files as assets, or fetch them: {kind}.fetch(folder, "https://.../")
val folder = File(context.filesDir, "model")
{kind}.unpack(folder) {{ name -> context.assets.open("bundle/$name") }}
{use}"""
_IOS_USE = """\
import Edgekit

// Not on the main thread. Ship bundle/ as a resource folder, or fetch its files: {kind}.fetch(into: folder, from: address)
let folder = Foundation.Bundle.main.url(forResource: "bundle", withExtension: nil)!
{use}"""
# By what a model gives: the classes in Kotlin and Swift, and how they are asked.
_PHONE_USES = {
    LOGITS.name: ("Model", 'model.classify("turn on the light")'),
    EMBEDDING.name: ("Model", 'model.embed("turn on the light")'),
}
_ANDROID_WRITES = """\
val writer = Writer(folder)
writer.write("Once upon a time") { piece -> runOnUiThread { view.append(piece) } } // writer.stop() ends it"""
_IOS_WRITES = """\
let writer = try Writer(folder: folder)
for try await piece in writer.write("Once upon a time") { text += piece } // who leaves the loop ends the answer"""


def _in(folder: str, names: Iterable[str], source: Path) -> dict[str, Path]:
    return {f"{folder}/{name}": source / name for name in names}


def _moved(folder: str) -> Callable[[Bundle, Path], Mapping[str, Path]]:
    """`native_files` with bundle.c in a folder of the app."""

    def make(bundle: Bundle, scratch: Path) -> dict[str, Path]:
        made = native_files(bundle, scratch)
        return {f"{folder}/{name}" if name == SOURCE else name: path for name, path in made.items()}

    return make


def _sources(folder: str, headers: str, output: str, runtime: str) -> dict[str, Path]:
    """The loader in C in an app's folders."""
    sources, declared = _c_files(output, runtime)
    return {**_in(folder, sources, _C), **_in(headers, declared, _C)}


def _android(output: str, runtime: str = onnxruntime.NAME) -> Embedding:
    writes, llama, own = output == TOKENS.name, runtime == llamacpp.NAME, _OWN / "android"
    kind, ask = ("Writer", "") if writes else _PHONE_USES[output]
    use = _ANDROID_WRITES if writes else f"val model = Model(folder)\nval answer = {ask}"
    ort = (
        'implementation("com.microsoft.onnxruntime:onnxruntime-android:1.23.0") // build.gradle.kts; or a newer one',
        "unzip onnxruntime-android-1.23.0.aar 'headers/*' 'jni/*' -d cpp/onnxruntime",
    )
    return Embedding(
        files={
            **_in("java/dev/edgekit", (f"{kind}.kt", "Files.kt"), own),
            **_in("cpp", ("shared.c", "shared.h"), own),
            "cpp/jni.c": own / ("write.c" if writes else "jni.c"),
            "cpp/CMakeLists.txt": own / ("write.cmake" if llama else "CMakeLists.txt"),
            **_sources("cpp", "cpp", output, runtime),
        },
        install=("git clone --depth 1 https://github.com/ggml-org/llama.cpp cpp/llama.cpp",) if llama else ort,
        use=_ANDROID_USE.format(kind=kind, use=use),
        language="kotlin",
        ran="on a JVM on x86-64 with the same Kotlin and C; on Android not run",
        notes=("app/build.gradle.kts names cpp/CMakeLists.txt in externalNativeBuild; see docs/embed-native.md.",),
        make=_moved("cpp"),
    )


def _ios(output: str, runtime: str = onnxruntime.NAME) -> Embedding:
    writes, llama, own, inside = output == TOKENS.name, runtime == llamacpp.NAME, _OWN / "ios", "Sources/CEdgekit"
    kind, ask = ("Writer", "") if writes else _PHONE_USES[output]
    use = _IOS_WRITES if writes else f"let model = try Model(folder: folder)\nlet answer = try {ask}"
    xcode = "Xcode: File, Add Package Dependencies, Add Local: this folder"
    return Embedding(
        files={
            "Package.swift": own / ("Write.swift" if llama else "Package.swift"),
            **_in("Sources/Edgekit", (f"{kind}.swift", "Files.swift"), own),
            f"{inside}/include/module.modulemap": own / ("write.modulemap" if writes else "module.modulemap"),
            **_sources(inside, f"{inside}/include", output, runtime),
        },
        install=("unzip llama-bNNNN-xcframework.zip # of a release of llama.cpp, here", xcode) if llama else (xcode,),
        use=_IOS_USE.format(kind=kind, use=use),
        language="swift",
        ran="by hand on Linux x86-64 with Swift 6.0.3, the same Swift and C; on iOS not run",
        notes=(f"Of bundle/ the app needs {_c_shipped(output, runtime)}; see docs/embed-native.md.",),
        make=_moved(inside),
    )


_NATIVE = {
    ("onnxruntime", text.NAME, LOGITS.name, "c"): _c(LOGITS.name),
    ("onnxruntime", text.NAME, EMBEDDING.name, "c"): _c(EMBEDDING.name),
    ("onnxruntime", text.NAME, TOKENS.name, "c"): _c(TOKENS.name),
    ("llama-cpp", text.NAME, TOKENS.name, "c"): _c(TOKENS.name, llamacpp.NAME),
    ("onnxruntime", text.NAME, LOGITS.name, "android"): _android(LOGITS.name),
    ("onnxruntime", text.NAME, EMBEDDING.name, "android"): _android(EMBEDDING.name),
    ("onnxruntime", text.NAME, TOKENS.name, "android"): _android(TOKENS.name),
    ("llama-cpp", text.NAME, TOKENS.name, "android"): _android(TOKENS.name, llamacpp.NAME),
    ("onnxruntime", text.NAME, LOGITS.name, "ios"): _ios(LOGITS.name),
    ("onnxruntime", text.NAME, EMBEDDING.name, "ios"): _ios(EMBEDDING.name),
    ("onnxruntime", text.NAME, TOKENS.name, "ios"): _ios(TOKENS.name),
    ("llama-cpp", text.NAME, TOKENS.name, "ios"): _ios(TOKENS.name, llamacpp.NAME),
}

# Its install script asks NuGet for CUDA's part, which no CPU needs.
_NODE_PACKAGES = f"onnxruntime-node@1.30.0 {PACKAGES['tokenizers'].name}"
_NODE = Embedding(
    files={
        "load.mjs": _OWN / "node" / "load.mjs",
        "load.d.mts": _OWN / "node" / "load.d.mts",
        "files.mjs": _OWN / "node" / "files.mjs",
        "trust.d.mts": _OWN / "trust.d.mts",
        ROWS.name: ROWS,
        CHECKS.name: CHECKS,
        "trust.mjs": _OWN / "trust.mjs",
    },
    install=(f"ONNXRUNTIME_NODE_INSTALL=skip npm install {_NODE_PACKAGES}",),
    use='import { open } from "./load.mjs";\n\nconst bundle = await open("bundle");\n'
    'console.log(await bundle("turn on the light"));',
    language="js",
    ran="Node.js 20 on x86-64",
    notes=("onnxruntime-node carries the libraries of five platforms: an app ships its own alone (bin/napi-v6/).",),
)
_JINJA = "@huggingface/jinja@0.5.11"
_LLAMA, _LLAMA_X64 = "node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1"
_NODE_WORDS = Embedding(
    files={
        "load.mjs": _OWN / "node" / "generate.mjs",
        "load.d.mts": _OWN / "node" / "generate.d.mts",
        "files.mjs": _OWN / "node" / "files.mjs",
        "pieces.mjs": _OWN / "node" / "pieces.mjs",
        "trust.d.mts": _OWN / "trust.d.mts",
        CHECKS.name: CHECKS,
        "trust.mjs": _OWN / "trust.mjs",
    },
    install=(f"npm install {_LLAMA}",),
    use='import { open } from "./load.mjs";\n\nconst answer = await open("bundle");\n'
    'for await (const { text } of answer("Once upon a time")) process.stdout.write(text);',
    language="js",
    ran="Node.js 20 on x86-64",
    notes=(
        f"Builds for GPUs are 0.7 GB of it; for a CPU alone: npm install --omit=optional --ignore-scripts {_LLAMA} {_LLAMA_X64}",
    ),
)
_NODE_WRITES = Embedding(
    files={
        **{name: path for name, path in _NODE.files.items() if not name.startswith("load.")},
        "load.mjs": _OWN / "node" / "write.mjs",
        "load.d.mts": _OWN / "node" / "write.d.mts",
        "decoder.mjs": _OWN / "decoder.mjs",
    },
    install=_NODE.install,
    use=_NODE_WORDS.use,
    language="js",
    ran=_NODE.ran,
    notes=_NODE.notes,
)
_NODE_EMBEDS = Embedding(
    files={
        "load.mjs": _OWN / "node" / "embed.mjs",
        "load.d.mts": _OWN / "node" / "embed.d.mts",
        "trust.d.mts": _OWN / "trust.d.mts",
        "trust.mjs": _OWN / "trust.mjs",
        "files.mjs": _OWN / "node" / "files.mjs",
        ROWS.name: ROWS,
        CHECKS.name: CHECKS,
    },
    install=_NODE_WORDS.install,
    use=_NODE.use,
    language="js",
    ran=_NODE.ran,
    notes=_NODE_WORDS.notes,
)
_ELECTRON_ASK = """\
import { ipcMain } from "electron";
import { answerWindows } from "./main.mjs";

await answerWindows(ipcMain, "bundle"); // a window with preload.cjs asks: """


def _electron(node: Embedding, main: str, preload: str, asks: str) -> Embedding:
    """Node's loader in the main process, with what answers windows."""
    own = {"main.mjs": _OWN / "electron" / main, "preload.cjs": _OWN / "electron" / preload}
    package = "both of node-llama-cpp" if _LLAMA in node.install[0] else "onnxruntime-node"
    return replace(
        node,
        files={**node.files, **own},
        use=_ELECTRON_ASK + asks,
        ran="windows of Electron 9.4 (2020), the bundle in Node.js 20 beside it; one of today: types only, not run",
        notes=(*node.notes, f"Engines open files: keep bundle/ and {package} out of the asar archive (asarUnpack)."),
    )


_ELECTRON = _electron(_NODE, "main.mjs", "preload.cjs", 'await edgekit.answer("turn on the light")')
_ELECTRON_EMBEDS = _electron(_NODE_EMBEDS, "main.mjs", "preload.cjs", 'await edgekit.answer("turn on the light")')
_ELECTRON_WORDS, _ELECTRON_WRITES = (
    _electron(
        node, "write.mjs", "write.cjs", 'edgekit.answer("Once upon a time", (text) => document.body.append(text))'
    )
    for node in (_NODE_WORDS, _NODE_WRITES)
)
_WEB = Embedding(
    files={
        "load.mjs": LOADER,
        ROWS.name: ROWS,
        CHECKS.name: CHECKS,
        "trust.mjs": _OWN / "trust.mjs",
        **{name: _OWN / "web" / name for name in ("app.mjs", "worker.mjs", "store.mjs", "serve.mjs", "index.html")},
    },
    install=(f"npm install {PACKAGES['onnxruntime-web'].name} {PACKAGES['tokenizers'].name}", "node serve.mjs"),
    use='import { open } from "./app.mjs";\n\nconst bundle = await open("./bundle/");\n'
    'console.log(await bundle("turn on the light"));',
    language="js",
    ran="headless Chromium",
    notes=(
        "A page has several threads where it is isolated (Cross-Origin-Opener-Policy, Cross-Origin-Embedder-Policy), else one.",
    ),
)
_WEB_WORDS = Embedding(
    files={
        "load.mjs": WRITER,
        WORDS.name: WORDS,
        CHECKS.name: CHECKS,
        "trust.mjs": _OWN / "trust.mjs",
        **{name: _OWN / "web" / name for name in ("store.mjs", "serve.mjs")},
    },
    install=(f"npm install {PACKAGES['wllama'].name}", "node serve.mjs"),
    use='import { Wllama } from "./node_modules/@wllama/wllama/esm/index.js";\nimport { open } from "./load.mjs";\n'
    'import { createReader } from "./store.mjs";\n\n'
    'const wasm = "./node_modules/@wllama/wllama/esm/";\n'
    'const answer = await open("./bundle/", { Wllama, wasm, read: createReader() });\n'
    'for await (const { text } of answer("Once upon a time")) console.log(text);',
    language="js",
    ran="headless Chromium",
    notes=_WEB.notes,
)
_WEB_WRITES = replace(
    _WEB,
    files={**_WEB.files, "load.mjs": _OWN / "web" / "write.mjs", "decoder.mjs": _OWN / "decoder.mjs"},
    use='import { open } from "./app.mjs";\n\nconst answer = await open("./bundle/");\n'
    'for await (const { text } of answer("Once upon a time", 64)) console.log(text);',
)


def _talking(writes: Embedding, engine: str) -> Embedding:
    """What is given for a model that talks: its template's engine too, which lies at an address or has a name."""
    (install, *others), use = writes.install, writes.use.replace("Once upon a time", "What can you do?")
    files = {**writes.files, "talk.mjs": _OWN / "talk.mjs"}
    # A note that is another line for npm needs it as well.
    notes = tuple(f"{note} {_JINJA}" if "npm install" in note else note for note in writes.notes)
    installs = (f"{install} {_JINJA}", *others)
    return replace(writes, files=files, install=installs, use=use, notes=notes, make=talk_files(engine))


_NODE_WORDS, _NODE_WRITES, _ELECTRON_WORDS, _ELECTRON_WRITES = (
    replace(found, talks=_talking(found, "@huggingface/jinja"))
    for found in (_NODE_WORDS, _NODE_WRITES, _ELECTRON_WORDS, _ELECTRON_WRITES)
)
_WEB_WORDS, _WEB_WRITES = (
    replace(found, talks=_talking(found, "./node_modules/@huggingface/jinja/dist/index.js"))
    for found in (_WEB_WORDS, _WEB_WRITES)
)

EMBEDDINGS: dict[tuple[str, str, str, str], Embedding] = {
    **{(*key, "python"): _python(key) for key in LOADERS},
    **{
        (onnxruntime.NAME, text.NAME, output.name, platform): found
        for output in (LOGITS, EMBEDDING)
        for platform, found in (("node", _NODE), ("electron", _ELECTRON), ("web", _WEB))
    },
    (onnxruntime.NAME, text.NAME, TOKENS.name, "node"): _NODE_WRITES,
    (onnxruntime.NAME, text.NAME, TOKENS.name, "electron"): _ELECTRON_WRITES,
    (onnxruntime.NAME, text.NAME, TOKENS.name, "web"): _WEB_WRITES,
    (llamacpp.NAME, text.NAME, EMBEDDING.name, "node"): _NODE_EMBEDS,
    (llamacpp.NAME, text.NAME, TOKENS.name, "node"): _NODE_WORDS,
    (llamacpp.NAME, text.NAME, EMBEDDING.name, "electron"): _ELECTRON_EMBEDS,
    (llamacpp.NAME, text.NAME, TOKENS.name, "electron"): _ELECTRON_WORDS,
    (llamacpp.NAME, text.NAME, TOKENS.name, "web"): _WEB_WORDS,
    **_NATIVE,
}


def find_embedding(manifest: Manifest, platform: str) -> Embedding | None:
    """What an app on a platform is given to use a bundle; None where this edgekit has nothing for it."""
    kind = TASKS.get(manifest.task)
    found = None if kind is None else EMBEDDINGS.get((manifest.runtime_name, kind.MODALITY, manifest.output, platform))
    if found is None:
        return None
    if manifest.chats and found.talks:
        return found.talks
    if platform != "python":
        return found
    runtime = RUNTIMES[manifest.runtime_name]
    name = runtime.distribution(manifest.runtime)
    install = tuple(line.replace(f" {runtime.PACKAGE.name} ", f" {name} ") for line in found.install)
    more = {BOUND.name: BOUND} if manifest.runtime.get("cuda_graphs") and manifest.tokenizer else {}
    return replace(found, install=install, files={**found.files, **more})


def platforms_of(manifest: Manifest) -> list[str]:
    """The platforms that there is something for."""
    return [name for name in PLATFORMS if find_embedding(manifest, name) is not None]
