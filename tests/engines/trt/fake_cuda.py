"""A fake GPU: the names and signatures of the real cuda-bindings, with host memory behind every address.

It is stricter than a GPU. Work on the stream is done only when somebody waits for it, a copy beyond an allocation or from freed
memory raises, and memory that was never freed can be counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from strict import cython_module


@dataclass
class Gpu:
    """The properties and the state of the fake GPU. With ``captures`` false every capture fails."""

    name: bytes = b"Fake GPU"
    sm: tuple[int, int] = (8, 7)
    driver: int = 12060
    free: int = 8 << 30
    total: int = 16 << 30
    count: int = 1
    captures: bool = True
    live: dict[int, Any] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    queued: list[Callable[[], object]] = field(default_factory=list)
    capturing: list[Callable[[], object]] | None = None
    calls: list[str] = field(default_factory=list)
    graphs: dict[int, list[Callable[[], object]]] = field(default_factory=dict)

    def put(self, work: Callable[[], object]) -> None:
        """Put ``work`` on the stream, or into the graph that is being captured."""
        (self.queued if self.capturing is None else self.capturing).append(work)

    def drain(self) -> None:
        """Do all that is on the stream."""
        while self.queued:
            self.queued.pop(0)()

    def range(self, address: int, size: int) -> int:
        """``address``, if ``size`` bytes from there lie in one allocation that is alive."""
        for start, buffer in self.live.items():
            if start <= address and address + size <= start + len(buffer):
                return address
        raise AssertionError(f"{size} bytes at {address:#x} are in no allocation that is alive")


def fake_cuda(surface: dict[str, Any], gpu: Gpu) -> ModuleType:
    """A module in place of cuda.bindings.runtime."""
    numbers = iter(range(1, 1 << 30))

    def allocate(size: int, pinned: bool) -> Any:
        if size > gpu.free and not pinned:
            return module.cudaError_t.cudaErrorMemoryAllocation
        # As cudaMalloc: aligned to 256 bytes.
        raw = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(raw) // 256) * 256
        gpu.live[address] = (ctypes.c_char * size).from_buffer(raw, address - ctypes.addressof(raw))
        if pinned:
            gpu.pinned.add(address)
        else:
            gpu.free -= size
        return address

    def free(address: int, pinned: bool) -> Any:
        if address not in gpu.live or (address in gpu.pinned) != pinned:
            return module.cudaError_t.cudaErrorInvalidValue
        gpu.drain()
        size = len(gpu.live.pop(address))
        gpu.pinned.discard(address)
        gpu.free += 0 if pinned else size

    def copy(to: int, source: int, size: int, kind: Any, stream: Any) -> None:
        gpu.range(to, size), gpu.range(source, size)
        gpu.put(lambda: ctypes.memmove(gpu.range(to, size), gpu.range(source, size), size))

    def begin(stream: Any, mode: Any) -> None:
        gpu.capturing = []

    def end(stream: Any) -> Any:
        captured, gpu.capturing = gpu.capturing, None
        if not gpu.captures:
            return module.cudaError_t.cudaErrorStreamCaptureInvalidated
        number = next(numbers)
        gpu.graphs[number] = captured or []
        return module.cudaGraph_t(number)

    def instantiate(graph: Any, flags: int) -> Any:
        number = next(numbers)
        gpu.graphs[number] = gpu.graphs[int(graph)]
        return module.cudaGraphExec_t(number)

    def launch(executable: Any, stream: Any) -> None:
        gpu.calls.append("graph")
        for work in gpu.graphs[int(executable)]:
            gpu.put(work)

    def forget(graph: Any) -> None:
        gpu.graphs.pop(int(graph))

    def wait(*_: Any) -> None:
        gpu.drain()

    behaviors: dict[str, Callable[..., Any]] = {
        "cudaGetDeviceCount": lambda: gpu.count or module.cudaError_t.cudaErrorNoDevice,
        "cudaGetDevice": lambda: 0,
        "cudaSetDevice": lambda device: None,
        "cudaGetDeviceProperties": lambda device: module.cudaDeviceProp(
            name=gpu.name.ljust(256, b"\0"), major=gpu.sm[0], minor=gpu.sm[1]
        ),
        "cudaDriverGetVersion": lambda: gpu.driver,
        "cudaMemGetInfo": lambda: (gpu.free, gpu.total),
        "cudaMalloc": lambda size: allocate(size, False),
        "cudaFree": lambda address: free(address, False),
        "cudaMallocHost": lambda size: allocate(size, True),
        "cudaFreeHost": lambda address: free(address, True),
        "cudaMemcpyAsync": copy,
        "cudaStreamCreateWithFlags": lambda flags: module.cudaStream_t(next(numbers)),
        "cudaStreamSynchronize": wait,
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": end,
        "cudaGraphInstantiate": instantiate,
        "cudaGraphLaunch": launch,
        "cudaGraphExecDestroy": forget,
        "cudaGraphDestroy": forget,
        "cudaGetLastError": lambda: None,
        "cudaEventCreate": lambda: module.cudaEvent_t(next(numbers)),
        "cudaEventRecord": lambda event, stream: None,
        "cudaEventSynchronize": wait,
        "cudaEventElapsedTime": lambda start, end: 1.5,
        "cudaEventDestroy": lambda event: None,
    }
    module = cython_module("cuda.bindings.runtime", surface, behaviors)
    return module
