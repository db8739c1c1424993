"""What may be wrong with this machine for edgekit; each finding has its remedy."""

from __future__ import annotations

import importlib.machinery
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from edgekit.devices import LocalDevice
from edgekit.probes.proof import ask
from edgekit.runtimes import RUNTIMES, llamacpp, onnxruntime
from edgekit.runtimes.machine import KERNEL_FEATURES, describe, saturates
from edgekit.runtimes.package import Package
from edgekit.runtimes.proof import PROOFS, Proof
from edgekit.runtimes.proof import fault as find_fault


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that `doctor` looked at. A problem stops some command, a warning costs time, bytes or accuracy."""

    name: str
    found: str
    status: Literal["ok", "warning", "problem"] = "ok"
    remedy: str = ""


# A fresh environment takes 1.4 GB, an example's steps some hundred MB more.
_FREE_DISK_GB = 3.0
# Training the example's student peaks below 2 GB.
_MEMORY_GB = 3.0


def doctor(cache: Path | None = None, wanted: Mapping[str, Mapping[str, object]] | None = None) -> list[Finding]:
    """What may be wrong with this machine for edgekit; imports none of the libraries that it judges.

    `cache` is the folder of finished steps ($EDGEKIT_CACHE, else .edgekit). wanted: see `prove_engines`.
    """
    cache = cache or Path(os.environ.get("EDGEKIT_CACHE", ".edgekit"))
    versions = _installed()
    return [
        _check_platform(),
        _check_python(),
        *_check_requirements(versions),
        *conflicts(versions),
        *prove_engines(versions, wanted),
        *_check_machine(),
        _check_disk(cache),
        _check_writable(cache),
    ]


def _installed() -> dict[str, str]:
    """Every installed distribution's version by its normalised name (PEP 503)."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := distribution.metadata["Name"]:
            # The first one on the path is the one that is imported.
            found.setdefault(_normalise(name), distribution.version)
    return found


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_platform() -> Finding:
    system, machine = platform.system(), platform.machine()
    found = f"{platform.platform(aliased=True)}, {machine}"
    if sys.maxsize < 2**32 or machine in {"armv6l", "armv7l", "i386", "i686"}:
        remedy = "onnxruntime and torch have no 32-bit wheels; install a 64-bit system and Python"
        return Finding(name="platform", found=found, status="problem", remedy=remedy)
    if (system, machine) == ("Darwin", "x86_64"):
        remedy = "torch has no wheels for Intel Macs any more; build on another machine (bundles may still run here)"
        return Finding(name="platform", found=found, status="problem", remedy=remedy)
    known = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")}
    if (system, machine) not in known:
        remedy = "not a platform that torch and onnxruntime both publish wheels for; expect to compile"
        return Finding(name="platform", found=found, status="warning", remedy=remedy)
    return Finding(name="platform", found=found)


def _check_python() -> Finding:
    found = f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    if platform.python_implementation() != "CPython":
        return Finding(name="python", found=found, status="problem", remedy="use CPython: torch has no other wheels")
    if sys.prefix == sys.base_prefix and not os.environ.get("CONDA_PREFIX"):
        remedy = "python -m venv .venv, so that other programs' libraries do not meet edgekit's"
        return Finding(name="python", found=f"{found}, no virtual environment", status="warning", remedy=remedy)
    return Finding(name="python", found=found)


def _check_requirements(versions: Mapping[str, str]) -> list[Finding]:
    """Each library that edgekit declares against the range that it declares, and whether each extra is there."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("edgekit") or []
    except metadata.PackageNotFoundError:
        remedy = "run: pip install . (or pip install --editable .) where edgekit's pyproject.toml lies"
        return [Finding(name="edgekit", found="runs without being installed", status="warning", remedy=remedy)]
    findings = [Finding(name="edgekit", found=metadata.version("edgekit"))]
    absent: dict[str, list[str]] = {}
    for requirement in map(Requirement, lines):
        extra = _extra_of(str(requirement.marker or ""))
        version = _version_of(_normalise(requirement.name), versions)
        wrong = version is None or not requirement.specifier.contains(version, prereleases=True)
        wanted = f"{requirement.name}{requirement.specifier}"
        if extra is not None:
            absent.setdefault(extra, []).extend([wanted] if wrong else [])
        elif requirement.marker is None or requirement.marker.evaluate():
            findings.append(
                Finding(
                    name=requirement.name,
                    found=f"{version or 'not installed'}{f', needs {requirement.specifier}' if wrong else ''}",
                    status="problem" if wrong else "ok",
                    remedy=f'pip install "{wanted}"' if wrong else "",
                )
            )
    for extra, lacking in absent.items():
        remedy = f'if you want it: pip install "edgekit[{extra}]"' if lacking else ""
        found = f"not there: {', '.join(lacking)}" if lacking else "installed"
        findings.append(Finding(name=f"extra {extra}", found=found, remedy=remedy))
    return findings


def _version_of(name: str, versions: Mapping[str, str]) -> str | None:
    """An installed version, also that of another build of the same engine."""
    builds = next(
        (runtime.PACKAGE.distributions for runtime in RUNTIMES.values() if runtime.PACKAGE.name == name), (name,)
    )
    return next((versions[build] for build in builds if build in versions), None)


def _extra_of(marker: str) -> str | None:
    found = re.search(r"extra == [\"']([^\"']+)[\"']", marker)
    return found.group(1) if found else None


def _find_hub_conflict(versions: Mapping[str, str]) -> Finding | None:
    hub, transformers = versions.get("huggingface-hub", ""), versions.get("transformers", "")
    new, old = _major(transformers) >= 5 and _major(hub) == 0, _major(transformers) == 4 and _major(hub) >= 1
    if not (new or old):
        return None
    remedy = 'pip install "huggingface-hub>=1,<3"' if new else 'pip install "transformers>=5.23,<5.24"'
    found = f"transformers {transformers} with huggingface-hub {hub}: importing transformers fails"
    return Finding(name="huggingface-hub", found=found, status="problem", remedy=remedy)


def _find_two_builds(package: Package, versions: Mapping[str, str]) -> Finding | None:
    several = [name for name in package.distributions if name in versions]
    if len(several) < 2:
        return None
    remedy = f"pip uninstall {' '.join(several)}, then install the one that you want again"
    found = f"{' and '.join(several)} are both installed: they write the same folder, the last one wins in part"
    return Finding(name=package.name, found=found, status="problem", remedy=remedy)


def _find_optimum_conflict(versions: Mapping[str, str]) -> Finding | None:
    if "optimum-onnx" not in versions or _major(versions.get("transformers", "")) < 5:
        return None
    found = f"optimum-onnx {versions['optimum-onnx']} needs transformers < 4.58 and fails to import with 5"
    return Finding(name="optimum-onnx", found=found, status="problem", remedy="pip uninstall optimum-onnx")


def _find_cuda_build(versions: Mapping[str, str]) -> Finding | None:
    cuda = "+cu" in versions.get("torch", "") or any(name.startswith("nvidia-cuda-runtime") for name in versions)
    if not cuda or _has_nvidia():
        return None
    found = f"torch {versions.get('torch', '')} is a CUDA build, and this machine shows no NVIDIA GPU"
    remedy = "to save gigabytes: pip install torch --index-url https://download.pytorch.org/whl/cpu"
    return Finding(name="torch build", found=found, status="warning", remedy=remedy)


def _find_foreign_torch(versions: Mapping[str, str]) -> Finding | None:
    if "torch" not in versions:
        return None
    names = [file.name for file in metadata.files("torch") or [] if str(file.parent) == "torch"]
    extensions = [name for name in names if name.startswith("_C.") and name.endswith((".so", ".pyd"))]
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    if not extensions or any(f"_C{suffix}" in extensions for suffix in suffixes):
        return None
    found = f"built for another Python ({extensions[0]}), this one loads {suffixes[0]}"
    remedy = "pip install --force-reinstall torch, with this Python's own pip"
    return Finding(name="torch build", found=found, status="problem", remedy=remedy)


def _find_unloadable(package: Package, versions: Mapping[str, str]) -> Finding | None:
    """Of an extra's package. In a child: a library that was built for another CPU may end the process."""
    proven = any(package == RUNTIMES[name].PACKAGE for name in PROOFS)
    if proven or package.extra is None or package.name not in versions:
        return None
    ended = subprocess.run(
        [sys.executable, "-c", f"import {package.module}"], capture_output=True, text=True, check=False, timeout=120
    )
    if ended.returncode == 0:
        return None
    last = next((line.strip() for line in reversed(ended.stderr.splitlines()) if line.strip()), "no word")
    found = f"{package.name} {versions[package.name]} is installed and does not load: {last[:200]}"
    remedy = f"pip install --force-reinstall {package.requirement}; a build for a GPU needs that GPU's libraries"
    return Finding(name=package.name, found=found, status="problem", remedy=remedy)


# Each looks at the installed versions and says what does not go together, or None.
CONFLICTS: tuple[Callable[[Mapping[str, str]], Finding | None], ...] = (
    _find_hub_conflict,
    _find_optimum_conflict,
    _find_cuda_build,
    _find_foreign_torch,
)
# The same of each runtime's package.
OF_PACKAGES: tuple[Callable[[Package, Mapping[str, str]], Finding | None], ...] = (_find_two_builds, _find_unloadable)


def conflicts(versions: Mapping[str, str]) -> list[Finding]:
    """What does not go together of the installed distributions' versions, by normalised name."""
    findings = [check(versions) for check in CONFLICTS]
    findings += [check(runtime.PACKAGE, versions) for check in OF_PACKAGES for runtime in RUNTIMES.values()]
    return [finding for finding in findings if finding is not None]


def prove_engines(
    versions: Mapping[str, str], wanted: Mapping[str, Mapping[str, object]] | None = None
) -> list[Finding]:
    """What the installed engines compute on, each asked by a session of a second in a process of its own.

    wanted: a target's `[runtime.<name>]` tables; None asks each for what the installed builds are for.
    """
    asked = [*wanted.items()] if wanted is not None else _builds(versions)
    with LocalDevice({}) as device:
        return [
            _judge_proof(runtime, ask(device, runtime, options), required=wanted is not None)
            for runtime, options in asked
            if runtime in PROOFS and _version_of(RUNTIMES[runtime].PACKAGE.name, versions)
        ]


def _builds(versions: Mapping[str, str]) -> list[tuple[str, Mapping[str, object]]]:
    """Each engine with the options that ask for what its builds and plug-ins are made for."""
    package = onnxruntime.PACKAGE
    providers = [names[0] for build, names in package.builds.items() if build in versions]
    providers += [plugin.provider for name, plugin in package.plugins.items() if name in versions]
    if _has_nvidia() and not providers:
        providers = [onnxruntime.CUDA]
    asked: list[tuple[str, Mapping[str, object]]] = [
        (onnxruntime.NAME, {"provider": provider}) for provider in providers or [onnxruntime.CPU]
    ]
    return [*asked, (llamacpp.NAME, {"gpu_layers": -1})]


def _judge_proof(runtime: str, proof: Proof, *, required: bool) -> Finding:
    """A build for a GPU that does not use it is a problem; one for the CPU is only where a GPU is asked for, or stands idle."""
    fault, engine = find_fault(runtime, proof), RUNTIMES[runtime].PACKAGE.name
    if fault is None:
        where = next(iter(proof.get("devices", ())), proof["used"]) if proof["used"] != "CPU" else "CPU"
        found = f"{where} takes the work, {proof['ms']:.3g} ms for a small product"
        if (graphs := proof.get("graphs")) is not None:
            found += f", without CUDA graphs: {graphs}" if graphs else ", and replays CUDA graphs"
        return Finding(name=f"{engine} runs", found=found)
    words = f"; it says: {fault.words}" if fault.words else ""
    found = f"{proof.get('asked', engine)}: {fault.what}{words}"
    made_for_cpu = "failed" not in proof and set(proof.get("backends", ())) <= {"CPU"} and _only_cpu(proof)
    if not required and made_for_cpu:
        if not _has_nvidia():
            return Finding(name=f"{engine} runs", found="CPU takes the work; built without a backend for GPUs")
        return Finding(
            name=f"{engine} runs", found=f"{found}; the NVIDIA GPU stands idle", status="warning", remedy=fault.remedy
        )
    return Finding(name=f"{engine} runs", found=found, status="problem", remedy=fault.remedy)


def _only_cpu(proof: Proof) -> bool:
    """Whether the installation has no provider but the CPU's."""
    return proof.get("asked") not in proof.get("available", ())


def _major(version: str) -> int:
    """The first number of a version; -1 where there is none."""
    found = re.match(r"\d+", version)
    return int(found.group()) if found else -1


def _has_nvidia() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _check_machine() -> list[Finding]:
    machine = describe()
    features = [feature for feature in KERNEL_FEATURES if feature in machine["features"]]
    untold = Finding(name="cpu features", found=f"{platform.system()} does not tell them")
    memory = Finding(name="memory", found=f"{machine['memory_mb'] / 1024:.1f} GB")
    if machine["memory_mb"] < _MEMORY_GB * 1024:
        remedy = f"a build peaks at up to {_MEMORY_GB:g} GB; close programs, or build on a larger machine"
        memory = Finding(name="memory", found=memory.found, status="warning", remedy=remedy)
    return [
        Finding(name="cpu", found=f"{machine['cpu']}, {machine['cores']} cores"),
        _judge_features(machine["arch"], features, saturates(machine["arch"], machine["features"]))
        if machine["features"]
        else untold,
        memory,
    ]


def _judge_features(arch: str, features: Sequence[str], saturating: bool | None) -> Finding:
    found = ", ".join(features) or "none that a fast matrix product needs"
    if arch == "x86_64" and "avx2" not in features:
        remedy = "INT8 will be slow and builds slower; measure on a CPU of 2015 or later"
        return Finding(name="cpu features", found=found, status="warning", remedy=remedy)
    if saturating:
        remedy = (
            "INT8 products of full-range weights saturate here; edgekit's own targets for such CPUs set reduce_range = true,"
            " and verify checks artifacts of other targets for it"
        )
        return Finding(name="cpu features", found=f"{found}; no VNNI", status="warning", remedy=remedy)
    if arch == "aarch64" and "asimddp" not in features:
        remedy = "without dot product INT8 saves bytes, and time only where it is measured"
        return Finding(name="cpu features", found=found, status="warning", remedy=remedy)
    return Finding(name="cpu features", found=found)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = folder.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _check_disk(cache: Path) -> Finding:
    free = shutil.disk_usage(_existing(cache)).free / 1e9
    if free < _FREE_DISK_GB:
        remedy = "edgekit cache prune, or point EDGEKIT_CACHE at a larger disk"
        return Finding(name="disk", found=f"{free:.1f} GB free", status="warning", remedy=remedy)
    return Finding(name="disk", found=f"{free:.1f} GB free")


def _check_writable(cache: Path) -> Finding:
    place = _existing(cache)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".edgekit-"):
            return Finding(name="cache", found=f"{cache} can be written")
    except OSError as failed:
        remedy = "give --cache a folder that you may write, or set EDGEKIT_CACHE"
        found = f"{cache} cannot be written: {failed.strerror or failed}"
        return Finding(name="cache", found=found, status="problem", remedy=remedy)
