"""The probe for browsers: JavaScript over onnxruntime-web and wllama, which a page runs in a worker."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import DeviceFailed
from edgekit.probes.exchange import Program, exchange
from edgekit.probes.lines import Lines
from edgekit.probes.web.npm import PACKAGES, fetch_packages
from edgekit.runtimes import llamacpp, neighbours, onnxruntime
from edgekit.runtimes.machine import Machine
from edgekit.runtimes.onnxruntime.throughput import product
from edgekit.runtimes.survey import ROUNDS, Survey
from edgekit.typed_json import read_table

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.probes.probe import Answer, Question

NAME = "web"
SUSTAINS = False
WEB_RUNTIMES: Mapping[str, str] = {"rows": onnxruntime.NAME, "tokens": llamacpp.NAME}
"""The one that pages have, by the kind of request."""
_ENGINES: Mapping[str, str] = {"rows": "onnxruntime-web", "tokens": "wllama"}
_CPU: Mapping[str, str] = {onnxruntime.NAME: onnxruntime.CPU, llamacpp.NAME: llamacpp.CPU}


@dataclass(frozen=True, kw_only=True)
class _Said:
    machine: Machine
    engines: Mapping[str, str]
    rounds: tuple[Mapping[str, float], ...]


_OWN = Path(__file__).parent
LOADER, WRITER = _OWN / "load.mjs", _OWN / "generate.mjs"
"""What a page imports to use a bundle that gives rows, or one that writes."""
ROWS, WORDS, CHECKS = _OWN / "rows.mjs", _OWN / "words.mjs", _OWN / "check.mjs"
"""What those import, and the probe to run an artifact: how a model is asked that gives rows, or writes; and what is checked."""
# A busy machine may take minutes to start a browser.
_SURVEY_S = 300
_CODE = ("probe.mjs", "tokens.mjs", "survey.mjs", ROWS.name, WORDS.name, CHECKS.name, "npz.mjs")


def ask(device: Device, question: Question) -> Answer:
    """Have a page run the artifact, rows in onnxruntime-web and tokens in wllama, and read the texts with the tokenizer of
    browsers, or the file's own, where there are any.

    Raises DeviceFailed where it does not finish, where an engine cannot be had, and for what pages do not run.
    """
    kind, asked = question.request.get("kind", "rows"), question.request["runtime"]
    if asked != WEB_RUNTIMES[kind]:
        raise DeviceFailed(
            f"{device.identity}: {question.file}: pages answer with {kind} in {WEB_RUNTIMES[kind]} alone, and this is for"
            f" {asked}; judge it without --device"
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code, more = Path(scratch, "code"), Path(scratch, "more")
        env = _lay_out(device, code, more)
        if question.texts is not None:
            told = {**vars(question.texts), "tokenizer": f"{device.push(question.file.parent)}/tokenizer.json"}
            (more / "texts.json").write_text(json.dumps(told), encoding="utf-8")
            env["texts"] = f"{env['speed']}/texts.json"
        command = [f"{device.push(code)}/probe.mjs"]
        package = PACKAGES[_ENGINES[kind]]
        version = package.engine or package.version
        seen = neighbours.watch()
        answer = exchange(device, question, Program(command=command, env=env, renew="", version=version))
        return replace(answer, lines=_beside(answer.lines, seen()))


def ask_survey(device: Device, *, speed: bool = True) -> Survey:
    """What a browser is, and with `speed` how fast: what no page is told is empty, None or 0.

    Raises DeviceFailed where it does not answer, and where a package cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code, more = Path(scratch, "code"), Path(scratch, "more")
        env, tell = _lay_out(device, code, more), neighbours.watch()
        words = [f"{device.push(code)}/survey.mjs", str(ROUNDS if speed else 0)]
        ended = device.run(words, timeout_s=_SURVEY_S, env=env)
        seen = _known(tell())
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
        raise DeviceFailed(f"{device.identity}: cannot be measured: {last[:300]}; is it a browser of these years?")
    said = read_table(_Said, json.loads(ended.stdout), device.identity)
    rounds = [dict(one) for one in said.rounds]
    return {
        "machine": said.machine,
        "system": "WebAssembly",
        "board": None,
        "clusters": [],
        "memory": {"total_mb": said.machine["memory_mb"], "available_mb": 0, "swap_mb": 0, "swap_used_mb": 0},
        "heat": {"zones": [], "slowed": [], "throttled": None},
        "power": {"on_battery": None, "percent": None, "profile": None},
        "allowed": {"online": said.machine["cores"], "cores": said.machine["cores"], "quota": None},
        "busy": {"seen": seen, "programs": []},
        "engines": [
            {"name": name, "version": version, "problem": None, "debug": None, "providers": [_CPU[name]]}
            for name, version in said.engines.items()
        ],
        "accelerators": [],
        "speed": {"rounds": rounds, "saturates": {}, "seen": seen} if speed else None,
        "emulated": [],
    }


def _lay_out(device: Device, code: Path, more: Path) -> dict[str, str]:
    """Write the modules, and the products that measure a speed; where the device finds what they need."""
    import numpy as np

    code.mkdir()
    more.mkdir()
    for name in _CODE:
        shutil.copyfile(_OWN / name, code / name)
    for name, (model, left) in {"fp32": product("MatMul"), "int8": product("MatMulInteger")}.items():
        (more / f"{name}.onnx").write_bytes(model)
        np.savez(more / f"{name}.npz", allow_pickle=False, a=left)
    return {"engine": device.push(fetch_packages([*PACKAGES])), "speed": device.push(more)}


def _known(seen: neighbours.Seen) -> dict[str, float | None]:
    """What this machine did, without what is of this process alone: the browser is another one."""
    return {**seen, "others": None, "waited": None, "switches": None}


def _beside(lines: Lines, seen: neighbours.Seen) -> Lines:
    """The lines with what this machine did meanwhile, which a page is not told."""
    known = _known(seen)
    return Lines(
        events={
            event: {**facts, "neighbours": known} if "neighbours" in facts else facts
            for event, facts in lines.events.items()
        }
    )
