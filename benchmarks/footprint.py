"""Measures what a device has to carry: an environment with one engine and nothing else.

Everything is measured from outside, with the environment's own interpreter and the commands that a user types.
"""

from __future__ import annotations

import json
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import simmim_export
from simmim_export.errors import BundleError, GateFailed, UsageError
from simmim_export.system.children import python_code, python_command, run
from simmim_export.system.files import size
from simmim_export.system.watch import Watch, unwatched

FORBIDDEN = ("torch", "torchvision", "transformers", "onnx", "accelerate")
RUNS = 5

# Code for the environment's interpreter. The first prints what is installed; the second makes a picture.
_PACKAGES = """
from importlib.metadata import distributions
print(*sorted({distribution.metadata["Name"].lower() for distribution in distributions()}))
"""
_PICTURE = """
import sys
from PIL import Image
Image.radial_gradient("L").resize((640, 480)).convert("RGB").save(sys.argv[1])
"""
# Computes one embedding from scratch and prints what that took.
_FIRST = """
import time; started = time.monotonic()
import json, sys
import simmim_export
model = simmim_export.load(sys.argv[1])
opened = time.monotonic()
vectors = model.embed_image([sys.argv[2]]) if sys.argv[3] == "image" else model.embed_text([sys.argv[2]])
done = time.monotonic()
memory = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"done": done, "started": started, "opened": opened, "memory": memory * 1024, "dim": vectors.shape[1]}))
"""


def footprint(
    bundle: Path, *, source: Path | None, environment: Path | None, watch: Watch = unwatched
) -> dict[str, Any]:
    """Install ``source``[ort] into a fresh environment (or use ``environment``), check what is in it, and measure it.

    Returns sizes in bytes and times in seconds (medians of :data:`RUNS`). Raise :class:`GateFailed` if a forbidden package is
    installed there or a command fails.
    """
    if not (bundle / "manifest.json").is_file():
        raise BundleError("not a bundle", where=bundle, fix="make demo, or simmim-export onnx ckpt.pt -o BUNDLE")
    with tempfile.TemporaryDirectory() as folder:
        if environment is None:
            environment = Path(folder) / "venv"
            watch("install", 0, 4)
            _install(environment, source)
        python = environment / "bin" / "python"
        watch("inspect", 1, 4)
        packages = _run(python_code(_PACKAGES, python=python)).split()
        if forbidden := sorted(set(FORBIDDEN) & set(packages)):
            what = f"the runtime's environment holds {', '.join(forbidden)}"
            raise GateFailed(what, where=environment, fix="use a fresh environment")
        picture = Path(folder) / "picture.png"
        _run(python_code(_PICTURE, picture, python=python))
        watch("cold start", 2, 4)
        starts = {
            kind: [_first(python, bundle, argument=argument, kind=kind) for _ in range(RUNS)]
            for kind, argument in (("image", str(picture)), ("text", "what colour is the circle?"))
        }
        watch("commands", 3, 4)
        commands = _commands(environment, bundle, picture)
        return {
            "packages": packages,
            "environment_bytes": size(environment),
            "pip_bytes": sum(size(p) for p in environment.glob("lib/python*/site-packages/pip")),
            "cold_start": {kind: {k: median(r[k] for r in rows) for k in rows[0]} for kind, rows in starts.items()},
            "commands": commands,
        }


def _install(environment: Path, source: Path | None) -> None:
    # The checkout that this code runs from, and never the working directory: installing a folder executes code in it.
    source = source or Path(simmim_export.__file__).resolve().parents[1]
    if not (source / "pyproject.toml").is_file():
        fix = "give the checkout with --source, or an environment with --environment"
        raise UsageError("there is no source to install", where=source, fix=fix)
    venv.create(environment, with_pip=True)
    constraints = ["--constraint", str(source / "constraints.txt")] if (source / "constraints.txt").is_file() else []
    words = ("install", "--quiet", "--disable-pip-version-check", *constraints, f"{source}[ort]")
    _run(python_command("pip", *words, python=environment / "bin/python"))


def _run(command: Sequence[str]) -> str:
    """What ``command`` prints. Raise :class:`GateFailed` if it fails."""
    done = run(command)
    if done.code:
        raise GateFailed(done.failure, fix="run that command yourself to see all that it says")
    return done.stdout


def _first(python: Path, bundle: Path, *, argument: str, kind: str) -> dict[str, float]:
    spawned = time.monotonic()
    clock = json.loads(_run(python_code(_FIRST, bundle, argument, kind, python=python)))
    return {
        "total": clock["done"] - spawned,
        "interpreter": clock["started"] - spawned,
        "import_and_open": clock["opened"] - clock["started"],
        "first_result": clock["done"] - clock["opened"],
        "peak_memory": clock["memory"],
    }


def _commands(environment: Path, bundle: Path, picture: Path) -> dict[str, float]:
    """How many seconds each command took."""
    taken = {}
    for name, arguments in {
        "embed": (picture,),
        "ask": (picture, "what colour is the circle?"),
        "match": (picture, "a red circle"),
        "verify": (),
    }.items():
        before = time.monotonic()
        _run([str(word) for word in (environment / "bin" / "simmim-export", name, bundle, *arguments)])
        taken[name] = time.monotonic() - before
    return taken
