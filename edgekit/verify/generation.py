"""Verify, of a decoder: how far its likelihoods and answers moved from the float model's, and how fast it reads and writes.

All bounds take a prompt as one observation, of running text a row of the data, of groups (data.group) a group: tokens of one text
err together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import gate
from edgekit.evidence import Comparison, Divergence, Rates, RuntimeVersion, Shape, finite
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Decode, First, Lines, Load, MachineSpeed, Peak, Prefill, Reading, Sweep
from edgekit.progress import Progress
from edgekit.prompts import Prompt
from edgekit.verify import accuracy as compared
from edgekit.verify import clusters
from edgekit.verify.accuracy import Answers
from edgekit.verify.margins import FAR, default_margins
from edgekit.verify.measurements import Measurements, Processes, Speed, Timed, flat, request, time_again, write
from edgekit.verify.recorded import Recorded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from edgekit.devices import Device
    from edgekit.runtimes.request import Timing
    from edgekit.target import Budget

    Arrays = Mapping[str, NDArray[Any]]

# Prompt lengths in tokens at which the first token is timed, beside the budget's own; new tokens behind the longest; calls.
TIMING: Timing = {"prompts": (16, 64, 256), "new": 64, "repeats": 8, "seconds": 30.0, "sweep": True}
# Of the processes that follow, for their times alone.
AGAIN: Timing = {"repeats": 3, "seconds": 3.0, "sweep": False}
_WORSE = ("pass", "not proven", "fail")
_LONG_TAILED = (
    "few prompts have most of the loss, and others like them may be missing among these: no bound of the mean holds; verify on a"
    " larger fresh set, or cut long texts (data.max_length)"
)
_FEW = (
    "{prompts} prompts that are independent bound no mean of likelihoods: verify on at least {fewest}. Passages of one text, and"
    " texts of one group (data.group), are one"
)


def ask_tokens(file: Path, runtime: str, options: Mapping[str, object], recorded: Recorded, budget: Budget) -> Question:
    """What was recorded as a question: first the prompts to answer, then the passages, then the choices."""
    import numpy as np

    asked, passages = recorded.rows("asked"), recorded.rows("ids", "offsets")
    choices = recorded.rows("choice_ids", "choice_offsets")
    starts = [len(row) for row in asked], recorded.arrays["starts"].tolist(), recorded.arrays["choice_starts"].tolist()
    inputs: dict[str, ArrayLike] = flat([*asked, *passages, *choices]) | {
        "starts": np.array([start for part in starts for start in part], np.int64),
        "referenced": len(asked) + len(passages),
        "generate": len(asked),
        "max_new": recorded.sequences.max_new,
        "stop": np.array(recorded.sequences.stop, np.int64),
    }
    for role in ("student", "teacher"):
        if f"{role}_ids" in recorded.arrays:
            inputs |= {key: recorded.arrays[key] for key in (f"{role}_ids", f"{role}_logprobs")}
    timing: Timing = {**TIMING, "prompts": sorted({*TIMING["prompts"], budget.sequence})}
    return Question(file=file, request=request(runtime, options, timing, kind="tokens"), inputs=inputs)


def measure(
    question: Question,
    budget: Budget,
    device: Device,
    processes: Processes,
    progress: Progress,
    out: Path,
) -> tuple[Measurements, dict[str, NDArray[Any]]]:
    """The measurements of what `ask_tokens` asks, a call being one new token, and the probe's arrays (see `runtimes.generation`).

    Where a process's times will be judged, others follow, which time the budget's prompt and the longest. Raises DeviceFailed
    where the probe does not finish.
    """
    import numpy as np

    inputs = question.inputs
    answers, referenced = (int(np.asarray(inputs[key])) for key in ("generate", "referenced"))
    progress(0, 0, f"{answers} answers and {referenced - answers} texts in {question.request['runtime']}")
    answer = PROBES[device.PROBE].ask(device, question)
    found = _read(answer.lines, budget)
    length, longest = found.real_lengths[0], answer.lines.read("decode", Decode).depth
    fewer: Timing = {**AGAIN, "prompts": sorted({length, longest})}
    bare = {key: value for key, value in inputs.items() if not key.endswith(("_ids", "_logprobs"))}
    again = replace(question.only_times(**fewer), inputs=bare | {"referenced": 0})
    found = time_again(found, again, device, processes, partial(read_timed, length=length), progress)
    write(out, found, answer.arrays)
    return found, dict(answer.arrays)


def read_timed(lines: Lines, length: int) -> Timed:
    """The tokens of one process, and its times to the first one behind `length`, a cold one only where there is no other."""
    prefill, decode = lines.read("prefill", Prefill), lines.read("decode", Decode)
    first = dict(zip(prefill.lengths, prefill.ms, strict=True))[length]
    return Timed(
        times=decode.ms,
        first=first[1:] or first,
        neighbours=decode.neighbours,
        spell=decode.spell,
        before=decode.before,
        after=decode.after,
        sha256=lines.sha256,
    )


def _read(lines: Lines, budget: Budget) -> Measurements:
    import numpy as np

    load, decode, prefill = lines.read("load", Load), lines.read("decode", Decode), lines.read("prefill", Prefill)
    memory, machine = lines.read("memory", Peak), lines.read("machine", MachineSpeed)
    swept = lines.read("threads", Sweep) if "threads" in lines.events else None
    first = {
        length: times for length, times in zip(prefill.lengths, prefill.ms, strict=True) if times
    }  # of each one is cold
    asked = min(first, key=lambda length: abs(length - budget.sequence))
    longest = max(first)
    warm = {length: float(np.median(times[1:] or times)) for length, times in first.items()}
    return Measurements(
        device=lines.device,
        speed=machine.speed,
        work=lines.work,
        runtime=RuntimeVersion(name=load.runtime, version=load.version),
        available=load.available,
        shape=Shape(batch=1, sequence=decode.depth, threads=decode.threads),
        load_ms=load.ms,
        first_ms=first[asked][0],
        processes=(read_timed(lines, asked),),
        real_times=first[asked][1:] or first[asked],
        real_lengths=(asked,),
        peak_mb=memory.peak_mb,
        energy=lines.energy,
        neighbours=machine.neighbours,
        cold_ms=lines.read("first", First).alive_ms if "first" in lines.events else None,
        reading=lines.read("tokenizer", Reading) if "tokenizer" in lines.events else None,
        generation=Speed(
            ttft_ms={str(length): time for length, time in warm.items()},
            ttft_cold_ms={str(length): times[0] for length, times in first.items()},
            tokens_per_second=Rates(prefill=1e3 * longest / warm[longest], decode=1e3 / float(np.median(decode.ms))),
            threads={"prefill": swept.prefill, "decode": swept.decode} if swept else {},
            memory_mb={key: value for key, value in vars(memory).items() if value is not None},
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The comparisons of an artifact's likelihoods and answers, and the figures of its report (see `evidence.Report`).

    is_finite: whether all that it answered are numbers. right: of each prompt with a wanted answer, whether the artifact gives
    it; asked: those prompts; groups: what each has in common with others.
    """

    comparisons: Sequence[Comparison]
    kl: Divergence
    top1: float
    perplexity: Mapping[str, float | None]
    tokens: int
    is_finite: bool
    notes: Sequence[str]
    right: Sequence[bool] = ()
    asked: Sequence[int] = ()
    groups: Sequence[str] = ()


def judge(
    recorded: Recorded,
    arrays: Arrays,
    prompts: Sequence[Prompt],
    limits: Mapping[str, float],
    answers: Sequence[str],
    alpha: float,
) -> Judged:
    """Compare the artifact's answers with the record. limits: those of `margins.Limits`, absent ones left
    out but for kl, top1, perplexity and answer_length. answers: the artifact's greedy answers in words."""
    import numpy as np

    tokens = _tokens(recorded)
    nll = arrays["nll"].astype(np.float64)
    passages, choices = nll[: len(tokens)], nll[len(tokens) :]
    groups = _groups(prompts)
    results = _compare_tokens(recorded, arrays, tokens, passages, groups, limits, alpha)
    results.append(_compare_lengths(recorded, arrays, groups, limits["answer_length"], alpha))
    worded, truth, own = _worded(recorded, prompts, answers, choices)
    results += _compare_answers(worded, truth, [groups[index] for index in own], limits, alpha)
    reference = recorded.arrays["student_nll"].astype(np.float64)
    perplexity = {"artifact": _perplexity(passages), "student": _perplexity(reference)}
    if "teacher_nll" in recorded.arrays:
        perplexity["teacher"] = _perplexity(recorded.arrays["teacher_nll"].astype(np.float64))
    kl = arrays["student_kl"]
    comparisons = [entry for entry in results if entry is not None]
    return Judged(
        comparisons=comparisons,
        kl=Divergence(mean=finite(float(kl.mean())), p99=finite(float(np.quantile(kl, 0.99)))),
        top1=float(arrays["student_top1"].mean()),
        perplexity=perplexity,
        tokens=len(tokens),
        is_finite=bool(np.isfinite(nll).all() and np.isfinite(kl).all()),
        notes=_notes(comparisons),
        right=[a == b for a, b in zip(worded["artifact"].labels, truth, strict=True)],
        asked=own,
        groups=[groups[index] for index in own],
    )


def passages(recorded: Recorded, prompts: Sequence[Prompt]) -> tuple[NDArray[np.int64], list[str]]:
    """Of every scored token the passage that it belongs to, and of every passage what errs together with it."""
    groups = _groups(prompts)
    return _tokens(recorded), [groups[index] for index in recorded.arrays["prompts"].tolist()]


def _groups(prompts: Sequence[Prompt]) -> list[str]:
    """Of each prompt what errs together with it: its group, or itself (of running text, all passages of one row)."""
    return [f"prompt {index}" if row.group is None else f"group {row.group}" for index, row in enumerate(prompts)]


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    """What was compared and not judged, though a limit was asked for."""
    return [
        f"accuracy against the {entry.reference} is shown and not judged: the {entry.reference} gives"
        f" {entry.reference_score:.0%} of the wanted answers word for word, so losing them all would not fail"
        for entry in comparisons
        if entry.metric == "accuracy" and entry.margin is None
    ]


def _perplexity(nll: NDArray[np.float64]) -> float | None:
    import numpy as np

    with np.errstate(over="ignore"):
        return finite(float(np.exp(nll.mean())))


def _tokens(recorded: Recorded) -> NDArray[np.int64]:
    """Of every token that the passages say, the prompt that it belongs to; of running text, the passage."""
    import numpy as np

    lengths = np.diff(recorded.arrays["offsets"]) - recorded.arrays["starts"]
    return np.repeat(np.arange(len(lengths)), lengths)


def _compare_tokens(
    recorded: Recorded,
    arrays: Arrays,
    tokens: NDArray[np.int64],
    nll: NDArray[np.float64],
    groups: Sequence[str],
    limits: Mapping[str, float],
    alpha: float,
) -> list[Comparison | None]:
    """KL, likeliest tokens and perplexity against the float student, and KL against the teacher, which is shown only."""
    import numpy as np

    own = [groups[index] for index in recorded.arrays["prompts"].tolist()]
    together = clusters.indices(own)[tokens]

    def per_cluster(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(together, weights=values.astype(np.float64)), np.float64)

    counts = per_cluster(np.ones(len(tokens)))
    far = limits.get("far_kl", FAR * limits["kl"])
    longest = float(recorded.max_length)
    comparisons: list[Comparison | None] = []
    for role, judged in (("student", True), ("teacher", False)):
        if f"{role}_kl" not in arrays:
            continue
        sums = per_cluster(arrays[f"{role}_kl"])
        kl = gate.ratio_bounds(sums, counts, alpha, most=far, longest=longest)
        margin = limits["kl"] if judged else None
        tail = judged and gate.is_long_tailed(sums, counts, limits["kl"], alpha, most=far, longest=longest)
        comparisons.append(_comparison(role, "kl", kl, margin, len(counts), alpha, _LONG_TAILED if tail else None))
        if judged:
            comparisons.append(_compare_far(tokens, arrays[f"{role}_kl"], far, own, limits["far_share"], alpha))
        lost = per_cluster(~arrays[f"{role}_top1"].astype(bool))
        changed = gate.ratio_bounds(lost, counts, alpha, share=True, most=1.0, longest=longest)
        comparisons.append(
            _comparison(role, "top1", changed, 1.0 - limits["top1"] if judged else None, len(counts), alpha)
        )
    rise = per_cluster(nll - recorded.arrays["student_nll"].astype(np.float64))
    most = FAR * math.log(limits["perplexity"])
    ratio = [np.expm1(value) for value in gate.ratio_bounds(rise, counts, alpha, most=most, longest=longest)]
    comparisons.append(
        _comparison("student", "perplexity", tuple(ratio), limits["perplexity"] - 1.0, len(counts), alpha)
    )
    return comparisons


def _compare_far(
    tokens: NDArray[np.int64], kl: NDArray[np.floating], far: float, groups: Sequence[str], margin: float, alpha: float
) -> Comparison:
    """The share of passages whose own mean KL exceeds `far` nats a token, with its exact bound."""
    import numpy as np

    means = np.bincount(tokens, weights=kl.astype(np.float64)) / np.bincount(tokens)
    beyond = ~(means <= far)
    lo, hi = clusters.proportion_bounds(beyond, groups, alpha)
    count, n = int(beyond.sum()), len(beyond)
    found = _comparison("student", "close", (count / n, lo, hi), margin, n, alpha)
    needed = gate.prompts_needed(count, 0, n, margin, alpha) if found.verdict == "not proven" else None
    return replace(found, flips={"far": count}, prompts_needed=needed)


def _compare_lengths(
    recorded: Recorded, arrays: Arrays, groups: Sequence[str], least: float, alpha: float
) -> Comparison | None:
    """Tokens of greedy answers, by the float student's: what stops early only looks faster, what does not stop is no use.

    Answers must be neither shorter than `least` of the student's nor longer than 1 / least: the worse of both counts.
    """
    import numpy as np

    together = clusters.indices([groups[index] for index in recorded.arrays["asked_prompts"].tolist()])
    if not len(together):
        return None
    expected, answered = (
        np.bincount(together, weights=np.diff(offsets).astype(np.float64)).astype(np.float64)
        for offsets in (recorded.arrays["student_answer_offsets"], arrays["answer_offsets"])
    )
    if not expected.sum():
        return None
    longest = float(recorded.sequences.max_new)
    sides = [
        _comparison("student", "answer_length", bounds, margin, len(expected), alpha)
        for bounds, margin in (
            (
                gate.ratio_bounds(expected - answered, expected, alpha, share=True, most=1.0, longest=longest),
                1.0 - least,
            ),
            (
                gate.ratio_bounds(
                    answered - expected, expected, alpha, share=True, most=FAR * (1.0 / least - 1.0), longest=longest
                ),
                1.0 / least - 1.0,
            ),
        )
    ]
    worse = max(sides, key=lambda side: (_WORSE.index(str(side.verdict)), (side.bound or 0.0) / (side.margin or 1.0)))
    return replace(worse, score=float(answered.sum() / expected.sum()))


def _worded(
    recorded: Recorded, prompts: Sequence[Prompt], answers: Sequence[str], choices: NDArray[np.float64]
) -> tuple[dict[str, Answers], list[str], list[int]]:
    """What each model answers where prompts have wanted answers (the same words, or the likeliest of the choices), the wanted
    answers, and the prompts' indices."""
    import numpy as np

    texts = {"artifact": list(answers), **{role: list(texts) for role, texts in recorded.texts.items()}}
    picked = _picked(recorded, prompts, choices)
    roles = [role for role in ("student", "teacher") if role in texts]
    truth, own, labels = [], [], {role: list[str]() for role in ("artifact", *roles)}
    for row in np.flatnonzero(recorded.arrays["asked_worded"]).tolist():
        own.append(int(recorded.arrays["asked_prompts"][row]))
        truth.append(plain(str(prompts[own[-1]].label)))
        for role, given in labels.items():
            given.append(plain(texts[role][row]))
    for index in picked.get("artifact", {}):
        if all(index in picked.get(role, {}) for role in roles):
            own.append(index)
            truth.append(str(prompts[index].label))
            for role, given in labels.items():
                given.append(picked[role][index])
    nothing = np.zeros((len(truth), 1), np.float32)
    return {role: Answers(name=role, outputs=nothing, labels=given) for role, given in labels.items()}, truth, own


def _compare_answers(
    worded: Mapping[str, Answers],
    truth: Sequence[str],
    groups: Sequence[str],
    limits: Mapping[str, float],
    alpha: float,
) -> list[Comparison | None]:
    """Right answers against those of the float student and of the teacher."""
    if not truth:
        return []
    defaults = dict(zip(("student", "teacher"), default_margins(len(truth)), strict=True))
    return [
        compared.compare_labels(
            worded[role],
            worded["artifact"],
            truth,
            margin=_margin_that_can_fail(
                worded[role].labels, truth, groups, limits.get(f"{role}_margin", defaults[role]), alpha
            ),
            alpha=alpha,
            groups=groups,
        )
        for role in worded
        if role != "artifact"
    ]


def _margin_that_can_fail(
    before: Sequence[str], truth: Sequence[str], groups: Sequence[str], margin: float, alpha: float
) -> float | None:
    """The margin, or None where the reference is right so rarely that losing all of it would not fail: that judges nothing."""
    right = [answer == wanted for answer, wanted in zip(before, truth, strict=True)]
    lo, hi = clusters.paired_bounds(right, [False] * len(right), groups, alpha)
    return margin if gate.verdict(lo, hi, margin) == "fail" else None


def _picked(recorded: Recorded, prompts: Sequence[Prompt], choices: NDArray[np.float64]) -> dict[str, dict[int, str]]:
    """Of every prompt with choices the one that each model finds the likeliest per token: {role: {prompt: choice}}."""
    import numpy as np

    owners = recorded.arrays["choice_prompts"]
    if not len(owners):
        return {}
    lengths = np.diff(recorded.arrays["choice_offsets"]) - recorded.arrays["choice_starts"]
    own = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=choices, minlength=len(lengths)) / lengths
    scores = {"artifact": own} | {
        role: recorded.arrays[f"{role}_choice_nll"]
        for role in ("student", "teacher")
        if f"{role}_choice_nll" in recorded.arrays
    }
    picked: dict[str, dict[int, str]] = {}
    for role, values in scores.items():
        picked[role] = {}
        for index in np.unique(owners).tolist():
            of_prompt = np.flatnonzero(owners == index)
            picked[role][index] = list(prompts[index].choices or ())[int(values[of_prompt].argmin())]
    return picked


def plain(answer: str) -> str:
    """An answer without case, outer spaces and a full stop, runs of spaces as one: what "the same answer" means."""
    return " ".join(answer.casefold().split()).rstrip(".")


def _comparison(
    reference: str,
    metric: str,
    bounds: Sequence[float],
    margin: float | None,
    prompts: int,
    alpha: float,
    unbounded: str | None = None,
) -> Comparison:
    """unbounded: why the bound, though it is within the margin, is none."""
    loss, lo, hi = (float(value) for value in bounds)
    share = metric in {"top1", "answer_length", "close"}
    verdict = None if margin is None else gate.verdict(lo, hi, margin)
    reason = unbounded if verdict == "pass" else None
    if verdict is not None and prompts < gate.FEWEST_CLUSTERS and verdict != "fail" and metric != "close":
        reason = _FEW.format(prompts=prompts, fewest=gate.FEWEST_CLUSTERS)
    return Comparison(
        reference=reference,
        candidate="artifact",
        metric=metric,
        score=1.0 - loss if share else loss if metric == "kl" else 1.0 + loss,
        reference_score=None,
        loss=loss,
        lo=lo,
        bound=hi,
        margin=margin,
        prompts=prompts,
        prompts_needed=None,
        flips={},
        agreement=1.0 - loss if metric == "top1" else 1.0,
        divergence={},
        verdict="not proven" if reason else verdict,
        alpha=alpha,
        reason=reason,
    )


def answers_in_words(artifact: Path, arrays: Arrays) -> list[str]:
    """The artifact's greedy answers as text, by the tokenizer that lies beside it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    ids, offsets = arrays["answers"].tolist(), arrays["answer_offsets"].tolist()
    return list(tokenizer.decode_batch([ids[begin:end] for begin, end in itertools.pairwise(offsets)]))
