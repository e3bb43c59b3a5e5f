"""The JavaScript packages of the page: npm installs them once, and their files stay in the cache folder."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simmim_export.errors import EngineUnavailable
from simmim_export.system.cache import kept
from simmim_export.system.children import run
from simmim_export.system.watch import Watch

HERE = Path(__file__).parent / "npm"
# The files of the packages that the page loads, and under which name. Not every host knows that .mjs is JavaScript.
FILES = {
    "ort.wasm.js": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "ort.webgpu.js": "onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
    "tokenizers.js": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "LICENSE.tokenizers.txt": "@huggingface/tokenizers/LICENSE",
}
# Files that belong to the packages and that no browser loads. onnxruntime-web has no license file: its license is in page/.
LICENSES = ("LICENSE.tokenizers.txt", "LICENSE.onnxruntime.txt")
# The script and the WebAssembly that run graphs on each device of a browser.
RUNTIMES = {
    "wasm": ("ort.wasm.js", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.js", "ort-wasm-simd-threaded.asyncify.wasm"),
}
# Seconds that npm may take; it downloads some 40 MB.
SECONDS = 900.0


@contextmanager
def installed(watch: Watch) -> Iterator[Path]:
    """A folder with :data:`FILES`. They come from the cache; if they are not there, or there is no cache, npm installs them.

    npm runs no script of any package, and compares each package with the SHA-512 in package-lock.json. Raise
    :class:`EngineUnavailable` if npm is not installed or fails.
    """
    key = hashlib.sha256((HERE / "package-lock.json").read_bytes() + repr(FILES).encode()).hexdigest()
    with kept("web", key) as cache, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if cache is None else cache
        if not all((folder / name).is_file() for name in FILES):
            watch("npm downloads onnxruntime-web and tokenizers", 0, 1)
            _install(folder)
        yield folder


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        what = "the page needs packages from npm, and npm is not installed"
        raise EngineUnavailable(what, fix="sudo apt-get install npm, or install Node.js from https://nodejs.org")
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, temporary)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
        done = run([npm, "ci", f"--prefix={temporary}", *options], seconds=SECONDS)
        if done.code != 0:
            what = f"npm could not download the packages of the page: {done.failure}"
            fix = "check the network and the registry (npm config get registry), and run it again; the files are then kept"
            raise EngineUnavailable(what, fix=fix)
        for name, source in FILES.items():
            shutil.copyfile(Path(temporary) / "node_modules" / source, folder / name)
