"""Which provider of an engine really takes the work here: a session of a second with one matrix product says it.

`python -m edgekit.runtimes.proof RUNTIME OPTIONS` (the options of a session, as JSON) prints one JSON line, a `Proof`. It has a
process of its own, since an engine that was built for another machine may end it. What an engine says is kept in its own words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import cast

from edgekit.runtimes import llamacpp, onnxruntime
from edgekit.runtimes.fault import Fault
from edgekit.runtimes.llamacpp.faults import explain as explain_llamacpp
from edgekit.runtimes.llamacpp.proof import prove as prove_llamacpp
from edgekit.runtimes.onnxruntime.faults import explain as explain_onnxruntime
from edgekit.runtimes.onnxruntime.faults import install_line
from edgekit.runtimes.onnxruntime.proof import prove as prove_onnxruntime
from edgekit.runtimes.placement import Found


class Proof(Found, total=False):
    """What `Found` tells, and beside it: failed, why the engine does not load at all; distributions: versions, by pip's name, of
    what belongs to engines for GPUs."""

    failed: str
    distributions: dict[str, str]


# The engines that have more than one kind of device to choose of.
PROOFS: dict[str, Callable[[Mapping[str, object]], Found]] = {
    onnxruntime.NAME: prove_onnxruntime,
    llamacpp.NAME: prove_llamacpp,
}
_OF_INTEREST = ("onnxruntime", "nvidia-", "llama-cpp")


def prove(runtime: str, options: Mapping[str, object]) -> Proof:
    """Where a session with these options computes a small product."""
    there = _distributions()
    try:
        found = PROOFS[runtime](options)
    except (ImportError, OSError, RuntimeError) as broken:
        return {"failed": " ".join(str(broken).split())[:600], "distributions": there}
    return cast("Proof", {**found, "distributions": there})


def fault(runtime: str, proof: Proof) -> Fault | None:
    """Why the asked provider did not take the work; None where it did, and all that it may need loads."""
    failed, words = proof.get("failed"), proof.get("words", [])
    if runtime == llamacpp.NAME:
        if failed is None and proof["used"] == proof["asked"] and proof.get("right", True):
            return None
        given = {"backends": proof.get("backends", ()), "available": proof.get("available", ())}
        return explain_llamacpp(failed=failed, words=words, **given)
    if failed is not None:
        remedy = f"run: pip install --force-reinstall {onnxruntime.PACKAGE.name}"
        return Fault(what="onnxruntime does not load", words=failed, remedy=remedy)
    asked, used = proof["asked"], proof["used"]
    builds = [name for name in onnxruntime.PACKAGE.distributions if name in proof["distributions"]]
    if len(builds) > 1 and (asked != onnxruntime.CPU or used != asked):
        line = install_line(asked) or f"pip install {onnxruntime.PACKAGE.name}"
        return Fault(
            what=f"{' and '.join(builds)} are both installed and write the same folder: the last one wins in part",
            words=next(iter(words), ""),
            remedy=f"run: pip uninstall --yes {' '.join(builds)} && {line.rpartition('&& ')[2]}",
        )
    missing = [line for line in words if "cudnn" in line and "cannot open" in line]
    if used == asked and proof["right"] and not missing:
        return None
    if used == asked and not proof["right"]:
        remedy = "update the GPU's driver, or take another provider; nothing that it computes can be trusted"
        return Fault(what=f"{asked} computes a product of two matrices wrong", words="", remedy=remedy)
    return explain_onnxruntime(
        asked,
        missing or words,
        available=proof["available"],
        built_for=proof.get("built_for"),
        other=proof.get("other", ()),
    )


def _distributions() -> dict[str, str]:
    """The versions of what belongs to engines for GPUs, by pip's name; of several builds of one engine those that lie in the
    folder that comes first, where one has overwritten the other."""
    found: dict[str, str] = {}
    folders: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if not name.startswith(_OF_INTEREST):
            continue
        build = name.startswith("onnxruntime") and not name.startswith("onnxruntime-ep")
        folder = str(distribution.locate_file(""))
        if folders.setdefault("onnxruntime" if build else name, folder) == folder:
            found.setdefault(name, distribution.version)
    return found


if __name__ == "__main__":
    # An engine may print what it likes before.
    print(json.dumps(prove(sys.argv[1], json.loads(sys.argv[2]))))
