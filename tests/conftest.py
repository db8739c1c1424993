"""What many tests share: one small real checkpoint, one small data set, a recipe that joins them; and the rule on skips."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What tests judge and measure is not the user's; each test has a state of its own (`state`).
_STATE = tempfile.TemporaryDirectory(prefix="edgekit-state-")
os.environ["EDGEKIT_STATE"] = os.path.join(_STATE.name, "session")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's job in the background ignores Ctrl-C, and so would every child that is to be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)

LABELS = ["light_off", "light_on", "music"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Two words each: texts of a pattern that differ by one word would be near duplicates.
SUBJECTS = ["big kitchen", "long hall", "front porch", "old garage", "dusty attic", "deep cellar", "small bathroom"]
SUBJECTS += ["quiet study", "green bedroom", "upper landing"]
PATTERNS = {
    "light_on": "please turn the {} light on",
    "light_off": "switch off every lamp in the {}",
    "music": "some jazz on the {} speaker would be nice",
}

ROOT = Path(__file__).resolve().parents[1]


def skips_fail(environment: Mapping[str, str], root: Path) -> bool:
    """Whether a skipped test fails the run: in CI, as root, with the real data beside the repository, all can run."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return bool(environment.get("CI")) and is_root and (root.parent / "shared" / "data").is_dir()


class NoSkips:
    """Collects what was skipped (a file as a whole, too), lists it at the end and fails the run for it."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        self.skipped.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of pytest-xdist ends: files that it skipped as a whole are told to nobody else."""
        told = getattr(node, "workeroutput", {}).get("skipped", [])
        self.skipped += [line for line in told if line not in self.skipped]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["skipped"] = self.skipped
        if self.skipped and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, where every test can run (CI, root, ../shared/data): this fails the run")
            for line in self.skipped:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if skips_fail(os.environ, ROOT):
        config.pluginmanager.register(NoSkips(), "no-skips")


# Files whose tests share what they build, in the order in which they begin: those that take longest first.
SHARING = {
    "demo": ("tests/e2e/test_demo.py", "tests/e2e/test_verdicts.py", "tests/e2e/test_browser.py"),
    "tiny": ("tests/e2e/test_build.py", "tests/e2e/test_false_pass.py", "tests/e2e/test_kill.py"),
    "board": ("tests/e2e/test_board.py", "tests/devices/test_emulated.py"),
}
# Files that take long and share nothing: they begin after those, and the small ones fill what is left at the end.
LONG = (
    "tests/formats/onnx/test_families.py",
    "tests/pipeline/test_random_projects.py",
    "tests/verify/test_generation.py",
    "tests/verify/test_verify.py",
    "tests/formats/gguf/test_gguf.py",
    "tests/formats/onnx/test_decoder.py",
)


def shared(path: str) -> str:
    """What a file's tests share with those of others, else the file itself."""
    return next((name for name, files in SHARING.items() if path.endswith(files)), path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole builds begin first, so that both workers end at about the same time with small files."""
    order = [*SHARING]

    def place(item: pytest.Item) -> tuple[int, bool, bool]:
        path = item.path.as_posix()
        of = shared(path)
        return order.index(of) if of in order else len(order), "e2e" not in item.path.parts, not path.endswith(LONG)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share what they build share a worker; of the others, a file's tests stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared(nodeid.partition("::")[0])

    return Together(config, log)


def make_checkpoint(folder: Path, *, labels: list[str] | None = None, seed: int = 0) -> Path:
    """A BERT of two layers and 32 channels with random weights, as transformers saves it, and its tokenizer.json."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    words = sorted({word for phrase in (*PATTERNS.values(), *SUBJECTS) for word in phrase.split()})
    words = [*SPECIAL, *(word for word in words if word != "{}")]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: place for place, label in enumerate(labels)}
    torch.manual_seed(seed)
    model = BertModel(config) if labels is None else BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def unprovable(recipe: Any, prompts: int) -> list[str]:
    """What so many verify prompts cannot prove of what the recipe asks for, even where nothing is lost."""
    from edgekit.verify import plan_text

    told = plan_text(recipe.task, prompts, recipe.accuracy)
    return [line for line in told if "cannot prove" in line or "prove nothing" in line]


def sharing(earlier: Sequence[str], later: Sequence[str], share: float) -> list[tuple[str, str]]:
    """Pairs of different texts whose sets of words have a Jaccard similarity of at least `share`."""
    import numpy as np

    from edgekit.duplicates import words

    sets = [[words(text) for text in texts] for texts in (earlier, later)]
    column = {word: index for index, word in enumerate(sorted(frozenset().union(*sets[0], *sets[1])))}
    tables = []
    for group in sets:
        tables.append(np.zeros((len(group), len(column)), np.float32))
        for row, found in enumerate(group):
            tables[-1][row, [column[word] for word in found]] = 1
    common = tables[0] @ tables[1].T
    union = tables[0].sum(axis=1)[:, None] + tables[1].sum(axis=1)[None] - common
    pairs = [(earlier[one], later[other]) for one, other in np.argwhere(common >= share * union)]
    return [(one, other) for one, other in pairs if one is not other]


def make_data(folder: Path) -> Path:
    """train.jsonl (12 rows), calibrate.jsonl (6) and verify.jsonl (12) of the three labels, disjoint."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, subjects in {"train": SUBJECTS[:4], "calibrate": SUBJECTS[4:6], "verify": SUBJECTS[6:]}.items():
        rows = [
            {"text": pattern.format(subject), "label": label}
            for subject in subjects
            for label, pattern in PATTERNS.items()
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state, empty at first; what a session's fixtures build lies in another one.

    Not beside what tests make: pytest reads all names there for each new folder, which thousands of states make slow.
    """
    folder = Path(tempfile.mkdtemp(dir=_STATE.name))
    monkeypatch.setenv("EDGEKIT_STATE", str(folder))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels; not to be changed (see `classifier`)."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "teacher", labels=LABELS)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a chat template that answers orders rightly and ends its answers; not to be changed."""
    from tests.architectures.decoders import teach_decoder

    return teach_decoder(tmp_path_factory.mktemp("talker") / "talker", steps=80)


@pytest.fixture
def classifier(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the classifier that the test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "teacher"))


@pytest.fixture
def project(classifier: Path, tmp_path: Path) -> Path:
    """recipe.toml beside ./teacher and ./data: no student, so that nothing is trained."""
    make_data(tmp_path / "data")
    path = tmp_path / "recipe.toml"
    path.write_text(
        'task = "text-classification"\n\n[teacher]\nsource = "teacher"\n\n[data]\npath = "data"\nmax_length = 32\n',
        encoding="utf-8",
    )
    return path


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command said: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def record_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds in this process time float models in a fork that has torch (`tests.warm`)."""
    from tests import warm

    if sys.platform == "linux":
        monkeypatch.setattr(subprocess, "run", warm.forking(subprocess.run, lambda: warm.server(_BEGUN)))


@pytest.fixture
def command(
    record_forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """A command line run in this process, in the test's folder, with its cache in ./cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", "cache")
    monkeypatch.setenv("NO_COLOR", "1")
    # What a slow machine says of what takes long is in nobody's way.
    for interval in ("FIRST_INTERVAL", "STILL_INTERVAL"):
        monkeypatch.setattr(f"edgekit.cli.terminal.{interval}", 3600.0)

    def run(*arguments: str | Path) -> Answer:
        from edgekit.cli import run_command_line

        monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
        capsys.readouterr()
        code = run_command_line()
        said = capsys.readouterr()
        return Answer(code=code, out=said.out, err=said.err)

    return run


@pytest.fixture(scope="session")
def arm_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An emulated aarch64 board with the CPU of a Raspberry Pi 5 (`tests.devices.sshd.Reachable`), for all tests that need it."""
    from tests.devices.emulated import board

    with board(tmp_path_factory.mktemp("board")) as reachable:
        yield reachable


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """This machine behind an sshd of its own (`tests.devices.sshd.Reachable`), for tests that need no other CPU."""
    from tests.devices.sshd import native

    with native(tmp_path_factory.mktemp("stand-in")) as reachable:
        yield reachable


@pytest.fixture(scope="session")
def adb_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables with which adb talks to a server of the tests' own, which knows no device but theirs."""
    from tests.devices.phone import adb_server

    with adb_server(tmp_path_factory.mktemp("adb")) as variables:
        yield dict(variables)


@pytest.fixture
def own_adb(adb_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For this test adb's server is the tests' own."""
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    for name, value in adb_variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def phone(adb_variables: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """A phone of one test (`tests.devices.phone.Phone`)."""
    from tests.devices.phone import plugged

    with plugged(tmp_path / "phone", adb_variables) as made:
        yield made


@pytest.fixture
def plain_rights() -> Iterator[None]:
    """Root may write where a folder's mode says no; for this test, in this thread, it may not.

    Only the capability to ignore modes is laid down (capabilities(7)): root still reads its own interpreter, which another
    user may not. Who is not root has no such capability.
    """
    if os.name == "nt":
        pytest.skip("Windows has other rights than a folder's mode")
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("only on Linux can root lay down the right to write anywhere")
    version_3, dac_override, dac_read_search = 0x20080522, 1 << 1, 1 << 2
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(version_3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice: the lower and the higher 32
    assert libc.capget(header, held) == 0, os.strerror(ctypes.get_errno())
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~(dac_override | dac_read_search)
    assert libc.capset(header, fewer) == 0, os.strerror(ctypes.get_errno())
    yield
    assert libc.capset(header, held) == 0, os.strerror(ctypes.get_errno())


def child_environment(**more: str) -> dict[str, str]:
    """This environment with the source tree on PYTHONPATH, for a child in another folder."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"} | more


# The environment in which this session began, whatever a test sets.
_BEGUN = child_environment()
