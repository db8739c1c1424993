"""How much does a quantized Llama lose at its bytes? edgekit's mixtures against llama.cpp's schemes, on unseen text.

Goals, with the trained Llama of train_tiny_llama.py, all measured in llama.cpp:
- mean KL of `mixed` at the bytes of Q4_K_M + imatrix (+0/-1 %): at most 0.7 of Q4_K_M's
- mean KL of `mixed` at the bytes of Q4_0 + imatrix (+0/-1 %): at most 0.8 of Q4_0's
- `mixed` at the bytes of Q4_K_M decodes at 0.95 of its speed or faster: lower 95 % bound over interleaved pairs

Text that the model was not trained on is parted by hash: seven files of ten calibrate, through edgekit's own calibration and
mixtures, and only the other three are judged. Beside the goals: types that a person set by tensor, importance matrices from the
same kind of text, from WikiText and none, the other schemes, and the share of the memory bandwidth that decoding reaches.

Usage: python benchmarks/gguf_quality.py [--model FOLDER] [--data ../shared/data] [--pairs 40] [--evaluations 4]
       [--svg FILE] [--json]; exit code 1 where a goal is missed, 2 where data is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from train_tiny_llama import SHARED, default_cache, held_out_texts, pieces, tiny_llama  # noqa: E402

from edgekit.calibrate import Watch  # noqa: E402
from edgekit.calibrate.gradients import gradient_squares  # noqa: E402
from edgekit.calibration import EMBEDDING, Calibration  # noqa: E402
from edgekit.formats import Processor, Source  # noqa: E402
from edgekit.formats.gguf import Options, scheme_types  # noqa: E402
from edgekit.formats.gguf.convert import Quantization, convert  # noqa: E402
from edgekit.formats.gguf.file import read_gguf  # noqa: E402
from edgekit.formats.gguf.imatrix import Imatrix, from_calibration  # noqa: E402
from edgekit.formats.gguf.metadata import describe_model  # noqa: E402
from edgekit.formats.gguf.mixed import choose  # noqa: E402
from edgekit.formats.gguf.schemes import TOKEN_EMBEDDING  # noqa: E402
from edgekit.formats.gguf.tensors import layer_names, plan  # noqa: E402
from edgekit.formats.gguf.tokenizer import vocabulary  # noqa: E402
from edgekit.modalities.text import of_tokens  # noqa: E402
from edgekit.model import load_model  # noqa: E402
from edgekit.runtimes import llamacpp, machine, scores  # noqa: E402
from edgekit.tasks.decoders import load_decoder  # noqa: E402
from edgekit.typed_json import to_table  # noqa: E402

Floats = NDArray[np.float32]
SCHEMES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl")
GOALS = {"q4_k_m": 0.7, "q4_0": 0.8}
SPEED_GOAL = 0.95
# The best of some that a person set with llama.cpp's --tensor-type, over q4_k_m, on another Llama with its head tied (slower).
HAND_SET = {
    "token_embd": "q5_k", "attn_output": "q5_k", "ffn_down": "q5_k", "attn_k": "q6_k", "attn_v": "q6_k"
}  # fmt: skip
LENGTH, PROMPT, NEW = 512, 16, 64
# Of ten files, those that calibrate (a fifth of their blocks judges mixtures) and those that are judged; of --blocks, how many.
PARTS = {"calibrate": range(7), "verify": range(7, 10)}
SHARES = {"calibrate": 3 / 4, "verify": 1.0}
RESAMPLINGS = 2000
WIKITEXT = "wikitext2-raw/wikitext-test.txt"


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Llama's checkpoint folder (default: the trained tiny Llama)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the trained Llama is kept")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs of decodes")
    parser.add_argument(
        "--evaluations", type=int, default=choose.EVALUATIONS, help="KLs that may be measured to refine a mixture"
    )
    parser.add_argument("--blocks", type=int, default=48, help=f"judged blocks of {LENGTH} tokens")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--svg", type=Path, help="write bytes against KL as a picture")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not (asked.data / WIKITEXT).is_file():
        print(f"{asked.data / WIKITEXT}: not here; name the folder with --data", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="edgekit-quality-") as scratch:
        folder = asked.model or tiny_llama(asked.cache, asked.data)
        bench = Bench(folder, asked.data, Path(scratch), asked.threads, asked.blocks)
        found = bench.compare(asked.evaluations)
        found["speed"] = bench.speed(asked.pairs)
    found["goals"] = judge(found)
    if asked.svg:
        asked.svg.write_text(draw(found["rows"]), encoding="utf-8")
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0 if all(goal["met"] for goal in found["goals"]) else 1


class Bench:
    """The model, the texts in their parts, and llama.cpp as the judge."""

    def __init__(self, folder: Path, data: Path, scratch: Path, threads: int, blocks: int) -> None:
        self.scratch, self.threads = scratch, threads
        self.options = {"threads": threads, "kv_k": "f32", "kv_v": "f32"}
        self.model = load_model(folder)
        self.metadata = describe_model(self.model) | vocabulary(self.model) | {"general.file_type": 0}
        self.tensors = {one.name: one for one in plan(self.model)}
        texts = held_out_texts(data)
        # They come in the order of their hashes.
        shares = {part: [text for at, text in enumerate(texts) if at % 10 in some] for part, some in PARTS.items()}
        self.blocks = {part: self.cut(some, math.ceil(SHARES[part] * blocks)) for part, some in shares.items()}
        wiki = (data / WIKITEXT).read_text(encoding="utf-8")
        self.wiki = self.cut(pieces(wiki), len(self.blocks["calibrate"]))
        self.float_file = self.write("f32", dict.fromkeys(self.tensors, "f32"), {})

    def cut(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """Blocks of LENGTH tokens, at most two of each text."""
        found: list[list[int]] = []
        for ids in self.model.encode(list(texts), 2 * LENGTH):
            found += [ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)]
            if len(found) >= count:
                break
        return found[:count]

    def write(self, name: str, types: Mapping[str, str], importance: Mapping[str, Floats]) -> Path:
        """A GGUF file of these types; the others of the same name are replaced."""
        path = self.scratch / f"{name}.gguf"
        convert(self.model, path, Quantization(types=types, importance=importance), self.metadata, threads=self.threads)
        return path

    @cached_property
    def references(self) -> dict[str, Floats]:
        """The float file's logits of the parts that are compared, on disk: float32 [blocks, LENGTH, vocabulary]."""
        decoder = llamacpp.generator(self.float_file, self.options)
        found: dict[str, Floats] = {}
        for part in ("verify",):
            shape = (len(self.blocks[part]), LENGTH, decoder.vocabulary)
            kept = np.memmap(self.scratch / f"{part}.f32", np.float32, "w+", shape=shape)
            for at, ids in enumerate(self.blocks[part]):
                decoder.clear()
                kept[at] = decoder.logits(np.array(ids), slice(None))
            found[part] = kept
        decoder.close()
        return found

    def divergence(self, file: Path, part: str) -> dict[str, Any]:
        """{kl: mean over tokens, blocks: mean of each block, p99, top1} of a file against the float one, in llama.cpp."""
        decoder = llamacpp.generator(file, self.options)
        rows, same = [], 0
        for ids, reference in zip(self.blocks[part], self.references[part], strict=True):
            decoder.clear()
            logits = decoder.logits(np.array(ids), slice(None))
            rows.append(scores.kl(reference, logits))
            same += int((reference.argmax(-1) == logits.argmax(-1)).sum())
        decoder.close()
        every = np.concatenate(rows)
        return {
            "kl": float(every.mean()),
            "p99": float(np.quantile(every, 0.99)),
            "top1": same / every.size,
            "blocks": [float(one.mean()) for one in rows],
        }

    def calibration(self, blocks: Sequence[Sequence[int]], *, gradients: bool) -> Calibration:
        """What `edgekit calibrate` keeps of blocks that go through the float model."""
        module = load_decoder(self.model.folder)
        watch = Watch(module)
        watch.feed(of_tokens(blocks, 0), 4)
        squares = gradient_squares(module, blocks, seed=0) if gradients else {}
        stats = {
            key: replace(one, grad_square=squares.get(key.removesuffix("#0"))) for key, one in watch.stats().items()
        }
        return Calibration(folder=self.scratch, stats=stats, embedding=squares.get(EMBEDDING))

    def matrix(self, calibration: Calibration) -> Imatrix:
        """An importance matrix as an export makes one."""
        names = layer_names(self.model, {key.removesuffix("#0") for key in calibration.stats})
        return from_calibration(calibration, names, dataset="benchmark")

    def types(self, scheme: str, importance: Mapping[str, Floats]) -> Mapping[str, str]:
        """As llama.cpp chooses."""
        return scheme_types(self.metadata, list(self.tensors.values()), scheme, importance).types

    def compare(self, evaluations: int) -> dict[str, Any]:
        """Every row of the table, and how the mixtures were made."""
        say(f"statistics of {len(self.blocks['calibrate'])} blocks, and of WikiText")
        ours = self.calibration(self.blocks["calibrate"], gradients=True)
        matrix = self.matrix(ours)
        sources: dict[str, Mapping[str, Floats]] = {
            "none": {},
            "wikitext": self.matrix(self.calibration(self.wiki, gradients=False)).importance(),
            "in-domain": matrix.importance(),
        }
        rows = []
        for scheme in SCHEMES:
            chosen = sources if scheme in GOALS else {"in-domain": sources["in-domain"]}
            for name, known in chosen.items():
                rows.append(self.row(scheme, name, self.write(scheme, self.types(scheme, known), known)))
        known = sources["in-domain"]
        hand_set = dict(self.types("q4_k_m", known)) | {
            name: kind for name in self.tensors for part, kind in HAND_SET.items() if name.endswith(f"{part}.weight")
        }
        rows.append(self.row("set by hand", "in-domain", self.write("hand", hand_set, known)))
        mixtures = {}
        choose.EVALUATIONS = evaluations
        for like in GOALS:
            say(f"mixed at the bytes of {like}")
            begun = time.perf_counter()
            file = self.scratch / f"mixed@{like}.gguf"
            _, choices = choose.mix(
                self.source(ours),
                list(self.tensors.values()),
                self.types(like, sources["in-domain"]),
                Options(scheme="mixed", like=like),  # type: ignore[arg-type]
                matrix,
                self.metadata,
                file,
            )
            rows.append(self.row(f"mixed @ {like}", "in-domain", file))
            mixtures[like] = to_table(choices) | {"seconds": round(time.perf_counter() - begun, 1)}
        return {"machine": machine.describe(), "rows": rows, "mixtures": mixtures}

    def source(self, calibration: Calibration) -> Source:
        """What an export gives its format."""
        told = machine.describe()
        return Source(
            model=self.model,
            load=lambda: load_decoder(self.model.folder),
            calibration=lambda: calibration,
            encoded=of_tokens(self.blocks["calibrate"], 0),
            texts=[],
            conversations=[],
            output="tokens",
            name="benchmark",
            dataset="benchmark",
            fingerprints={},
            processor=Processor(arch=str(told["arch"]), features=list(told["features"]), bandwidth_gbs=None),
            score=None,
            max_length=LENGTH,
        )

    def row(self, name: str, source: str, file: Path) -> dict[str, Any]:
        """One row of the table."""
        size = sum(place.bytes for place in read_gguf(file).tensors.values())
        found = {"name": name, "imatrix": source, "bytes": size} | self.divergence(file, "verify")
        say(f"{name:16} {source:10} {found['bytes']:>11,} bytes, KL {found['kl']:.5f}")
        return found

    def speed(self, pairs: int) -> dict[str, Any]:
        """Decode of `mixed` over that of Q4_K_M in interleaved pairs, its 95 % interval, and the share of the roofline."""
        say(f"{pairs} pairs of decodes")
        # What llama.cpp does when nobody asks for anything else.
        options = {"threads": self.threads}
        files = {name: self.scratch / f"{name}.gguf" for name in ("mixed@q4_k_m", "q4_k_m")}
        decoders = {name: llamacpp.generator(file, options) for name, file in files.items()}
        prompt = np.array(self.blocks["verify"][0][:PROMPT])
        for decoder in decoders.values():
            decode(decoder, prompt)
        rates: dict[str, list[float]] = {name: [] for name in decoders}
        for pair in range(pairs):
            for name in sorted(decoders, reverse=bool(pair % 2)):
                rates[name].append(decode(decoders[name], prompt))
        for decoder in decoders.values():
            decoder.close()
        ratios = np.array(rates["mixed@q4_k_m"]) / np.array(rates["q4_k_m"])
        low, high = interval(lambda chosen: float(np.median(ratios[chosen])), pairs)
        bandwidth = machine.bandwidth_gbs(self.threads)
        read = {name: read_per_token(file) for name, file in files.items()}
        shares = {name: statistics.median(rates[name]) * read[name] / bandwidth / 1e9 for name in files}
        medians = {name: statistics.median(rates[name]) for name in files}
        return {
            "tokens_per_second": medians,
            "ratio": float(np.median(ratios)),
            "interval": [low, high],
            "pairs": pairs,
            "bandwidth_gbs": bandwidth,
            "roofline_share": shares,
            "threads": self.threads,
        }


def decode(decoder: llamacpp.Generator, prompt: NDArray[np.intp]) -> float:
    """Tokens per second of NEW greedy tokens behind the prompt."""
    decoder.clear()
    token = int(decoder.logits(prompt, slice(-1, None)).argmax())
    begun = time.perf_counter()
    for _ in range(NEW):
        token = int(decoder.logits(np.array([token]), slice(None)).argmax())
    return NEW / (time.perf_counter() - begun)


def read_per_token(file: Path) -> int:
    """Bytes of weights that one token reads: all but an embedding that is no head."""
    places = read_gguf(file).tensors
    return sum(
        place.bytes for name, place in places.items() if name != TOKEN_EMBEDDING or "output.weight" not in places
    )


def interval(statistic: Callable[[NDArray[np.intp]], float], count: int) -> tuple[float, float]:
    """The 95 % interval of a statistic of `count` things, by resampling their places."""
    numbers = np.random.default_rng(0)
    drawn = sorted(statistic(numbers.integers(0, count, count)) for _ in range(RESAMPLINGS))
    return drawn[int(0.025 * RESAMPLINGS)], drawn[int(0.975 * RESAMPLINGS)]


def judge(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The goals: {goal, measured, interval, limit, met}."""
    rows = {(row["name"], row["imatrix"]): row for row in found["rows"]}
    goals = []
    for like, limit in GOALS.items():
        base, mixed = rows[like, "in-domain"], rows[f"mixed @ {like}", "in-domain"]
        ours, theirs = np.array(mixed["blocks"]), np.array(base["blocks"])
        ends = interval(lambda chosen: float(ours[chosen].mean() / theirs[chosen].mean()), len(ours))  # noqa: B023
        ratio, size = mixed["kl"] / base["kl"], mixed["bytes"] / base["bytes"]
        goals.append(_goal(f"KL of mixed / {like}", ratio, list(ends), limit, ratio <= limit))
        goals.append(_goal(f"bytes of mixed / {like}", size, None, 1.0, 0.99 <= size <= 1.0))
    speed = found["speed"]
    met = speed["interval"][0] >= SPEED_GOAL
    goals.append(_goal("decode of mixed / q4_k_m, lower bound", speed["ratio"], speed["interval"], SPEED_GOAL, met))
    return goals


def _goal(name: str, measured: float, ends: list[float] | None, limit: float, met: bool) -> dict[str, Any]:
    return {"goal": name, "measured": measured, "interval": ends, "limit": limit, "met": met}


def show(found: Mapping[str, Any]) -> None:
    """The table for people."""
    print(f"{'scheme':16} {'imatrix':10} {'bytes':>12} {'mean KL':>9} {'p99 KL':>8} {'top-1':>7}")
    for row in sorted(found["rows"], key=lambda one: (one["bytes"], one["kl"])):
        print(
            f"{row['name']:16} {row['imatrix']:10} {row['bytes']:>12,} {row['kl']:>9.5f} {row['p99']:>8.4f}"
            f" {row['top1']:>7.2%}"
        )
    speed = found["speed"]
    print(f"\ndecode with {speed['threads']} threads, {speed['bandwidth_gbs']:.1f} GB/s:")
    for name, rate in speed["tokens_per_second"].items():
        print(f"  {name:16} {rate:8.1f} tokens/s, {speed['roofline_share'][name]:.0%} of the roofline")
    print()
    for goal in found["goals"]:
        ends = "" if goal["interval"] is None else " ({:.3f} to {:.3f})".format(*goal["interval"])
        print(
            f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['measured']:.3f}{ends}, goal {goal['limit']}"
        )


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bytes against mean KL, both axes logarithmic, as an SVG of its own."""
    width, height, edge = 720, 440, 60
    sizes, losses = [math.log(row["bytes"]) for row in rows], [math.log(row["kl"]) for row in rows]

    def place(values: Sequence[float], value: float, begin: float, end: float) -> float:
        low, high = min(values), max(values)
        return begin + (value - low) / max(high - low, 1e-9) * (end - begin)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{edge} {edge / 2}V{height - edge}H{width - edge / 2}" fill="none" stroke="#888"/>',
        f'<text x="{width / 2}" y="{height - 20}" text-anchor="middle">bytes (logarithmic)</text>',
        f'<text x="16" y="{edge / 2 - 8}">mean KL, nats (logarithmic)</text>',
    ]
    for row, size, loss in zip(rows, sizes, losses, strict=True):
        x = place(sizes, size, edge + 20, width - edge - 90)
        y = place(losses, loss, height - edge - 20, edge)
        color = "#c0392b" if str(row["name"]).startswith("mixed") else "#2c6fbb"
        source = "" if row["imatrix"] == "in-domain" else f", imatrix: {row['imatrix']}"
        label = f"{row['name']}{source} ({row['bytes'] / 1e6:.2f} MB, {row['kl']:.4f})"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 7:.1f}" y="{y + 4:.1f}" fill="{color}" font-size="10">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def say(what: str) -> None:
    """Progress, beside the table."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
