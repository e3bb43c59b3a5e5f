"""An output is complete or not there, a digest depends only on content, and JSON is unambiguous."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from simmim_export.bundle import Staging
from simmim_export.console import check_output
from simmim_export.errors import UsageError
from simmim_export.runtime.bulk import save_vectors
from simmim_export.system.files import digest, parse_json, read_file
from simmim_export.system.files import locked as held
from simmim_export.system.outputs import replacing
from simmim_export.training.output import check_output as check_checkpoint


def test_a_failing_block_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "trainer [1]"
    code = (
        "import os, pathlib, signal, sys; from simmim_export.system.outputs import replacing\n"
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
    # Files of a live process, of another output, and files that are not ours stay.
    left = {each.name for each in tmp_path.iterdir()}
    assert left >= {path.name, alive.name, mine.name} and len(left) == 4
    assert any(name.startswith(".other.") for name in left)


@contextmanager
def locked(real: bool = True) -> Iterator[Path]:
    """A folder in which this process may not write. Root may write anywhere, so it becomes nobody meanwhile; without ``real``
    only the kernel's own check notices that, and a check in advance does not."""
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


OUTPUTS = [write, stage, lambda path: check_output(path, "-o", overwrite=True)]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("place", ["file/x", "file/deep/x", "file/../file/x"])
def test_an_output_below_a_file_is_an_error(tmp_path: Path, output, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError) as caught:
        output(tmp_path / place)
    assert "file" in str(caught.value.where) and caught.value.fix
    assert (tmp_path / "file").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("place", ["x", "deep/x"])
def test_a_read_only_folder_is_an_error(output, place: str) -> None:
    with locked() as folder, pytest.raises(UsageError) as caught:
        output(folder / place)
    assert caught.value.where == str(folder) and caught.value.fix


@pytest.mark.skipif(os.getuid() != 0, reason="only root passes the check in advance")
@pytest.mark.parametrize("output", OUTPUTS[:2])
@pytest.mark.parametrize("place", ["x", "deep/x"])
def test_a_folder_that_refuses_late_is_an_error(output, place: str) -> None:
    with locked(real=False) as folder, pytest.raises(UsageError, match="Permission denied") as caught:
        output(folder / place)
    assert caught.value.where == str(folder / place) and caught.value.fix


@pytest.mark.parametrize("output", OUTPUTS[:2])
def test_a_dangling_link_as_a_folder_is_an_error(tmp_path: Path, output) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(UsageError, match="File exists"):
        output(tmp_path / "link" / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("output", [OUTPUTS[0], OUTPUTS[2]])
def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path, output) -> None:
    with pytest.raises(UsageError) as caught:
        output(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def make_special(path: Path, kind: str) -> None:
    """Put what is neither a file nor a folder at ``path``."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        target = path.with_name("target")
        os.mkfifo(target)
        path.symlink_to(target)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe"])
@pytest.mark.parametrize("output", [*OUTPUTS, lambda path: check_checkpoint(path, overwrite=True)])
def test_a_special_file_is_not_replaced(output, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # whose name is short enough for a socket
        path = Path(folder) / "x.pt"
        make_special(path, kind)
        before = path.lstat()
        with pytest.raises(UsageError) as caught:
            output(path)
        assert Path(str(caught.value.where)).parent == path.parent and caught.value.fix
        assert path.lstat().st_mode == before.st_mode and path.lstat().st_ino == before.st_ino


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="this system has no /dev/null")
def test_a_device_behind_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.npz").symlink_to("/dev/null")
    for output in (OUTPUTS[0], OUTPUTS[2]):
        with pytest.raises(UsageError):
            output(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").is_symlink() and Path("/dev/null").is_char_device()


def test_a_link_is_replaced_and_its_destination_left_alone(tmp_path: Path) -> None:
    """In a bundle from somebody else a link could lead anywhere."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious" and not (tmp_path / "link").is_symlink()


def test_an_output_named_by_a_link_goes_where_the_link_points(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "link.npz").symlink_to("below/real.npz")
    save_vectors(tmp_path / "link.npz", np.zeros((1, 2), np.float32), sources=["a"], space="space")
    assert (tmp_path / "link.npz").is_symlink()
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["real.npz"]


def test_a_full_disk_is_an_error_and_leaves_nothing(small_disk) -> None:
    path = small_disk(16) / "deep" / "x"
    with pytest.raises(UsageError) as caught, replacing(path) as temporary:
        temporary.write_bytes(bytes(1 << 20))
    assert caught.value.where == str(path) and caught.value.fix
    assert list(path.parents[1].iterdir()) == []


def test_a_block_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "x"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert read_file(path, most=4) == b"four"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path / "link", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError):
            read_file(other, most=4)
    with pytest.raises(ValueError):
        read_file(path, most=3)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nowhere", most=4)


def test_a_lock_is_held_by_one_and_is_never_another_file(tmp_path: Path) -> None:
    path, other = tmp_path / "lock", tmp_path / "other"
    with held(path), pytest.raises(TimeoutError), held(path, timeout=0):
        pass
    with held(path, timeout=0):
        pass
    other.write_text("keep")
    makers = (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(other), lambda: path.hardlink_to(other))
    for make in (*makers, lambda: path.symlink_to(tmp_path / "new")):
        path.rmdir() if path.is_dir() else path.unlink()
        make()
        with pytest.raises(OSError), held(path, timeout=1):
            pass
    assert other.read_text() == "keep" and not (tmp_path / "new").exists()


def test_nothing_is_written_through_a_planted_link(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("keep")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(other)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".file.{dead.pid}.tmp").mkdir()
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and other.read_text() == "keep" and not path.is_symlink()


def test_digest_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert digest(tmp_path / "a") == hashlib.sha256(b"x").hexdigest()
    before = digest(tmp_path)
    (tmp_path / "b").write_bytes(b"")
    assert digest(tmp_path) != before


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "b": 2, "a": 3}}]', "[" * 100_000, "{", "", "[1,]"]
)
def test_ambiguous_and_damaged_json_is_refused(text: str) -> None:
    for finite in (False, True):
        with pytest.raises(ValueError):
            parse_json(text, finite=finite)


def test_json_can_be_limited_to_finite_numbers() -> None:
    assert parse_json('{"a": [1, 2.5, 1e300]}', finite=True) == {"a": [1, 2.5, 1e300]}
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        assert str(parse_json(f"[{number}]")[0]) in ("nan", "inf", "-inf")
        with pytest.raises(ValueError):
            parse_json(f"[{number}]", finite=True)


def test_the_key_that_an_object_has_twice_is_named_among_many() -> None:
    pairs = ", ".join(f'"{number}": 0' for number in range(200_000))
    with pytest.raises(ValueError, match="'777'"):
        parse_json(f'{{{pairs}, "777": 1}}')
