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
loss, in plain torch, is a row beside, which the difference counts. edgekit does not call it: it has no factor T^2, no weights of
tokens, no cap of logits, no recorded teacher and no correction of a wrong one, and asks each logit anew for a second loss.
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
from typing import cast

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
            wanted = step.teacher_states[part] @ step.teacher_weight.T
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


def liger(step: Step) -> Tensor:
    """liger-kernel's, uncompiled, without its hard loss; the same Jensen-Shannon divergence, mean over tokens."""
    module = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
    loss = module(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, temperature=1.0, compiled=False)
    labels = torch.zeros(len(step.states), dtype=torch.int64)
    return cast(Tensor, loss(step.states, step.weight, step.teacher_states, step.teacher_weight, labels))


WAYS: dict[str, Callable[[Step], Tensor]] = {
    "gkd": gkd,
    "plain_kl": plain_kl,
    "liger": liger,
    "edgekit_jsd": edgekit("jensen_shannon", 1.0),
    "edgekit_kl": edgekit("logits", 2.0),
}


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
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    if options.folder:
        environment["PYTHONPATH"] = os.pathsep.join([options.folder, environment.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        __file__,
        "--way",
        way,
        "--tokens",
        str(tokens),
        "--repeats",
        str(options.repeats if tokens == 1024 else 0),
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(
            f"{way} at {tokens} tokens ended with {run.returncode}; TRL installed? (--with)\n{run.stderr[-2000:]}"
        )
    return Taken(**json.loads(run.stdout.splitlines()[-1]))


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
    options = parser.parse_args()
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
    figures = judge(found)
    missed = [name for name, goal in GOALS.items() if figures[name] > goal]
    if options.json:
        print(
            json.dumps(
                {
                    "goals": GOALS,
                    "measured": figures,
                    "missed": missed,
                    "steps": [asdict(one) for one in found.values()],
                },
                indent=2,
            )
        )
    else:
        for name, goal in GOALS.items():
            print(f"{name:<20} {figures[name]:10.6f}   goal <= {goal:<7} {'missed' if name in missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
