"""A teacher from a hub, against a local stand-in server: what is fetched, resumed, pinned and sent."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import LABELS, child_environment, make_checkpoint

FIRST, SECOND = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"
# huggingface_hub writes, and so resumes, in pieces of 10 MiB.
PIECE = 10 * 2**20
FIND = """
import json, sys
from pathlib import Path
from edgekit.pipeline import Session
from edgekit.pipeline.teacher import find_teacher
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.recipe import load_recipe
from edgekit.workspace import Workspace
try:
    session = Session(workspace=Workspace(Path("cache")), out=Path("dist"))
    found = find_teacher(load_recipe(Path("recipe.toml")), session)
except EdgekitError as failed:
    sys.exit("Error: " + failed.message)
print(json.dumps({"folder": str(found.folder), "commit": found.revision, "labels": load_model(found.folder).labels}))
"""


class Hub(ThreadingHTTPServer):
    """The four answers of a hub that snapshot_download asks for; it logs every request and can drop a connection."""

    daemon_threads = True

    def __init__(self, repository: dict[str, bytes], name: str = "org/name") -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repository = repository
        self.name = name
        self.branches = {"main": FIRST}
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.drop_after: int | None = None
        self.stalled = threading.Event()
        self.stalls = False
        self.token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, part: str, method: str = "GET") -> list[str]:
        return [path for verb, path, _ in self.log if verb == method and part in path]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0], self.server
        hub.log.append((self.command, path, dict(self.headers)))
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.reply(401, b"{}", {"X-Error-Message": "Invalid credentials"})
        elif path.startswith(f"/api/models/{hub.name}/revision/"):
            commit = hub.branches.get(path.rpartition("/")[2])
            if commit is None:
                self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                files = [{"rfilename": name} for name in hub.repository]
                self.reply_json({"id": hub.name, "modelId": hub.name, "sha": commit, "siblings": files})
        elif path.startswith(f"/api/models/{hub.name}/tree/"):
            self.reply_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in hub.repository.items()
                ]
            )
        elif path.startswith(f"/{hub.name}/resolve/"):
            commit, _, name = path.removeprefix(f"/{hub.name}/resolve/").partition("/")
            self.reply_file(commit, hub.repository[name])
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def reply_json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply_file(self, commit: str, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self.reply(200, content, headers)
            return
        begin = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.reply(206, content[begin:], headers)

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop, hub = self.server.drop_after, self.server
        if stop is None or len(content) <= stop:
            self.wfile.write(content)
            return
        self.wfile.write(content[:stop])
        if hub.stalls:
            hub.stalled.set()
            threading.Event().wait(20)
        hub.drop_after = None
        self.close_connection = True


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint of more than one piece, with what nobody should fetch beside it."""
    folder = make_checkpoint(tmp_path_factory.mktemp("repository") / "model", labels=LABELS)
    arrays = load_file(folder / WEIGHTS)
    save_file(arrays | {"unused": np.ones(3 * 2**20, np.float32)}, folder / WEIGHTS, metadata={"format": "pt"})
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    never = ("pytorch_model.bin", "modeling_evil.py", "tf_model.h5", "weights.pt", "onnx/model.onnx", "data.pkl")
    return files | dict.fromkeys(never, b"never fetched")


@pytest.fixture
def hub(repository: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(repository)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('task = "text-classification"\n[teacher]\nsource = "org/name"\n[data]\npath = "data"\n')
    return path


def start(hub: Hub | str, folder: Path, **more: str) -> subprocess.Popen[str]:
    environment = child_environment(
        HF_ENDPOINT=hub if isinstance(hub, str) else hub.url,
        HF_HOME=str(folder / "hf"),
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        NO_PROXY="127.0.0.1",
        **more,
    )
    if "HF_TOKEN" not in more:
        environment.pop("HF_TOKEN", None)
    return subprocess.Popen(
        [sys.executable, "-c", FIND],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def find(hub: Hub | str, folder: Path, **more: str) -> dict[str, object]:
    child = start(hub, folder, **more)
    out, told = child.communicate(timeout=60)
    assert child.returncode == 0, told
    return dict(json.loads(out))


def lock(folder: Path) -> dict[str, object]:
    (path,) = (folder / "dist").glob("*.lock.json")
    return dict(json.loads(path.read_text())["teacher"])


def test_fetched_pinned_and_kept(hub: Hub, recipe: Path, repository: dict[str, bytes]) -> None:
    folder = recipe.parent
    found = find(hub, folder)
    assert found["commit"] == FIRST
    assert found["labels"] == LABELS
    fetched = {path.name: path.read_bytes() for path in Path(str(found["folder"])).iterdir()}
    assert fetched == {name: content for name, content in repository.items() if content != b"never fetched"}
    assert not [path for _, path, _ in hub.log if path.endswith((".bin", ".py", ".h5", ".pt", ".onnx", ".pkl"))]
    assert lock(folder) == {"source": "org/name", "asked": None, "revision": FIRST}

    hub.branches["main"] = SECOND
    hub.log.clear()
    assert find(hub, folder)["commit"] == FIRST
    assert not hub.log, "a pinned teacher in the cache needs no hub"
    assert find("http://127.0.0.1:9", folder)["commit"] == FIRST

    # Another machine: the lock file travels, the cache does not, and main is not asked for.
    hub.log.clear()
    (folder / "hf").rename(folder / "old")
    assert find(hub, folder)["commit"] == FIRST
    assert not hub.asked("/revision/main")
    assert hub.asked(f"/resolve/{FIRST}/{WEIGHTS}")

    # A branch that the recipe names is a new question, pinned in its turn.
    recipe.write_text(recipe.read_text().replace('"org/name"', '"org/name"\nrevision = "main"'))
    assert find(hub, folder)["commit"] == SECOND
    assert lock(folder) == {"source": "org/name", "asked": "main", "revision": SECOND}
    hub.branches["main"] = FIRST
    assert find(hub, folder)["commit"] == SECOND


def test_dropped_connection_is_resumed(hub: Hub, recipe: Path, repository: dict[str, bytes]) -> None:
    """What came before the drop is not fetched again: the second request asks for the rest."""
    hub.drop_after = PIECE + 2**20
    found = find(hub, recipe.parent)
    assert (Path(str(found["folder"])) / WEIGHTS).read_bytes() == repository[WEIGHTS]
    ranges = [headers.get("Range") for verb, path, headers in hub.log if verb == "GET" and path.endswith(WEIGHTS)]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert ranges[1] is not None
    assert ranges[1].startswith(f"bytes={PIECE}-")


def test_killed_download_continues(hub: Hub, recipe: Path, repository: dict[str, bytes]) -> None:
    """Files that were complete are kept, nothing is pinned before all is there, and the next run fetches the rest."""
    folder = recipe.parent
    hub.drop_after, hub.stalls = PIECE + 2**20, True
    child = start(hub, folder)
    assert hub.stalled.wait(30)
    blobs = folder / "hf" / "hub" / "models--org--name" / "snapshots" / FIRST
    for _ in range(200):
        if (blobs / "config.json").exists() and (blobs / "tokenizer.json").exists():
            break
        threading.Event().wait(0.05)
    child.kill()
    child.communicate()
    assert not (folder / "dist").exists()
    hub.drop_after, hub.stalls = None, False
    hub.log.clear()
    found = find(hub, folder)
    assert (Path(str(found["folder"])) / WEIGHTS).read_bytes() == repository[WEIGHTS]
    assert hub.asked(WEIGHTS)
    assert not hub.asked("config.json")
    assert not hub.asked("tokenizer.json")


def test_token_comes_from_the_environment_only(hub: Hub, recipe: Path) -> None:
    folder = recipe.parent
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text("hf_of_somebody_else")
    find(hub, folder)
    assert hub.log
    assert not [headers for _, _, headers in hub.log if "authorization" in {name.lower() for name in headers}]

    hub.log.clear()
    hub.token = "hf_secret"
    (folder / "dist").rename(folder / "old")
    (folder / "hf" / "hub").rename(folder / "old hub")
    find(hub, folder, HF_TOKEN="hf_secret")
    assert {headers.get("Authorization", headers.get("authorization")) for _, _, headers in hub.log} == {
        "Bearer hf_secret"
    }
    assert "hf_secret" not in "".join(path.read_text() for path in (folder / "dist").iterdir())


@pytest.mark.parametrize("trouble", ["absent", "gated", "revision", "offline"])
def test_what_cannot_be_fetched_is_one_line(hub: Hub, recipe: Path, trouble: str) -> None:
    url = hub.url
    if trouble == "absent":
        recipe.write_text(recipe.read_text().replace("org/name", "org/other"))
    elif trouble == "gated":
        hub.token = "hf_secret"
    elif trouble == "revision":
        hub.branches.clear()
    else:
        url = "http://127.0.0.1:9"
    child = start(url, recipe.parent)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 1
    assert len(told.strip().splitlines()) == 1, told
    assert told.startswith("Error: recipe.toml: teacher.source: org/")
    assert "HF_ENDPOINT, HF_TOKEN" in told
    assert not (recipe.parent / "dist").exists()
