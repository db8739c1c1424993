"""Sessions that are bound and replay graphs: the answers of plain runs, bit for bit, in tensors that stay where they are.

CUDA is not at hand: a stand-in does what onnxruntime's CUDA provider does with a graph (it computes what was recorded, on the
memory that was recorded, whatever is bound now); binding, tensors and graphs' numbers are onnxruntime's own, on the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgekit.modalities.text import of_tokens
from edgekit.runtimes.onnxruntime import CPU, CUDA, bound, joined, load, profile, proof
from edgekit.runtimes.onnxruntime.bound import Bound
from edgekit.runtimes.onnxruntime.library import Started
from edgekit.runtimes.request import feeds
from tests.runtimes.onnxruntime.test_onnxruntime import make_layers


class Recording(onnxruntime.InferenceSession):
    """onnxruntime with graphs: of each number the first run is recorded, and is what later ones run."""

    def __init__(self, model: str, *_: Any, providers: Any, **asked: Any) -> None:
        self.options = dict(entry for entry in providers if isinstance(entry, tuple))
        if self.fails_to_open and self.options.get(CPU):
            raise RuntimeError("all compute graph nodes have not been partitioned to the CUDAExecutionProvider")
        super().__init__(model, providers=[CPU], **asked)
        self.recorded: dict[str, Any] = {}
        self.ran: list[str] = []

    fails_to_open = False
    # What a replay does instead: nothing, an error.
    fault: str | None = None

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        self.ran.append(number)
        if number == "-1" or number not in self.recorded:
            super().run_with_iobinding(binding, options)
            if number != "-1":
                self.recorded[number] = binding
        elif self.fault == "error":
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        elif self.fault is None:
            super().run_with_iobinding(self.recorded[number], options)


class OnCpu(Bound):
    PROVIDER, MEMORY = CPU, "cpu"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    make_layers(tmp_path / "m.onnx")
    monkeypatch.setattr(bound.onnxruntime, "InferenceSession", Recording)
    yield tmp_path / "m.onnx"
    Recording.fault, Recording.fails_to_open = None, False


def prompt(*ids: int) -> dict[str, np.ndarray]:
    return feeds(of_tokens([list(ids)], 0).prompts[0], ["input_ids"])


def plain(model: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    answer: np.ndarray = load(model, {"threads": 1}).run({name: array[0] for name, array in given.items()})
    return answer


def test_each_shape_has_its_graph_and_all_answers_are_those_of_plain_runs(model: Path) -> None:
    session = OnCpu(str(model), providers=[CPU])
    texts = [prompt(1, 2, 3), prompt(4, 5), prompt(7, 8, 9), prompt(6, 1), prompt(7, 8, 9), prompt(3)]
    kept = [session.run(None, text)[0] for text in texts]
    for text, answer in zip(texts, kept, strict=True):
        assert np.array_equal(answer[0], plain(model, text))
    assert session.why == ""
    # Without a graph, recorded, compared; then one replay a call.
    assert session.ran == ["-1", "0", "0", "-1", "1", "1", "0", "1", "0", "-1", "2", "2"]
    assert session.options == {CPU: {"enable_cuda_graph": "1"}}


def test_a_replay_reads_and_writes_the_tensors_that_were_recorded(model: Path) -> None:
    session = OnCpu(str(model), providers=[CPU])
    session.run(None, prompt(1, 2))
    (graph,) = session._graphs.values()
    before = [tensor.data_ptr() for tensor in (*graph._inputs.values(), *graph._outputs.values())]
    first = session.run(None, prompt(3, 4))[0]
    second = session.run(None, prompt(5, 6))[0]
    assert [tensor.data_ptr() for tensor in (*graph._inputs.values(), *graph._outputs.values())] == before
    # What was given back stays what it was.
    assert not np.array_equal(first, second)
    assert np.array_equal(first[0], plain(model, prompt(3, 4)))


def test_graphs_are_limited_and_belong_to_a_thread(model: Path) -> None:
    session = OnCpu(str(model), providers=[CPU], most=2)
    texts = [prompt(*range(1, length)) for length in (2, 3, 4, 5, 3)]
    for text in texts:
        assert np.array_equal(session.run(None, text)[0][0], plain(model, text))
    assert set(session.ran) == {"-1", "0", "1"}
    many = OnCpu(str(model), providers=[CPU])
    answers: dict[int, np.ndarray] = {}

    def ask(which: int) -> None:
        for _ in range(20):
            answers[which] = many.run(None, texts[which])[0][0]

    threads = [threading.Thread(target=ask, args=(which,)) for which in (1, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(answer, plain(model, texts[which])) for which, answer in answers.items())
    # Two of the threads ask for one length.
    assert (many.why, len(many._graphs)) == ("", 3)
    for count in (4, 5, 6):
        # Threads in turn may have one number; each is another.
        after = threading.Thread(target=ask, args=(1,))
        after.start()
        after.join()
        assert (many.why, len(many._graphs)) == ("", count)


@pytest.mark.parametrize(
    ("fault", "why"),
    [("stale", "a replay gives other numbers for logits"), ("error", "CUDA failure 900: operation not permitted")],
)
def test_a_graph_that_is_wrong_or_fails_is_not_used_and_told(model: Path, fault: str, why: str) -> None:
    Recording.fault = fault
    session = OnCpu(str(model), providers=[CPU])
    for text in (prompt(1, 2), prompt(3, 4), prompt(5, 6, 7)):
        assert np.array_equal(session.run(None, text)[0][0], plain(model, text))
    assert why in session.why
    # It was opened again, without graphs, and asked without.
    assert (session.options, set(session.ran)) == ({CPU: {}}, {"-1"})


def test_a_replay_that_fails_later_is_answered_without_one(model: Path) -> None:
    session = OnCpu(str(model), providers=[CPU])
    session.run(None, prompt(1, 2))
    Recording.fault = "error"
    assert np.array_equal(session.run(None, prompt(3, 4))[0][0], plain(model, prompt(3, 4)))
    assert "CUDA failure 900" in session.why


def test_a_graph_with_operators_on_the_cpu_is_bound_without_graphs(model: Path) -> None:
    Recording.fails_to_open = True
    session = OnCpu(str(model), providers=[CPU])
    assert np.array_equal(session.run(None, prompt(1, 2))[0][0], plain(model, prompt(1, 2)))
    assert "have not been partitioned" in session.why
    assert session.ran == ["-1"]


def test_an_onnxruntime_with_one_graph_for_all_shapes_gets_none(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.3")
    session = OnCpu(str(model), providers=[CPU])
    session.run(None, prompt(1, 2))
    assert "1.17.3 keeps one graph for all shapes" in session.why
    assert session.options == {CPU: {}}


def test_wrong_inputs_are_the_callers_fault(model: Path) -> None:
    session = OnCpu(str(model), providers=[CPU])
    with pytest.raises(bound.ERRORS, match="Unexpected input data type"):
        session.run(None, {"input_ids": np.zeros((1, 2), np.float32)})
    assert session.why == ""


def test_without_cuda_the_session_says_so(tmp_path: Path) -> None:
    """The real one, whose provider does not start here."""
    make_layers(tmp_path / "m.onnx")
    session = Bound(str(tmp_path / "m.onnx"), providers=[CPU])
    answer = session.run(None, prompt(1, 2))[0][0]
    assert np.array_equal(answer, plain(tmp_path / "m.onnx", prompt(1, 2)))
    assert session.why == f"{CUDA} did not start"
    assert session.get_inputs()[0].name == "input_ids"


def test_a_session_on_cuda_is_asked_so_and_says_how(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with CUDA, by stand-ins for what it has: `work` and `doctor`'s product tell of graphs."""

    def started(file: Any, options: Any, *, profile: Path | None = None, graphs: bool = False) -> Started:
        settings = onnxruntime.SessionOptions()
        if profile is not None:
            settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
        if graphs and options.cuda_graphs:
            return Started(session=OnCpu(str(file), providers=[CPU]))
        return Started(session=REAL(str(file), settings, providers=[CPU]))

    monkeypatch.setattr("edgekit.runtimes.onnxruntime.session.start", started)
    monkeypatch.setattr(profile, "CPU", "none")
    given = of_tokens([[1, 2, 3]], 0).prompts[0]
    assert profile.work(model, {"provider": CUDA}, given)["graphs"] == ""
    assert "graphs" not in profile.work(model, {"provider": CUDA, "cuda_graphs": False}, given)
    Recording.fault = "stale"
    assert "other numbers" in profile.work(model, {"provider": CUDA}, given)["graphs"]
    assert np.array_equal(load(model, {"provider": CUDA}).run(given), REAL(str(model), providers=[CPU]).run(
        None, feeds(given, ["input_ids"]))[0][0])  # fmt: skip


REAL = onnxruntime.InferenceSession


def test_only_options_for_cuda_have_graphs() -> None:
    assert joined({"provider": CUDA}, {})["cuda_graphs"] is True
    assert joined({"provider": CUDA, "cuda_graphs": False}, {})["cuda_graphs"] is False
    assert "cuda_graphs" not in joined({}, {})
    assert proof.prove({})["graphs"] is None
