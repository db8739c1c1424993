"""README.md of a release: the model card that model hubs read, with metadata that huggingface_hub takes.

https://huggingface.co/docs/hub/model-cards: base_model, licence, and what was measured as a model-index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.errors import require
from edgekit.release.bom import performance_metrics
from edgekit.release.contents import BOM, NOTICE, PROVENANCE, QUANTIZATION, SIGNATURE

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.evidence import Report

# What a hub calls a model of a format, and a scheme that rounds nothing.
_LIBRARIES = {"onnx": "onnx", "gguf": "gguf"}
_FLOAT = {"fp32", "fp16", "f32", "f16", "bf16"}
# Owner and name, as hubs spell a model's.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_card(manifest: Manifest, reports: Sequence[Report], readme: str) -> str:
    """The text of README.md: metadata, how to verify the release, what was measured, and the bundle's own card."""
    hub = require("huggingface_hub")
    metadata = hub.ModelCardData(**_facts(manifest, reports))
    name = manifest.name
    lines = [
        "---",
        str(metadata).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"A {manifest.task} model for {manifest.target_title}: `bundle/` is what an app embeds.",
        "",
        "## Whether it is what it says",
        "",
        "```sh",
        "edgekit verify-release . --key KEY.pub",
        f"model_signing verify key . --signature {SIGNATURE} --public_key KEY.pub",
        "```",
        "",
        f"`{BOM}`: what went into it. `{QUANTIZATION}`: how every tensor is held. `{PROVENANCE}`: how it was built.",
        f"`evidence/`: what was measured, on which device. `{NOTICE}`: what the licences ask.",
        "",
        "## What was measured",
        "",
        "| check | value | bounds | where |",
        "|---|---|---|---|",
        *(_row(metric) for report in reports for metric in performance_metrics(report)),
        "",
        *_own(readme),
    ]
    return "\n".join(lines) + "\n"


def _own(readme: str) -> list[str]:
    """The bundle's own card, from its first section on, which is of its folder."""
    sections = readme.partition("\n## ")[2]
    return f"## In `bundle/`\n\n### {sections}".replace("\n## ", "\n### ").splitlines()


def _row(metric: dict[str, object]) -> str:
    bounds = metric.get("confidenceInterval")
    ends = [str(bounds.get(end, "")) for end in ("lowerBound", "upperBound")] if isinstance(bounds, dict) else []
    cells = [metric["type"], metric["value"], " to ".join(ends), metric["slice"]]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _facts(manifest: Manifest, reports: Sequence[Report]) -> dict[str, object]:
    """What goes into the metadata; a teacher is named where it is a hub's id, because a hub links to it."""
    require("huggingface_hub")
    from huggingface_hub import EvalResult

    scheme, teacher = manifest.artifact.scheme, manifest.lineage.get("teacher", "")
    licence = manifest.licences.get("this model")
    known = licence is not None and re.fullmatch(r"[A-Za-z0-9.+-]+", licence)
    facts: dict[str, object] = {
        "library_name": _LIBRARIES.get(manifest.artifact.format),
        "pipeline_tag": manifest.task,
        "tags": ["edgekit", manifest.artifact.format, scheme, manifest.target],
        "license": (licence or "").lower() if known else "other" if licence else None,
        "license_name": None if known else licence,
    }
    if _HUB_ID.fullmatch(teacher):
        facts |= {"base_model": teacher, "base_model_relation": "finetune" if scheme in _FLOAT else "quantized"}
    results = [
        EvalResult(
            task_type=manifest.task,
            dataset_type=manifest.recipe,
            dataset_name=f"verify prompts of {manifest.recipe}",
            metric_type="accuracy",
            metric_name=f"accuracy on {report.target}",
            metric_value=report.accuracy["artifact"],
        )
        for report in reports[:1]
        if report.accuracy.get("artifact") is not None
    ]
    return facts | ({"model_name": manifest.name, "eval_results": results} if results else {})
