"""Chooses the bundle to measure when none was named: ./bundle, or else a reference with random weights, built once and cached.

Random weights are fine for measuring speed and useless for everything else: no accuracy is ever claimed from them.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.console import say
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.system.cache import cache_folder
from simmim_export.system.children import our_command, run
from simmim_export.version import __version__

PRESET = "base"
# The code that decides what the reference bundle contains.
_SOURCES = ("models/**/*.py", "export/*.py", "bundle/*.py", "spec.py")


def reference_folder() -> Path:
    """Where the reference bundle of this very code is kept: changed code gets another folder.

    Raise :class:`UsageError` if there is no cache.
    """
    base = cache_folder("reference")
    if base is None:
        raise UsageError("there is no cache to keep the reference bundle in", fix="give --bundle")
    root = Path(simmim_export.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in root.glob(pattern)):
        digest.update(path.read_bytes())
    return base / f"{PRESET}-{__version__}-{digest.hexdigest()[:12]}"


def find(bundle: Path | None, checkpoint: Path | None) -> tuple[Path, Path | None]:
    """The bundle to measure, and its checkpoint or None. Build the reference bundle if it is needed.

    Raise :class:`BundleError` for a ``bundle`` that cannot be opened.
    """
    if bundle is None and (Path("bundle") / "manifest.json").is_file():
        bundle = Path("bundle")
    if bundle is None:
        folder = reference_folder()
        if not (folder / "bundle" / "manifest.json").is_file():
            build(folder)
        return folder / "bundle", checkpoint or folder / "ckpt.pt"
    Bundle.open(bundle)
    beside = bundle.parent / "ckpt.pt"
    return bundle, checkpoint or (beside if beside.is_file() else None)


def build(folder: Path) -> None:
    """Build the reference bundle in ``folder`` with the real commands, whole or not at all. About a minute and 1.4 GB."""
    say(f"building the reference bundle of preset {PRESET} once, in {folder}", error=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as name:
        staged = Path(name)
        for command in (
            our_command("simmim-train", "init", "--preset", PRESET, "-o", staged / "ckpt.pt"),
            our_command("simmim-export", "onnx", staged / "ckpt.pt", "-o", staged / "bundle"),
        ):
            if run(command, show_stderr=True).code:
                what = "the reference bundle could not be built here; the reason is above"
                raise EngineUnavailable(what, fix="pip install 'simmim-export[bench]', or give --bundle")
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)


def require_checkpoint(checkpoint: Path | None, bundle: Path) -> Path:
    """``checkpoint``; raise :class:`UsageError` if it is None, because PyTorch runs from nothing else."""
    if checkpoint is None:
        fix = "give --checkpoint ckpt.pt, or name engines that do not need it: --engine ort"
        raise UsageError("engine 'torch' needs the checkpoint that the bundle was made from", where=bundle, fix=fix)
    return checkpoint
