"""Requests of kind "tokens": the probes of decoders say the same lines and tell of stories260K what llama.cpp says of it here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from near_ties import compare_written, split

from edgekit.devices import Device, LocalDevice, open_device
from edgekit.errors import DeviceFailed
from edgekit.model import load_model
from edgekit.probes import PROBES, Question, Texts
from edgekit.probes.lines import Decode, First, Load, MachineSpeed, Peak, Prefill, Reading
from edgekit.probes.web.npm import PACKAGES
from edgekit.runtimes import generation, llamacpp, scores
from edgekit.runtimes.request import Timing
from edgekit.verify.measurements import flat, request
from tests.devices.chromium import need_chromium
from tests.devices.native import HERE, lay_probe
from tests.stories import STORIES, write_stories

PROMPTS = ("Once upon a time", "The big red ball", "Lily and Tom went to", "One day, a little cat")
NEW, KNOWN = 64, 16
# What rounding to 8 bits moves a likelihood by (see near_ties).
CLOSE = 0.2
OPTIONS: Mapping[str, object] = {"threads": 1, "context": 0}
TIMING: Timing = {"prompts": (8, 24), "new": 12, "repeats": 2, "seconds": 4.0, "sweep": False}
EVENTS = ["device", "load", "first", "prefill", "decode", "memory", "outputs", "work", "machine", "tokenizer", "done"]


def open_browser() -> Device:
    need_chromium()
    return open_device({"kind": "browser"}, "device")


def open_here() -> Device:
    return LocalDevice({})


PLACES: Mapping[str, Callable[[], Device]] = {"python": open_here, "native": open_here, "web": open_browser}


@pytest.fixture(scope="module")
def places() -> Iterator[Callable[[str], Device]]:
    """The device of a probe, opened once."""
    opened: dict[str, Device] = {}
    yield lambda name: opened.setdefault(name, opened.get(name) or PLACES[name]())
    for device in opened.values():
        device.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("stories") / "model.gguf")


@pytest.fixture(scope="module")
def question(file: Path) -> Question:
    """What llama.cpp goes on with here, to be scored; the prompts to be gone on with; 16 classes of float32's are known."""
    model = load_model(STORIES)
    read = model.encode(list(PROMPTS), 100)
    rows = []
    with closing(llamacpp.generator(file, OPTIONS)) as generator:
        for prompt in read:
            answer = generation.continuation(generator, np.array(prompt), 24, frozenset())
            rows.append([*prompt, *answer])
        starts = [len(prompt) for prompt in read]
        logits = np.concatenate(
            [
                (generator.clear(), generator.logits(row))[1][start - 1 : -1]  # type: ignore[func-returns-value]
                for row, start in zip(rows, starts, strict=True)
            ]
        )
    # Another model's: its logits are cooler.
    logs = scores.log_softmax(0.9 * logits)
    ids = np.argsort(-logs, axis=-1, kind="stable")[:, :KNOWN].astype(np.int32)
    known = {"student_ids": ids, "student_logprobs": np.take_along_axis(logs, ids, axis=-1).astype(np.float32)}
    more = {"referenced": len(rows), "generate": len(rows), "max_new": NEW, "stop": np.array([], np.int64)}
    spoken = model.tokenizer()
    texts = Texts(
        texts=PROMPTS, before="", pad_id=0, ids=[spoken.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    )
    return Question(
        file=file,
        request=request("llama-cpp", OPTIONS, TIMING, kind="tokens"),
        inputs={**flat(rows), "starts": np.array(starts), **known, **more},
        texts=texts,
        timeout_s=300,
    )


@pytest.mark.parametrize("name", PLACES)
def test_probes_of_decoders_conform(name: str, places: Callable[[str], Device], question: Question) -> None:
    if name == "native":
        lay_probe(HERE)
    answer = PROBES[name].ask(places(name), question)
    lines = answer.lines
    # Only the probe in Python reads meters, only the one in JavaScript has another tokenizer.
    wanted = [event for event in EVENTS if event != "tokenizer" or name == "web"]
    assert [event for event in lines.events if event != "energy"] == wanted
    load, first, prefill, decode = (
        lines.read("load", Load), lines.read("first", First), lines.read("prefill", Prefill), lines.read("decode", Decode)
    )  # fmt: skip
    version = PACKAGES["wllama"].engine if name == "web" else llamacpp.version()
    # The native probe was built with llama.h of that version, and says its library's own too.
    assert (load.runtime, load.version.partition(" (ggml ")[0], load.available[0]) == ("llama-cpp", version, "CPU")
    assert first.alive_ms is None or first.alive_ms > load.ms + first.ms > 0
    assert prefill.lengths == (8, 24)
    assert all(len(times) in {2, 3} and min(times) > 0 for times in prefill.ms)
    assert (decode.depth, decode.new, decode.threads, len(decode.ms) % 12) == (24, 12, 1, 0)
    peak = lines.read("memory", Peak)
    assert peak.peak_mb is not None
    # The cache alone takes 0.3 MB of each process, the module's own memory 10, libraries 7.
    assert peak.peak_mb > 10
    assert lines.read("machine", MachineSpeed).speed["copy_gbs"] > 0
    assert (lines.work["provider"], lines.work["layers"], lines.work["offloaded"]) == ("CPU", 6, 0)
    if name == "web":
        assert lines.read("tokenizer", Reading) == Reading(texts=len(PROMPTS), differ=())

    inputs, there = generation.read_inputs(save(question, question.file.parent / f"{name}.npz")), answer.arrays
    said = [*split(there["answers"], there["answer_offsets"])]
    assert [len(answer) for answer in said] == [NEW] * len(PROMPTS)
    prompts = [ids[:start].tolist() for ids, start in inputs.sequences]
    found = compare_written(question.file, OPTIONS, prompts, said, (NEW, frozenset()))
    with closing(llamacpp.generator(question.file, OPTIONS)) as generator:
        here = generation.score(generator, inputs, 512)
    assert found.same >= (len(PROMPTS) if name != "web" else len(PROMPTS) - 1)
    assert found.is_rounding, found
    assert set(there) == {*here, "answers", "answer_offsets"}
    assert np.count_nonzero(there["top1"] != here["top1"]) <= (0 if name != "web" else 2)
    assert np.abs(there["nll"] - here["nll"]).max() < (CLOSE if name == "web" else 1e-5), "the very library of here"
    assert here["student_kl"].mean() > 1e-3
    assert np.abs(there["student_kl"] - here["student_kl"]).max() < 0.02
    assert there["student_kl"].mean() == pytest.approx(here["student_kl"].mean(), rel=0.05)


def save(question: Question, path: Path) -> Path:
    np.savez(path, **question.inputs)  # type: ignore[arg-type]
    return path


def test_times_alone_in_a_browser(places: Callable[[str], Device], question: Question) -> None:
    lines = PROBES["web"].ask(places("web"), question.only_times(prompts=(8,), new=4, repeats=1)).lines
    assert [*lines.events] == ["device", "load", "first", "prefill", "decode", "done"]
    assert len(lines.read("decode", Decode).ms) == 4


@pytest.mark.parametrize("kind", ["cut", "context"])
def test_what_a_browser_does_not_run(
    kind: str, places: Callable[[str], Device], question: Question, tmp_path: Path
) -> None:
    damaged, content = tmp_path / "model.gguf", question.file.read_bytes()
    damaged.write_bytes(content[: len(content) // 2] if kind == "cut" else content)
    options = {**OPTIONS, "context": 64 if kind == "context" else 0}
    asked = replace(question, file=damaged, request={**question.request, "options": options})  # type: ignore[typeddict-item]
    message = "take 72 tokens of context, the model has 64" if kind == "context" else "wllama does not load it: "
    with pytest.raises(DeviceFailed, match=message):
        PROBES["web"].ask(places("web"), asked)


@pytest.mark.parametrize(("kind", "runtime"), [("tokens", "onnxruntime"), ("rows", "llama-cpp")])
def test_a_runtime_that_pages_do_not_have(kind: str, runtime: str, tmp_path: Path) -> None:
    """Said before any package is fetched or a browser is started."""
    asked = Question(file=tmp_path / "model", request=request(runtime, {}, TIMING, kind=kind), inputs={})
    with (
        closing(LocalDevice({})) as device,
        pytest.raises(DeviceFailed, match=rf"alone, and this is for {runtime}; judge"),
    ):
        PROBES["web"].ask(device, asked)


def test_an_answer_cut_short_is_no_rounding(file: Path) -> None:
    """Nor is one of many tokens that are a little less likely, nor one that goes on where the model stops."""
    prompts = load_model(STORIES).encode(list(PROMPTS[:2]), 100)
    with closing(llamacpp.generator(file, OPTIONS)) as generator:
        said = [[*generation.continuation(generator, np.array(prompt), 16, frozenset())] for prompt in prompts]

    def judge(answers: list[list[int]], stop: frozenset[int] = frozenset()) -> bool:
        return compare_written(file, OPTIONS, prompts, answers, (16, stop)).is_rounding

    assert judge(said)
    assert not judge([said[0], []])
    assert not judge([said[0][:15], said[1]])
    assert not judge(said, frozenset({said[0][9]}))
    assert not judge([said[1], said[0]])
