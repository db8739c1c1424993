"""What a page needs of a bundle for browsers: the module that answers, and a page to try it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from edgekit.bundle.sidecars.packing import Packing
from edgekit.outputs import OUTPUTS
from edgekit.probes.web import CHECKS, LOADER, ROWS, WORDS, WRITER
from edgekit.probes.web.npm import PACKAGES
from edgekit.runtimes import llamacpp, onnxruntime

_WASM = "wasm32"


@dataclass(frozen=True, kw_only=True)
class _Page:
    """The module that opens a bundle, those that it imports (the artifact was verified with them), a page beside this file, the
    packages of all, and an app's lines."""

    module: Path
    imports: tuple[Path, ...]
    page: str
    packages: tuple[str, ...]
    use: tuple[str, ...]

    @property
    def install(self) -> str:
        """What npm is asked for."""
        return f"npm install {' '.join(PACKAGES[name].name for name in self.packages)}"


_ROWS = _Page(
    module=LOADER,
    imports=(ROWS, CHECKS),
    page="page.html",
    packages=("onnxruntime-web", "tokenizers"),
    use=('const answer = await open("./", { ort, Tokenizer });', 'console.log(await answer("your own text"));'),
)
_TOKENS = _Page(
    module=WRITER,
    imports=(WORDS, CHECKS),
    page="writer.html",
    packages=("wllama",),
    use=(
        'const answer = await open("./", { Wllama, wasm: "./node_modules/@wllama/wllama/esm/" });',
        'for await (const { text } of answer("Once upon a time")) console.log(text);',
    ),
)


def loader(packing: Packing) -> Path | None:
    """load.mjs; None of what browsers do not run so."""
    kind = _kind(packing)
    return None if kind is None else kind.module


def rows(packing: Packing) -> Path | None:
    """What load.mjs imports of models that give rows."""
    return _imported(packing, ROWS)


def words(packing: Packing) -> Path | None:
    """What load.mjs imports of models that write."""
    return _imported(packing, WORDS)


def checks(packing: Packing) -> Path | None:
    """What load.mjs checks the bundle with."""
    return _imported(packing, CHECKS)


def _imported(packing: Packing, module: Path) -> Path | None:
    kind = _kind(packing)
    return module if kind is not None and module in kind.imports else None


def page(packing: Packing) -> str | None:
    """index.html, which tries it."""
    kind = _kind(packing)
    if kind is None:
        return None
    text = Path(__file__).with_name(kind.page).read_text(encoding="utf-8")
    return Template(text).substitute(name=packing.manifest.name, install=kind.install)


def lines(packing: Packing) -> list[str]:
    """For the bundle's README.md."""
    kind = _kind(packing)
    if kind is None:
        return []
    return [
        "",
        "A page imports `load.mjs`; `index.html` has the lines around these, and tries it:",
        "",
        "```js",
        *kind.use,
        "```",
        "",
        "```sh",
        kind.install,
        "python3 -m http.server --bind 127.0.0.1  # then open the address that it shows",
        "```",
    ]


def _kind(packing: Packing) -> _Page | None:
    """None of other targets, of what pages do not run, and of models that talk: nothing was judged that fills their template."""
    manifest = packing.manifest
    if packing.arch != _WASM:
        return None
    if OUTPUTS[manifest.output].generates:
        return _TOKENS if manifest.runtime_name == llamacpp.NAME and not manifest.chats else None
    return _ROWS if manifest.runtime_name == onnxruntime.NAME and manifest.tokenizer is not None else None
