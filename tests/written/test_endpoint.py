"""Answers of an endpoint: a real HTTP server on the loopback, in which faults are planted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError, Unfinished
from edgekit.inputs import Content
from edgekit.written.endpoint import AskedInputs, Manners, ask, is_open, read_key
from edgekit.written.journal import WRITTEN, Written, read_lines
from tests.conftest import child_environment
from tests.written.server import Reply, Served, completion, said, serve

KEY = "sk-very-secret-0123456789"
QUICK = Manners(timeout=5.0, retries=2, wait=0.01, parallel=1, failures=0)
TEXTS = [f"what is {name}" for name in ("a hall", "an attic", "a cellar", "a porch", "a study")]


@pytest.fixture
def served() -> Iterator[Served]:
    with serve() as found:
        yield found


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    rows = [{"text": text, "label": "a room"} for text in (*TEXTS, TEXTS[0])]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def inputs(prompts: Path, served: Served, **changes: Any) -> AskedInputs:
    usual: dict[str, Any] = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "max_tokens": 16, "begin": 1.0, "seed": 0}
    content = Content(path=prompts, digest="a test's")
    return AskedInputs(prompts=content, url=served.url, model="asked-for", **(usual | changes))


def answer(prompts: Path, served: Served, out: Path, manners: Manners = QUICK, **changes: Any) -> dict[str, object]:
    out.mkdir(exist_ok=True)
    return ask(inputs(prompts, served, **changes), out, manners=manners)


def test_each_prompt_is_asked_once_for_each_sample_in_openais_words(
    prompts: Path, served: Served, tmp_path: Path
) -> None:
    facts = answer(prompts, served, tmp_path / "out", replace(QUICK, key=KEY), samples=2, temperature=0.7, top_p=0.9)
    assert facts == {"asked": 5, "answers": 10, "models": ["served-1"]}
    assert sorted(served.texts) == sorted(2 * TEXTS), "a prompt that two rows have is one"
    assert {body["model"] for body in served.asked} == {"asked-for"}
    assert len({body["seed"] for body in served.asked}) == 10
    body = served.asked[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stream"]) == (0.7, 0.9, 16, False)
    assert {headers["Authorization"] for headers in served.headers} == {f"Bearer {KEY}"}
    written = read_lines(tmp_path / "out", Written)
    by_seed = {said(body): body for body in served.asked}
    assert {one.answer for one in written.values()} == set(by_seed)
    assert {by_seed[str(one.answer)]["messages"][0]["content"] for place, one in written.items() if place[0] == 2} == {
        TEXTS[2]
    }


def test_many_at_once_write_the_same_bytes_as_one_after_the_other(
    prompts: Path, served: Served, tmp_path: Path
) -> None:
    served.answer = lambda body: replace(completion(said(body)), after=0.02 if "hall" in said(body) else 0.0)
    for name, parallel in (("one", 1), ("eight", 8)):
        answer(prompts, served, tmp_path / name, replace(QUICK, parallel=parallel), samples=3, temperature=1.0)
    assert (tmp_path / "one" / WRITTEN).read_bytes() == (tmp_path / "eight" / WRITTEN).read_bytes()
    assert served.headers[0].get("Authorization") is None


FAULTS = {
    "too many": Reply(b'{"error": {"message": "slow down"}}', status=429, headers={"Retry-After": "0.2"}),
    "broken": Reply(b"<h1>oops</h1>", status=503),
    "no JSON": Reply(b"<html>a proxy's page</html>"),
    "no choices": Reply(b'{"object": "error", "message": "model is loading"}'),
    "empty choices": Reply(b'{"choices": []}'),
    "no message": Reply(b'{"choices": [null]}'),
    "a number": Reply(b"17"),
    "cut": replace(completion("whole"), cut=30),
    "slow": replace(completion("late"), after=0.6),
    "a byte now and then": replace(completion("late"), drip=0.02),
    "too large": Reply(b" " * (17 << 20)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_once_is_tried_again(prompts: Path, served: Served, tmp_path: Path, fault: str) -> None:
    served.replies = [completion("first"), FAULTS[fault]]
    begun = time.monotonic()
    answer(prompts, served, tmp_path / "out", replace(QUICK, timeout=0.3))
    assert len(served.asked) == 6, "one try more than prompts"
    assert served.texts[1] == served.texts[2], "the same prompt again"
    assert all(one.end == "stop" for one in read_lines(tmp_path / "out", Written).values())
    if fault == "too many":
        assert time.monotonic() - begun >= 0.2, "as long as it was asked to wait"


@pytest.mark.parametrize("fault", ["broken", "no JSON", "no choices", "slow"])
def test_what_goes_on_failing_ends_with_how_much_is_kept_and_goes_on_there(
    prompts: Path, served: Served, tmp_path: Path, fault: str
) -> None:
    answer(prompts, served, tmp_path / "whole")
    before = len(served.asked)
    served.replies = [served.answer(body) for body in served.asked[:2]] + 3 * [FAULTS[fault]]
    manners = replace(QUICK, timeout=0.3)
    with pytest.raises(Unfinished, match=r"no answer to prompt 3 after 3 tries: .*2 of 5 answers are kept") as told:
        answer(prompts, served, tmp_path / "out", manners)
    assert served.url in told.value.message
    assert len(served.asked) == before + 5
    answer(prompts, served, tmp_path / "out", manners)
    assert served.texts[before + 5 :] == TEXTS[2:], "what was answered is not asked again"
    assert (tmp_path / "out" / WRITTEN).read_bytes() == (tmp_path / "whole" / WRITTEN).read_bytes()


def test_an_endpoint_that_is_down(prompts: Path, tmp_path: Path) -> None:
    nowhere = Served()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere.port = taken.getsockname()[1]
        with pytest.raises(Unfinished, match=r"refused.*0 of 5 answers are kept"):
            answer(prompts, nowhere, tmp_path / "out")
    with serve(nowhere.port) as back:
        answer(prompts, back, tmp_path / "out")
    assert len(read_lines(tmp_path / "out", Written)) == 5


def test_some_may_fail_for_good_and_are_asked_again_by_the_next_run(
    prompts: Path, served: Served, tmp_path: Path
) -> None:
    served.answer = lambda body: (
        FAULTS["broken"] if "attic" in said(body) or "porch" in said(body) else completion("fine")
    )
    allowed = replace(QUICK, failures=1)
    with pytest.raises(Unfinished, match=r"prompt 4 \(and 1 others before\).*2 of 5 answers are kept"):
        answer(prompts, served, tmp_path / "out", allowed)
    assert [one.end for one in read_lines(tmp_path / "out", Written).values()] == ["stop", "failed", "stop"]
    answer(prompts, served, tmp_path / "two", replace(QUICK, failures=2))
    assert [one.end for _, one in sorted(read_lines(tmp_path / "two", Written).items())] == [
        "stop",
        "failed",
        "stop",
        "failed",
        "stop",
    ]
    served.answer = lambda _: completion("fine")
    answer(prompts, served, tmp_path / "out", allowed)
    assert {one.answer for one in read_lines(tmp_path / "out", Written).values()} == {"fine"}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (
            Reply(json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode(), status=401),
            "key_variable",
        ),
        (Reply(b'{"error": {"message": "no such model"}}', status=404), r"answers\.model"),
        (Reply(b'{"error": "max_tokens is too large"}', status=400), "max_tokens is too large"),
        (Reply(b"", status=307, headers={"Location": "http://127.0.0.1:1/v1"}), "sends requests elsewhere"),
    ],
)
def test_what_no_other_try_would_mend_ends_at_once(
    prompts: Path, served: Served, tmp_path: Path, reply: Reply, told: str
) -> None:
    served.replies = [completion("first"), reply]
    with pytest.raises(Unfinished, match=told) as ended:
        answer(prompts, served, tmp_path / "out", replace(QUICK, key=KEY))
    assert len(served.asked) == 2
    assert "1 of 5 answers are kept" in ended.value.message
    assert KEY not in ended.value.message


def test_a_half_written_line_is_no_answer(prompts: Path, served: Served, tmp_path: Path) -> None:
    answer(prompts, served, tmp_path / "out")
    path = tmp_path / "out" / WRITTEN
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 20, whole.index(b"\n") + 1, 3):
        path.write_bytes(whole[:cut])
        before = len(served.asked)
        answer(prompts, served, tmp_path / "out")
        assert path.read_bytes() == whole
        assert len(served.asked) - before == 5 - whole[:cut].count(b"\n")


CHILD = """
import sys
from pathlib import Path
from edgekit.inputs import Content
from edgekit.written.endpoint import AskedInputs, Manners, ask
url, prompts, out = sys.argv[1:]
inputs = AskedInputs(prompts=Content(path=Path(prompts), digest="a test's"), url=url, model="asked-for", samples=2,
    temperature=1.0, top_p=1.0, max_tokens=16, begin=1.0, seed=0)
ask(inputs, Path(out), manners=Manners(timeout=5.0, retries=0, wait=0.0, parallel=2, failures=0))
"""


def test_a_killed_step_goes_on_to_the_same_bytes(prompts: Path, served: Served, tmp_path: Path) -> None:
    answer(prompts, served, tmp_path / "whole", samples=2, temperature=1.0)
    before = len(served.asked)
    served.answer = lambda body: replace(completion(said(body)), after=0.1)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", CHILD, served.url, str(prompts), str(tmp_path / "out")]
    with subprocess.Popen(command, env=child_environment()) as child:
        path = tmp_path / "out" / WRITTEN
        while not path.is_file() or path.read_bytes().count(b"\n") < 3:
            assert child.poll() is None
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    kept = path.read_bytes().count(b"\n")
    assert 3 <= kept < 10
    time.sleep(0.2)  # those that were on their way
    asked = len(served.asked) - before
    answer(prompts, served, tmp_path / "out", samples=2, temperature=1.0)
    assert path.read_bytes() == (tmp_path / "whole" / WRITTEN).read_bytes()
    assert len(served.asked) - before - asked == 10 - kept, "what was kept is not asked again"


def test_a_key_is_read_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert read_key("A_KEY", "recipe.toml: answers") == KEY
    assert read_key(None, "recipe.toml: answers") is None
    monkeypatch.setenv("A_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(EdgekitError, match="line breaks") as told:
        read_key("A_KEY", "recipe.toml: answers")
    assert KEY not in told.value.message
    monkeypatch.delenv("A_KEY")
    with pytest.raises(EdgekitError, match="A_KEY is not set"):
        read_key("A_KEY", "recipe.toml: answers")


def test_where_a_key_would_go_unencrypted() -> None:
    assert is_open("http://models.example/v1")
    assert not any(
        map(
            is_open, ("https://models.example/v1", "http://localhost:8080/v1", "http://127.0.0.2/v1", "http://[::1]/v1")
        )
    )
