"""The NVIDIA driver and its GPUs, asked through the driver's own library.

``make gpu-check`` runs this module in a checkout before anything is installed (``python -m simmim_export.system.nvidia``), so it
imports only the standard library. This is the only case in which code comes from the working directory. Without a GPU it exits
with 3.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from simmim_export.errors import EngineUnavailable, SimmimError
from simmim_export.system.printing import say

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
INSTALL = "install NVIDIA's driver, 580 or newer for CUDA 13 (a container: start it with its GPUs, --gpus all)"
# CUdevice_attribute: the two halves of the compute capability.
_MAJOR, _MINOR = 75, 76
# What cuInit returns if there is a driver but no GPU, and if there is only the library's stub.
_NO_DEVICE, _STUB = 100, 34


@dataclass(frozen=True)
class Gpu:
    """``compute`` is its compute capability ("8.6"), ``memory`` in bytes."""

    name: str
    compute: str
    memory: int


@dataclass(frozen=True)
class Driver:
    """``cuda`` is the newest CUDA that it runs, ``release`` its own number, or None if the system does not tell (Jetson)."""

    cuda: tuple[int, int]
    release: str | None
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        return f"driver {self.release or '(unnumbered)'}, CUDA {self.cuda[0]}.{self.cuda[1]} at most"


@cache
def _ask() -> Driver | str:
    """The driver, or in one line why no GPU can be used."""
    try:
        library = ctypes.CDLL(LIBRARY)
        status = library.cuInit(0)
    except (OSError, AttributeError):
        return f"no NVIDIA driver: {LIBRARY} cannot be loaded"
    if status in (_NO_DEVICE, _STUB):
        return f"the NVIDIA driver finds no GPU (cuInit returns {status})"
    if status:
        return f"the NVIDIA driver does not start (cuInit returns {status})"
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return "the NVIDIA driver finds no GPU"
    gpus = tuple(_gpu(library, index) for index in range(count.value))
    return Driver((version.value // 1000, version.value % 1000 // 10), _release(), gpus)


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, part, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    library.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        library.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        parts.append(str(part.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(parts), memory.value)


def _release() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    number = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return number.group() if number else None


def driver() -> Driver | None:
    """The driver with its GPUs, or None if no GPU can be used."""
    answer = _ask()
    return None if isinstance(answer, str) else answer


def why_no_gpu() -> str | None:
    """None if there is a GPU with its driver, else the reason in one line."""
    answer = _ask()
    return answer if isinstance(answer, str) else None


def require_gpu() -> Driver:
    """The driver. Raise :class:`EngineUnavailable` if no GPU can be used."""
    answer = _ask()
    if isinstance(answer, str):
        raise EngineUnavailable(f"this needs an NVIDIA GPU: {answer}", fix=INSTALL)
    return answer


if __name__ == "__main__":
    try:
        here = require_gpu()
    except SimmimError as error:
        say(f"error: {error}", error=True, lines=True)
        sys.exit(error.exit_code)
    say(f"{', '.join(gpu.name for gpu in here.gpus)}; {here}")
