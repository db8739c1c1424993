"""in-toto statements about a bundle: where it comes from (SLSA v1), and what was measured of its model on a device.

Format: https://github.com/in-toto/attestation, spec/v1/statement.md; https://slsa.dev/spec/v1.0/provenance. Nothing in them tells
the time but what was measured then: the same bundle and reports give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.schema import dump_json
from edgekit.typed_json import to_table

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.evidence import Report

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
MEASUREMENT_TYPE = "https://edgekit.dev/measurement/v1"
BUILD_TYPE = "https://edgekit.dev/build/v1"
BUILDER = "https://edgekit.dev/builder/local"


def provenance(manifest: Manifest, builder: str) -> str:
    """The statement of where a bundle's files come from: recipe, target, teacher, student, tools. builder: who built, a URI."""
    lineage, artifact = manifest.lineage, manifest.artifact
    sources: list[dict[str, object]] = [
        {"name": kind, "digest": {"edgekit": lineage[key]}, "annotations": {"is": lineage.get(kind, manifest.name)}}
        for kind, key in (("teacher", "teacher_digest"), ("student", "student_digest"))
        if key in lineage
    ]
    tools = [{"name": name, "uri": f"pkg:pypi/{name}@{version}"} for name, version in sorted(manifest.versions.items())]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "recipe": manifest.recipe,
                "target": manifest.target,
                "task": manifest.task,
                "format": artifact.format,
                "scheme": artifact.scheme,
                **({"version": manifest.version} if manifest.version else {}),
            },
            "internalParameters": {"fingerprints": manifest.fingerprints, "lineage": lineage},
            "resolvedDependencies": [*sources, *tools],
        },
        "runDetails": {
            "builder": {"id": builder, "version": {"edgekit": manifest.edgekit}},
            "metadata": {"invocationId": manifest.digest},
        },
    }
    files = {f"bundle/{name}": entry.sha256 for name, entry in (manifest.files or {}).items()}
    return _statement(files, PROVENANCE_TYPE, predicate)


def measurement(manifest: Manifest, report: Report, *, sha256: str, at: str | None) -> str:
    """The statement that this very model was measured on that device, and with which result.

    sha256: of the report's file. at: when it was measured, ISO 8601; None where nobody knows.
    """
    said = to_table(report)
    predicate = {
        "at": at,
        "report": {"sha256": sha256},
        "target": report.target,
        **{
            key: said[key]
            for key in ("device", "runtime", "verdict", "checks", "prompts", "accuracy", "vouches", "shape")
        },
        "emulated": report.emulated,
        "times_ms": {
            "raw": said["latency_raw_ms"],
            "processes": said["latency_processes_ms"],
            "summary": said["latency_ms"],
        },
        "comparable": said.get("comparable"),
        "disturbed": said["disturbed"],
        "memory_mb": report.memory_mb,
        "energy_j": said.get("energy_j"),
    }
    return _statement({f"bundle/{manifest.model}": manifest.artifact.sha256}, MEASUREMENT_TYPE, predicate)


def _statement(subjects: Mapping[str, str], kind: str, predicate: Mapping[str, object]) -> str:
    named = [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(subjects.items())]
    return dump_json({"_type": STATEMENT, "subject": named, "predicateType": kind, "predicate": predicate})
