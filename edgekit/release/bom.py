"""The bill of materials of a release: CycloneDX 1.7, with the model's card and what was measured of it.

cyclonedx-python-lib writes components, licences and dependencies; it has no model cards yet (11.12), so that part is a table,
by https://cyclonedx.org/docs/1.7/json. Energy has a place in that card, in kWh of a named provider, which nobody who measures a
board knows: it is a metric here. The tensors are a file beside it, by reference and hash.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import require
from edgekit.release.contents import NOTICE, PROVENANCE, QUANTIZATION, measurement_name
from edgekit.release.licences import Licence, licences
from edgekit.schema import dump_json

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

    from edgekit.bundle.manifest import Manifest
    from edgekit.evidence import Check, Report

# What identifies bills of one bundle: a name of its own for uuid5.
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://edgekit.dev/bom")
MODEL = "model"
_APPROACH = "supervised"
Properties = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Billed:
    """What a bill is made of: a bundle's manifest, its reports, and the sha256 of the files that it refers to, by name. made: the
    release's date, ISO 8601, where one is wanted."""

    manifest: Manifest
    reports: Sequence[Report]
    referred: Mapping[str, str]
    made: str | None


def write_bom(billed: Billed) -> str:
    """The text of bom.cdx.json. Raises EdgekitError where cyclonedx-python-lib is not there."""
    require("cyclonedx", extra="release")
    from cyclonedx.model.bom import Bom
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    manifest = billed.manifest
    bom = Bom(version=1, serial_number=uuid.uuid5(_SPACE, str(manifest.digest)))
    model, others = _components(manifest)
    for component in (model, *others):
        bom.components.add(component)
    bom.register_dependency(model, [one for one in others if one.bom_ref.value != "bundle"])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_7).output_as_string()
    table = json.loads(text)
    table["metadata"] = _metadata(billed)
    components = {component["bom-ref"]: component for component in table["components"]}
    mine = components.pop(MODEL)
    mine |= {"modelCard": _card(billed), "externalReferences": _references(billed)}
    table["components"] = [mine, *(components[ref] for ref in sorted(components))]
    table["externalReferences"] = [
        {"type": "distribution", "url": f"bundle/{manifest.model}", "hashes": _hashes(manifest.artifact.sha256)}
    ]
    return dump_json(table)


def performance_metrics(report: Report) -> list[dict[str, object]]:
    """What a report's checks measured, as CycloneDX's performance metrics: value, bounds, and the device as the slice."""
    device = f"{report.device.get('cpu') or report.device.get('arch')}, {report.runtime.name} {report.runtime.version}"
    where = f"{report.target} on {device}{' (emulated)' if report.emulated else ''}"
    metrics = [_metric(check, f"{where}: {check.verdict}") for check in report.checks]
    if report.energy_j is not None:
        metrics += [
            {
                "type": "energy_j_net",
                "value": _text(report.energy_j.net),
                "slice": f"{where}, {report.energy_j.method}",
            },
            {
                "type": "energy_j_gross",
                "value": _text(report.energy_j.gross),
                "slice": f"{where}, {report.energy_j.method}",
            },
        ]
    return metrics


def _metric(check: Check, where: str) -> dict[str, object]:
    """An interval is of the loss against the reference, not of the measured value: it is a metric of its own name."""
    found: dict[str, object] = {"type": check.name, "value": _text(check.measured), "slice": where}
    if check.loss is not None:
        found |= {"type": f"{check.name} (loss)", "value": _text(check.loss)}
    ends = dict(zip(("lowerBound", "upperBound"), check.interval or (), strict=False))
    bounds = {name: _text(end) for name, end in ends.items() if end is not None}
    return found | ({"confidenceInterval": bounds} if bounds else {})


def _text(value: object) -> str:
    return "not measured" if value is None else str(value)


def _components(manifest: Manifest) -> tuple[Component, list[Component]]:
    """The model, and what it was made from and ships with."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    def sha256(digest: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]

    version = _version(manifest)
    of = {(entry.kind, entry.name): entry for entry in licences(manifest)}
    by_kind = {kind: entry for (kind, _), entry in of.items()}
    model = Component(
        name=manifest.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=version,
        bom_ref=MODEL,
        description=f"{manifest.task} for {manifest.target_title}: {manifest.artifact.format} {manifest.artifact.scheme}",
        purl=PackageURL("generic", None, manifest.name, version),
        licenses=_stated(by_kind["model"]),
        hashes=sha256(manifest.artifact.sha256),
    )
    others = [
        Component(name=name, type=ComponentType.FILE, bom_ref=f"bundle/{name}", hashes=sha256(entry.sha256))
        for name, entry in (manifest.files or {}).items()
        if name != manifest.model
    ]
    if "teacher" in by_kind:
        others.append(
            Component(
                name=by_kind["teacher"].name,
                type=ComponentType.MACHINE_LEARNING_MODEL,
                version=manifest.lineage.get("teacher_revision") or manifest.lineage.get("teacher_digest"),
                bom_ref="teacher",
                licenses=_stated(by_kind["teacher"]),
            )
        )
    others.append(
        Component(name=by_kind["data"].name, type=ComponentType.DATA, bom_ref="data", licenses=_stated(by_kind["data"]))
    )
    tools = {"edgekit": manifest.edgekit, **manifest.versions}
    for name, number in tools.items():
        entry = of.get(("tool", name), Licence(kind="tool", name=name, licence="Apache-2.0"))
        others.append(
            Component(
                name=name,
                type=ComponentType.LIBRARY,
                version=number,
                bom_ref=f"tool/{name}",
                purl=PackageURL("pypi", None, name, number),
                licenses=_stated(entry),
            )
        )
    return model, others


def _version(manifest: Manifest) -> str:
    """The version that the recipe gives, else the beginning of the bundle's digest."""
    return manifest.version or str(manifest.digest)[:16]


def _stated(entry: Licence) -> Iterable[License]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(entry.licence)] if entry.licence else []


def _metadata(billed: Billed) -> dict[str, object]:
    """Which tool wrote it, of what; a date only where it was given."""
    manifest = billed.manifest
    component = {
        "type": "application",
        "name": manifest.name,
        "bom-ref": "release",
        "version": _version(manifest),
    }
    properties = {
        "primaryPurpose": manifest.task,
        "suppliedBy": f"who signed this release of {manifest.name}",
        "standardCompliance": "CycloneDX 1.7, SLSA provenance v1, in-toto statements v1, OpenSSF model signing v1.0",
        "domain": f"{manifest.recipe}: {', '.join(manifest.labels) or manifest.task}",
        "autonomyType": "none: it answers, what is done with the answer is the app's",
        "typeOfModel": f"{manifest.artifact.format} {manifest.artifact.scheme}",
    }
    tool = {"type": "application", "name": "edgekit", "version": manifest.edgekit}
    return {
        **({"timestamp": billed.made} if billed.made else {}),
        "component": component,
        "tools": {"components": [tool]},
        "properties": _properties(properties),
    }


def _card(billed: Billed) -> dict[str, object]:
    manifest, reports = billed.manifest, billed.reports
    metrics = [metric for report in reports for metric in performance_metrics(report)]
    limits = [f"texts end at {manifest.max_length} tokens; what is beyond is not read"]
    if manifest.out_of_scope:
        limits.append(
            f"knows {len(manifest.labels)} labels; what is none of them is answered with {manifest.out_of_scope}"
        )
    limits += [f"{report.target}: {note}" for report in reports for note in report.notes]
    trades = [
        f"{one.candidate} against {one.reference}, {one.metric}: a loss of {one.loss} on {one.prompts} prompts"
        for report in reports
        for one in report.comparisons
        if one.loss is not None
    ]
    parameters: dict[str, object] = {
        "approach": {"type": _APPROACH if manifest.labels else "self-supervised"},
        "task": manifest.task,
        "datasets": [{"ref": "data"}],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": manifest.output}],
    }
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {
            "useCases": [f"{manifest.task} on {manifest.target_title}"],
            "technicalLimitations": limits,
            "performanceTradeoffs": trades,
        },
        "properties": _properties(_card_facts(billed)),
    }


def _card_facts(billed: Billed) -> dict[str, str]:
    """What CycloneDX has no key for, by the names that completeness scorers look for; only what is known."""
    manifest, reports = billed.manifest, billed.reports
    report = reports[0]
    facts = {
        "hyperparameter": json.dumps(manifest.artifact.choices, sort_keys=True) if manifest.artifact.choices else "",
        "informationAboutTraining": json.dumps({**manifest.lineage, **manifest.fingerprints}, sort_keys=True),
        "informationAboutApplication": f"{manifest.runtime_name} {manifest.runtime['minimum']} or newer",
        "metric": ", ".join(check.name for check in report.checks),
        "metricDecisionThreshold": "; ".join(
            f"{check.name}: {check.limit}" for check in report.checks if check.limit is not None
        ),
        "modelDataPreprocessing": f"tokens by {manifest.tokenizer or 'the model file itself'}, {manifest.max_length} at most",
        "modelExplainability": "not explained: a score for each answer, no reason for it",
        "safetyRiskAssessment": "none was made by edgekit: it measures fidelity to the float model, not safety",
        "useSensitivePersonalInformation": "not known to edgekit: ask the owner of the data",
    }
    if report.energy_j is not None:
        facts |= {
            "energyConsumption": f"{report.energy_j.net} J net, {report.energy_j.gross} J gross: {report.energy_j.method}",
            "energyQuantity": str(report.energy_j.net),
            "energyUnit": "joule per call",
        }
    elif report.no_energy:
        facts["energyConsumption"] = report.no_energy
    return {name: value for name, value in facts.items() if value}


def _references(billed: Billed) -> list[dict[str, object]]:
    """The files of the release that say more of the model."""
    kinds = {QUANTIZATION: "configuration", PROVENANCE: "attestation", NOTICE: "license"}
    kinds |= {measurement_name(number): "evidence" for number in range(1, len(billed.reports) + 1)}
    return [
        {"type": kind, "url": name, "hashes": _hashes(billed.referred[name])}
        for name, kind in sorted(kinds.items())
        if name in billed.referred
    ]


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(facts: Mapping[str, str]) -> Properties:
    return [{"name": name, "value": value} for name, value in sorted(facts.items())]
