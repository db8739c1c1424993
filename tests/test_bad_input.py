"""Bad input: exit code 1, one line that says where, what and the remedy, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import warm
from tests.conftest import ROOT, Answer, child_environment

Command = Callable[..., Answer]
DRY = ("build", "--target", "laptop-cpu", "--dry-run", "--out", "dist")


def litter(folder: Path) -> list[str]:
    """What a failed command left: anything in dist, and partial or unfinished folders in the cache."""
    left = list(folder.joinpath("dist").rglob("*"))
    left += [path for path in folder.joinpath("cache").rglob(".*") if path.name != ".lock"]
    for product in folder.joinpath("cache").glob("*/*"):
        if product.is_dir() and not (product / f"{product.parent.name}.json").is_file():
            left.append(product)
    return sorted(str(path.relative_to(folder)) for path in left)


def assert_told(answer: Answer, *said: str, folder: Path) -> None:
    lines = answer.err.splitlines()
    assert answer.code == 1, answer.err
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("Error: ")
    for part in said:
        assert part in lines[0]
    assert answer.out == ""
    assert litter(folder) == []


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_good_input(command: Command, project: Path) -> None:
    """The project that the other tests break is whole."""
    answer = command(*DRY)
    assert (answer.code, answer.err) == (0, "")
    assert litter(project.parent) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_length = 32", "max_lenght = 32", ("recipe.toml: data.max_lenght: unknown key", "did you mean max_length?")),
        ("[teacher]", "[techer]", ("recipe.toml: techer: unknown key", "did you mean teacher?")),
        ("max_length = 32", 'max_length = "32"', ("recipe.toml: data.max_length: should be a valid integer, got '32'",)),
        ("max_length = 32", "max_length = 99", ("recipe.toml: data.max_length: 99 tokens", "positions end at 64")),
        ("[data]", "[data", ("recipe.toml: not valid TOML", "line")),
        ("text-classification", "text-clasification", ("recipe.toml: task: unknown value", "did you mean text-classification?")),
        ('source = "teacher"', 'source = "./teachr"', ("recipe.toml: teacher.source: no such folder: ", "hub id")),
        ('source = "teacher"', 'source = "package:no_such_pkg/x"', ("recipe.toml: teacher.source: the package no_such_pkg", "pip install no-such-pkg")),
        ('path = "data"', 'path = "dat"', ("recipe.toml: data.path: no such file or folder: ",)),
        ('path = "data"', 'path = "data"\nlabel = "intent"', ("calibrate.jsonl: data.label: no column 'intent' (its columns: text, label)",)),
        ('path = "data"', 'path = "data"\ntext = "body"', ("calibrate.jsonl: data.text: no column 'body'",)),
        ('path = "data"', 'path = "data"\nout_of_scope = "oos"', ("recipe.toml: data.out_of_scope: no row",)),
        ("[data]", "[distill]\nlosses = { logit = 1.0 }\n[student]\nlayers = 1\n[data]", ("recipe.toml: distill.losses.logit", "logits")),
        ("[data]", "[student]\nlayers = 9\n[data]", ("student", "9")),
        ("[data]", "[student]\nkeep = [0, 7]\n[data]", ("student", "7")),
        ("[data]", "[teacher.finetune]\nepoch = 3\n[data]", ("recipe.toml: teacher.finetune.epoch: unknown key", "did you mean epochs?")),
        ("[data]", "[accuracy]\nstudent_margim = 0.01\n[data]", ("accuracy.student_margim: unknown key", "did you mean student_margin?")),
        ("[data]", '[accuracy]\nstudent_margin = "1 %"\n[data]', ("accuracy.student_margin: should be a valid number",)),
    ],
)  # fmt: skip
def test_recipe(command: Command, project: Path, old: str, new: str, said: tuple[str, ...]) -> None:
    replace(project, old, new)
    assert_told(command(*DRY), *said, folder=project.parent)


def test_missing_recipe_and_unknown_target(command: Command, project: Path) -> None:
    folder = project.parent
    assert_told(command(*DRY, "--recipe", "other.toml"), "other.toml: no such file", folder=folder)
    unknown = command("build", "--target", "rasberrypi", "--dry-run", "--out", "dist")
    assert_told(unknown, "target 'rasberrypi': unknown (did you mean raspberrypi?)", folder=folder)
    assert_told(command(*DRY, "--set", "seed"), "--set seed: expected key=value", folder=folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cores = 4", "coers = 4", ("board.toml: hardware.coers: unknown key", "did you mean cores?")),
        ("cores = 4", 'cores = "4"', ("board.toml: hardware.cores: should be a valid integer, got '4'",)),
        ("cores = 4\n", "", ("board.toml: hardware.cores: missing key",)),
        ('format = "onnx"', 'format = "onx"', ("board.toml: export.text-classification.format: unknown value 'onx'", "did you mean onnx?")),
        ('format = "onnx"', 'format = "onnx"\nschem = "auto"', ("board.toml: export.text-classification.schem: unknown key", "scheme")),
        ('format = "onnx"', 'format = "onnx"\nscheme = "int7"', ("board.toml: export.text-classification.scheme", "int7")),
        ('format = "onnx"', 'format = "onnx"\nfloat_layers = -1', ("board.toml: export.text-classification.float_layers: should be greater than or equal to 0",)),
        ('format = "onnx"', 'format = "onnx"\nblock = 48', ("board.toml: export.text-classification.block: should be 16, 32, 64, 128 or 256, got 48",)),
        ('format = "onnx"', 'format = "onnx"\nscheme = "int8-dynamic"\nlayout = "qdq"', ("board.toml: export.text-classification: scheme = 'int8-dynamic' with layout = 'qdq'",)),
        ("[runtime.onnxruntime]", "[runtime.onnxruntim]", ("board.toml: runtime: unknown value 'onnxruntim'",)),
        ("threads = 1", 'threads = "all"', ("board.toml: runtime.onnxruntime.threads", "'all'")),
        ("threads = 1", "thread = 1", ("board.toml: runtime.onnxruntime.thread: unknown key", "did you mean threads?")),
        ("threads = 1", 'threads = 1\n[device]\nkind = "locl"', ("board.toml: device.kind: unknown value 'locl'",)),
        ("threads = 1", 'threads = 1\n[device]\nkind = "local"\nhost = "x"', ("board.toml: device.host: unknown key",)),
        ("threads = 1", "threads = 1\n[budget]\np95 = 3", ("board.toml: budget.p95: unknown key", "did you mean p95_ms?")),
        ("threads = 1", "threads = 0", ("board.toml: runtime.onnxruntime.threads: should be at least 1, got 0",)),
        ("cores = 4", "cores = 0", ("board.toml: hardware.cores: ", "greater than or equal to 1, got 0")),
        ("[runtime.onnxruntime]", "[budget]\np95_ms = 0\n[runtime.onnxruntime]", ("board.toml: budget.p95_ms: ", "greater than 0, got 0")),
        ("threads = 1", "threads = 1\n[budget]\np95_ms = nan", ("board.toml: budget.p95_ms: expected a finite number",)),
        ("text-classification", "feature-extraction", ("board.toml: export.text-classification: missing",)),
        ("memory_mb = 4096", "memory_mb = 16", ("board.toml: hardware: 16 MB are usable",)),
    ],
)  # fmt: skip
def test_target(command: Command, project: Path, old: str, new: str, said: tuple[str, ...]) -> None:
    from tests.artifacts import make_target

    path = make_target(project.parent).path
    replace(path, old, new)
    assert_told(command("build", "-t", path, "--dry-run", "--out", "dist"), *said, folder=project.parent)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "calibrate.csv: empty"),
        (b"text,label\n", "calibrate.csv: no rows"),
        (
            b"text,label\nplay,music\nsing,music\n",
            "calibrate.csv: label: the calibrate split has only the class 'music'",
        ),
        (
            b"text,label\nplay,music\nsing,Music\nturn,light_on\n",
            "calibrate.csv: labels 'Music' and 'music' differ by case",
        ),
        (
            b"text,label\ncaf\xe9,music\nturn,light_on\n",
            "calibrate.csv: byte 14 (0xe9) is not UTF-8; save the file as UTF-8",
        ),
        (
            b"text,label\nplay,musik\nturn,light_on\n",
            "the label 'musik' is not one of the teacher's (did you mean music?)",
        ),
        (b"text,label\nturn on, please,light_on\n", "calibrate.csv: line 2: 3 fields, but the header has 2"),
    ],
)
def test_data(command: Command, project: Path, content: bytes, said: str) -> None:
    data = project.parent / "data"
    (data / "calibrate.jsonl").unlink()
    (data / "calibrate.csv").write_bytes(content)
    assert_told(command(*DRY), said, folder=project.parent)


def test_overlap(command: Command, project: Path) -> None:
    data = project.parent / "data"
    (data / "calibrate.jsonl").write_text((data / "verify.jsonl").read_text())
    assert_told(
        command(*DRY), "recipe.toml: data: 12 texts of calibrate are (nearly) in verify too", folder=project.parent
    )


def ran(folder: Path) -> None:
    """A pickle that would leave a trace if anything opened it."""
    (folder / "model.safetensors").unlink()
    trace = f"open({str(folder / 'RAN')!r}, 'w')"
    (folder / "pytorch_model.bin").write_bytes(f"c__builtin__\neval\n(V{trace}\ntR.".encode())


def poison(folder: Path) -> None:
    arrays = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
    arrays["classifier.bias"][1] = np.nan
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def shrink(folder: Path) -> None:
    arrays = load_file(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    save_file(arrays | {name: arrays[name][:-3].copy()}, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def overlong_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (ran, "pytorch_model.bin: pickled weights can run code and are never loaded; save the model as safetensors"),
        (poison, "model.safetensors: tensor classifier.bias has NaN or infinite weights"),
        (shrink, "the tokenizer belongs to another model"),
        (truncate, "model.safetensors: truncated: its header promises more bytes than it has; fetch it again"),
        (overlong_header, "model.safetensors: truncated or not a safetensors file"),
        (lambda folder: configure(folder, model_type="evil", auto_map={"AutoModel": "evil.Model"}), "config.json: auto_map: this model wants to run code"),
        (lambda folder: configure(folder, architectures=["BertModel"]), "not a classifier (architectures: ['BertModel']); add [teacher.finetune]"),
        (lambda folder: configure(folder, model_type="no_such_family"), "no_such_family"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json; write one with transformers"),
    ],
)  # fmt: skip
def test_checkpoint(command: Command, project: Path, damage: Callable[[Path], object], said: str) -> None:
    teacher = project.parent / "teacher"
    damage(teacher)
    assert_told(command(*DRY), said, str(teacher), folder=project.parent)
    assert not (teacher / "RAN").exists()


def test_an_index_that_was_left_behind(command: Command, project: Path) -> None:
    """transformers saves a sharded model again as one file, takes the shards away and leaves the index; it reads the file."""
    teacher = project.parent / "teacher"
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"bert.pooler.dense.weight": "model-00001-of-00002.safetensors"},
    }
    (teacher / "model.safetensors.index.json").write_text(json.dumps(index))
    answer = command(*DRY)
    assert answer.code == 0, answer.err
    assert "index.json: not read: model.safetensors is there, which transformers takes first" in answer.err


@pytest.mark.parametrize("arguments", [("caf\udce9",), ("tea", "--system", "caf\udce9")])
def test_a_text_that_is_not_utf8(command: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What Python makes of $'caf\\xe9' on the command line."""
    answer = command("run", "no-bundle", *arguments)
    assert_told(answer, "caf?: byte 0xe9 is not UTF-8; give UTF-8, or texts in a file (--file)", folder=tmp_path)


def test_init_refuses_data_that_a_build_would_refuse(command: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,x\n")
    answer = command("init", "--teacher", "org/name", "--data", "rows.csv")
    assert_told(answer, "rows.csv: ", folder=tmp_path)
    assert not (tmp_path / "recipe.toml").exists()


def test_output_below_a_file(command: Command, project: Path) -> None:
    folder = project.parent
    (folder / "file").write_text("x")
    told = command("build", "-t", "laptop-cpu", "--out", "file/dist")
    assert told.code == 1
    assert told.err.splitlines()[-1].startswith("Error: file/dist: ")
    assert_told(command("init", "--teacher", "a/b", "--data", "a/b", "-o", "file/x.toml"), "file", folder=folder)
    assert_told(command(*DRY, "--cache", "file/cache"), "file/cache: ", "is a file", folder=folder)
    assert (folder / "file").read_text() == "x"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts file systems of so many bytes, or read-only ones."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a file system of its own needs root and mount: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a file system of its own needs Linux and root")
    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=False)


def test_full_disk(command: Command, project: Path, small_disk: Callable[[str], Path]) -> None:
    folder = project.parent
    disk = small_disk("size=8k")
    told = f"{disk / 'cache'}: 0 MB are free, but this build needs about"
    assert_told(command(*DRY, "--cache", disk / "cache"), told, folder=folder)
    assert list(disk.iterdir()) == []
    (disk / "cache").mkdir()
    answer = command(*DRY, "--cache", disk / "cache")
    assert_told(answer, str(disk), "No space left", "free space", folder=folder)
    assert not [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not list(disk.rglob("*.partial"))

    disk = small_disk("size=4k")
    answer = command("record", "teacher", "teacher", "--out", disk / "reference")
    assert answer.code == 1
    (told,) = [line for line in answer.err.splitlines() if not line.startswith("  record")]
    assert told.startswith(f"Error: {disk}")
    assert "No space left" in told or "no space is left" in told
    assert list(disk.iterdir()) == []

    answer = command(*DRY[:-1], disk / "dist")
    assert_told(answer, f"{disk / 'dist'}: 0 MB are free, but this build needs about", folder=folder)


def test_read_only_disk(command: Command, project: Path, small_disk: Callable[[str], Path]) -> None:
    folder = project.parent
    disk = small_disk("ro,size=1m")
    assert_told(command(*DRY, "--cache", disk / "cache"), str(disk), "cannot be written", folder=folder)
    assert_told(command(*DRY, "--cache", disk), str(disk), "cannot be written", folder=folder)
    assert_told(command(*DRY[:-1], disk / "dist"), f"{disk / 'dist'}: ", "cannot be written", "--out", folder=folder)
    init = command("init", "--teacher", "a/b", "--data", "a/b", "-o", disk / "recipe.toml")
    assert_told(init, str(disk), "cannot be written", folder=folder)
    answer = command("record", "teacher", "teacher", "--out", disk / "reference")
    assert answer.code == 1
    assert f"Error: {disk}" in answer.err.splitlines()[-1]


def test_a_format_that_the_target_has_no_runtime_for(command: Command, project: Path) -> None:
    text = (ROOT / "targets" / "browser.toml").read_text(encoding="utf-8")
    before, table, after = text.partition("[runtime.llama-cpp]\n")
    assert table
    (project.parent / "rows.toml").write_text(before + after.partition("\n\n")[2], encoding="utf-8")
    answer = command("build", "--target", "rows.toml", "--format", "gguf", "--dry-run", "--out", "dist")
    assert_told(
        answer, "--format gguf: ", "rows.toml has no [runtime.llama-cpp]; add that table", folder=project.parent
    )


STARTED = """
import sys
import edgekit.__main__
sys.argv = ["edgekit", *sys.argv[1:]]
print("started", flush=True)
edgekit.__main__.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT between processes")
@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1, 0.2, 0.35, 0.6, 1.0, 1.5, 2.5])
def test_ctrl_c(project: Path, moment: float) -> None:
    """130 and one line, whether it comes during imports, in a step or between two; a rerun then ends well."""
    folder = project.parent
    arguments = ["record", "teacher", "teacher", "--out", "dist/reference"]
    child = subprocess.Popen(
        [sys.executable, "-c", STARTED, *arguments],
        cwd=folder,
        env=child_environment(EDGEKIT_CACHE="cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    time.sleep(moment)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("  ")]
    if child.returncode == 0:
        assert (folder / "dist" / "reference" / "record.json").is_file(), "done before the interrupt came"
        return
    assert child.returncode == 130, err
    assert lines == ["interrupted; the next run continues from the last finished step"]
    left = litter(folder)
    if (
        folder / "dist" / "reference" / "record.json"
    ).is_file():  # it came behind the last rename: the product is whole
        left = [path for path in left if not path.startswith("dist/reference")]
    assert left == []


SWALLOWED = """
import os, signal, time
import edgekit.__main__, edgekit.cli

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def command():
    Finalized()
    time.sleep(50)

edgekit.cli.run_command_line = command
edgekit.__main__.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT between processes")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "interrupted; the next run continues from the last finished step"),
        (["build", "run"], "interrupted; the next run continues from the last finished step"),
        (["run", "dist/a"], "interrupted; a conversation or an answer is not kept, the next one begins anew"),
    ],
)
def test_ctrl_c_that_a_finalizer_swallows(tmp_path: Path, arguments: list[str], told: str) -> None:
    """Python drops what is raised in __del__ and in weak references' callbacks, of which imports are full.

    What an interrupt leaves is told as it is: a conversation has no finished steps.
    """
    ended = subprocess.run(
        [sys.executable, "-c", SWALLOWED, *arguments],
        cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 130
    assert ended.stderr.splitlines() == [told]


def test_ctrl_c_while_a_dataclass_is_made(tmp_path: Path) -> None:
    """What is interrupted then is code that is a text; `python -m` must end with edgekit's code, not by the signal."""
    (tmp_path / "interrupted.py").write_text(
        "import edgekit.cli\nfrom edgekit.__main__ import main\n"
        "edgekit.cli.run_command_line = lambda: exec('raise KeyboardInterrupt')\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines() == ["interrupted; the next run continues from the last finished step"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT between processes")
def test_ctrl_c_of_the_real_command(project: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", "-t", "laptop-cpu"],
        cwd=project.parent,
        env=child_environment(EDGEKIT_CACHE="cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert "for laptop-cpu" in child.stderr.readline()
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; the next run continues from the last finished step"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT between processes")
@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3])
def test_ctrl_c_after_the_result(project: Path, moment: float) -> None:
    """While the libraries tidy up at the end, a Ctrl-C is no traceback and does not undo what was done."""
    command = ("-m", "edgekit", "record", "teacher", "teacher", "--out", "dist/reference")
    child = warm.start(command, project.parent, child_environment(EDGEKIT_CACHE="cache"))
    assert child.stdout is not None
    assert child.stdout.readline().strip().endswith("reference")
    time.sleep(moment)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode in {0, 130}
    assert "Traceback" not in err
    assert (project.parent / "dist" / "reference" / "record.json").is_file()


def test_a_file_of_another_tool(command: Command, project: Path) -> None:
    """Another interface, or weights that are not there: one line that names the user's file."""
    from onnx import TensorProto

    from tests.formats.onnx.test_files import make_file

    ids = {name: (TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "position_ids")}
    real = {"input_ids": ids["input_ids"], "attention_mask": (TensorProto.FLOAT, ["b", "s"])}
    for options, said in (
        ({"inputs": ids}, "takes the input position_ids; edgekit gives"),
        ({"inputs": real}, "takes attention_mask as tensor(float)"),
        ({"output": "rows"}, "its first output, rows, has the shape [1, 3, 3]"),
        ({"location": "lost.bin"}, "its weights are in 'lost.bin', which is not beside it"),
    ):
        file = make_file(project.parent / "theirs.onnx", **options)
        answer = command("verify", file, "teacher", "--target", "laptop-cpu", "--out", "dist")
        assert answer.code == 1
        assert f"Error: {file}: {said}" in answer.err
        assert "Traceback" not in answer.err
        assert litter(project.parent) == []
