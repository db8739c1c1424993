"""Push: an OCI layout that skopeo copies, a real registry with credentials, cuts and wrong digests, and a hub's folder."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import yaml
from huggingface_hub import ModelCard

from edgekit.errors import CheckFailed, EdgekitError
from edgekit.release import login
from edgekit.release import registry as client
from edgekit.release.contents import NOTICE, names_in, read_release
from edgekit.release.oci import FILE_PATH, MANIFEST, pack
from edgekit.release.publish import PUBLISHERS, publish
from edgekit.release.registry import read_reference
from edgekit.release.signature import Trusted
from edgekit.release.verify import find_faults
from tests.conftest import Answer, child_environment
from tests.release.conftest import Keys, relist
from tests.release.registry import PASSWORD, USER, Hub, Running, Wire, registry, skopeo

Command = Callable[..., Answer]


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with registry(tmp_path_factory.mktemp("registry") / "r") as one:
        yield one


def blob(layout: Path, digest: str) -> Path:
    path = layout / "blobs" / Path(digest.replace(":", "/"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest.partition(":")[2]
    return path


def unpack(read: Callable[[str], bytes], model: str, referring: list[str], out: Path) -> None:
    """Lay a release's files out again, as a client that knows OCI and ModelPack would."""
    for digest in (model, *referring):
        for layer in json.loads(read(digest))["layers"]:
            path = out / layer["annotations"][FILE_PATH]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read(layer["digest"]))


def test_a_layout_is_copied_by_skopeo_and_holds_the_whole_release(tmp_path: Path, signed: Path, keys: Keys) -> None:
    layout = tmp_path / "layout"
    digest = publish(signed, f"oci:{layout}:1.0", quiet)
    copied = skopeo("copy", "--quiet", f"oci:{layout}:1.0", f"oci:{tmp_path}/copy:1.0")
    assert copied.returncode == 0, copied.stderr
    index = json.loads((tmp_path / "copy" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == digest
    listed = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(layout, digest).read_text())
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    kinds = {one["annotations"][FILE_PATH]: one["mediaType"] for one in manifest["layers"]}
    assert kinds["bundle/model.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["bundle/tokenizer.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    assert kinds["bundle/load.py"] == "application/vnd.cncf.model.code.v1.raw"
    assert kinds["README.md"] == kinds["NOTICE"] == "application/vnd.cncf.model.doc.v1.raw"
    config = json.loads(blob(layout, manifest["config"]["digest"]).read_text())
    assert config["modelfs"]["diffIds"] == [one["digest"] for one in manifest["layers"]]
    referring = [one["digest"] for one in listed[1:]]
    assert {one["artifactType"] for one in listed[1:]} == {
        "application/vnd.cyclonedx+json",
        "application/vnd.in-toto+json",
        "application/vnd.dev.sigstore.bundle.v0.3+json",
    }
    for one in referring:
        assert json.loads(blob(layout, one).read_text())["subject"]["digest"] == digest
    unpack(lambda name: blob(layout, name).read_bytes(), digest, referring, tmp_path / "again")
    assert names_in(tmp_path / "again") == names_in(signed)
    assert find_faults(tmp_path / "again", Trusted(key=keys.path("key.pub"))) == []


def test_a_layout_is_the_same_bytes_and_replaces_nothing(tmp_path: Path, signed: Path) -> None:
    for name in ("a", "b"):
        publish(signed, f"oci:{tmp_path / name}:1.0", quiet)
    assert names_in(tmp_path / "a") == names_in(tmp_path / "b")
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in names_in(tmp_path / "a")
    )
    with pytest.raises(EdgekitError, match="is there; name a folder that is not"):
        publish(signed, f"oci:{tmp_path / 'a'}:1.0", quiet)


def test_a_registry_keeps_the_release_and_what_refers_to_it(
    tmp_path: Path, running: Running, signed: Path, keys: Keys
) -> None:
    told: list[str] = []
    digest = publish(signed, f"{running.host}/team/demo:1.0", told.append)
    assert any(line.startswith("bundle/model.onnx: ") for line in told)
    base = f"http://{running.host}/v2/team/demo"
    accept = {"Accept": MANIFEST}

    def read(name: str) -> bytes:
        found = requests.get(f"{base}/manifests/{name}", headers=accept, timeout=10)
        return found.content if found.ok else requests.get(f"{base}/blobs/{name}", timeout=10).content

    assert requests.head(f"{base}/manifests/1.0", headers=accept, timeout=10).headers["Docker-Content-Digest"] == digest
    index = requests.get(
        f"{base}/manifests/{digest.replace(':', '-')}",
        headers={"Accept": "application/vnd.oci.image.index.v1+json"},
        timeout=10,
    ).json()
    unpack(read, digest, [one["digest"] for one in index["manifests"]], tmp_path / "again")
    assert find_faults(tmp_path / "again", Trusted(key=keys.path("key.pub"))) == []
    copied = skopeo(
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        f"docker://{running.host}/team/demo:1.0",
        f"oci:{tmp_path}/copy:1.0",
    )
    assert copied.returncode == 0, copied.stderr
    again: list[str] = []
    assert publish(signed, f"docker://{running.host}/team/demo:1.0", again.append) == digest
    assert again == []


def test_a_locked_registry_wants_credentials(
    tmp_path: Path, signed: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with registry(tmp_path / "locked", locked=True) as one:
        refused = command("push", signed, f"{one.host}/demo:1.0")
        assert refused.code == 1
        assert "the registry wants other credentials (401): set EDGEKIT_REGISTRY_USER" in refused.err
        (tmp_path / "docker").mkdir()
        for password, code in (("another", 1), (PASSWORD, 0)):
            told = {"auths": {one.host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}}
            (tmp_path / "docker" / "config.json").write_text(json.dumps(told))
            assert command("push", signed, f"{one.host}/demo:1.0").code == code
        (tmp_path / "docker" / "config.json").unlink()
        monkeypatch.setenv(login.USER, USER)
        monkeypatch.setenv(login.PASSWORD, PASSWORD)
        pushed = command("push", signed, f"{one.host}/demo:2.0", "--json")
        assert pushed.code == 0
        assert json.loads(pushed.out)["name"].startswith("sha256:")
        assert PASSWORD not in pushed.out + pushed.err + refused.err


@pytest.fixture
def large(copied: Path, keys: Keys) -> Path:
    """A release with three megabytes in it, which go up in seven pieces."""
    (copied / "bundle" / "more.bin").write_bytes(hashlib.shake_256(b"seed").digest(3 << 20))
    table = json.loads((copied / "bundle" / "bundle.json").read_text())
    from edgekit.bundle.manifest import digest_of

    sha256 = hashlib.sha256((copied / "bundle" / "more.bin").read_bytes()).hexdigest()
    table["files"]["more.bin"] = {"bytes": 3 << 20, "sha256": sha256}
    table["digest"] = digest_of(table)
    (copied / "bundle" / "bundle.json").write_text(json.dumps(table))
    return copied


def push_all(folder: Path, host: str) -> str:
    return client.push(pack(folder, read_release(folder)), read_reference(f"{host}/cut/demo:1.0"), quiet)


def test_a_push_that_is_cut_comes_through(
    running: Running, large: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times within a piece, for which distribution 2.8 forgets the whole upload; once too often it is told."""
    relist(large, keys)
    monkeypatch.setattr(client, "PIECE", 1 << 19)
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    wire = Wire(running.host, after=5 << 18, times=3)
    digest = push_all(large, wire.host)
    assert wire.left == 0
    wire.close()
    assert push_all(large, running.host) == digest
    wire = Wire(running.host, after=5 << 18, times=99)
    (large / "bundle" / "more.bin").write_bytes(hashlib.shake_256(b"third").digest(3 << 20))
    relist(large, keys)
    with pytest.raises(EdgekitError, match=r"cut off while bundle/more.bin was sent: .*; push again: it goes on there"):
        push_all(large, wire.host)
    wire.close()


def test_an_upload_that_is_forgotten_when_it_goes_on_begins_anew(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the registry ends what was cut within a piece only after it was asked how much it has of it."""
    data = hashlib.shake_256(b"forgotten").digest(3 << 19)
    (tmp_path / "blob").write_bytes(data)
    blob = client.Blob(
        media_type="x/y", sha256=hashlib.sha256(data).hexdigest(), size=len(data), path=tmp_path / "blob"
    )
    monkeypatch.setattr(client, "PIECE", 1 << 19)
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    to, sent, asked = read_reference(f"{running.host}/forgotten/demo:1.0"), list[int](), client._Registry._ask

    def forget(self: client._Registry, method: str, place: str, **given: object) -> requests.Response:
        if method == "PATCH":
            if len(sent) == 1:
                assert requests.delete(place, timeout=10).status_code == 204
            answer = asked(self, method, place, **given)  # type: ignore[arg-type]
            sent.append(answer.status_code)
            return answer
        return asked(self, method, place, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(client._Registry, "_ask", forget)
    client._Registry(to).upload(blob)
    assert sent == [202, 404, 202, 202, 202]
    assert not client._Registry(to).lacks(blob)


def test_a_killed_push_is_gone_on_with_by_the_next_one(
    running: Running, large: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (large / "bundle" / "more.bin").write_bytes(hashlib.shake_256(b"other").digest(3 << 20))
    sha256 = hashlib.sha256((large / "bundle" / "more.bin").read_bytes()).hexdigest()
    content = client.Blob(media_type="x/y", sha256=sha256, size=3 << 20, path=large / "bundle" / "more.bin")
    monkeypatch.setattr(client, "PIECE", 1 << 19)
    monkeypatch.setattr(client, "TRIES", 1)
    to = read_reference(f"{running.host}/killed/demo:1.0")
    sent: list[int] = []
    asked = client._Registry._ask

    def stop(
        self: client._Registry,
        method: str,
        place: str,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> requests.Response:
        if method == "PATCH":
            sent.append(len(data or b""))
            if len(sent) == 4:
                raise KeyboardInterrupt
        return asked(self, method, place, data, headers)

    monkeypatch.setattr(client._Registry, "_ask", stop)
    with pytest.raises(KeyboardInterrupt):
        client._Registry(to).upload(content)
    assert client._Registry(to).lacks(content)
    client._Registry(to).upload(content)
    assert not client._Registry(to).lacks(content)
    assert len(sent) == 4 + 3, "three pieces had arrived"


def test_a_file_that_changes_meanwhile_has_a_wrong_digest(running: Running, copied: Path, keys: Keys) -> None:
    (copied / NOTICE).write_text("of this test alone")
    relist(copied, keys)
    packed = pack(copied, read_release(copied))
    (copied / NOTICE).write_text("of somebody, alone")
    with pytest.raises(EdgekitError, match="NOTICE: wrong digest: what was sent is not sha256:"):
        client.push(packed, read_reference(f"{running.host}/changed/demo:1.0"), quiet)
    tags = requests.get(f"http://{running.host}/v2/changed/demo/tags/list", timeout=10)
    assert tags.status_code == 404


def test_nothing_broken_is_pushed_and_nobody_answers(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="the registry does not answer"):
        publish(copied, "127.0.0.1:9/team/demo:1.0", quiet)
    (copied / NOTICE).write_text("changed")
    with pytest.raises(CheckFailed, match="not pushed: NOTICE: changed"):
        publish(copied, f"oci:{tmp_path}/out", quiet)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("demo", "not a place in a registry"),
        ("host/Team/demo", "not a place in a registry"),
        ("host/demo:a b", "is no tag"),
        ("oci:out:a b", "is no tag"),
    ],
)
def test_an_address_that_is_none_is_told(signed: Path, address: str, said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        publish(signed, address, quiet)


def test_the_card_is_what_a_hub_reads(signed: Path, tmp_path: Path) -> None:
    assert publish(signed, f"hf-folder:{tmp_path}/hub", quiet) == f"{len(names_in(signed))} files"
    assert names_in(tmp_path / "hub") == names_in(signed)
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    told = card.data.to_dict()
    assert (told["license"], told["base_model"], told["base_model_relation"]) == (
        "apache-2.0",
        "org/teacher",
        "quantized",
    )
    assert (told["library_name"], told["pipeline_tag"]) == ("onnx", "text-classification")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.93)
    assert yaml.safe_load(card.content.split("---")[1])["tags"][0] == "edgekit"
    assert "## In `bundle/`" in card.text


def test_a_hub_is_given_every_file_by_its_own_client(signed: Path, tmp_path: Path) -> None:
    hub = Hub()
    environment = {
        **child_environment(),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "edgekit", "push", str(signed), "hf:team/demo"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    finally:
        hub.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hf:team/demo: ")
    assert hub.files == {name: (signed / name).read_bytes() for name in names_in(signed)}
    assert hub.tokens == {"Bearer hf_test"}
    assert "hf_test" not in done.stdout + done.stderr
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 1
    assert "hf:team/demo: the hub did not take it: " in refused.stderr


def test_every_publisher_is_told_of(command: Command) -> None:
    text = "".join(command("push", "--help").out.split())
    assert all(f"{kind}:" in text for kind in PUBLISHERS if kind != "docker")
