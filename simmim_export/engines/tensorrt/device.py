"""The GPU, through NVIDIA's own bindings: memory, one stream, CUDA graphs. No PyTorch.

All sessions of a process share one stream, so work is done in the order in which it is requested. A tensor that one graph
leaves on the GPU needs no event before the next graph reads it, and memory that is given back is reused only by later work.
This rules out overlap between graphs, which a device that answers one call at a time does not have anyway.

This module imports cuda-bindings, so import it inside functions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import cache
from threading import RLock
from typing import Any

import numpy as np
from cuda.bindings import runtime as cuda

from simmim_export.errors import EngineUnavailable


def check(result: tuple[Any, ...]) -> Any:
    """The values that a call of cuda-bindings returned after its error code. Raise :class:`EngineUnavailable` for an error."""
    error: cuda.cudaError_t = result[0]
    values = result[1:]
    if error == cuda.cudaError_t.cudaSuccess:
        return values[0] if len(values) == 1 else values
    if error == cuda.cudaError_t.cudaErrorMemoryAllocation:
        fix = "close what else uses it, or build with a smaller --max"
        raise EngineUnavailable("the GPU is out of memory", fix=fix)
    raise EngineUnavailable(f"CUDA: {error.name}", fix="simmim-export doctor")


def describe() -> tuple[str, str, int]:
    """The current GPU's name and compute capability (``8.7``), and the CUDA version of the driver (12060)."""
    properties: cuda.cudaDeviceProp = check(cuda.cudaGetDeviceProperties(check(cuda.cudaGetDevice())))
    name = properties.name.rstrip(b"\0").decode(errors="replace")
    return name, f"{properties.major}.{properties.minor}", check(cuda.cudaDriverGetVersion())


def current() -> int:
    """The number of the GPU that this thread uses: the first one unless it chose another."""
    return int(check(cuda.cudaGetDevice()))


def use(number: int) -> None:
    """Let this thread use the GPU with this number."""
    check(cuda.cudaSetDevice(number))


def free_memory() -> int:
    """The free bytes on the current GPU. On a Jetson, GPU and processor share the memory."""
    return check(cuda.cudaMemGetInfo())[0]


class Queue:
    """The stream of this process, and the lock to hold while work is put on it."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.stream: cuda.cudaStream_t = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self.stream)
        self._idle: dict[int, list[int]] = {}

    def wait(self) -> None:
        """Return when all work is done."""
        check(cuda.cudaStreamSynchronize(self.stream))

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy between two addresses, each on the GPU or in pinned memory, in order with all other work."""
        check(cuda.cudaMemcpyAsync(to, source, size, cuda.cudaMemcpyKind.cudaMemcpyDefault, self.stream))

    def take(self, size: int) -> int:
        """The address of ``size`` bytes on the GPU. Memory that was given back before is used again."""
        with self.lock:
            if idle := self._idle.get(size):
                return idle.pop()
            result = cuda.cudaMalloc(size)
            if result[0] == cuda.cudaError_t.cudaErrorMemoryAllocation:
                # Freeing idle memory of other sizes may be enough.
                cuda.cudaGetLastError()
                self.wait()
                self.trim()
                result = cuda.cudaMalloc(size)
            return int(check(result))

    def give(self, size: int, address: int) -> None:
        """Give back memory that :meth:`take` gave."""
        with self.lock:
            self._idle.setdefault(size, []).append(address)

    def trim(self) -> None:
        """Return idle memory to the GPU."""
        with self.lock:
            for addresses in self._idle.values():
                while addresses:
                    check(cuda.cudaFree(addresses.pop()))

    def capture(self, work: Callable[[], bool]) -> Graph | None:
        """Record what ``work`` puts on the stream as a CUDA graph, without doing it. None if it cannot be captured."""
        # Captures this thread only: another one may allocate meanwhile.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cuda.cudaStreamBeginCapture(self.stream, mode))
        done = False
        try:
            done = work()
        finally:
            # Always: a stream that is left in capture mode does no more work.
            error, graph = cuda.cudaStreamEndCapture(self.stream)
            whole = error == cuda.cudaError_t.cudaSuccess
            if not done or not whole:
                cuda.cudaGetLastError()  # clears it, else the next call would report it as its own
            if whole and not done:
                check(cuda.cudaGraphDestroy(graph))
        if not done or not whole:
            return None
        try:
            return Graph(check(cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            check(cuda.cudaGraphDestroy(graph))

    def seconds(self, work: Callable[[], object]) -> float:
        """How many seconds the GPU takes for what ``work`` puts on the stream, by events."""
        start, end = check(cuda.cudaEventCreate()), check(cuda.cudaEventCreate())
        try:
            check(cuda.cudaEventRecord(start, self.stream))
            work()
            check(cuda.cudaEventRecord(end, self.stream))
            check(cuda.cudaEventSynchronize(end))
            return check(cuda.cudaEventElapsedTime(start, end)) / 1000
        finally:
            check(cuda.cudaEventDestroy(start))
            check(cuda.cudaEventDestroy(end))


@cache
def queue() -> Queue:
    """The queue of this process."""
    return Queue()


class Graph:
    """A captured piece of work, destroyed with this object."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable
        weakref.finalize(self, cuda.cudaGraphExecDestroy, executable).atexit = False

    def launch(self) -> None:
        """Put it on the stream."""
        check(cuda.cudaGraphLaunch(self._executable, queue().stream))


class Memory:
    """``size`` bytes on the GPU, given back with this object. cudaMalloc aligns ``address`` to 256 bytes."""

    def __init__(self, size: int) -> None:
        size = max(size, 1)
        self.address = queue().take(size)
        # Not at exit: the context may be gone by then, and its memory with it.
        weakref.finalize(self, queue().give, size, self.address).atexit = False


class Pinned:
    """Page-locked host memory, which the GPU copies to and from by itself, as ``array``. Freed with this object."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        self.address = int(check(cuda.cudaMallocHost(size)))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))
        self.array: np.ndarray = np.ndarray(shape, dtype, buffer=raw)
        weakref.finalize(self, cuda.cudaFreeHost, self.address).atexit = False


class DeviceTensor:
    """A tensor that stayed on the GPU, and is never changed. It has the shape and type of an array, and ``numpy.asarray``
    copies it to one; a session on the same GPU takes it without a copy to the host."""

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self.memory = memory

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a tensor on the GPU cannot be an array without a copy")
        pinned = Pinned(self.shape, self.dtype.name)
        with queue().lock:
            queue().copy(pinned.address, self.memory.address, self.nbytes)
            queue().wait()
        return pinned.array.astype(self.dtype if dtype is None else dtype)
