"""trust.py and trust.mjs, which apps copy: a downgrade, a foreign key and whatever else was not signed is refused, by both alike."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgekit.bundle.embed import embed
from edgekit.bundle.platforms import EMBEDDINGS
from edgekit.recipe import Issue
from edgekit.release.contents import SIGNATURE
from edgekit.release.signature import Signer, Trusted, check
from edgekit.release.write import ReleaseInputs, gather, release
from tests.bundle.test_node import ask, put
from tests.bundle.test_web import lay_app, visit
from tests.devices.chromium import need_chromium
from tests.diff.bundles import pack, rewrite
from tests.node_packages import need_node

LOADERS = Path(EMBEDDINGS["onnxruntime", "text", "logits", "python"].files["trust.py"]).parent
CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
PYTHON: Callable[..., Path] = runpy.run_path(str(LOADERS / "trust.py"))["trusted"]
# Answers a list of cases: what each throws, or null.
NODE = """
import { readFileSync } from "node:fs";
import { createTrust } from "./trust.mjs";
const read = (path, as) => { try { return readFileSync(path, as); } catch { return undefined; } };
const found = [];
for (const { folder, atLeast, key } of JSON.parse(readFileSync("cases.json", "utf8"))) {
  try {
    const trust = createTrust({ atLeast, key: key && read(key, "utf8"), signature: read(`${folder}/model.sig`) });
    await trust(read(`${folder}/bundle/bundle.json`));
    found.push(null);
  } catch (failed) {
    found.push(failed.message);
  }
}
console.log(JSON.stringify(found));
"""


@dataclass(frozen=True, kw_only=True)
class Made:
    """Keys by name (.pem and .pub), and releases of version 1.2.0, one signed by each, and one unsigned."""

    folder: Path

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.pub"

    def release(self, name: str) -> Path:
        return self.folder / f"{name}.release"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("trust")
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    keys = {
        **{name: ec.generate_private_key(curve()) for name, curve in CURVES.items()},
        "other": ec.generate_private_key(ec.SECP256R1()),
    }
    for name, key in keys.items():
        (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, spki))
    (folder / "rsa.pub").write_bytes(rsa.generate_private_key(65537, 2048).public_key().public_bytes(pem, spki))
    (folder / "none.pub").write_text("no key")
    bundle = pack(folder, "demo", Issue(version="1.2.0"))
    for name in (*CURVES, "unsigned"):
        signer = None if name == "unsigned" else Signer(key=str(folder / f"{name}.pem"))
        release(
            ReleaseInputs(bundle=bundle, evidence=gather(bundle, []), cache=folder / "none", signer=signer),
            folder / f"{name}.release",
        )
    return Made(folder=folder)


def harm(made: Made, folder: Path) -> dict[str, Path]:
    """Releases that were changed after they were signed, by what was done."""
    found = {}
    for name in ("manifest", "file", "added", "cut", "payload", "swapped", "empty"):
        found[name] = Path(shutil.copytree(made.release("P-256"), folder / name))
    rewrite(found["manifest"] / "bundle", found["manifest"] / "bundle", lambda it: replace(it, threshold=0.1))
    (found["file"] / "bundle" / "tokenizer.json").write_text("{}")
    rewrite(found["file"] / "bundle", found["file"] / "bundle", lambda it: it)
    (found["added"] / "bundle" / "more.py").write_text("evil")
    rewrite(found["added"] / "bundle", found["added"] / "bundle", lambda it: it)
    signature = (found["cut"] / SIGNATURE).read_bytes()
    (found["cut"] / SIGNATURE).write_bytes(signature[:-40])
    table = json.loads(signature)
    payload = table["dsseEnvelope"]["payload"]
    table["dsseEnvelope"]["payload"] = ("B" if payload[40] == "A" else "A").join((payload[:40], payload[41:]))
    (found["payload"] / SIGNATURE).write_text(json.dumps(table))
    shutil.copy(made.release("P-384") / SIGNATURE, found["swapped"] / SIGNATURE)
    (found["empty"] / SIGNATURE).write_text("{}")
    return found


def test_both_loaders_refuse_the_same(made: Made, tmp_path: Path) -> None:
    """And take what model-signing takes, on every curve."""
    not_signed, other_file = "not signed by the owner of", "is not what was signed; fetch the whole release again"
    cases: list[tuple[Path, str | None, Path | None, str | None]] = []
    for curve in CURVES:
        assert check(made.release(curve), Trusted(key=made.key(curve))) is None
        cases += [
            (made.release(curve), "1.2.0", made.key(curve), None),
            (made.release(curve), None, made.key("other"), not_signed),
        ]
    harmed = harm(made, tmp_path)
    for name in harmed:
        said = other_file if name in {"manifest", "file", "added"} else not_signed
        cases.append((harmed[name], None, made.key("P-256"), said))
        assert check(harmed[name], Trusted(key=made.key("P-256"))), "model-signing refuses it, too"
    cases += [
        (made.release("unsigned"), None, made.key("P-256"), "missing: nobody vouches for this bundle"),
        (made.release("unsigned"), "1.2.0", None, None),
        (made.release("unsigned"), "1.1.9", None, None),
        (made.release("unsigned"), "0.99.99", None, None),
        (made.release("unsigned"), "1.2.1", None, "version 1.2.0, and this app takes 1.2.1 or newer"),
        (made.release("unsigned"), "1.10.0", None, "version 1.2.0, and this app takes 1.10.0 or newer"),
        (made.release("P-256"), "2.0.0", made.key("P-256"), "this app takes 2.0.0 or newer"),
        (made.release("P-256"), "2.0", None, "2.0: not a version; write three numbers"),
        (made.release("P-256"), None, made.key("rsa"), "not a public key in PEM on P-256, P-384 or P-521"),
        (made.release("P-256"), None, made.key("none"), "not a public key in PEM on P-256, P-384 or P-521"),
    ]
    plain = Path(shutil.copytree(made.release("unsigned"), tmp_path / "plain"))
    rewrite(plain / "bundle", plain / "bundle", lambda it: replace(it, version=None, compatible_with=None))
    cases += [(plain, None, None, None), (plain, "0.0.1", None, "and this app takes 0.0.1 or newer")]
    for name in ("trust.mjs", "check.mjs"):
        shutil.copy(EMBEDDINGS["onnxruntime", "text", "logits", "node"].files[name], tmp_path / name)
    (tmp_path / "run.mjs").write_text(NODE)
    asked = [{"folder": str(folder), **({"atLeast": least} if least else {}), **({"key": str(key)} if key else {})}
             for folder, least, key, _ in cases]  # fmt: skip
    (tmp_path / "cases.json").write_text(json.dumps(asked))
    ran = subprocess.run([need_node(), "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for (folder, least, key, wanted), said in zip(cases, json.loads(ran.stdout), strict=True):
        told = None
        try:
            assert PYTHON(folder, at_least=least, key=key) == folder / "bundle"
        except (RuntimeError, ValueError) as refused:
            told = str(refused)
        for name, found in (("Python", told), ("Node.js", said)):
            assert (found is None) == (wanted is None), f"{name}: {folder.name}: {found}"
            assert wanted is None or wanted in str(found), f"{name}: {folder.name}: {found}"


def test_every_bit_of_a_signature_counts(made: Made, tmp_path: Path) -> None:
    """Of what was signed, and of the signature over it: each place of ten, one bit."""
    copied = Path(shutil.copytree(made.release("P-256"), tmp_path / "r"))
    table = json.loads((copied / SIGNATURE).read_text())
    envelope = table["dsseEnvelope"]
    for place in range(0, len(envelope["payload"]) - 4, len(envelope["payload"]) // 60):
        letter = envelope["payload"][place]
        changed = envelope["payload"][:place] + ("Q" if letter != "Q" else "R") + envelope["payload"][place + 1 :]
        (copied / SIGNATURE).write_text(json.dumps({**table, "dsseEnvelope": {**envelope, "payload": changed}}))
        with pytest.raises(RuntimeError, match="not signed by the owner of"):
            PYTHON(copied, key=made.key("P-256"))


def test_an_app_of_a_release_has_its_signature(made: Made, tmp_path: Path) -> None:
    written = embed(made.release("P-256"), "python", tmp_path / "app")
    assert {"model.sig", "trust.py"} <= set(written.files)
    assert PYTHON(tmp_path / "app", at_least="1.0.0", key=made.key("P-256")) == tmp_path / "app" / "bundle"
    program = (
        "from load import Bundle\nfrom trust import trusted\n"
        f"print(Bundle(trusted('.', at_least='1.2.0', key={str(made.key('P-256'))!r}))('turn on the light')[0][0])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "app", capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "light_on\n"), ran.stderr
    plain = embed(made.release("P-256") / "bundle", "python", tmp_path / "plain")
    assert "model.sig" not in plain.files


def test_nodes_loader_asks_it_first(made: Made, tmp_path: Path) -> None:
    app = put(made.release("P-256"), tmp_path / "app")
    shutil.copy(made.key("P-256"), app / "key.pub")
    program = (app / "ask.mjs").read_text()
    opened = 'createTrust({ atLeast: process.env.LEAST, key: readFileSync("key.pub", "utf8"), signature: readFileSync("model.sig") })'
    changed = program.replace('await open("bundle")', f'await open("bundle", {{ accept: {opened} }})')
    (app / "ask.mjs").write_text('import { createTrust } from "./trust.mjs";\n' + changed)
    with pytest.MonkeyPatch.context() as set_to:
        set_to.setenv("LEAST", "1.2.0")
        found = ask(app, ["turn on the light"])
        assert found["answers"][0][0][0] == "light_on"
        set_to.setenv("LEAST", "1.3.0")
        assert ask(app, [])["failed"] == "demo: version 1.2.0, and this app takes 1.3.0 or newer"


PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import { open } from "./app.mjs";
const { key, other, tell } = await (await fetch("./asked.json")).json(), said = [];
for (const trust of [{ atLeast: "1.2.0", key }, { atLeast: "1.2.1" }, { key: other }]) {
  try {
    const bundle = await open("./bundle/", { trust });
    said.push((await bundle("turn on the light"))[0][0]);
    bundle.close();
  } catch (failed) { said.push(failed.message); }
}
await fetch(tell, { method: "POST", mode: "no-cors", body: JSON.stringify(said) });
</script>"""


def test_a_pages_worker_asks_it_first(made: Made, tmp_path: Path) -> None:
    """In a real Chromium, with the app's own server."""
    need_chromium()
    app = lay_app(made.release("P-256"), tmp_path / "app")
    keys = {name: made.key(curve).read_text() for name, curve in (("key", "P-256"), ("other", "P-384"))}
    answer, *refused = visit(app, PAGE, keys, seconds=240)
    assert answer == "light_on"
    assert refused == [
        "demo: version 1.2.0, and this app takes 1.2.1 or newer",
        "model.sig: not signed by the owner of the key; do not use this bundle",
    ]


def test_they_are_short() -> None:
    for name in ("trust.py", "trust.mjs"):
        lines = (LOADERS / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60
        assert not [line for line in lines if re.search(r"\bedgekit\.|eval\(", line)]
