"""Verify on a tiny decoder that was taught to answer: through GGUF and llama.cpp, sound files and files that were harmed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import gate
from edgekit.cli.reported import report_lines
from edgekit.errors import EdgekitError
from edgekit.evidence import read_report
from edgekit.formats.gguf.file import GgufWriter, TensorHeader, read_gguf, read_tensor
from edgekit.prompts import Prompt
from edgekit.reference import OwnersAnswers, Sequences
from edgekit.runtimes import neighbours
from edgekit.target import Target, load_target
from edgekit.verify import generation, hardware, latency
from edgekit.verify.generation import judge, plain
from edgekit.verify.margins import default_limits, read_limits
from edgekit.verify.recorded import Recorded
from edgekit.workspace import file_sha256, open_product, write_product
from tests.architectures.decoders import END, ROOMS, orders, teach_decoder
from tests.steps import adopt, export, record
from tests.verify.verify_folders import run_verify

pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")

TASK = "text-generation"
PI = 'arch = "aarch64"\ncpu = "Cortex-A76"\ncores = 4\nfeatures = ["asimddp"]\nmemory_mb = 4096\nbandwidth_gbs = 11.2'


def make_prompts(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """calibrate.jsonl and verify.jsonl as the prompts step leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    calibrate = [{"text": said, "label": answer} for said, answer in orders(ROOMS[:6])]
    for name, part in {"calibrate": calibrate, "verify": rows}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")
    return folder


def labelled(rooms: list[str]) -> list[dict[str, Any]]:
    return [{"text": said, "label": answer} for said, answer in orders(rooms)]


def make_target(folder: Path, *, gpu_layers: int = 0, budget: str = "") -> Target:
    path = folder / f"board{gpu_layers}.toml"
    path.write_text(
        f'title = "A test"\n[hardware]\n{PI}\nsources = ["none"]\n[export.{TASK}]\nformat = "gguf"\nscheme = "f16"\n'
        f"[runtime.llama-cpp]\nthreads = 1\ngpu_layers = {gpu_layers}\n[budget]\n{budget}\n",
        encoding="utf-8",
    )
    return load_target(str(path))


def recorded(teacher: Path, student: Path, prompts: Path, out: Path) -> Path:
    """The folder of a record step."""
    out.mkdir()
    facts = record(teacher, student, prompts, task=TASK, max_length=64, out=out).facts()
    splits = {split: file_sha256(prompts / f"{split}.jsonl") for split in ("calibrate", "verify")}
    write_product(out, "record", key="test", inputs={"student": "taught", "prompts": splits}, facts=facts)
    return out


def exported(student: Path, prompts: Path, scheme: str, out: Path) -> Path:
    """The folder of an export step."""
    out.mkdir()
    facts = export(
        student=student,
        calibration=out,
        prompts=prompts,
        task=TASK,
        options={"format": "gguf", "scheme": scheme, "imatrix": False},
        max_length=64,
        out_of_scope=None,
        out=out,
    )
    write_product(out, "export", key="test", inputs={"student": "taught"}, facts=facts)
    return out


def change(artifact: Path, tensor: str, harm: Callable[[np.ndarray], None]) -> None:
    """Change the float16 values of a tensor in an artifact's file."""
    file = artifact / "model.gguf"
    place = read_gguf(file).tensors[tensor]
    assert place.type == "f16"
    values = np.memmap(file, np.float16, "r+", place.offset, place.shape)
    harm(values)
    values.flush()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A student and its teacher, prompts, and what both said about them."""

    student: Path
    prompts: Path
    reference: Path
    f16: Path
    q8_0: Path


@pytest.fixture(scope="module")
def bench(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """75 questions with answers, 30 of them twice, and 15 with choices: 99 prove that at most 3 % are far off."""
    folder = tmp_path_factory.mktemp("bench")
    rows = labelled(ROOMS[:25]) + labelled(ROOMS[:10])
    rows += [row | {"choices": ["light_on", "music", "light_off"]} for row in labelled(ROOMS[25:])]
    prompts = make_prompts(folder / "prompts", rows)
    teacher = teach_decoder(folder / "teacher", layers=1, seed=3, steps=80)
    return Bench(
        student=talker,
        prompts=prompts,
        reference=recorded(teacher, talker, prompts, folder / "reference"),
        f16=exported(talker, prompts, "f16", folder / "f16"),
        q8_0=exported(talker, prompts, "q8_0", folder / "q8_0"),
    )


@pytest.fixture
def verified(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The report of a verify, with its checks by name."""
    monkeypatch.setattr(
        generation, "TIMING", {"prompts": (8, 16), "new": 8, "repeats": 6, "seconds": 1.0, "sweep": False}
    )

    def run(artifact: Path, **changes: Any) -> dict[str, Any]:
        out = tmp_path / f"report-{len(list(tmp_path.glob('report-*')))}"
        asked = {
            "artifact": artifact,
            "reference": bench.reference,
            "prompts": bench.prompts,
            "target": make_target(tmp_path),
            "task": TASK,
            "accuracy": {},
            "out_of_scope": None,
        }
        return run_verify(out, **asked | changes)

    return run


def harmed(artifact: Path, folder: Path, tensor: str, harm: Callable[[np.ndarray], None]) -> Path:
    """A copy of an artifact with a tensor that is not what it was, and a manifest that says nothing of it."""
    copy = Path(shutil.copytree(artifact, folder / "harmed"))
    change(copy, tensor, harm)
    facts = dict(open_product(artifact, "export").facts) | {"sha256": file_sha256(copy / "model.gguf")}
    (copy / "export.json").unlink()
    write_product(copy, "export", key="test", inputs={"student": "taught"}, facts=facts)
    return copy


GENERATED = [
    "kl_vs_student",
    "close_vs_student",
    "top1_vs_student",
    "perplexity_vs_student",
    "answer_length_vs_student",
]


@pytest.mark.parametrize("scheme", ["f16", "q8_0"])
def test_a_sound_file_passes(bench: Bench, verified: Callable[..., dict[str, Any]], scheme: str) -> None:
    # 120 prompts without one flip leave 2.5 points possible.
    margins = {"student_margin": 0.04, "teacher_margin": 0.04, "far_share": 0.03}
    report = verified(getattr(bench, scheme), accuracy=margins)
    assert {name: report["by_name"][name]["verdict"] for name in GENERATED} == dict.fromkeys(GENERATED, "pass")
    assert {name: check["verdict"] for name, check in report["by_name"].items() if check["verdict"] != "pass"} == {}
    assert [report["by_name"][name]["limit"] for name in GENERATED] == pytest.approx([0.01, 0.03, 0.04, 0.01, 0.1])
    assert 0 <= report["kl"]["mean"] <= report["kl"]["p99"] < (2e-5 if scheme == "f16" else 2e-2)
    assert report["top1"] > 0.99
    assert report["perplexity"]["artifact"] == pytest.approx(report["perplexity"]["student"], rel=0.01)
    assert report["perplexity"]["teacher"] != pytest.approx(report["perplexity"]["student"], rel=1e-3)
    assert report["accuracy"] == {"artifact": 1.0, "student": 1.0, "teacher": 1.0}
    assert report["by_name"]["accuracy_vs_student"]["verdict"] == "pass"
    compared = {(entry["reference"], entry["metric"]): entry for entry in report["comparisons"]}
    assert compared["student", "accuracy"]["prompts"] == 120, "105 answers and 15 choices"
    assert compared["teacher", "kl"]["verdict"] is None
    assert compared["teacher", "kl"]["loss"] > 10 * compared["student", "kl"]["loss"]
    assert set(report["ttft_ms"]) == {"8", "16", "64"}
    assert all(time > 0 for time in report["ttft_ms"].values())
    assert set(report["tokens_per_second"]) == {"prefill", "decode"}
    assert report["tokens_per_second"]["decode"] == pytest.approx(1e3 / np.median(report["latency_raw_ms"]))
    facts = open_product(getattr(bench, scheme), "export").facts
    assert report["generation"]["bytes_per_token"] == facts["bytes_per_token"] < facts["bytes"]
    assert report["generation"]["roofline_share"] > 0
    token, prompt = report["roofline"], report["roofline_prompt"]
    assert token["predicted_ms"] >= facts["bytes_per_token"] / report["device"]["read_gbs"] / 1e6 - 1e-6
    assert prompt["measured_ms"] == report["ttft_ms"]["64"]
    assert report["by_name"]["offload"]["verdict"] == "pass"
    table = "\n".join(report_lines(read_report(report["out"])))
    assert "kl_vs_student" in table
    assert "perplexity" in table


def test_first_tokens_and_rates_are_of_several_processes(
    bench: Bench, verified: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "PROCESSES", latency.FEWEST)
    monkeypatch.setattr(hardware, "mismatches", lambda *_, **__: [])
    monkeypatch.setattr(hardware, "scales", lambda *_, **__: (1.0, 1.0))
    monkeypatch.setattr(neighbours, "disturbances", lambda *_: [])
    target = make_target(tmp_path, budget="ttft_ms = 60000\ntokens_per_second = 0.01\np95_ms = 60000")
    report = verified(bench.q8_0, target=target)
    for name in ("ttft_ms", "tokens_per_second", "p95_ms"):
        check = report["by_name"][name]
        assert (check["verdict"], check["looks"]) == ("pass", 1), check
        assert "5 processes, " in check["detail"]
        assert check["measured"] > 0
    again = verified(bench.q8_0, target=make_target(tmp_path, budget="tokens_per_second = 1e9"))
    assert (again["by_name"]["tokens_per_second"]["verdict"], again["measurement"]) == ("fail", 2)


def test_a_harmed_head_fails(bench: Bench, verified: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def harm(values: np.ndarray) -> None:
        values += (noise.normal(size=values.shape) * 1.5 * values.std()).astype(np.float16)

    report = verified(harmed(bench.f16, tmp_path, "output.weight", harm))
    assert report["verdict"] == "fail"
    assert report["by_name"]["kl_vs_student"]["verdict"] == "fail"
    assert report["by_name"]["kl_vs_student"]["interval"][0] > 0.01
    assert "--scheme f32" in report["by_name"]["kl_vs_student"]["remedy"]
    assert report["perplexity"]["artifact"] > 1.01 * report["perplexity"]["student"]
    # 4 bits' limits are looser; the recipe's own are what counts.
    loose = verified(tmp_path / "harmed", accuracy={"kl": 50.0, "top1": 0.01, "perplexity": 1000.0})
    assert loose["by_name"]["kl_vs_student"]["limit"] == 50.0
    assert loose["by_name"]["kl_vs_student"]["verdict"] == "pass"


def test_a_model_that_stops_early_fails(bench: Bench, verified: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The end token is three times as likely, in logits, as how most answers begin; no speed makes up for it."""
    with np.load(bench.reference / "reference.npz") as arrays:
        first = np.bincount(arrays["student_answers"][arrays["student_answer_offsets"][:-1]]).argmax()

    def harm(values: np.ndarray) -> None:
        values[END] = 3 * values[first]

    report = verified(harmed(bench.f16, tmp_path, "output.weight", harm))
    check = report["by_name"]["answer_length_vs_student"]
    assert check["measured"] < 0.9
    assert check["verdict"] == "fail"
    assert report["verdict"] == "fail"
    assert report["accuracy"]["artifact"] < report["accuracy"]["student"]


def test_few_prompts_prove_nothing(talker: Path, bench: Bench, verified: Any, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "prompts", labelled(ROOMS[10:13]))
    reference = recorded(talker, talker, prompts, tmp_path / "reference")
    report = verified(bench.f16, prompts=prompts, reference=reference)
    for name in GENERATED:
        assert report["by_name"][name]["verdict"] == "not proven"
        if name != "close_vs_student":
            assert (report["by_name"][name]["bound"], report["by_name"][name]["interval"]) == (None, None)
            assert "verify on at least 100" in report["by_name"][name]["remedy"]
    assert report["verdict"] == "not proven"
    assert any("fewer than 100 independent prompts" in note for note in report["notes"])
    assert any("kl_vs_student" in line for line in report_lines(read_report(report["out"])))
    # One folder was teacher and student: nothing is said twice.
    assert {entry["reference"] for entry in report["comparisons"]} == {"student"}


def test_layers_that_stay_on_the_cpu_fail(
    bench: Bench, verified: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this llama.cpp has a GPU's backend")
    report = verified(bench.f16, target=make_target(tmp_path, gpu_layers=-1))
    check = report["by_name"]["offload"]
    assert (check["measured"], check["limit"], check["verdict"]) == (0, 3, "fail")
    assert "GGML_CUDA" in check["remedy"]
    assert report["verdict"] == "fail"


def test_answers_that_are_no_numbers_fail(
    bench: Bench, verified: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def harm(values: np.ndarray) -> None:
        values[:, 0] = np.inf

    report = verified(harmed(bench.f16, tmp_path, "output.weight", harm))
    assert report["by_name"]["finite_outputs"]["verdict"] == "fail"
    assert report["verdict"] == "fail"


def test_a_file_of_llama_cpps_own_quantizer(
    bench: Bench, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgekit verify FILE.gguf CHECKPOINT`: the checkpoint is the reference."""
    import llama_cpp

    monkeypatch.setattr(generation, "TIMING", {"prompts": (8,), "new": 8, "repeats": 5, "seconds": 1.0, "sweep": False})
    theirs = tmp_path / "blobs" / "theirs.gguf"
    theirs.parent.mkdir()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    assert llama_cpp.llama_model_quantize(str(bench.f16 / "model.gguf").encode(), str(theirs).encode(), settings) == 0
    # As hubs' caches have it: a link, relative to its own folder.
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model-q8_0.gguf").symlink_to(Path("..", "blobs", "theirs.gguf"))
    # Texts that differ in one word are one.
    make_prompts(
        tmp_path / "data", labelled([f"{one} {other}" for one, other in zip(ROOMS[10:20], ROOMS[20:30], strict=True)])
    )
    make_target(tmp_path)
    (tmp_path / "recipe.toml").write_text(
        f'task = "{TASK}"\n[teacher]\nsource = {json.dumps(str(bench.student))}\n[data]\npath = "data"\n'
        'answer = "label"\nmax_length = 64\nnear_duplicates = "drop"\n[accuracy]\nstudent_margin = 0.15\ntop1 = 0.88\n',
        encoding="utf-8",
    )
    asked = ("snapshot/model-q8_0.gguf", bench.student, "-t", "board0.toml", "--recipe", "recipe.toml", "--json")
    told = command("verify", *asked, "--out", "report")
    assert told.code == 0, told.err
    report = json.loads(told.out)["content"]
    assert report["verdict"] == "not proven"
    few = [check for check in report["checks"] if check["verdict"] != "pass"]
    assert all(f"{report['prompts']} prompts" in check["remedy"] for check in few), few
    assert report["artifact"]["sha256"] == file_sha256(theirs)
    assert report["artifact"]["format"] == "gguf"
    assert report["prompts"] >= 3
    assert report["kl"]["mean"] < 0.01
    assert theirs.stat().st_nlink > 1, "a model of gigabytes is not copied"
    teach_decoder(tmp_path / "other", layers=1, steps=1, vocab_size=400)
    refused = command("verify", theirs, tmp_path / "other", *asked[2:], "--out", "none")
    assert refused.code == 1
    assert "theirs.gguf: its vocabulary has 512 tokens, that of" in refused.err


def with_metadata(file: Path, out: Path, **changes: Any) -> Path:
    """A copy of a GGUF file with other metadata ("." of a key as "__"; None: without it)."""
    whole = read_gguf(file)
    told = whole.metadata | {key.replace("__", "."): value for key, value in changes.items()}
    headers = [TensorHeader(name=name, type=one.type, shape=one.shape) for name, one in whole.tensors.items()]
    with GgufWriter(out, {key: value for key, value in told.items() if value is not None}, headers) as writer:
        for name in whole.tensors:
            writer.append(read_tensor(whole, name).tobytes())
        writer.finish()
    return out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"tokenizer__ggml__add_bos_token": False}, "reads a text otherwise than the original tokenizer"),
        ({"tokenizer__ggml__pre": "llama-bpe"}, "reads a text otherwise than the original tokenizer"),
        ({"tokenizer__chat_template": None}, "tokenizer.chat_template: not the checkpoint's chat template"),
        ({"tokenizer__chat_template": "{{ messages }}"}, "tokenizer.chat_template: not the checkpoint's chat template"),
    ],
    ids=["sound", "another beginning", "another pre-tokenizer", "no template", "another template"],
)
def test_what_another_tools_file_makes_of_texts(
    bench: Bench, verified: Callable[..., dict[str, Any]], tmp_path: Path, changes: dict[str, Any], says: str | None
) -> None:
    """The likelihoods are those of the checkpoint's tokens: an app that has only the file gives the model its own."""
    theirs = with_metadata(bench.f16 / "model.gguf", tmp_path / "theirs.gguf", **changes)
    out = tmp_path / "adopted"
    out.mkdir()
    asked = {"checkpoint": bench.student, "prompts": bench.prompts, "task": TASK, "max_length": 64}
    facts = adopt(file=theirs, out=out, out_of_scope=None, **asked)
    write_product(out, "export", key="test", inputs={"student": "taught"}, facts=facts)
    check = verified(out)["by_name"]["tokenizer"]
    if says is None:
        assert check["verdict"] == "pass"
        assert " conversations become the checkpoint's tokens" in check["detail"]
    else:
        assert check["verdict"] == "fail"
        assert says in check["remedy"]


def test_a_part_of_a_file_is_refused(bench: Bench, tmp_path: Path) -> None:
    part = with_metadata(bench.f16 / "model.gguf", tmp_path / "x-00001-of-00002.gguf", split__count=2)
    asked = {"checkpoint": bench.student, "prompts": bench.prompts, "task": TASK, "max_length": 64}
    with pytest.raises(EdgekitError, match=r"one of 2 parts of a model; merge them .*--merge x-00001-of-00002.gguf"):
        adopt(file=part, out=tmp_path, out_of_scope=None, **asked)


def test_limits_follow_the_bits_of_most_weights() -> None:
    assert default_limits(4.5) == {"kl": 0.10, "top1": 0.88, "perplexity": 1.05}
    assert default_limits(8.5) == default_limits(16) == {"kl": 0.01, "top1": 0.96, "perplexity": 1.01}
    with pytest.raises(EdgekitError, match=r"recipe: accuracy\.klm: unknown key \(did you mean kl\?\)"):
        read_limits({"klm": 0.1})
    with pytest.raises(EdgekitError, match=r"accuracy\.perplexity: should be greater than 1"):
        read_limits({"perplexity": 0.9})


def test_what_the_same_answer_means() -> None:
    assert plain("  Light\n on. ") == plain("light on") != plain("light off")


LIMITS = {"kl": 0.1, "top1": 0.88, "perplexity": 1.05, "answer_length": 0.9, "far_share": 0.03} | {
    "student_margin": 0.1,
    "teacher_margin": 0.1,
}


NOTHING = Sequences(
    passages=0,
    tokens=0,
    left_out=0,
    choices=0,
    shared_vocabulary=True,
    max_new=0,
    stop=(),
    as_original=OwnersAnswers(rows=0, ids_equal=0, answers=0, answers_equal=0, difference=None),
)


def spoken(said: int, passages: int = 100, **more: np.ndarray) -> Recorded:
    """A record of passages that say `said` tokens behind one that they do not."""
    nothing = np.zeros(0, np.int64)
    arrays: dict[str, np.ndarray] = {
        "offsets": np.arange(passages + 1) * (said + 1),
        "starts": np.ones(passages, np.int64),
        "prompts": np.arange(passages),
        "student_nll": np.full(passages * said, 2.0, np.float32),
        "student_answer_offsets": np.arange(passages + 1) * 10,
        "asked_prompts": np.arange(passages),
        "asked_worded": np.zeros(passages, bool),
        "choice_prompts": nothing,
        "choice_starts": nothing,
        "choice_offsets": np.zeros(1, np.int64),
    }
    return Recorded(arrays=arrays | more, sequences=NOTHING, max_length=0, texts={"student": ["x"] * passages})


def heard(said: Recorded, kl: np.ndarray, *, rise: float = 0.0, length: int = 10) -> Mapping[str, np.ndarray]:
    passages = len(said.arrays["starts"])
    return {
        "nll": said.arrays["student_nll"] + np.float32(rise),
        "student_kl": kl,
        "student_top1": np.ones(len(kl), bool),
        "answer_offsets": np.arange(passages + 1) * length,
    }


def judged(said: Recorded, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    prompts = [Prompt(text="x") for _ in said.arrays["starts"]]
    found = judge(said, arrays, prompts, LIMITS, ["x"] * len(prompts), 0.05)
    return {one.metric: one for one in found.comparisons}


def test_a_prompt_counts_once_however_many_tokens_it_has() -> None:
    """The same tokens, all of one text or spread over all: only the second is evidence of 100 prompts."""
    said, numbers = spoken(20), np.random.default_rng(0)
    losses = numbers.gamma(0.5, 0.16, size=100 * 20)
    together, apart = np.sort(losses), numbers.permutation(losses)
    found = [judged(said, heard(said, kl))["kl"] for kl in (together, apart)]
    assert found[0].loss == pytest.approx(found[1].loss)
    assert found[0].verdict != "pass"
    assert found[1].verdict == "pass"
    assert found[0].bound - found[0].loss > 3 * (found[1].bound - found[1].loss)


def test_only_answers_that_have_room_are_compared_by_their_words() -> None:
    """A wanted answer that no greedy answer could reach says nothing: 0 % right before and after would pass."""
    said = spoken(20, passages=40)
    prompts = [Prompt(text="x", label="X." if place < 30 else "too long") for place in range(40)]
    answers = ["x"] * 29 + ["y"] * 11
    none = judge(said, heard(said, np.zeros(800)), prompts, LIMITS, answers, 0.05).comparisons
    assert "accuracy" not in {one.metric for one in none}
    some = spoken(20, passages=40, asked_worded=np.arange(40) < 30)
    found = judge(some, heard(some, np.zeros(800)), prompts, LIMITS, answers, 0.05).comparisons
    (accuracy,) = (one for one in found if one.metric == "accuracy")
    assert (accuracy.prompts, accuracy.flips) == (30, {"lost": 1, "gained": 0})


def test_accuracy_that_is_not_there_cannot_be_kept() -> None:
    """A model that thinks first says no wanted answer in its 64 tokens: as few right answers after as before prove nothing."""
    said = spoken(20, passages=320, asked_worded=np.ones(320, bool))
    prompts = [Prompt(text="x", label="never said") for _ in range(320)]
    found = judge(said, heard(said, np.zeros(6400)), prompts, LIMITS, ["garbage"] * 320, 0.05)
    (accuracy,) = (one for one in found.comparisons if one.metric == "accuracy")
    assert (accuracy.margin, accuracy.verdict, accuracy.score) == (None, None, 0.0)
    (note,) = found.notes
    assert note.startswith("accuracy against the student is shown and not judged: the student gives 0% of the wanted")
    known = [Prompt(text="x", label="x" if place < 100 else "never said") for place in range(320)]
    found = judge(said, heard(said, np.zeros(6400)), known, LIMITS, ["garbage"] * 320, 0.05)
    (accuracy,) = (one for one in found.comparisons if one.metric == "accuracy")
    assert (accuracy.verdict, accuracy.loss, found.notes) == ("fail", 100 / 320, [])


@pytest.mark.parametrize(
    ("passages", "length", "verdict"),
    [(100, 10, "pass"), (99, 10, "not proven"), (100, 8, "fail"), (100, 64, "fail"), (20, 64, "fail")],
    ids=["alike", "few", "short", "never stops", "few never stop"],
)
def test_lengths_are_kept_on_both_sides(passages: int, length: int, verdict: str) -> None:
    """Fewer than 100 lengths bound no mean; a lost stop token is a longer answer, and no better than a lost end."""
    said = spoken(20, passages=passages)
    told = judged(said, heard(said, np.zeros(20 * passages), length=length))["answer_length"]
    assert told.verdict == verdict
    assert told.score == pytest.approx(length / 10)


def test_perplexity_and_length_have_their_own_verdicts() -> None:
    said = spoken(20)
    sound = judged(said, heard(said, np.full(2000, 0.01)))
    assert {name: one.verdict for name, one in sound.items()} == dict.fromkeys(
        ["kl", "close", "top1", "perplexity", "answer_length"], "pass"
    )
    worse = judged(said, heard(said, np.full(2000, 0.01), rise=0.06, length=8))
    assert worse["perplexity"].score == pytest.approx(np.exp(0.06))
    assert worse["perplexity"].verdict == worse["answer_length"].verdict == "fail"
    assert worse["answer_length"].score == pytest.approx(0.8)
    assert worse["kl"].verdict == "pass"


def test_few_prompts_that_are_far_off_are_seen() -> None:
    """A prompt is far off where its own mean is ten times what all may have; 300 without one prove one in a hundred."""
    for far, verdicts in ((0, ("pass", "pass")), (1, ("not proven", "not proven")), (20, ("not proven", "fail"))):
        said = spoken(20, passages=300)
        kl = np.repeat(np.where(np.arange(300) < far, 2.0, 0.01), 20)
        found = judge(said, heard(said, kl), [Prompt(text="x")] * 300, LIMITS | {"far_share": 0.01}, ["x"] * 300, 0.05)
        told = {one.metric: one for one in found.comparisons}
        assert told["close"].flips == {"far": far}
        assert (told["kl"].verdict, told["close"].verdict) == verdicts


def test_passages_of_one_text_and_texts_of_one_group_are_one() -> None:
    said = spoken(20, passages=300)
    one_text = spoken(20, passages=300, prompts=np.zeros(300, np.int64))
    for texts, prompts in (
        (one_text, [Prompt(text="x")] * 300),
        (said, [Prompt(text="x", group="book") for _ in range(300)]),
        (said, [Prompt(text="x", group=str(place % 50)) for place in range(300)]),
    ):
        found = judge(texts, heard(texts, np.full(6000, 0.001)), prompts, LIMITS, ["x"] * 300, 0.05)
        kl, close = found.comparisons[:2]
        assert (kl.verdict, close.verdict) == ("not proven", "not proven")
        assert "Passages of one text" in str(kl.reason)
    apart = judge(said, heard(said, np.full(6000, 0.001)), [Prompt(text="x")] * 300, LIMITS, ["x"] * 300, 0.05)
    assert [one.verdict for one in apart.comparisons[:2]] == ["pass", "pass"]


def test_a_long_tail_of_losses_is_not_bounded() -> None:
    """Long prompts, of a Pareto distribution, lose more for each token: what was not drawn may be most of the loss."""
    numbers = np.random.default_rng(0)
    lengths = np.minimum(np.floor(10 * (1 + numbers.pareto(1.5, 300))), 2000)
    sums = lengths**2 / (lengths**2).sum() * lengths.sum() * 0.025
    assert gate.ratio_bounds(sums, lengths, most=1.0, longest=2000)[2] < 0.1
    assert gate.is_long_tailed(sums, lengths, 0.1, most=1.0, longest=2000)
    one = np.eye(300)[0]
    assert not gate.is_long_tailed(0.1 * one, np.ones(300), 0.1, most=1.0, longest=1), "little is lost, though by one"
    even = numbers.exponential(0.05, 300) * lengths.mean()
    assert not gate.is_long_tailed(even, np.full(300, lengths.mean()), 0.1, most=1.0, longest=2000)
