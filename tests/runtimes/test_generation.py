"""Requests of kind "tokens": scores and answers against transformers, the lines of the protocol, and what is refused."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from edgekit.runtimes import generation, llamacpp, scores
from tests.runtimes.gguf_files import write_llama
from tests.runtimes.test_probe import ask

EXACT = {"threads": 1, "kv_k": "f32", "kv_v": "f32", "context": 0}
STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260K" / "hf"
VOCABULARY = 512
EVENTS = ["device", "load", "first", "prefill", "decode", "threads", "memory"]
EVENTS += ["outputs", "energy", "work", "machine", "done"]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """stories260K where it is, else random weights of its shape."""
    if STORIES.is_dir():
        return AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, intermediate_size=172, max_position_embeddings=512, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def file(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(model, tmp_path_factory.mktemp("tokens") / "model.gguf")


@pytest.fixture(scope="module")
def sequences(model: LlamaForCausalLM) -> list[tuple[list[int], int]]:
    """(ids, start): likely texts of different lengths, scored from different places on; the last has nothing to score."""
    torch.manual_seed(1)
    begun = torch.tensor([[1]])
    said = model.generate(begun, do_sample=True, max_length=120, pad_token_id=0, eos_token_id=None)[0].tolist()
    return [(said, 1), (said[:50], 20), ([1, *said[60:90]], 12), (said[:40], 1), (said[:9], 9)]


def logits(model: LlamaForCausalLM, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def wanted(model: LlamaForCausalLM, sequences: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and tokens [T] of all that is scored."""
    rows = [logits(model, ids)[start - 1 : -1] for ids, start in sequences]
    return np.concatenate(rows), np.concatenate([ids[start:] for ids, start in sequences]).astype(int)


def reference(rows: np.ndarray, known: int) -> tuple[np.ndarray, np.ndarray]:
    logs = scores.log_softmax(rows)
    ids = np.argsort(-logs, axis=-1, kind="stable")[:, :known]
    return ids.astype(np.int32), np.take_along_axis(logs, ids, axis=-1).astype(np.float32)


def save(path: Path, sequences: list[tuple[list[int], int]], **more: Any) -> Path:
    arrays = {
        "ids": np.array([token for ids, _ in sequences for token in ids], dtype=np.int64),
        "offsets": np.cumsum([0, *(len(ids) for ids, _ in sequences)]),
        "starts": np.array([start for _, start in sequences]),
        "referenced": 0,
        "generate": 0,
        "max_new": 8,
        "stop": np.array([2]),
    }
    np.savez(path, **(arrays | more))
    return path


def score(file: Path, inputs: Path, batch: int = 512) -> dict[str, np.ndarray]:
    with closing(llamacpp.generator(file, EXACT)) as generator:
        return generation.score(generator, generation.read_inputs(inputs), batch)


@pytest.mark.parametrize("batch", [13, 512])
def test_scores_are_those_of_transformers(
    model: LlamaForCausalLM, file: Path, sequences: list[tuple[list[int], int]], tmp_path: Path, batch: int
) -> None:
    found = score(file, save(tmp_path / "inputs.npz", sequences), batch)
    rows, tokens = wanted(model, sequences)
    assert found["nll"].dtype == np.float32
    assert np.abs(found["nll"] - scores.nll(rows, tokens)).max() < 1e-4
    assert np.array_equal(found["top1"], rows.argmax(axis=-1))
    assert set(found) == {"nll", "top1"}


def test_memory_bound_changes_no_score(
    file: Path, sequences: list[tuple[list[int], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = save(tmp_path / "inputs.npz", sequences)
    all_at_once = score(file, inputs)
    monkeypatch.setattr(generation, "_LOGITS_BYTES", 4 * VOCABULARY * 3)
    asked: list[int] = []
    with closing(llamacpp.generator(file, EXACT)) as generator:
        real = generator.logits
        generator.logits = lambda ids, rows=None: (asked.append(len(ids)), real(ids, rows))[1]  # type: ignore[method-assign]
        few = generation.score(generator, generation.read_inputs(inputs), 512)
    assert max(asked) == 3
    assert np.allclose(few["nll"], all_at_once["nll"], atol=1e-5)


def test_divergence_of_all_classes_is_dense_and_of_few_a_lower_bound(
    model: LlamaForCausalLM, file: Path, sequences: list[tuple[list[int], int]], tmp_path: Path
) -> None:
    rows, _ = wanted(model, sequences[:3])
    other = rows + np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
    all_ids, all_logs = reference(other, VOCABULARY)
    few_ids, few_logs = reference(rows, 16)
    more = {"student_ids": all_ids, "student_logprobs": all_logs, "teacher_ids": few_ids, "teacher_logprobs": few_logs}
    found = score(file, save(tmp_path / "inputs.npz", sequences, referenced=3, **more))
    dense = scores.kl(other, rows)
    assert len(found["nll"]) > len(dense) == len(found["student_kl"])
    assert np.abs(found["student_kl"] - dense).max() < 1e-4
    assert np.array_equal(found["student_top1"], other.argmax(axis=-1) == rows.argmax(axis=-1))
    # The model against itself, of which 16 classes are known.
    assert found["teacher_kl"].max() < 1e-6
    assert found["teacher_top1"].all()
    ids, logs = reference(other, 16)
    found = score(file, save(tmp_path / "few.npz", sequences, referenced=3, student_ids=ids, student_logprobs=logs))
    assert (found["student_kl"] <= dense + 1e-5).all()
    assert found["student_kl"].mean() > 0.3 * dense.mean()


def test_answers_are_those_of_transformers(
    model: LlamaForCausalLM, file: Path, sequences: list[tuple[list[int], int]], tmp_path: Path
) -> None:
    inputs = generation.read_inputs(save(tmp_path / "inputs.npz", sequences, generate=4, max_new=64, stop=[]))
    with closing(llamacpp.generator(file, EXACT)) as generator:
        found = generation.answers(generator, inputs)
    for (ids, start), (begin, end) in zip(sequences, pairwise(found["answer_offsets"]), strict=False):
        whole = model.generate(
            torch.tensor([ids[:start]]), do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0
        )
        theirs, ours = whole[0, start:].tolist(), found["answers"][begin:end].tolist()
        for place, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            if one != other:
                second, first = np.sort(logits(model, [*ids[:start], *theirs[:place]])[-1])[-2:]
                assert first - second < 1e-3
                break


def test_an_answer_ends_before_its_stop_token(file: Path) -> None:
    with closing(llamacpp.generator(file, EXACT)) as generator:
        free = list(generation.continuation(generator, np.array([1]), 12, frozenset()))
        assert len(free) == 12
        stop = free[5]
        until = list(generation.continuation(generator, np.array([1]), 12, frozenset({stop, 511})))
    assert until == free[: free.index(stop)]


def test_probe_speaks_the_protocol_of_tokens(
    model: LlamaForCausalLM, file: Path, sequences: list[tuple[list[int], int]], tmp_path: Path
) -> None:
    ids, logs = reference(wanted(model, sequences[:2])[0], 8)
    more = {"referenced": 2, "generate": 3, "student_ids": ids, "student_logprobs": logs}
    inputs = save(tmp_path / "tokens.npz", sequences, **more)
    (tmp_path / "model.gguf").symlink_to(file)
    timing = {"prompts": [64, 16, 4096], "new": 12, "repeats": 5, "seconds": 1, "sweep": True}
    request = {"kind": "tokens", "runtime": "llama-cpp", "file": "model.gguf", "inputs": "tokens.npz", "timing": timing}
    ended = ask(tmp_path, **request, options=EXACT | {"threads_batch": 4096})
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["event"] for line in lines] == EVENTS
    told = {line["event"]: line for line in lines}
    cores = told["device"]["cores"]
    assert (told["load"]["runtime"], told["load"]["version"]) == ("llama-cpp", llamacpp.version())
    assert told["first"]["alive_ms"] > told["load"]["ms"] + told["first"]["ms"] > 0
    # Lengths that the model has no room for are left out.
    assert told["prefill"]["lengths"] == [16, 64]
    assert (told["prefill"]["threads"], told["prefill"]["threads_batch"]) == (1, cores)
    assert all(2 <= len(times) <= 6 and min(times) > 0 for times in told["prefill"]["ms"])
    assert (told["decode"]["depth"], told["decode"]["new"]) == (64, 12)
    assert len(told["decode"]["ms"]) in range(12, 61, 12)
    for kind in ("prefill", "decode"):
        assert {"1", str(cores)} <= set(told["threads"][kind]) <= {str(count) for count in range(1, cores + 1)}
        assert min(told["threads"][kind].values()) > 10
    assert 10 < told["memory"]["baseline_mb"] < told["memory"]["loaded_mb"] <= told["memory"]["peak_mb"]
    assert (told["work"]["provider"], told["work"]["layers"], told["work"]["offloaded"]) == ("CPU", 6, 0)
    # The longest sequence has 120 tokens, the longest answer ends at 20 + 8, timing at 64 + 12: 256 cells are llama.cpp's least.
    assert told["work"]["buffers"]["kv"]["CPU"] == pytest.approx(2 * 5 * 32 * 256 * 4 / (1 << 20), abs=0.01)
    assert told["machine"]["speed"]["copy_gbs"] > 0.1
    assert told["decode"]["neighbours"]["seconds"] > 0
    assert told["outputs"] == {"event": "outputs", "seq": 7, "file": "out/outputs.npz", "scored": 207, "answers": 3}
    with np.load(tmp_path / "out" / "outputs.npz") as found:
        direct = score(file, inputs)
        for key, value in direct.items():
            assert np.array_equal(found[key], value), key
        assert found["answer_offsets"].shape == (4,)
        assert len(found["answers"]) == found["answer_offsets"][-1]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "model.gguf").symlink_to(file)
    (tmp_path / "again" / "tokens.npz").symlink_to(inputs)
    again = ask(tmp_path / "again", **request | {"timing": {**timing, "only": True}}, options=EXACT)
    lines = [json.loads(line)["event"] for line in again.stdout.splitlines()]
    assert lines == ["device", "load", "first", "prefill", "decode", "done"]


def test_a_context_longer_than_the_models_is_one_clear_line(
    file: Path, sequences: list[tuple[list[int], int]], tmp_path: Path
) -> None:
    save(tmp_path / "tokens.npz", sequences, generate=1, max_new=600)
    (tmp_path / "model.gguf").symlink_to(file)
    timing = {"prompts": [16], "new": 4, "repeats": 2, "seconds": 1, "sweep": False}
    request = {"kind": "tokens", "runtime": "llama-cpp", "file": "model.gguf", "inputs": "tokens.npz", "timing": timing}
    ended = ask(tmp_path, **request, options=EXACT)
    assert ended.returncode != 0
    assert "done" not in ended.stdout
    last = ended.stderr.strip().splitlines()[-1]
    assert "model.gguf: the sequences take 601 tokens of context, the model has 512" in last


@pytest.mark.parametrize("start", [0, 10])
def test_starts_outside_their_sequence_are_refused(tmp_path: Path, start: int) -> None:
    with pytest.raises(ValueError, match=r"inputs.npz: starts"):
        generation.read_inputs(save(tmp_path / "inputs.npz", [([1] * 9, start)]))


def test_a_reference_of_other_tokens_is_refused(tmp_path: Path) -> None:
    more = {"student_ids": np.zeros((5, 2), np.int32), "student_logprobs": np.zeros((5, 2), np.float32)}
    with pytest.raises(ValueError, match="student_ids: 5 rows for 8 tokens of the 1 sequences"):
        generation.read_inputs(save(tmp_path / "inputs.npz", [([1] * 9, 1), ([1] * 9, 1)], referenced=1, **more))


def test_timing_fits_a_short_context() -> None:
    asked = {"prompts": [64, 256], "new": 64, "repeats": 3, "seconds": 1}
    assert generation.fit(asked, np.arange(5), 300).prompts == [64, 256]
    assert generation.fit(asked, np.arange(5), 300).new == 44
    short = generation.fit(asked, np.arange(5), 32)
    assert (list(short.prompts), short.new) == ([16], 16)
    assert short.ids.tolist() == [*range(5), *range(5), *range(5), 0]
