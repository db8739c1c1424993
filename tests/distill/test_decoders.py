"""Decoders: made from nothing, fine-tuned, distilled; what is scored, in how much memory, and runs that are killed."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgekit.distill import chunked, loop
from edgekit.distill.batches import find_passages, hold_out, passage_source, score
from edgekit.distill.created import BEGIN, BEGIN_ID, END, END_ID, pack, train_tokenizer
from edgekit.distill.decoders import Body
from edgekit.distill.divergences import LossOptions
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.loop import Lesson
from edgekit.distill.losses import LOSSES, compare_logits
from edgekit.distill.options import read_create_options, read_distill_options
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TEACHERS, TeacherInputs
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.recipe import packaged
from edgekit.tasks import TASKS
from edgekit.tasks.text_generation import Passage, passages
from edgekit.workspace import file_sha256
from tests import warm
from tests.architectures.decoders import DECODERS, make_decoder
from tests.architectures.decoders import END as FAMILY_END
from tests.conftest import child_environment
from tests.steps import create, distill, finetune

TASK = "text-generation"
MADE = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FILES = [*MADE, "training.jsonl"]
SMALL: dict[str, Any] = {
    "vocabulary": 320,
    "hidden": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "context": 64,
    "epochs": 1,
    "batch": 24,
    "holdout": 0.1,
    "precision": "fp32",  # what is compared with transformers' float32
}
# gemma3 as such sees pictures too: text alone is its gemma3_text.
FAMILIES = sorted(set(DECODERS) - {"gemma3"})
UNICODE = [
    "",
    " ",
    "naïve café",
    "日本語 text",
    "👩‍👩‍👧 and e\u0301",
    "a\tb\r\n\n  c",
    "x" * 300,
    "١٢٣ 12345",
    "\ufeff\x00\x7f",
]


def stories(count: int) -> list[str]:
    lines = (packaged("calib_data/stories") / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["text"] for line in lines]


def write_train(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_train(tmp_path_factory.mktemp("stories") / "data", [{"text": text} for text in stories(60)])


@pytest.fixture(scope="module")
def storyteller(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A decoder made from 60 stories, and the facts of its making; not to be changed."""
    out = tmp_path_factory.mktemp("storyteller") / "model"
    out.mkdir()
    options = SMALL | {"epochs": 4, "batch": 8}
    return out, create(data, options=options, max_length=64, out=out, seed=3)


def surprise(folder: Path, ids: list[list[int]], starts: list[int]) -> float:
    """Mean cross-entropy of the tokens from each start on, by transformers itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row, start in zip(ids, starts, strict=True):
            tokens = torch.tensor([row])
            labels = tokens.clone()
            labels[:, :start] = -100
            scored = len(row) - start
            total += float(model(tokens, labels=labels).loss) * scored
            count += scored
    return total / count


def test_a_created_model_is_a_whole_checkpoint(storyteller: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, facts = storyteller
    assert sorted(path.name for path in folder.iterdir()) == FILES
    model = load_model(folder)
    assert model.architecture == "llama"
    assert model.parameters == facts["parameters"]
    assert model.config["vocab_size"] == facts["vocabulary"] == 320
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (BEGIN_ID, END_ID)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token) == (BEGIN_ID, END_ID, END)
    for text in (*UNICODE, *stories(3)):
        ids = tokenizer(text)["input_ids"]
        assert ids == model.encode([text], 1 << 30)[0]
        assert ids[0] == BEGIN_ID
        assert tokenizer.decode(ids[1:]) == text
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    passage = passages(model, [Prompt(text="Once there was")], 64)[0]
    assert passage.ids[0] == BEGIN_ID


def test_a_created_model_has_learned(storyteller: tuple[Path, dict[str, Any]]) -> None:
    """Its perplexity is counted on texts that it never saw, and is a small part of what equal odds would give."""
    folder, facts = storyteller
    texts = stories(60)
    kept, held = hold_out(texts, 0.1)
    tokenizer = load_model(folder).tokenizer()
    blocks = list(pack(tokenizer, [texts[place] for place in held], 64, seed=3))
    assert facts["held_texts"] == len(held) > 0
    assert facts["train_texts"] == len(kept)
    assert math.log(facts["perplexity"]) == pytest.approx(surprise(folder, blocks, [1] * len(blocks)), abs=2e-4)
    assert facts["perplexity"] < 320 / 4
    assert facts["scores"] == sorted(facts["scores"], reverse=True)


def test_llama_cpp_reads_a_created_model_as_transformers_does(
    storyteller: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The tokenizer is one whose pre-tokenizer llama.cpp knows, and 32 greedy tokens are the same."""
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM

    from edgekit.formats.gguf.convert import Quantization, convert
    from edgekit.formats.gguf.metadata import describe_model
    from edgekit.formats.gguf.parity import check_parity
    from edgekit.formats.gguf.tensors import plan
    from edgekit.formats.gguf.tokenizer import vocabulary

    model, file = load_model(storyteller[0]), tmp_path / "model.gguf"
    metadata = {**vocabulary(model), **describe_model(model)}
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    convert(model, file, Quantization(types={tensor.name: "f32" for tensor in plan(model)}), metadata)
    assert check_parity(model, file, UNICODE).stops == {"original": (END_ID,), "llama.cpp": (END_ID,)}
    asked = model.encode(["Once there was"], 64)[0]
    told = AutoModelForCausalLM.from_pretrained(model.folder)
    wanted = told.generate(torch.tensor([asked]), max_new_tokens=32, do_sample=False)[0].tolist()
    engine = Llama(str(file), verbose=False, n_ctx=64)
    said = itertools.islice(engine.generate(asked, temp=0.0), len(wanted) - len(asked))
    assert [*asked, *said] == wanted
    engine.close()


def test_blocks_hold_every_token_once() -> None:
    texts = stories(40)
    tokenizer = train_tokenizer(texts, 320)
    for length in (8, 64):
        blocks = list(pack(tokenizer, texts, length, seed=5))
        assert {len(block) for block in blocks} == {length}
        assert all(one[-1] == other[0] for one, other in itertools.pairwise(blocks))
        stream = [blocks[0][0], *(token for block in blocks for token in block[1:])]
        whole = sum(len(tokenizer.encode(text).ids) + 1 for text in texts)
        assert 0 <= whole - len(stream) < length
        assert stream.count(END_ID) >= len(texts) - length
    assert blocks == list(pack(tokenizer, texts, 64, seed=5))
    assert blocks != list(pack(tokenizer, texts, 64, seed=6))


def test_a_created_tokenizer_may_have_tokens_of_its_own() -> None:
    """Each is one token wherever it is written, and no word is learned of it; without them nothing changes."""
    marks = ["<|fim|>", "<|fim|>>", "a+b"]
    texts = [f"{marks[0]}{text}{marks[1]} and {marks[2]}" for text in stories(40)]
    tokenizer = train_tokenizer(texts, 330, marks)
    assert [tokenizer.token_to_id(mark) for mark in marks] == [2, 3, 4]
    assert tokenizer.encode("<|fim|>x<|fim|>>").ids[1:] == [2, tokenizer.token_to_id("x"), 3]
    assert not [token for token in tokenizer.get_vocab() if "<|" in token and token not in (*marks, BEGIN, END)]
    assert train_tokenizer(stories(40), 330, ()).to_str() == train_tokenizer(stories(40), 330).to_str()
    options = read_create_options({"tokens": marks}, 64, "teacher.create")
    assert identity(options)["tokens"] == marks
    assert "tokens" not in identity(read_create_options({}, 64, "teacher.create"))
    with pytest.raises(EdgekitError, match=r"teacher.create: tokens.0"):
        read_create_options({"tokens": [""]}, 64, "teacher.create")


SCRIPT = """
import json, sys
from pathlib import Path
from edgekit.distill import loop
from tests.steps import create
loop.SNAPSHOT_SECONDS = 0.0
create(Path(sys.argv[1]), options=json.loads(sys.argv[3]), max_length=64, out=Path(sys.argv[2]),
       progress=lambda done, total, note: note.startswith("loss") and print(done, flush=True))
"""


def test_a_killed_creation_is_continued_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """SIGKILL in a run of a tied model; another process, with other hash seeds, ends where an unbroken one does."""

    def start(name: str, begin: Callable[..., Any] = warm.start) -> Any:
        (tmp_path / name).mkdir(exist_ok=True)
        command = ["-c", SCRIPT, data, tmp_path / name, json.dumps(SMALL)]
        return begin(command, tmp_path, child_environment())

    broken = start("broken")
    assert broken.stdout is not None
    for line in broken.stdout:
        if int(line) == 3:
            break
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert (tmp_path / "broken" / "snapshot.json").is_file()
    steps = [int(line) for line in start("broken").communicate()[0].split()]
    assert steps[0] > 2
    whole = [int(line) for line in start("whole", warm.alone).communicate()[0].split()]
    assert whole[0] == 1
    assert whole[-1] == steps[-1]
    for name in MADE:
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == FILES


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_each_family_can_be_created(family: str, data: Path, tmp_path: Path) -> None:
    facts = create(data, options=SMALL | {"family": family, "tied": False}, max_length=64, out=tmp_path)
    module = TASKS[TASK].load(tmp_path)
    assert load_model(tmp_path).architecture == family
    assert load_model(tmp_path).config.get("sliding_window") is None
    assert sum(one.numel() for one in module.parameters()) == facts["parameters"]
    assert facts["perplexity"] < 320


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "lama"}, "teacher.create.family: "),
        ({"layer": 2}, r"layer: unknown key \(did you mean layers\?\)"),
        ({"heads": 3}, r"teacher.create.heads: 3: hidden \(256\) must be heads times"),
        ({"kv_heads": 3}, "teacher.create.kv_heads: 3: must divide heads"),
        ({"context": 32}, r"teacher.create.context: 32: shorter than data.max_length \(64\)"),
        ({"vocabulary": 200}, "vocabulary: "),
    ],
)
def test_sizes_that_do_not_fit_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        read_create_options(options, 64, "recipe.toml: teacher.create")


def test_nothing_is_created_of_nothing(tmp_path: Path) -> None:
    data = write_train(tmp_path / "data", [{"text": "too short"}])
    with pytest.raises(EdgekitError, match="less than 64 tokens"):
        create(data, options=SMALL, max_length=64, out=tmp_path)
    write_train(data, [{"text": "hello", "messages": [{"role": "user", "content": "hello"}]}])
    with pytest.raises(EdgekitError, match="no chat template"):
        create(data, options=SMALL, max_length=64, out=tmp_path)


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_decoder(family, tmp_path_factory.mktemp(family) / "model")
        return made[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_body_and_head_say_what_the_model_says(family: str, family_folder: Callable[[str], Path]) -> None:
    """With sdpa where the family has it, padding, windows and soft caps included; only the wanted tokens get logits."""
    folder = family_folder(family)
    module = TASKS[TASK].load(folder)
    read = [Passage(ids=list(range(5, 5 + size)), start=start, prompt=0) for size, start in ((40, 1), (7, 5), (23, 22))]
    batch = score(read)
    with torch.no_grad():
        logits = module(batch.tokens, batch.mask)
        body = Body(TASKS[TASK].load(folder).model)  # type: ignore[arg-type]
        mine = body.head(body(batch.tokens, batch.mask)[batch.scored])
    assert mine.shape == (39 + 2 + 1, len(body.head.weight))
    torch.testing.assert_close(mine, logits[batch.scored], atol=2e-4, rtol=2e-4)
    assert batch.targets.tolist() == [*range(6, 45), 10, 11, 27]


def next_tokens(tap: Tap, read: list[Passage], train: list[int], held: list[int]) -> Lesson:
    return make_lesson(tap, None, passage_source(read, train, held), Teaching(weights={"labels": 1.0}))


def loss_of(lesson: Lesson, rows: list[int]) -> Tensor:
    return torch.stack(list(lesson.parts(rows, 0.0))).sum()


def test_the_loss_is_transformers_own(family_folder: Callable[[str], Path]) -> None:
    """Cross-entropy on the answers' tokens alone, every token alike whatever batch it is in."""
    folder = family_folder("llama")
    read = [
        Passage(ids=list(range(9, 9 + size)), start=size - said, prompt=0) for size, said in ((30, 1), (12, 9), (9, 3))
    ]
    wanted = surprise(folder, [one.ids for one in read], [one.start for one in read])
    body = Body(TASKS[TASK].load(folder).model)  # type: ignore[arg-type]
    lesson = next_tokens(Tap(body), read, [0], [0, 1, 2])
    with torch.no_grad():
        assert float(loss_of(lesson, [0, 1, 2])) == pytest.approx(wanted, abs=1e-5)
        judged = (float(lesson.judge([0, 1])) * 2 + float(lesson.judge([2]))) / 3
    assert judged == pytest.approx(wanted, abs=1e-5)


def test_logits_are_bounded_and_gradients_are_the_same(
    family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In slices of 5 tokens: the same loss and gradients, and never more than 5 rows of logits, each computed once."""
    read = [Passage(ids=list(range(9, 40)), start=1, prompt=0)]
    found: list[tuple[float, list[Tensor]]] = []
    widths: list[int] = []
    make = chunked.Head.__call__

    def count(head: chunked.Head, states: Tensor) -> Tensor:
        widths.append(len(states))
        return make(head, states)

    monkeypatch.setattr(chunked.Head, "__call__", count)
    for size in (1 << 30, 5 * 4 * 512):
        monkeypatch.setattr(chunked, "LOGIT_BYTES", size)
        body = Body(TASKS[TASK].load(family_folder("qwen2")).model)  # type: ignore[arg-type]
        loss = loss_of(next_tokens(Tap(body), read, [0], []), [0])
        loss.backward()
        found.append((float(loss.detach()), [one.grad for one in body.parameters() if one.grad is not None]))
    assert widths == [30, *[5] * 6]
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_token_kl_is_the_formula() -> None:
    torch.manual_seed(0)
    mine, theirs, heat = torch.randn(7, 11), torch.randn(7, 11), 2.0
    targets, options = torch.arange(7), LossOptions(temperature=heat)
    p, q = (theirs / heat).softmax(-1), (mine / heat).softmax(-1)
    wanted = (p * (p / q).log()).sum(-1) * heat**2
    torch.testing.assert_close(compare_logits(LOSSES["logits"], mine, theirs, targets, options)[0], wanted)
    picked = -mine.softmax(-1).log()[targets, targets]
    torch.testing.assert_close(compare_logits(LOSSES["labels"], mine, mine, targets, options)[0], picked)


LESSON = {"hidden": 1.0, "logits": 1.0}
QUESTIONS = {"What is red?": "A rose", "What is blue?": "The sky", "What is white?": "Snow", "What is green?": "Grass"}


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_finetune_learns_the_answers(family: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Through the chat template: the trained model says each answer and then ends its turn."""
    from transformers import AutoModelForCausalLM

    rows = [{"text": text, "label": label} for text, label in QUESTIONS.items()]
    data, out = write_train(tmp_path / "data", rows), tmp_path / "out"
    out.mkdir()
    options = {"epochs": 40, "batch": 4, "learning_rate": 3e-3, "holdout": 0.0}
    facts = finetune(family_folder(family), data, task=TASK, options=options, max_length=64, out=out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "chat_template.jinja"])
    model = load_model(out)
    read = passages(model, [Prompt(text=text, label=label) for text, label in QUESTIONS.items()], 64)
    assert facts["train_tokens"] == sum(len(one.ids) - one.start for one in read)
    told = AutoModelForCausalLM.from_pretrained(out).eval()
    for one in read:
        said = told.generate(torch.tensor([one.asked]), do_sample=False, max_new_tokens=12, pad_token_id=2)[0].tolist()
        assert said == one.ids
        assert said[-1] == FAMILY_END


def test_running_text_is_learned_with_its_end(storyteller: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    model = load_model(storyteller[0])
    rows = [Prompt(text=stories(1)[0]), Prompt(text="Short.")]
    read = find_passages(model, rows, 64)
    assert [one.start for one in read] == [1] * len(read)
    assert len(read) > 2
    assert read[-1].ids == [*model.encode(["Short."], 64)[0], END_ID]
    assert [one.ids[-1] == END_ID for one in read] == [*[False] * (len(read) - 2), True, True]
    with pytest.raises(EdgekitError, match="no train row has an answer"):
        find_passages(load_model(make_decoder("llama", tmp_path / "chat")), [Prompt(text="hello")], 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_cut_and_comes_near_its_teacher(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each family loses a layer in the middle and learns to speak as its teacher; its configuration says what it is."""
    teacher = family_folder(family)
    data = write_train(tmp_path / "data", [{"text": text, "label": label} for text, label in QUESTIONS.items()])
    depth = load_model(teacher).layers
    keep = [0, *range(2, depth)]

    def teach(name: str, epochs: int, **more: Any) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        # Without labels: a random teacher knows nothing of them.
        options = {"epochs": epochs, "batch": 4, "learning_rate": 2e-3, "holdout": 0.0, "losses": LESSON, **more}
        return distill(teacher, data, task=TASK, keep=keep, options=options, max_length=64, out=tmp_path / name)

    facts = teach("long", 30)
    assert facts["losses"] == LESSON
    assert facts["matched_layers"] == keep
    teach("short", 1, learning_rate=1e-7)
    model = load_model(tmp_path / "long")
    assert model.layers == depth - 1
    if kinds := load_model(teacher).config.get("layer_types"):
        assert model.config["layer_types"] == [kinds[index] for index in keep]
    read = passages(model, [Prompt(text=text, label=label) for text, label in QUESTIONS.items()], 64)
    batch = score(read)
    with torch.no_grad():
        shown, far, near = (
            TASKS[TASK].load(folder)(batch.tokens, batch.mask)[batch.scored].log_softmax(-1)
            for folder in (teacher, tmp_path / "short", tmp_path / "long")
        )
    apart = [float((shown.exp() * (shown - one)).sum(-1).mean()) for one in (far, near)]
    assert apart[1] < 0.7 * apart[0]


class Killed(BaseException):
    """Stands for a kill at a step's end."""


@pytest.mark.parametrize("verb", ["finetune", "distill"])
def test_a_stopped_run_ends_in_the_same_bytes(
    verb: str, storyteller: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    data = write_train(tmp_path / "data", [{"text": text} for text in stories(12)])
    options = {"epochs": 2, "batch": 8, "holdout": 0.2}

    def run(name: str, stop: int | None = None) -> None:
        def progress(done: int, _total: int, _note: str) -> None:
            if done == stop:
                raise Killed

        out = tmp_path / name
        out.mkdir(exist_ok=True)
        more: dict[str, Any] = {"options": options, "max_length": 64, "out": out, "progress": progress}
        if verb == "finetune":
            finetune(storyteller[0], data, task=TASK, **more)
        else:
            distill(storyteller[0], data, task=TASK, layers=1, **more)

    run("whole")
    for stop in (2, 5):
        with pytest.raises(Killed):
            run("broken", stop)
    run("broken")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == FILES
    for name in MADE:
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


def test_the_teacher_says_the_same_from_memory_and_live(storyteller: tuple[Path, dict[str, Any]]) -> None:
    body = Body(TASKS[TASK].load(storyteller[0]).model)  # type: ignore[arg-type]
    ids = load_model(storyteller[0]).encode(["One day", "A little bird sat on the roof."], 64)
    source = passage_source([Passage(ids=row, start=1, prompt=0) for row in ids], [0, 1], [])
    tap = Tap(body, needs=frozenset({"hidden"}), blocks=[0, 1])
    inputs = TeacherInputs(folder=storyteller[0], source=source, open=lambda: tap)
    batch = source.batch([1, 0])
    known, live = (teacher.ask(batch) for teacher in (kind(inputs) for kind in TEACHERS.values()) if teacher)
    for row, length in enumerate((len(ids[1]), len(ids[0]))):
        torch.testing.assert_close(known.output[row, :length], live.output[row, :length], atol=1e-5, rtol=1e-5)
        for kept, asked in zip(known.hidden, live.hidden, strict=True):
            torch.testing.assert_close(kept[row, :length], asked[row, :length], atol=1e-5, rtol=1e-5)


def test_losses_of_rows_are_refused() -> None:
    assert read_distill_options({}, "tokens", "recipe.toml: distill")[1] == {
        "hidden": 1.0,
        "labels": 0.5,
        "logits": 1.0,
    }
    with pytest.raises(EdgekitError, match=r"distill.losses.attention_relation: does not apply to tokens"):
        read_distill_options({"losses": {"attention_relation": 1.0}}, "tokens", "recipe.toml: distill")


def test_a_folder_is_not_continued_with_other_texts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another run left is dropped: the result is that of a fresh folder."""
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    other = write_train(tmp_path / "other", [{"text": text} for text in stories(30)])

    def stop(done: int, _total: int, _note: str) -> None:
        if done == 3:
            raise Killed

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Killed):
        create(data, options=SMALL, max_length=64, out=out, progress=stop)
    create(other, options=SMALL, max_length=64, out=out)
    first = file_sha256(out / "model.safetensors")
    shutil.rmtree(out)
    out.mkdir()
    create(other, options=SMALL, max_length=64, out=out)
    assert file_sha256(out / "model.safetensors") == first
