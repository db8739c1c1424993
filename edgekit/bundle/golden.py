"""golden.json of a bundle: five calibrate texts with what the artifact answers, which a loader asks before its first answer.

They find what no hash does: an engine, a tokenizer or a CPU that computes something else than what was verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from edgekit.apart import apart
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import Bundle, Loaded, load_bundle
from edgekit.outputs import OUTPUTS
from edgekit.prompts import PromptSet
from edgekit.runtimes import RUNTIMES
from edgekit.schema import dump_json
from edgekit.workspace import file_sha256, fingerprint

GOLDEN = "golden.json"
# Of what the file says: raised where a loader would misread it.
_FORMAT = 1
# How many texts, of how many that are asked for it; a decoder's answers take longer.
_COUNT, _ASKED, _ASKED_TOKENS = 5, 40, 8
# Characters: what ships for every start of an app is short.
_LONGEST = 300
# Tokens of an answer at most, and by how much (logits, nats) each must be likelier than any other: what float16 caches and other
# orders of addition move stays below.
_MOST_TOKENS, _CLEAR_NATS = 16, 0.5
# How far an answer may be from the one that is here, on any CPU: of a score (0 to 1), and of an embedding 1 - cosine. Float32
# adds up in other orders; 16 bits round by 2^-11; where 8 bits or fewer round to the other side, an answer moves as far as
# quantization itself moves it (`verify.on_host`). What computes something else moves answers further.
_TOLERANCES: Mapping[str, tuple[float, float]] = {"32": (1e-3, 1e-4), "16": (5e-3, 1e-3), "": (0.05, 0.05)}

Row = dict[str, object]


def golden(bundle: Bundle, calibrate: Path, before: Path | None) -> str:
    """The text of golden.json of a bundle that has none yet.

    calibrate: a folder of prompts, of which the split "calibrate" is read. before: a golden.json, taken as it is where it is of
    the same model and texts. Of a classifier each row has `text`, `label` and `score` of the answer, of an encoder `text` and
    `embedding`, of a decoder `text`, `asked` (its token ids, without a chat template) and `tokens` (those that follow, the
    likeliest each time, as many as are far likelier than any other). Raises EdgekitError where the runtime cannot open the model.
    """
    manifest = bundle.manifest
    generates = OUTPUTS[manifest.output].generates
    texts = _candidates(calibrate, _ASKED_TOKENS if generates else _ASKED)
    of = fingerprint(
        {
            "format": _FORMAT,
            "model": manifest.artifact.sha256,
            "tokenizer": file_sha256(bundle.folder / manifest.tokenizer) if manifest.tokenizer else None,
            "answers": [
                manifest.labels,
                manifest.out_of_scope,
                manifest.threshold,
                manifest.settings,
                manifest.runtime,
            ],
            "texts": texts,
        }
    )
    if before is not None and before.is_file():
        text = before.read_text(encoding="utf-8")
        if json.loads(text).get("of") == of:
            return text
    answered = apart(
        "edgekit.bundle.golden:answers",
        what=f"{manifest.name}: its golden answers",
        remedy="does the model run on this machine? Try: edgekit doctor",
        folder=str(bundle.folder),
        texts=texts,
    )
    tolerance = tolerance_of(manifest)
    rows = [cast("Row", row) for row in cast("list[object]", answered)]
    return dump_json({"format": _FORMAT, "of": of, "tolerance": tolerance, "rows": choose(rows, manifest, tolerance)})


def answers(folder: str, texts: Sequence[str]) -> list[Row]:
    """What a bundle's folder answers to texts, as rows of golden.json; a classifier's with `clear`: how clear the answer is."""
    from edgekit.bundle.manifest import read_manifest
    from edgekit.schema import read_json

    path = Path(folder)
    manifest = read_manifest(read_json(path / "bundle.json"), folder)
    opened = load_bundle(Bundle(folder=path, manifest=manifest), path)
    if OUTPUTS[manifest.output].generates:
        return _continued(opened, path, manifest, texts)
    rows: list[Row] = []
    for text in texts:
        answer = opened(text)
        if manifest.output == "embedding":
            values = [float(f"{value:.6g}") for value in cast("Sequence[float]", answer)]
            rows.append({"text": text, "embedding": values})
            continue
        ranked = cast("Sequence[tuple[str, float]]", answer)
        label, score = ranked[0]
        others = [other for name, other in ranked if name != label]
        clear = score - others[0] if others else score
        if manifest.threshold is not None:
            best = max(other for name, other in ranked if name in manifest.labels)
            clear = (
                min(clear, abs(best - manifest.threshold)) if label in manifest.labels else manifest.threshold - best
            )
        rows.append({"text": text, "label": label, "score": round(score, 6), "clear": clear})
    return rows


def choose(rows: Sequence[Row], manifest: Manifest, tolerance: float) -> list[Row]:
    """Five of the rows, in their order: of a classifier those that are clearest, each label once before any twice; of a decoder
    those with the most clear tokens; of an encoder any."""
    places = list(range(len(rows)))
    if manifest.output == "embedding":
        step = max(1, len(rows) // _COUNT)
        places = places[::step][:_COUNT]
    elif OUTPUTS[manifest.output].generates:
        places = sorted(places, key=lambda place: -len(cast("list[int]", rows[place]["tokens"])))[:_COUNT]
    else:
        clear = [place for place in places if cast("float", rows[place]["clear"]) > 2 * tolerance]
        clear.sort(key=lambda place: -cast("float", rows[place]["clear"]))
        labels = [rows[place]["label"] for place in clear]
        # How often its label came before: stable, so that among equals the clearest come first.
        places = sorted(clear, key=lambda place: labels[: clear.index(place)].count(rows[place]["label"]))[:_COUNT]
    return [{key: value for key, value in rows[place].items() if key != "clear"} for place in sorted(places)]


def _candidates(calibrate: Path, most: int) -> list[str]:
    """Texts evenly spread over the split, each once: those that are short, or the shortest."""
    known = dict.fromkeys(
        prompt.text for prompt in PromptSet(folder=calibrate).split("calibrate") if prompt.text.strip()
    )
    short = [text for text in known if len(text) <= _LONGEST] or sorted(known, key=len)[:_COUNT]
    count = min(most, len(short))
    return [short[place * len(short) // count] for place in range(count)]


def tolerance_of(manifest: Manifest) -> float:
    """How far an answer may be from the golden one; see _TOLERANCES. Of tokens none: they are equal or not."""
    scheme = manifest.artifact.scheme
    scores, cosine = next(found for bits, found in _TOLERANCES.items() if scheme.endswith(bits))
    return {"embedding": cosine, "logits": scores}.get(manifest.output, 0.0)


def _continued(opened: Loaded, folder: Path, manifest: Manifest, texts: Sequence[str]) -> list[Row]:
    """The likeliest tokens behind each text, as many as are clear, by the runtime that verified; the loader's tokenizer reads."""
    llama: Any = getattr(opened, "llama", None)
    tokenizer: Any = getattr(opened, "tokenizer", None)
    if llama:
        read = {text: llama.tokenize(text.encode()) for text in texts}
        ends = {
            token for stop in manifest.stops for token in llama.tokenize(stop.encode(), add_bos=False, special=True)
        }
        ends.add(llama.token_eos())
    else:
        read = {text: list(tokenizer.encode(text).ids) for text in texts}
        ends = {tokenizer.token_to_id(stop) for stop in manifest.stops}
    options = {key: value for key, value in manifest.runtime.items() if key not in {"name", "minimum"}}
    model = RUNTIMES[manifest.runtime_name].generator(folder / manifest.model, options)
    rows: list[Row] = []
    for text, asked in read.items():
        if not asked or len(asked) + _MOST_TOKENS > model.context:
            continue
        model.clear()
        said: list[int] = []
        fed = asked
        while len(said) < _MOST_TOKENS:
            scores = model.logits(fed, slice(-1, None))[-1]
            best = int(scores.argmax())
            rest = scores.copy()
            rest[best] = -float("inf")
            if best in ends or scores[best] - rest.max() < _CLEAR_NATS:
                break
            said.append(best)
            fed = [best]
        rows.append({"text": text, "asked": asked, "tokens": said})
    model.close()
    return rows
