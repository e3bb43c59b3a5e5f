"""Fixtures that several folders share. The tiny bundle is exported once for a whole run, xdist workers included."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import make_checkpoint


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """``make(path)`` once for all xdist workers of a run, under a file lock."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of preset tiny. Read only: copy it before changing it."""
    return _once(tmp_path_factory, "tiny.pt", make_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The bundle of ``tiny_checkpoint``, exported by the real command. Read only: copy it before changing it."""

    def export(path: Path) -> None:
        command = [sys.executable, "-m", "simmim_export.cli", "onnx", str(tiny_checkpoint), "-o", str(path)]
        command += ["--precision", "int8"]
        subprocess.run(command, check=True, capture_output=True)

    return _once(tmp_path_factory, "tiny-bundle", export)


@pytest.fixture(scope="session")
def lowered_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The bundle of ``tiny_checkpoint`` in every precision. Read only: copy it before changing it."""

    def export(path: Path) -> None:
        command = [sys.executable, "-m", "simmim_export.cli", "onnx", str(tiny_checkpoint), "-o", str(path)]
        command += ["--precision", "int8", "--precision", "fp16"]
        subprocess.run(command, check=True, capture_output=True)

    return _once(tmp_path_factory, "lowered-bundle", export)


@pytest.fixture(scope="session")
def every_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every head, a video encoder and attention maps; its checkpoint beside it is every.pt. Read only."""
    from simmim_export.models.heads import HEADS

    checkpoint = _once(tmp_path_factory, "every.pt", lambda path: make_checkpoint(path, heads=tuple(HEADS), frames=8))

    def export(path: Path) -> None:
        command = [sys.executable, "-m", "simmim_export.cli", "onnx", str(checkpoint), "-o", str(path), "--attention"]
        subprocess.run(command, check=True, capture_output=True)

    return _once(tmp_path_factory, "every-bundle", export)


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of ours in a process of its own: ``run_cli("export", "embed", bundle, image)``."""
    modules = {
        "export": "simmim_export.cli",
        "train": "simmim_export.training.cli",
        "bench": "simmim_export.benchmarks.cli",
    }

    def run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", modules[program], *(str(a) for a in arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small PNG of noise."""
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def asked_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with evidence, from a short real training, in every precision and with plans. Read only."""

    def run(module: str, *words: object) -> None:
        command = [sys.executable, "-m", f"simmim_export.{module}", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def train(path: Path) -> None:
        run("training.cli", "finetune", "--steps", 3, "--batch-size", 8, "--eval-scenes", 48, "-o", path)

    checkpoint = _once(tmp_path_factory, "asked.pt", train)
    budget = "answers=30pt,retrieval=30pt,cosine=0.9"
    lowered = ("--precision", "int8", "--precision", "fp16", "--budget", budget)
    return _once(tmp_path_factory, "asked-bundle", lambda path: run("cli", "onnx", checkpoint, *lowered, "-o", path))
