"""README.md of a bundle: what it is, how it is used, how right it is and where it comes from."""

from __future__ import annotations

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.sidecars import mobile, web
from edgekit.bundle.sidecars.llama import command_line
from edgekit.bundle.sidecars.packing import Packing
from edgekit.evidence import PromptFacts, Report
from edgekit.report import SCOPE_HEAD, scope_cells
from edgekit.report.figures import flips, human_bytes, number, pair, percent
from edgekit.runtimes import RUNTIMES


def sidecar(packing: Packing) -> str:
    """README.md of a bundle: what it is, its use, accuracy and origin. No figure of a clock."""
    manifest, report, loader = packing.manifest, packing.report, packing.loader
    artifact, name, runtime = manifest.artifact, manifest.name, RUNTIMES[manifest.runtime_name]
    libraries = [
        runtime.distribution(manifest.runtime) if need == runtime.PACKAGE.name else need for need in loader.needs
    ]
    lines = [
        f"# {name}",
        "",
        f"A {manifest.task} model for {manifest.target_title}, made by edgekit {manifest.edgekit}:",
        f"{artifact.format} {artifact.scheme}, {human_bytes(artifact.bytes)}{_version(manifest)}.",
        "",
        "## Use",
        "",
        "```python",
        f"# pip install {' '.join(libraries)}; run it in this folder",
        "from load import Bundle",
        "",
        'bundle = Bundle(".")',
        loader.use,
        "```",
        "",
        f"It needs {manifest.runtime_name} {manifest.runtime['minimum']} or newer. A text ends at {manifest.max_length} tokens.",
        *_card_prompts(manifest),
        *_card_commands(manifest),
        *mobile.lines(manifest),
        *web.lines(packing),
        *_card_scope(manifest),
        "",
        "## Accuracy on prompts that it never saw",
        "",
        *_card_accuracy(report),
        "",
        *_card_data(report.data),
        "## Latency and memory",
        "",
        f"Not in this folder, which is the same whenever it is built: see `{name}.report.html` beside the archive.",
        "It names the device that measured, and says so where that was not the target.",
        "",
        "## Where it comes from",
        "",
        f"- artifact sha256: `{artifact.sha256}`",
        *(f"- {key}: `{value}`" for key, value in sorted({**manifest.lineage, **manifest.fingerprints}.items())),
        *(f"- {key} {value}" for key, value in sorted(manifest.versions.items())),
        "",
        "## Licences",
        "",
        *(f"- {key}: {value}" for key, value in sorted(manifest.licences.items())),
        *([] if manifest.licences else ["The recipe states none."]),
    ]
    return "\n".join(lines) + "\n"


def _version(manifest: Manifest) -> str:
    return f", version {manifest.version}" if manifest.version else ""


def _card_prompts(manifest: Manifest) -> list[str]:
    """Of an embedding model: what it puts before each text, and what else it can put there."""
    before, prompts = manifest.prompt, manifest.prompts
    lines = ["", f"Before every text it puts `{before}`, unless you name another prompt."] if before else []
    if prompts:
        named = ", ".join(f"`{name}` (`{text}`)" for name, text in sorted(prompts.items()))
        lines += [
            "",
            f'Its prompts by name: {named}; `bundle(text, prompt="{min(prompts)}")`, or `prompt=""` for none.',
        ]
    return lines


def _card_commands(manifest: Manifest) -> list[str]:
    """Of a GGUF file: the programs that open it unchanged."""
    if manifest.runtime_name != "llama-cpp":
        return []
    return [
        "",
        "llama.cpp's own programs, Ollama and LM Studio open the file as it is:",
        "",
        "```sh",
        command_line(manifest),
        command_line(manifest, serve=True),
        f"ollama create {manifest.name} -f Modelfile",
        "```",
    ]


def _card_scope(manifest: Manifest) -> list[str]:
    if not manifest.labels:
        return []
    lines = ["", f"Its {len(manifest.labels)} labels: {', '.join(manifest.labels)}."]
    if manifest.threshold is not None:
        limit = number(manifest.threshold)
        rule = f"A text whose best score is under {limit}, or that has no letter and no digit, is answered with"
        lines += ["", f"{rule} `{manifest.out_of_scope}`."]
    return lines


def _card_data(data: PromptFacts | None) -> list[str]:
    """How many rows each split has, and what was left out of them."""
    if data is None:
        return []
    rows = ", ".join(f"{count} {name}" for name, count in data.rows.items())
    return [f"The data has {rows} rows.", *(f"- {line}" for line in data.notes), ""]


def _card_accuracy(report: Report) -> list[str]:
    scores = {role: value for role, value in report.accuracy.items() if value is not None}
    lines = []
    if report.accuracy_only:
        lines += ["Accuracy only: the target states no latency limit, so no check judged its speed.", ""]
    if scores:
        lines += ["| model | accuracy |", "|---|---|"]
        lines += [*(f"| {role} | {percent(scores[role])} |" for role in sorted(scores)), ""]
    if scopes := scope_cells(report):
        head = [heading or "model" for heading in SCOPE_HEAD]
        lines += [f"| {' | '.join(head)} |", "|---|---|---|---|"]
        lines += [*(f"| {' | '.join(figures)} |" for figures in scopes), ""]
    if report.perplexity is not None:
        lines += ["| model | perplexity |", "|---|---|"]
        lines += [*(f"| {name} | {number(value)} |" for name, value in sorted(report.perplexity.items())), ""]
    lines += ["| compared | metric | loss | flips |", "|---|---|---|---|"]
    for entry in report.comparisons:
        cells = [pair(entry), entry.metric, number(entry.loss, 3), flips(entry.flips)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
