"""Which bundle to measure when none was named: ./bundle, else a reference of random weights, built once and cached.

Knows the commands that make a bundle, and runs them as a user would. Random weights are right for speed and wrong for
everything else: no accuracy is ever claimed from them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.console import say
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.system.children import child_environment, python_command
from simmim_export.system.host import cache_folder
from simmim_export.version import __version__

PRESET = "base"


def reference_folder() -> Path:
    """Where the reference bundle of this very code is kept: another model or exporter makes another one. Raise
    :class:`UsageError` where nothing may be cached."""
    base = cache_folder("reference")
    if base is None:
        raise UsageError("there is no cache to keep the reference bundle in", fix="give --bundle")
    root = Path(simmim_export.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        [*root.glob("models/*.py"), *root.glob("export/*.py"), *root.glob("bundle/*.py"), root / "spec.py"]
    ):
        digest.update(path.read_bytes())
    return base / f"{PRESET}-{__version__}-{digest.hexdigest()[:12]}"


def find(bundle: Path | None, checkpoint: Path | None) -> tuple[Path, Path | None]:
    """The bundle to measure and its checkpoint (None if there is none to be found), building the reference if needed.

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
    """Build the reference with the real commands, in place or not at all. About a minute and 1.4 GB."""
    say(f"building the reference bundle of preset {PRESET} once, in {folder}", error=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for module, *arguments in (
            ("simmim_export.training.cli", "init", "--preset", PRESET, "-o", str(staged / "ckpt.pt")),
            ("simmim_export.cli", "onnx", str(staged / "ckpt.pt"), "-o", str(staged / "bundle")),
        ):
            done = subprocess.run(python_command(module, *arguments), stdout=sys.stderr, env=child_environment())
            if done.returncode:
                raise EngineUnavailable(
                    "the reference bundle could not be built here (see above)",
                    fix="pip install 'simmim-export[bench]', or give --bundle",
                )
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def require_checkpoint(checkpoint: Path | None, bundle: Path) -> Path:
    """``checkpoint``; raise :class:`UsageError` if there is none, since PyTorch runs from nothing else."""
    if checkpoint is None:
        raise UsageError(
            "engine 'torch' needs the checkpoint that the bundle was made from",
            where=bundle,
            fix="give --checkpoint ckpt.pt, or name engines without it: --engine ort",
        )
    return checkpoint
