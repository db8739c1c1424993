"""What the loss of one distillation step takes at a vocabulary of 128,256 tokens: edgekit's, TRL's for GKD, and plain KL.

Goals, on the CPU in float32:
- at 1k tokens, Jensen-Shannon: peak memory <= 0.15 x TRL's GKD loss, time <= 0.6 x;
- at 1k tokens, KL: peak memory <= 0.35 x plain KL of all logits;
- at 8k tokens: peak memory <= 1.1 x that at 1k;
- the loss and the norm of the gradients are those of the other way, to 1e-4.

A step begins with the last hidden states of student and teacher (drawn, with drawn heads), and ends with the gradients of the
student's states and of its head: what comes before is the same in every way. Each runs in a process of its own. Memory is the
peak of the resident set above that before the first step, the gradients included. Time is the process's CPU time, the median of
`--repeats` steps after the first, on one thread unless `--threads` says otherwise: on one thread it is what a step takes on a
machine that does nothing else. TRL's loss is the one of an installed `trl`; `--with FOLDER` names a folder that it was installed
into (pip install --no-deps --target FOLDER trl; it needs datasets). Where liger-kernel is there too, its chunked Jensen-Shannon
loss, in plain torch, is a row beside, which the difference counts.

edgekit does not call it, not even on a GPU. In float32 its gradients are the same for three losses (logits, reverse_kl,
jensen_shannon, each times T^2, with labels beside). But a GPU trains in bf16, and there it takes logarithms, mixture and sums
of the teacher's and the student's probabilities in bf16: `in bf16` tells how far the loss and the gradients of both are from
float64's, at T = 2, of the same rounded numbers. edgekit's are of logits that were rounded, and exact from there on. In float32
alone it could stand in, for one of three losses, but not with a cap of logits, sequences that count alike, `confidence`,
`correct_teacher`, TAID, a reward, several teachers, a recorded one, or one of another vocabulary; and which of two ways is faster
is told by a clock, so that weights would follow from what else a machine did.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgekit.distill.chunked import Head, mean_over_tokens
from edgekit.distill.divergences import Compared, LossOptions
from edgekit.distill.losses import LOSSES, compare_logits

# Llama 3's vocabulary and the width of SmolLM2-135M; a student that is cut from its teacher has the teacher's width.
VOCABULARY, CHANNELS = 128_256, 576
GOALS = {
    "memory_of_gkd": 0.15,
    "time_of_gkd": 0.6,
    "memory_of_plain_kl": 0.35,
    "memory_8k_of_1k": 1.1,
    "difference": 1e-4,
}

# What a way's process imports before its memory counts.
LIBRARIES = {"gkd": "trl.experimental.gkd.gkd_trainer", "liger": "liger_kernel.chunked_loss"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step's inputs: hidden states [tokens, channels], and the heads' weights [vocabulary, channels]."""

    states: Tensor
    weight: Tensor
    teacher_states: Tensor
    teacher_weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a way took: megabytes above the inputs', seconds of CPU, and what it gave."""

    way: str
    tokens: int
    memory_mb: float
    seconds: float
    loss: float
    gradient: float


def edgekit(name: str, temperature: float) -> Callable[[Step], Tensor]:
    """A loss of edgekit's table."""

    def loss(step: Step) -> Tensor:
        options, targets = LossOptions(temperature=temperature), torch.zeros(len(step.states), dtype=torch.int64)

        def compare(logits: Tensor, part: slice) -> Compared:
            wanted = Head(weight=step.teacher_weight)(step.teacher_states[part])
            return compare_logits(LOSSES[name], logits, wanted, targets[part], options)

        return mean_over_tokens(step.states, Head(weight=step.weight), compare, len(step.states))

    return loss


def plain_kl(step: Step) -> Tensor:
    """torch's own KL of all logits, times T^2."""
    given = (step.states @ step.weight.T / 2.0).log_softmax(dim=-1)
    with torch.no_grad():
        wanted = (step.teacher_states @ step.teacher_weight.T / 2.0).log_softmax(dim=-1)
    return torch.nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * 4.0


def gkd(step: Step) -> Tensor:
    """TRL's, as its trainer calls it: beta = 0.5 at T = 1, of all logits [1, tokens, vocabulary]."""
    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    given = (step.states @ step.weight.T)[None]
    with torch.no_grad():
        wanted = (step.teacher_states @ step.teacher_weight.T)[None]
    labels = torch.zeros(given.shape[:2], dtype=torch.int64)
    return cast(
        Tensor, trainer.generalized_jsd_loss(student_logits=given, teacher_logits=wanted, labels=labels, beta=0.5)
    )


def liger(temperature: float) -> Callable[[Step], Tensor]:
    """liger-kernel's, uncompiled, without its hard loss; the same Jensen-Shannon divergence, mean over tokens, times T^2."""

    def loss(step: Step) -> Tensor:
        module = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
        weights = {"weight_hard_loss": 0.0, "weight_soft_loss": temperature**2}
        make = module(**weights, beta=0.5, temperature=temperature, compiled=False)
        labels = torch.zeros(len(step.states), dtype=torch.int64)
        return cast(Tensor, make(step.states, step.weight, step.teacher_states, step.teacher_weight, labels))

    return loss


WAYS: dict[str, Callable[[Step], Tensor]] = {
    "gkd": gkd,
    "plain_kl": plain_kl,
    "liger": liger(1.0),
    "edgekit_jsd": edgekit("jensen_shannon", 1.0),
    "edgekit_kl": edgekit("logits", 2.0),
}
# The same at T = 2, for `stray`.
WARM = {"edgekit_jsd": edgekit("jensen_shannon", 2.0), "liger": liger(2.0)}


def measure(way: str, tokens: int, *, repeats: int, vocabulary: int = VOCABULARY) -> Taken:
    """Run a way's steps in this process."""
    if way in LIBRARIES:
        importlib.import_module(LIBRARIES[way])
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    step = Step(
        states=draw(tokens, CHANNELS).requires_grad_(),
        weight=draw(vocabulary, CHANNELS).mul_(2 / CHANNELS**0.5).requires_grad_(),
        teacher_states=draw(tokens, CHANNELS),
        teacher_weight=draw(vocabulary, CHANNELS).mul_(2 / CHANNELS**0.5),
    )
    run_small(WAYS[way])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew: proc(5)
    seconds, loss, gradient = [], 0.0, 0.0
    for _ in range(repeats + 1):
        for leaf in (step.states, step.weight):
            leaf.grad = None
        began = time.process_time()
        total = WAYS[way](step)
        total.backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - began)
        norms = [leaf.grad.norm() for leaf in (step.states, step.weight) if leaf.grad is not None]
        loss, gradient = float(total.detach()), float(sum(norms))
        del total
    return Taken(
        way=way,
        tokens=tokens,
        memory_mb=round(resident("VmHWM") - before, 1),
        seconds=round(statistics.median(seconds[1:] or seconds), 3),
        loss=loss,
        gradient=gradient,
    )


def stray(way: str, *, tokens: int = 256, vocabulary: int = 2000, channels: int = 64) -> dict[str, float]:
    """How far a way in bf16 is from edgekit's in float64, of the same numbers, which bf16 holds: of the loss a share, of the
    gradients the norm of what is wrong as a share of the norm, the larger one of states and head."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    states, weight = draw(tokens, channels), draw(vocabulary, channels) * (2 / channels**0.5)
    # A teacher that says nearly what the student says.
    theirs = (states + 0.3 * draw(tokens, channels), weight + 0.2 / channels**0.5 * draw(vocabulary, channels))

    def take(make: Callable[[Step], Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        own = [one.bfloat16().to(dtype).requires_grad_() for one in (states, weight)]
        asked = [one.bfloat16().to(dtype) for one in theirs]
        loss = make(Step(states=own[0], weight=own[1], teacher_states=asked[0], teacher_weight=asked[1]))
        return loss.detach().double(), *(one.double() for one in torch.autograd.grad(loss, own))

    given, wanted = take(WARM[way], torch.bfloat16), take(WARM["edgekit_jsd"], torch.float64)
    shares = [float((one - exact).norm() / exact.norm()) for one, exact in zip(given, wanted, strict=True)]
    return {"loss": shares[0], "gradient": max(shares[1:])}


def run_small(way: Callable[[Step], Tensor]) -> None:
    """A step of a tiny vocabulary, so that what libraries take at their first call is not the step's."""
    step = Step(
        states=torch.ones(2, 4, requires_grad=True),
        weight=torch.ones(8, 4, requires_grad=True),
        teacher_states=torch.ones(2, 4),
        teacher_weight=torch.ones(8, 4),
    )
    way(step).backward()  # type: ignore[no-untyped-call]


def resident(key: str) -> float:
    """Megabytes that /proc/self/status tells."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {key}: this benchmark runs on Linux")


def judge(found: dict[tuple[str, int], Taken]) -> dict[str, float]:
    """The figures that have goals. found: by way and tokens."""
    mine, theirs = found["edgekit_jsd", 1024], found["gkd", 1024]
    kl, plain = found["edgekit_kl", 1024], found["plain_kl", 1024]
    pairs = [(mine, theirs), (kl, plain)]
    if ("liger", 1024) in found:
        pairs.append((mine, found["liger", 1024]))
    return {
        "memory_of_gkd": mine.memory_mb / theirs.memory_mb,
        "time_of_gkd": mine.seconds / theirs.seconds,
        "memory_of_plain_kl": kl.memory_mb / plain.memory_mb,
        "memory_8k_of_1k": max(
            found[way, 8192].memory_mb / found[way, 1024].memory_mb for way in ("edgekit_jsd", "edgekit_kl")
        ),
        "difference": max(
            max(abs(a.loss - b.loss) / abs(b.loss), abs(a.gradient - b.gradient) / b.gradient) for a, b in pairs
        ),
    }


def has_liger(folder: str | None) -> bool:
    """Whether liger-kernel is installed, here or in a folder."""
    if folder is not None and Path(folder, "liger_kernel").is_dir():
        return True
    return importlib.util.find_spec("liger_kernel") is not None


def in_process(way: str, tokens: int, options: argparse.Namespace) -> Taken:
    """A way in a process of its own."""
    return Taken(
        **run_apart(way, options, "--tokens", str(tokens), "--repeats", str(options.repeats * (tokens == 1024)))
    )


def run_apart(way: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What this benchmark says of a way in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    if options.folder:
        environment["PYTHONPATH"] = os.pathsep.join([options.folder, environment.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--way", way, *more]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{way} ended with {run.returncode}; TRL installed? (--with)\n{run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure, print a table or one JSON object, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--with", dest="folder", help="a folder that trl was installed into")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed steps after the first; at 8k tokens only the first is run"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=1024, help=argparse.SUPPRESS)
    parser.add_argument("--in-bf16", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_bf16:
        print(json.dumps(stray(options.way)))
        return 0
    if options.way:
        print(json.dumps(asdict(measure(options.way, options.tokens, repeats=options.repeats))))
        return 0
    found = {}
    ways = [way for way in WAYS if way != "liger" or has_liger(options.folder)]
    for way, tokens in [*((way, 1024) for way in ways), ("edgekit_jsd", 8192), ("edgekit_kl", 8192)]:
        found[way, tokens] = taken = in_process(way, tokens, options)
        if not options.json:
            print(
                f"{way:<14}{tokens:>6} tokens {taken.memory_mb:>9.0f} MB {taken.seconds:>8.2f} s  loss {taken.loss:.6f}",
                flush=True,
            )
    strays = {way: run_apart(way, options, "--in-bf16") for way in WARM if way in ways}
    figures = judge(found)
    missed = [name for name, goal in GOALS.items() if figures[name] > goal]
    if options.json:
        print(
            json.dumps(
                {
                    "goals": GOALS,
                    "measured": figures,
                    "missed": missed,
                    "in_bf16": strays,
                    "steps": [asdict(one) for one in found.values()],
                },
                indent=2,
            )
        )
    else:
        for way, off in strays.items():
            print(f"{way:<14} in bf16: loss off by {off['loss']:.2%}, gradients by {off['gradient']:.2%}")
        for name, goal in GOALS.items():
            print(f"{name:<20} {figures[name]:10.6f}   goal <= {goal:<7} {'missed' if name in missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
