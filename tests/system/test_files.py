"""A file is whole or not there, and a digest is of content alone."""

from __future__ import annotations

import hashlib
import io
import os
import pickle  # noqa: TID251 - for a pickle that must be refused
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from simmim_export.bundle import Staging
from simmim_export.console import check_output
from simmim_export.errors import UsageError
from simmim_export.runtime.vectors import save_vectors
from simmim_export.system.files import DAMAGED, MAX_MEMBERS, SMALL, digest, pack, read_file, replacing, unpack
from simmim_export.system.files import locked as held
from simmim_export.training.output import check_output as check_checkpoint


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
        "import os, pathlib, signal, sys; from simmim_export.system.files import replacing\n"
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
def test_what_is_not_a_file_is_not_replaced(output, kind: str) -> None:
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


def test_an_output_that_a_user_named_by_a_link_goes_where_the_link_points(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "link.npz").symlink_to("below/real.npz")
    save_vectors(tmp_path / "link.npz", np.zeros((1, 2), np.float32), sources=["a"], space="space")
    assert (tmp_path / "link.npz").is_symlink()
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["real.npz"]


def test_a_full_disk_is_an_error_that_names_the_output_and_leaves_nothing(small_disk) -> None:
    path = small_disk(16) / "deep" / "x"
    with pytest.raises(UsageError) as caught, replacing(path) as temporary:
        temporary.write_bytes(bytes(1 << 20))
    assert caught.value.where == str(path) and caught.value.fix
    assert list(path.parents[1].iterdir()) == []


def test_a_block_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "x"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_regular_files_are_read_and_only_so_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert read_file(path, most=4) == b"four"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path / "link", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="regular"):
            read_file(other, most=4)
    with pytest.raises(ValueError, match="more than"):
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
        with pytest.raises(OSError, match="lock file"), held(path, timeout=1):
            pass
    assert other.read_text() == "keep" and not (tmp_path / "new").exists()


def test_nothing_is_written_through_a_link_that_lies_in_the_way(tmp_path: Path) -> None:
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


def npy(shape: tuple[int, ...], descr: str = "<f4", content: bytes = b"") -> bytes:
    """A .npy member with any header before any content."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, content in members:
            written.writestr(name, content)
    return stream.getvalue()


GOOD = npy((2,), content=bytes(8))
DEEP = b"\x93NUMPY\x01\x00" + (3000).to_bytes(2, "little") + b"(" * 3000
HOSTILE = {
    "terabytes": archive(("a.npy", npy((1 << 40,), content=bytes(8)))),
    "a product that overflows": archive(("a.npy", npy((1 << 33, 1 << 33, 0, 1 << 62), content=bytes(8)))),
    "a negative size": archive(("a.npy", npy((-2, -1), content=bytes(8)))),
    "too short": archive(("a.npy", GOOD[:-1])),
    "too long": archive(("a.npy", GOOD + b"x")),
    "objects": archive(("a.npy", npy((1,), "|O", bytes(8)))),
    "records": archive(("a.npy", npy((1,), [("x", "<f4")], bytes(4)))),  # type: ignore[arg-type]
    "void": archive(("a.npy", npy((1,), "|V4", bytes(4)))),
    "complex": archive(("a.npy", npy((1,), "<c8", bytes(8)))),
    "text": archive(("a.npy", npy((1,), "<U1", bytes(4)))),
    "time": archive(("a.npy", npy((1,), "<M8[s]", bytes(8)))),
    "a dtype without bytes": archive(("a.npy", npy((1 << 60,), "|S0"))),
    "a header of brackets": archive(("a.npy", DEEP)),
    "no header": archive(("a.npy", b"")),
    "a pickle": archive(("a.npy", pickle.dumps([1]))),
    "two of one name": archive(("a.npy", GOOD), ("a.npy", GOOD)),
    "another suffix": archive(("a.pkl", GOOD)),
    "no name": archive((".npy", GOOD)),
    "a name to obey": archive(("\x1b[2J.npy", GOOD)),
    "a long name": archive(("a" * 300 + ".npy", GOOD)),
    "a folder": archive(("a.npy/", b"")),
    "another compression": archive(("a.npy", GOOD), method=zipfile.ZIP_LZMA),
    "many members": archive(*((f"{index}.npy", b"") for index in range(MAX_MEMBERS + 1))),
    "ZIP64": archive(*((f"{index}.npy", b"") for index in range(0x10000))),
    "a comment": archive(("a.npy", GOOD))[:-2] + b"\x01\x00x",
    "encrypted": (lambda data: data.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"))(
        archive(("a.npy", GOOD))
    ),
    "a bomb": archive(("a.npy", npy((SMALL,), "|u1", bytes(SMALL))), method=zipfile.ZIP_DEFLATED),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_npz_is_refused(name: str) -> None:
    with pytest.raises(DAMAGED):
        unpack(HOSTILE[name])


def test_the_hostile_npz_differ_from_a_good_one_only_in_what_they_test() -> None:
    assert unpack(archive(("a.npy", GOOD)))["a"].tolist() == [0.0, 0.0]
    assert HOSTILE["encrypted"] != archive(("a.npy", GOOD))


def test_a_limit_in_bytes_holds_for_all_arrays_together() -> None:
    data = pack({"a": np.zeros(100, np.uint8), "b": np.zeros(100, np.uint8)})
    assert unpack(data, most=1000)["b"].shape == (100,)
    with pytest.raises(ValueError):
        unpack(data, most=300)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux")
@pytest.mark.parametrize("name", ["terabytes", "a bomb", "many members", "ZIP64"])
def test_a_hostile_npz_costs_no_memory(tmp_path: Path, name: str) -> None:
    """Another process reads it within 64 MB of what it has after its imports."""
    path = tmp_path / "x.npz"
    path.write_bytes(HOSTILE[name])
    program = """
import resource, sys
from pathlib import Path
from simmim_export.system.files import locked as held
from simmim_export.system.files import DAMAGED, unpack
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
try:
    unpack(Path(sys.argv[1]))
except DAMAGED as error:
    sys.exit(5)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 5 and not done.stderr, done.stderr


TENSORS = arrays(
    st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_, np.float64]),
    array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
NAMES = st.text("abc/: .é", min_size=1, max_size=8)


@given(st.dictionaries(NAMES, TENSORS, max_size=4))
def test_what_was_packed_is_unpacked(tensors: dict[str, np.ndarray]) -> None:
    read = unpack(pack(tensors))
    assert list(read) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype and read[name].shape == array.shape


SOUND = pack({"case/pixels": np.arange(60, dtype=np.uint8).reshape(1, 3, 4, 5), "case/g:x": np.linspace(0, 1, 7)})
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(SOUND) - 1), st.sampled_from(["set", "cut", "add"]), st.binary(min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(EDITS)
def test_any_damage_is_an_error_or_leaves_plain_arrays(edits: list[tuple[int, str, bytes]]) -> None:
    data = SOUND
    for place, kind, content in edits:
        after = {"set": place + len(content), "cut": place + 1, "add": place}[kind]
        data = data[:place] + (b"" if kind == "cut" else content) + data[after:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tensors = unpack(data)
        except DAMAGED:
            return
    assert all(array.dtype.kind in "biuf" for array in tensors.values())
    assert sum(array.nbytes for array in tensors.values()) <= SMALL


HEADERS = st.one_of(
    st.binary(max_size=120),
    st.builds(
        "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}\n".format,
        st.sampled_from(["'<f4'", "'|O'", "'<c16'", "[('a', '<f4')]", "('<f4', (2,))", "'|V0'", "3", "'<f4", "'<L8'"]),
        st.sampled_from(["True", "False", "None", "2"]),
        st.sampled_from(
            ["()", "(2,)", "(-1,)", "(True,)", "(1e3,)", "(2**70,)", "(99999999999999999999,)", "3", "((2,),)", "(2L,)"]
        ),
    ).map(str.encode),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(HEADERS, st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"]), st.sampled_from([0, 8]))
def test_any_header_is_an_error_or_a_plain_array(header: bytes, version: bytes, size: int) -> None:
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's own, of headers that Python 2 wrote
        try:
            tensors = unpack(archive(("a.npy", b"\x93NUMPY" + version + length + header + bytes(size))))
        except DAMAGED:
            return
    assert tensors["a"].dtype.kind in "biuf" and tensors["a"].nbytes == size
