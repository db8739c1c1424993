"""Plants ways to a pass that nothing earned, through the command line, on a tiny project; none may end in one.

Each route is what somebody could do in good faith: verify against the wrong checkpoint, calibrate on the prompts that judge,
rename a recipe until a verdict suits. It must end in a refusal (exit code 1, and a message that names it), in "not proven" or in
"fail", or be counted as one more look. Prints a table; --json prints it as JSON; exits 1 where a route passes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in {None, ""}:
    sys.path.insert(0, str(ROOT / "benchmarks"))

from tiny_project import TARGET, make_project  # noqa: E402

SLOWEST = 3600


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A tiny project with the product of each step in `work`, and edgekit run in it."""

    folder: Path
    state: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self, **variables: str) -> dict[str, str]:
        """The variables of a run."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "NO_COLOR": "1", "EDGEKIT_STATE": str(self.state), "EDGEKIT_CACHE": ".edgekit"}
        return os.environ | {"HF_HUB_OFFLINE": "1"} | own | dict(self.variables) | variables

    def run(self, *arguments: str | Path, **variables: str) -> Run:
        """Run edgekit in the folder."""
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=SLOWEST,
            check=False,
        )
        return Run(code=done.returncode, out=done.stdout, err=done.stderr)

    def must(self, *arguments: str | Path, **variables: str) -> Run:
        """Run edgekit, which must succeed."""
        done = self.run(*arguments, **variables)
        if done.code:
            raise SystemExit(f"{arguments}: exit {done.code}\n{done.out}\n{done.err}")
        return done

    def report(self, out: str) -> dict[str, Any]:
        """The report of a verify step's folder."""
        return dict(json.loads((self.folder / out / "report.json").read_text(encoding="utf-8")))

    def data(self, name: str, **splits: list[str]) -> str:
        """A copy of the data with these splits' lines instead; returns the --set that names it."""
        if not (self.folder / name).exists():
            shutil.copytree(self.folder / "data", self.folder / name)
            for split, lines in splits.items():
                (self.folder / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        return f"data.path={name}"

    def lines(self, split: str) -> list[str]:
        """The lines of a split."""
        return (self.folder / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


@dataclass(frozen=True, kw_only=True)
class Told:
    """How a route ended: whether it was held, and what it said."""

    held: bool
    said: str


def prepare(folder: Path) -> Bench:
    """The project, its steps made once by the stage commands, and an honest verdict, which must pass."""
    make_project(folder)
    for target, scheme in {"first": "int8-dynamic", "second": "fp32"}.items():
        (folder / "targets" / f"{target}.toml").write_text(TARGET.format(scheme=scheme), encoding="utf-8")
    bench = Bench(folder=folder, state=folder / "state")
    bench.must("finetune", "--out", "work/teacher")
    bench.must("distill", "work/teacher", "--out", "work/student")
    bench.must("record", "work/teacher", "work/student", "--out", "work/reference")
    bench.must("calibrate", "work/student", "--out", "work/calibration")
    bench.must("export", "work/student", "work/calibration", "-t", "first", "--out", "work/artifact")
    bench.must("export", "work/student", "work/calibration", "-t", "second", "--out", "work/artifact-2")
    bench.must("verify", "work/artifact", "work/reference", "-t", "first", "--out", "work/report")
    if (verdict := bench.report("work/report")["verdict"]) != "pass":
        raise SystemExit(f"the honest artifact is {verdict}: the routes would show nothing")
    return bench


def refused(run: Run, word: str) -> Told:
    """Held where the command refused, and said why."""
    said = next((line for line in reversed(run.err.splitlines()) if line.strip()), "")
    return Told(held=run.code == 1 and word in run.err, said=said)


def judged(bench: Bench, run: Run, out: str) -> Told:
    """Held where a report was written that is no pass."""
    if not (bench.folder / out / "report.json").is_file():
        return Told(held=run.code == 1, said=run.err.strip().splitlines()[-1] if run.err.strip() else "")
    report = bench.report(out)
    return Told(held=report["verdict"] != "pass", said=f"{report['verdict']}, look {report['look']['index']}")


def another_teacher(bench: Bench) -> Told:
    """The student's own checkpoint is named as the reference: what it loses against the teacher disappears."""
    run = bench.run("verify", "work/artifact", "work/student", "-t", "first", "--out", "r-teacher")
    told = judged(bench, run, "r-teacher")
    packaged = bench.run("package", "work/artifact", "r-teacher", "-t", "first", "--out", "d-teacher")
    return Told(
        held=told.held and packaged.code == 1, said=f"{told.said}; package: {refused(packaged, 'teacher').said}"
    )


def other_prompts(bench: Bench) -> Told:
    """A report made on easier prompts is packaged with the plain recipe."""
    easy = bench.data("easy", verify=bench.lines("verify")[:300])
    bench.must("record", "work/teacher", "work/student", "--set", easy, "--out", "ref-easy")
    bench.must("verify", "work/artifact", "ref-easy", "-t", "first", "--set", easy, "--out", "r-easy")
    return refused(bench.run("package", "work/artifact", "r-easy", "-t", "first", "--out", "d-easy"), "prompts")


def another_length(bench: Bench) -> Told:
    """The reference read six tokens of each text, the artifact all."""
    bench.must("record", "work/teacher", "work/student", "--set", "data.max_length=6", "--out", "ref-short")
    return refused(bench.run("verify", "work/artifact", "ref-short", "-t", "first", "--out", "r-short"), "max_length")


def calibrated_on_verify(bench: Bench) -> Told:
    """The ranges and the threshold come from the prompts that judge."""
    leaky = bench.data("leaky", calibrate=bench.lines("verify"), verify=bench.lines("calibrate"))
    bench.must("calibrate", "work/student", "--set", leaky, "--out", "cal-leaky")
    bench.must("export", "work/student", "cal-leaky", "-t", "first", "--out", "art-leaky")
    return refused(
        bench.run("verify", "art-leaky", "work/reference", "-t", "first", "--out", "r-leaky"), "calibrated on"
    )


def trained_on_verify(bench: Bench) -> Told:
    """The student was distilled on the prompts that judge, written otherwise."""
    shouted = [line.replace('"text": "w', '"text": "W') for line in bench.lines("verify")]
    trained = bench.data("trained", train=[*bench.lines("train"), *shouted], verify=bench.lines("calibrate"),
                         calibrate=bench.lines("train")[:40])  # fmt: skip
    options = ("--set", trained, "--set", "data.near_duplicates=drop", "--set", "distill.epochs=1")
    run = bench.run("distill", "work/teacher", *options, "--out", "stu-trained")
    if run.code:
        return refused(run, "")
    run = bench.run("record", "work/teacher", "stu-trained", "--out", "ref-trained")
    bench.must("calibrate", "stu-trained", "--out", "cal-trained")
    bench.must("export", "stu-trained", "cal-trained", "-t", "first", "--out", "art-trained")
    return refused(bench.run("verify", "art-trained", "ref-trained", "-t", "first", "--out", "r-trained"), "trained on")


def renamed(bench: Bench) -> Told:
    """Recipe and target are copied under other names, the cache is another."""
    copy = bench.folder.parent / "renamed"
    shutil.copytree(bench.folder, copy, ignore=shutil.ignore_patterns(".edgekit", "work", "state", "r-*"))
    (copy / "targets" / "first.toml").rename(copy / "targets" / "mine.toml")
    work, out = bench.folder / "work", bench.folder / "r-renamed"
    elsewhere = Bench(folder=copy, state=bench.state)
    parts = (work / "artifact-2", work / "reference")
    elsewhere.must("verify", *parts, "-t", "mine", "--out", out, EDGEKIT_CACHE="other")
    return further_look(bench, "r-renamed")


def reordered(bench: Bench) -> Told:
    """One verify row is removed, the others are turned round."""
    rows = bench.data("reordered", verify=bench.lines("verify")[:0:-1])
    bench.must("record", "work/teacher", "work/student", "--set", rows, "--out", "ref-reordered")
    out = "r-reordered"
    bench.must("verify", "work/artifact-2", "ref-reordered", "-t", "first", "--set", rows, "--out", out)
    return further_look(bench, out)


def further_look(bench: Bench, out: str) -> Told:
    """Held where a report counts itself as one more look at the prompts."""
    look = bench.report(out)["look"]
    return Told(held=look["index"] > 1, said=f"look {look['index']}, alpha {look['alpha']:.2g}")


def another_cut(bench: Bench) -> Told:
    """The same weights answer with another max_length: another artifact, and another look."""
    target = next(iter((bench.folder / "work" / "artifact").glob("*.onnx")))
    cut = ("-t", "first", "--set", "data.max_length=6")
    bench.run("verify", target, "work/student", *cut, "--out", "r-cut")
    look = bench.report("r-cut")["look"]
    return Told(held=look["index"] > 1, said=f"{bench.report('r-cut')['verdict']}, look {look['index']}")


def paraphrases(bench: Bench) -> Told:
    """Five wordings of each text count as five prompts."""
    base = [
        "please turn the kitchen light on now",
        "play some jazz on the hall speaker",
        "what is the weather in the north",
    ]
    rooms = ("north", "south", "attic", "cellar", "garage", "porch", "study", "landing")
    rows: list[dict[str, str]] = []
    for label, text in zip(("lights", "music", "timer"), base, strict=True):
        for room in rooms:
            sentence = text.replace("kitchen", room).replace("hall", room).replace("north", room)
            worded = (sentence, f"{sentence} please", sentence.replace("the", "teh", 1), f"{sentence}s")
            rows += [{"text": one, "label": label} for one in worded]
    rows.append({"text": "sunny skies over the sea", "label": "weather"})
    lines = [f"{json.dumps(row)}\n" for row in (*rows, {"text": "nothing of this kind", "label": "oos"})]
    wordings = bench.data("wordings", verify=lines)
    run = bench.run(
        "verify", "work/artifact", "work/reference", "-t", "first", "--set", wordings, "--out", "r-wordings"
    )
    return refused(run, "repeat another of its texts")


def this_machine(bench: Bench, name: str, *, limit_ms: float, cpu: str | None = None, share: float = 1.0) -> str:
    """A target of this machine, its speeds stated at a share of what they are; returns its name."""
    from edgekit.runtimes import machine

    facts, speed = machine.describe(), machine.measure()
    stated = "\n".join(f"{key} = {share * speed[key]:.3f}" for key in ("bandwidth_gbs", "fp32_gflops", "int8_gops"))
    text = TARGET.format(scheme="int8-dynamic").replace(
        'cpu = "any"', f"cpu = {json.dumps(cpu or facts['cpu'])}\n{stated}"
    )
    text = text.replace('arch = "x86_64"', f'arch = "{facts["arch"]}"').replace(
        "cores = 2", f"cores = {facts['cores']}"
    )
    text += f"\n[budget]\np95_ms = {limit_ms}\nsequence = 16\n"
    (bench.folder / "targets" / f"{name}.toml").write_text(text, encoding="utf-8")
    return name


def p95(bench: Bench, target: str, out: str, *options: str) -> dict[str, Any]:
    """The check of p95 on a target of this machine."""
    bench.run("verify", "work/artifact", "work/reference", "-t", target, "--out", out, *options)
    return next(check for check in bench.report(out)["checks"] if check["name"] == "p95_ms")


def another_cpu(bench: Bench) -> Told:
    """The target's CPU is named like the host's, less its last letter: an M1 is no M1 Max."""
    from edgekit.runtimes import machine

    target = this_machine(bench, "like-this", limit_ms=1e4, cpu=str(machine.describe()["cpu"])[:-1])
    check = p95(bench, target, "r-cpu")
    return Told(held=check["verdict"] == "not proven", said=f"{check['verdict']}: {check['remedy']}")


def a_slower_target(bench: Bench) -> Told:
    """The target states 0.6 of this machine's speeds, and a limit that only this machine keeps."""
    quick = p95(bench, this_machine(bench, "as-fast", limit_ms=1e4), "r-fast")
    measured = float(quick["bound"] or quick["measured"])
    check = p95(bench, this_machine(bench, "slower", limit_ms=1.2 * measured, share=0.6), "r-slower")
    return Told(held=check["verdict"] != "pass", said=f"{check['verdict']}: {check['remedy']}")


def again_until_it_passes(bench: Bench) -> Told:
    """A limit of half the time is measured afresh, three times over."""
    measured = float(p95(bench, this_machine(bench, "measured", limit_ms=1e4), "r-again")["measured"])
    target = this_machine(bench, "again", limit_ms=measured / 2)
    said = [p95(bench, target, "r-again", "--fresh")["verdict"] for _ in range(3)]
    return Told(held="pass" not in said, said=", ".join(said))


ROUTES: dict[str, Callable[[Bench], Told]] = {
    "a reference of another teacher": another_teacher,
    "a report made on other prompts": other_prompts,
    "a reference of another max_length": another_length,
    "calibrated on the verify prompts": calibrated_on_verify,
    "trained on the verify prompts": trained_on_verify,
    "recipe, target and cache renamed": renamed,
    "a row removed, the rest reordered": reordered,
    "the same file with another max_length": another_cut,
    "paraphrases as prompts": paraphrases,
    "a CPU of a similar name": another_cpu,
    "a target that is slower than the host": a_slower_target,
    "measured again until it passes": again_until_it_passes,
}


def main() -> int:
    """Plant every route; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--route", action="append", choices=list(ROUTES), help="only this one; give it again for more")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-false-pass-") as scratch:
        bench = prepare(Path(scratch) / "project")
        found = {name: ROUTES[name](bench) for name in asked.route or ROUTES}
    if asked.json:
        print(json.dumps({name: asdict(told) for name, told in found.items()}, indent=2))
    else:
        for name, told in found.items():
            print(f"{'held' if told.held else 'PASSED':<8}{name:<40}{told.said[:200]}")
    return 0 if all(told.held for told in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
