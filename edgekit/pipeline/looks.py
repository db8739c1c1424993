"""How often verify prompts were looked at: each further look at them proves less.

The looks lie in the user's state folder, so that another cache, recipe or target counts on: looks.json has
sets: {id: base64 of the prompts' hashes}, and looks: [{artifact, sets, place, alpha, stages, passed, handed}], oldest first.
Nothing but hashes is kept of a text.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict, cast

from edgekit.artifact import read_artifact
from edgekit.duplicates import text_digest
from edgekit.errors import EdgekitError
from edgekit.prompts import PromptSet
from edgekit.schema import dump_json, read_json
from edgekit.state import state_folder
from edgekit.workspace import Product, fingerprint, locked, make_folder, write_atomically

if TYPE_CHECKING:
    from edgekit.gate import Look

# Of a prompt's hash the first bytes are the text's; the others tell its label, choices and conversation.
_TEXT, _ROW = 8, 12
# A look that passed under several tables of limits made several claims with its error, and hands none of it on.
_SEVERAL = "several"


class Entry(TypedDict):
    """A look as the file has it: the artifact's identity, the ids of the sets of prompts that it saw in turn, its index among the
    looks at them, its alpha, and how many stages were planned.

    passed: under which table of limits, None where under none yet. handed: whether the next look got its error.
    """

    artifact: str
    sets: list[str]
    place: int
    alpha: float
    stages: int
    passed: str | None
    handed: bool


class Store(TypedDict):
    """The file of looks."""

    sets: dict[str, str]
    looks: list[Entry]


def take(artifact: Product, prompts: Product, accuracy: Mapping[str, object], split: str = "verify") -> Look:
    """The place of this artifact among those that looked at these prompts, taken before anything is measured.

    The same artifact (with its settings) on the same prompts keeps its place. Prompts with a common text are looked at
    together. With `[accuracy] stages` an artifact that is looked at again on all its prompts and more goes one stage on; any
    other change is a new look. Raises EdgekitError where the state folder cannot be written.
    """
    rows = row_hashes(prompts, split)
    name = hashlib.sha256(b"".join(rows)).hexdigest()[:16]
    stages, judged = _stages(accuracy), _judged_as(accuracy)
    with _opened() as store:
        sets = {key: _unpack(packed) for key, packed in store["sets"].items()}
        family = _family(store["looks"], sets, rows)
        found = _own(family, identity(artifact), name, judged)
        if found is None:
            found = next(
                (look for look in family if look["artifact"] == identity(artifact)
                 and _is_next(look, sets, rows, stages)), None,
            )  # fmt: skip
            if found is not None:
                found["sets"].append(name)
        if found is None:
            found = _new(family, identity(artifact), name, stages)
            store["looks"].append(found)
        store["sets"].setdefault(name, b64encode(b"".join(rows)).decode())
    return _look(found, found["sets"].index(name) + 1)


def find_look(
    artifact: Product, prompts: Product, accuracy: Mapping[str, object], split: str = "verify"
) -> Look | None:
    """The look that this artifact has taken at exactly these prompts; None where it has none. Takes none.

    Raises EdgekitError as `take` does.
    """
    rows = row_hashes(prompts, split)
    name = hashlib.sha256(b"".join(rows)).hexdigest()[:16]
    with _opened() as store:
        sets = {key: _unpack(packed) for key, packed in store["sets"].items()}
        found = _own(_family(store["looks"], sets, rows), identity(artifact), name, _judged_as(accuracy))
    return _look(found, found["sets"].index(name) + 1) if found else None


def settle(artifact: Product, prompts: Product, accuracy: Mapping[str, object], *, split: str = "verify") -> None:
    """This artifact's accuracy passed: the look after it may use what it had."""
    rows = row_hashes(prompts, split)
    name = hashlib.sha256(b"".join(rows)).hexdigest()[:16]
    with _opened() as store:
        for look in store["looks"]:
            if look["artifact"] == identity(artifact) and name in look["sets"]:
                judged = _judged_as(accuracy)
                look["passed"] = judged if look["passed"] in {None, judged} else _SEVERAL


def identity(artifact: Product) -> str:
    """What an artifact is to those who look: its files, and the settings with which it answers."""
    made = read_artifact(artifact)
    return fingerprint(
        {
            "files": artifact.digest,
            "settings": made.settings,
            "max_length": made.max_length,
            "out_of_scope": made.out_of_scope,
            "runtime_options": made.file.runtime_options,
        }
    )


def row_hashes(prompts: Product, split: str) -> list[bytes]:
    """A hash of each prompt of a split, sorted: of its text as `duplicates` compares texts, then of all that it says."""
    found = set()
    for row in PromptSet(folder=prompts.folder).split(split):
        whole = hashlib.sha256(json.dumps(row.facts(), sort_keys=True).encode()).digest()
        found.add(bytes.fromhex(text_digest(row.text))[:_TEXT] + whole[: _ROW - _TEXT])
    return sorted(found)


@contextmanager
def _opened() -> Iterator[Store]:
    """What is known of all looks, under a lock; written when it was changed."""
    folder = state_folder()
    make_folder(folder)
    path = folder / "looks.json"
    with locked(path.with_suffix(".lock"), f"{path}: another build is writing it; waiting for it"):
        content = read_json(path) if path.is_file() else {"sets": {}, "looks": []}
        if not isinstance(content, dict) or not isinstance(content.get("sets"), dict) or "looks" not in content:
            raise EdgekitError(
                f"{path}: not what edgekit wrote; move it away, and verify on prompts that were not looked at"
            )
        store = cast("Store", content)
        before = fingerprint(store)
        yield store
        if fingerprint(store) != before:
            write_atomically(path, dump_json(store))


def _stages(accuracy: Mapping[str, object]) -> int:
    stages = accuracy.get("stages", 1)
    assert isinstance(stages, int)
    return stages


def _judged_as(accuracy: Mapping[str, object]) -> str:
    return fingerprint({key: value for key, value in accuracy.items() if key != "stages"})[:16]


def _unpack(packed: str) -> frozenset[bytes]:
    rows = b64decode(packed)
    return frozenset(rows[begin : begin + _ROW] for begin in range(0, len(rows), _ROW))


def _family(looks: list[Entry], sets: Mapping[str, frozenset[bytes]], rows: list[bytes]) -> list[Entry]:
    """The looks at prompts that share a text with these, or with those of another look in the family, by place."""
    texts = {key: {row[:_TEXT] for row in kept} for key, kept in sets.items()}
    reached = {row[:_TEXT] for row in rows}
    found: list[Entry] = []
    rest = list(looks)
    while near := [look for look in rest if any(not reached.isdisjoint(texts[name]) for name in look["sets"])]:
        found += near
        rest = [look for look in rest if look not in near]
        reached = reached.union(*(texts[name] for look in near for name in look["sets"]))
    return sorted(found, key=lambda look: look["place"])


def _own(family: list[Entry], artifact: str, name: str, judged: str) -> Entry | None:
    """The look of this artifact at exactly these prompts.

    One whose error the next look has got, because it passed, counts with the limits that it passed: others are a new look.
    """
    for look in family:
        if look["artifact"] == artifact and name in look["sets"] and not (look["handed"] and look["passed"] != judged):
            return look
    return None


def _is_next(look: Entry, sets: Mapping[str, frozenset[bytes]], rows: list[bytes], stages: int) -> bool:
    """Whether these prompts are the planned next stage of a look: all that it has seen, and more."""
    planned = look["stages"] == stages and len(look["sets"]) < stages and not look["handed"]
    return planned and sets[look["sets"][-1]] < frozenset(rows)


def _new(family: list[Entry], artifact: str, name: str, stages: int) -> Entry:
    from edgekit import gate

    index = max((len(family), *(look["place"] for look in family))) + 1
    carried = 0.0
    if family and family[-1]["passed"] not in {None, _SEVERAL} and not family[-1]["handed"]:
        family[-1]["handed"] = True
        carried = family[-1]["alpha"]
    alpha = gate.alpha_for(index, carried=carried)
    return {"artifact": artifact, "sets": [name], "place": index, "alpha": alpha, "stages": stages,
            "passed": None, "handed": False}  # fmt: skip


def _look(entry: Entry, stage: int) -> Look:
    from edgekit import gate

    stages = entry["stages"]
    return gate.Look(
        index=entry["place"],
        alpha=entry["alpha"] * gate.stage_share(stage, stages),
        stage=stage,
        stages=stages,
    )
