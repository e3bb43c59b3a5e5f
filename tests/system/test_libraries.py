"""A native library in the working directory is never loaded by a command of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simmim_export.errors import UsageError
from simmim_export.system.libraries import require_no_libraries_here

COMPILER = shutil.which("gcc")
SOURCE = """
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) {
    FILE *file = fopen("%s", "w");
    if (file) fclose(file);
}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a libcuda.so.1 in it, and the file that appears when that library is loaded."""
    if COMPILER is None:
        pytest.skip("gcc is not installed, so no library can be planted")
    folder, marker = tmp_path / "work", tmp_path / "loaded"
    folder.mkdir()
    (tmp_path / "planted.c").write_text(SOURCE % marker)
    words = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", tmp_path / "planted.c"]
    subprocess.run([COMPILER, *map(str, words)], check=True)
    return folder, marker


def command(program: str, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    module = {
        "export": "simmim_export.cli",
        "bench": "simmim_export.benchmarks.cli",
        "train": "simmim_export.training.cli",
    }
    line = [sys.executable, "-P", "-m", module[program], *map(str, words)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)


def test_a_command_with_pytorch_refuses_a_folder_with_libraries(
    hostile: tuple[Path, Path], tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    folder, marker = hostile
    torch = ("--engine", "torch", "--checkpoint", tiny_checkpoint)
    for program, words in (
        ("export", ["doctor"]),
        ("export", ["verify", tiny_bundle, *torch]),
        ("export", ["onnx", tiny_checkpoint, "-o", folder.parent / "out"]),
        ("bench", ["--bundle", tiny_bundle, *torch, "--rounds", "1", "--iterations", "1"]),
        ("train", ["init", "-o", folder.parent / "new.pt"]),
    ):
        done = command(program, *words, folder=folder)
        assert (done.returncode, "libcuda.so.1" in done.stderr, marker.exists()) == (2, True, False), done.stderr


def test_a_command_without_pytorch_runs_in_a_folder_with_libraries(
    hostile: tuple[Path, Path], tiny_bundle: Path
) -> None:
    folder, marker = hostile
    done = command("export", "verify", tiny_bundle, folder=folder)
    assert (done.returncode, marker.exists()) == (0, False), done.stderr


def test_the_planted_library_would_be_loaded(hostile: tuple[Path, Path]) -> None:
    folder, marker = hostile
    subprocess.run([sys.executable, "-P", "-c", "import torch"], cwd=folder, check=True, capture_output=True)
    if not marker.exists():
        pytest.skip("the libraries of this PyTorch do not look into the working directory")


@pytest.mark.parametrize("name", ["liba.so", "liba.so.1", "a.dylib", "a.dll"])
def test_any_native_library_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.socket").touch()
    require_no_libraries_here()
    (tmp_path / name).touch()
    with pytest.raises(UsageError) as refused:
        require_no_libraries_here()
    assert refused.value.where == os.getcwd()  # noqa: PTH109


def test_a_removed_working_directory_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    require_no_libraries_here()
