"""What a browser needs of npm: packages of one version each, kept in the user's cache and never in a bundle."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from edgekit.errors import DeviceFailed
from edgekit.workspace import fingerprint, make_folder


@dataclass(frozen=True, kw_only=True)
class WebPackage:
    """A package of npm: its version, the sha512 of its archive as npm writes it, and the files that are needed of it.

    files: in the archive, each below one folder, without which they are kept. engine: the version that it says it is, where
    that is another one.
    """

    package: str
    version: str
    integrity: str
    files: Sequence[str]
    engine: str | None = None

    @property
    def name(self) -> str:
        """What it is called on the command line of npm."""
        return f"{self.package}@{self.version}"


PACKAGES: Mapping[str, WebPackage] = {
    "onnxruntime-web": WebPackage(
        package="onnxruntime-web",
        version="1.30.0",
        integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        files=("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    "tokenizers": WebPackage(
        package="@huggingface/tokenizers",
        version="0.2.0",
        integrity="sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        files=("dist/tokenizers.min.mjs",),
    ),
    # Version 3 wraps llama.cpp's server, which takes texts and tells no distribution: it cannot be judged so.
    "wllama": WebPackage(
        package="@wllama/wllama",
        version="2.4.0",
        integrity="sha512-KuVHeTUXcqHF01d85q3nWaRSVLpszULNGjO+nx4cyZ8sBjZvKSMViWNCfcs/1w2bqjyegERJzWsrdQSHSEoSlQ==",
        files=("esm/index.min.js", "esm/single-thread/wllama.wasm", "esm/multi-thread/wllama.wasm"),
        engine="b8948-42401c7",
    ),
}


def fetch_packages(names: Sequence[str]) -> Path:
    """A folder with a folder for each of these packages, fetched where it is not in the user's cache.

    Raises DeviceFailed without npm, without its registry, and for an archive that is not the one that is known here.
    """
    wanted = {name: PACKAGES[name] for name in names}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "npm"
    folder = cache / fingerprint({name: vars(package) for name, package in wanted.items()})[:16]
    if folder.is_dir():
        return folder
    make_folder(cache)
    with FileLock(cache / ".lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as scratch:
                made = Path(scratch, "made")
                for name, package in wanted.items():
                    _unpack(_fetch(package, Path(scratch)), package, made / name)
                made.rename(folder)
    return folder


def _fetch(package: WebPackage, folder: Path) -> Path:
    """npm's archive of a package, in a folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceFailed(
            f"{package.name}: npm, which fetches it, is not installed here; install it (Debian, Ubuntu: sudo apt install npm)"
        )
    done = subprocess.run(
        [npm, "pack", package.name, "--silent", "--ignore-scripts", "--pack-destination", str(folder)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    named = done.stdout.strip().splitlines()
    path = folder / named[-1].strip() if named else folder
    if done.returncode != 0 or not path.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise DeviceFailed(
            f"{package.name}: npm cannot fetch it: {lines[0][:300] if lines else f'exit code {done.returncode}'}; is its registry"
            " reachable? Run: npm ping"
        )
    return path


def _unpack(archive: Path, package: WebPackage, folder: Path) -> None:
    """Put the files that are needed into a folder, after the archive's hash was compared."""
    digest = hashlib.sha512(archive.read_bytes()).digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != package.integrity:
        raise DeviceFailed(
            f"{package.name}: what npm fetched is not the archive that this edgekit knows; is its registry a copy?"
        )
    folder.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for file in package.files:
            stream = tar.extractfile(f"package/{file}")
            assert stream is not None
            path = folder / Path(file).relative_to(Path(file).parts[0])
            path.parent.mkdir(exist_ok=True)
            with stream, path.open("wb") as out:
                shutil.copyfileobj(stream, out)
