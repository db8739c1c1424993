"""The probe for browsers: JavaScript over onnxruntime-web, which a page runs in a worker."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.probes.exchange import Program, exchange
from edgekit.probes.lines import Lines
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.runtimes import neighbours
from edgekit.runtimes.onnxruntime.throughput import product

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.probes.probe import Answer, Question

NAME = "web"
_OWN = Path(__file__).parent
LOADER = _OWN / "load.mjs"
"""What a page imports to use a bundle, and the probe to run an artifact."""
_CODE = ("probe.mjs", LOADER.name, "npz.mjs")


def ask(device: Device, question: Question) -> Answer:
    """Have a page run the artifact in onnxruntime-web, and read the texts with the tokenizer of browsers where there are any.

    Raises DeviceFailed where it does not finish, and where an engine cannot be had.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code, more = Path(scratch, "code"), Path(scratch, "more")
        code.mkdir()
        more.mkdir()
        for name in _CODE:
            shutil.copyfile(_OWN / name, code / name)
        env = {"engine": device.push(fetch_packages([*PACKAGES]))}
        for name, (model, left) in {"fp32": product("MatMul"), "int8": product("MatMulInteger")}.items():
            (more / f"{name}.onnx").write_bytes(model)
            np.savez(more / f"{name}.npz", allow_pickle=False, a=left)
        env["speed"] = device.push(more)
        if question.texts is not None:
            told = {**vars(question.texts), "tokenizer": f"{device.push(question.file.parent)}/tokenizer.json"}
            (more / "texts.json").write_text(json.dumps(told), encoding="utf-8")
            env["texts"] = f"{env['speed']}/texts.json"
        command = [f"{device.push(code)}/probe.mjs"]
        version = PACKAGES["onnxruntime-web"].version
        seen = neighbours.watch()
        answer = exchange(device, question, Program(command=command, env=env, renew="", version=version))
        return replace(answer, lines=_beside(answer.lines, seen()))


def _beside(lines: Lines, seen: neighbours.Seen) -> Lines:
    """The lines with what this machine did meanwhile, which a page is not told; what is of this process alone is left out."""
    known = {**seen, "others": None, "waited": None, "switches": None}
    return Lines(
        events={
            event: {**facts, "neighbours": known} if "neighbours" in facts else facts
            for event, facts in lines.events.items()
        }
    )
