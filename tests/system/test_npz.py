"""A .npz file holds plain arrays; a hostile one is refused and costs no memory."""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - for a pickle that must be refused
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from simmim_export.system.npz import DAMAGED, MAX_MEMBERS, SMALL, pack, unpack


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


def test_a_good_npz_is_read() -> None:
    assert unpack(archive(("a.npy", GOOD)))["a"].tolist() == [0.0, 0.0]
    assert HOSTILE["encrypted"] != archive(("a.npy", GOOD))


def test_the_limit_holds_for_all_arrays_together() -> None:
    data = pack({"a": np.zeros(100, np.uint8), "b": np.zeros(100, np.uint8)})
    assert unpack(data, most=1000)["b"].shape == (100,)
    with pytest.raises(ValueError):
        unpack(data, most=300)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux")
@pytest.mark.parametrize("name", ["terabytes", "a bomb", "many members", "ZIP64"])
def test_a_hostile_npz_costs_no_memory(tmp_path: Path, name: str) -> None:
    """Another process reads it with 64 MB more than it has after its imports."""
    path = tmp_path / "x.npz"
    path.write_bytes(HOSTILE[name])
    program = """
import resource, sys
from pathlib import Path
from simmim_export.system.npz import DAMAGED, unpack
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
def test_packing_and_unpacking_keep_arrays(tensors: dict[str, np.ndarray]) -> None:
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
        warnings.simplefilter("ignore")  # of NumPy, about headers that Python 2 wrote
        try:
            tensors = unpack(archive(("a.npy", b"\x93NUMPY" + version + length + header + bytes(size))))
        except DAMAGED:
            return
    assert tensors["a"].dtype.kind in "biuf" and tensors["a"].nbytes == size
