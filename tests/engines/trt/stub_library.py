"""Writes a shared library without a compiler: an ELF file whose functions all return 0.

TensorRT's bindings are a wheel that links three libraries of NVIDIA. With libraries that export the same names and do nothing,
the bindings can be imported anywhere, and every class, enum and signature in them can be read. The format is that of the System
V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from pathlib import Path

# Per architecture: its number in ELF, and the code that returns 0.
_MACHINES = {
    "x86_64": (62, bytes.fromhex("31c0c3")),  # xor eax, eax; ret
    "aarch64": (183, bytes.fromhex("000080d2c0035fd6")),  # mov x0, 0; ret
}
_PAGE = 0x10000  # what both architectures accept as the distance between segments
_HEADERS = 64 + 3 * 56
_GLOBAL_FUNCTION = (1 << 4) | 2


def write_library(path: Path, soname: str, functions: Sequence[str]) -> None:
    """Write a library ``soname`` that exports ``functions``, one or more. KeyError where neither x86_64 nor aarch64 runs."""
    machine, code = _MACHINES[platform.machine()]
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (soname, *functions))
    offsets = {name: names.index(b"\0" + name.encode() + b"\0") + 1 for name in (soname, *functions)}
    count = 1 + len(functions)
    # One bucket, and every symbol in its chain.
    table = struct.pack(f"<{3 + count}I", 1, count, 1, 0, *range(2, count), 0)
    table += b"\0" * (-len(table) % 8)
    at_hash = _HEADERS
    at_symbols = at_hash + len(table)
    at_names = at_symbols + 24 * count
    at_code = at_names + len(names) + (-len(names) % 16)
    symbols = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", offsets[name], _GLOBAL_FUNCTION, 0, 1, at_code, len(code)) for name in functions
    )
    text = (table + symbols + names).ljust(at_code - _HEADERS, b"\0") + code
    end = _HEADERS + len(text)
    tags = [(14, offsets[soname]), (4, at_hash), (5, at_names), (6, at_symbols), (10, len(names)), (11, 24), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", tag, value) for tag, value in tags)
    # The dynamic section is written to by the loader, and lies in a segment of its own.
    at_file = end + (-end % 16)
    at_memory = _PAGE + at_file
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    segments = (
        (1, 5, 0, 0, end, _PAGE),  # PT_LOAD, read and execute
        (1, 6, at_file, at_memory, len(dynamic), _PAGE),  # PT_LOAD, read and write
        (2, 6, at_file, at_memory, len(dynamic), 8),  # PT_DYNAMIC
    )
    for kind, flags, offset, address, size, align in segments:
        header += struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, size, align)
    path.write_bytes((header + text).ljust(at_file, b"\0") + dynamic)
