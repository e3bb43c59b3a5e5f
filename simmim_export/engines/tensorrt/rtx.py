"""What only TensorRT for RTX has: it builds for GPUs that are not here, and finishes the kernels on the device.

TensorRT for RTX finishes compiling the kernels of a plan file on the GPU that opens it. With EAGER it does so for the requested
shapes before the first answer. Otherwise the first calls would use slower, general kernels, and later calls different ones. A
runtime cache keeps what was compiled. This module needs TensorRT for RTX, so import it inside functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from simmim_export.engines.tensorrt.build import require_set, set_workspace
from simmim_export.engines.tensorrt.library import trt
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.system.cache import kept

# A GPU generation in the library's own names: SM86 is compute capability 8.6.
_PREFIX = "SM"
# Files of compiled kernels.
_ENDING = ".kernels"


def known_targets() -> list[str]:
    """The compute capabilities that this version builds for, such as ``8.6``."""
    numbers = sorted(int(name.removeprefix(_PREFIX)) for name in dir(trt.ComputeCapability) if name.startswith(_PREFIX))
    return [f"{number // 10}.{number % 10}" for number in numbers]


def require_targets(targets: Sequence[str]) -> None:
    """Raise :class:`UsageError` unless this version builds for every one of ``targets``, and there is one at least."""
    known = known_targets()
    choice = ",".join(_word(target) for target in known)
    if not targets:
        raise UsageError("trt-rtx builds for GPUs that you name", fix=f"--target with one or more of {choice}")
    if unknown := [target for target in targets if target not in known]:
        what = f"TensorRT for RTX {trt.__version__} does not build for {', '.join(map(_word, unknown))}"
        raise UsageError(what, fix=f"choose among {choice}")


def _word(target: str) -> str:
    return f"sm{target.replace('.', '')}"


def for_targets(request: Request) -> Callable[[trt.IBuilderConfig], None]:
    """A function that makes a configuration build for the targets of ``request``."""

    def configure(config: trt.IBuilderConfig) -> None:
        if request.workspace is not None:
            set_workspace(config, request.workspace)
        config.num_compute_capabilities = len(request.targets)
        for index, target in enumerate(request.targets):
            wanted = getattr(trt.ComputeCapability, f"{_PREFIX}{target.replace('.', '')}")
            if not config.set_compute_capability(wanted, index):
                raise EngineUnavailable(
                    f"TensorRT for RTX does not build for {_word(target)}", fix="choose another --target"
                )
            require_set(f"target {index + 1}", config.get_compute_capability(index), wanted)

    return configure


def context_with_cache(key: str) -> Callable[[trt.ICudaEngine], trt.IExecutionContext | None]:
    """A function that makes the contexts of one engine. Kernels that they compile are kept under ``key`` (hexadecimal), which
    names the plan file."""
    caches: list[trt.IRuntimeCache] = []

    def new_context(engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        require_set("kernel specialization", config.dynamic_shapes_kernel_specialization_strategy, eager)
        with kept("trt-rtx", key) as folder:
            if not caches:
                caches.append(_opened(config.create_runtime_cache(), folder))
            config.set_runtime_cache(caches[0])
            context = engine.create_execution_context(runtime_config=config)
            if context is not None and folder is not None:
                _write(caches[0], folder)
        return context

    return new_context


def _opened(cache: trt.IRuntimeCache, folder: Path | None) -> trt.IRuntimeCache:
    """``cache`` with the kernels in ``folder``. It refuses those of another driver or GPU, which are then compiled again."""
    for path in () if folder is None else folder.glob(f"*{_ENDING}"):
        if not cache.deserialize(path.read_bytes()):
            path.unlink()
    return cache


def _write(cache: trt.IRuntimeCache, folder: Path) -> None:
    """Keep what ``cache`` holds in one file of ``folder``, which is named after its content. Without it, the next process only
    starts more slowly."""
    content = bytes(cache.serialize())
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}{_ENDING}"
    if not path.exists():
        with suppress(OSError):
            for other in folder.glob(f"*{_ENDING}"):
                other.unlink()
            path.write_bytes(content)
