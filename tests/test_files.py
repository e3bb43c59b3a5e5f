"""A file is whole or not there, and a digest is of content alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simmim_export.bundle import Staging
from simmim_export.console import check_output
from simmim_export.errors import UsageError
from simmim_export.files import digest, replacing


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "trainer [1]"
    code = (
        "import os, pathlib, signal, sys; from simmim_export.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    for target in (path, tmp_path / "other"):
        assert subprocess.run([sys.executable, "-P", "-c", code, target]).returncode == -signal.SIGKILL
    alive = tmp_path / f".{path.name}.{os.getppid()}.tmp"
    mine = tmp_path / f".{path.name}.notes.tmp"
    for kept in (alive, mine):
        kept.touch()
    assert len(list(tmp_path.iterdir())) == 4
    with replacing(path) as temporary:
        temporary.write_text("new")
    # What a live process is writing, what is not ours, and what is of another file stay.
    left = {each.name for each in tmp_path.iterdir()}
    assert left >= {path.name, alive.name, mine.name} and len(left) == 4
    assert any(name.startswith(".other.") for name in left)


@contextmanager
def locked(real: bool = True) -> Iterator[Path]:
    """A folder in which this process may not write. Root may write anywhere, and is nobody meanwhile; without ``real`` only
    the kernel's own check sees that, and not a look ahead."""
    folder, nobody = Path(tempfile.mkdtemp()), 65534
    folder.chmod(0o555)
    root = os.getuid() == 0
    if root:
        os.setresuid(nobody if real else 0, nobody, 0)
    try:
        yield folder
    finally:
        if root:
            os.setresuid(0, 0, 0)
        shutil.rmtree(folder)


def write(path: Path) -> None:
    with replacing(path):
        raise AssertionError("the block began")


def stage(path: Path) -> None:
    with Staging(path, overwrite=True):
        raise AssertionError("the block began")


OUTPUTS = [write, stage, lambda path: check_output(path, True, "-o")]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("place", ["file/x", "file/deep/x", "file/../file/x"])
def test_a_file_is_no_folder_to_write_in(tmp_path: Path, output, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="no folder") as caught:
        output(tmp_path / place)
    assert caught.value.exit_code == 2 and "file" in str(caught.value.where) and caught.value.fix
    assert (tmp_path / "file").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("place", ["x", "deep/x"])
def test_a_folder_that_may_not_be_written_to(output, place: str) -> None:
    with locked() as folder, pytest.raises(UsageError, match="may not be written to") as caught:
        output(folder / place)
    assert caught.value.exit_code == 2 and caught.value.where == str(folder) and caught.value.fix


@pytest.mark.skipif(os.getuid() != 0, reason="others than root are told by the look ahead")
@pytest.mark.parametrize("output", OUTPUTS[:2])
@pytest.mark.parametrize("place", ["x", "deep/x"])
def test_a_folder_that_refuses_only_when_it_is_written_to(output, place: str) -> None:
    with (
        locked(real=False) as folder,
        pytest.raises(UsageError, match="cannot be written: Permission denied") as caught,
    ):
        output(folder / place)
    assert caught.value.where == str(folder / place) and caught.value.fix


@pytest.mark.parametrize("output", OUTPUTS[:2])
def test_a_folder_that_is_a_link_to_nowhere(tmp_path: Path, output) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be written: File exists"):
        output(tmp_path / "link" / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("output", [OUTPUTS[0], OUTPUTS[2]])
def test_a_folder_is_no_file_to_replace(tmp_path: Path, output) -> None:
    with pytest.raises(UsageError, match="the output is a folder"):
        output(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_digest_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert digest(tmp_path / "a") == hashlib.sha256(b"x").hexdigest()
    before = digest(tmp_path)
    (tmp_path / "b").write_bytes(b"")
    assert digest(tmp_path) != before
