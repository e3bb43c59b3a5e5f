"""Builds a graph to a plan file: one strongly typed recipe for TensorRT 10.12+ and 11, and for TensorRT for RTX.

Precision is in the graph: TensorRT 11 no longer has flags for it, and STRONGLY_TYPED tells 10 to leave the graph's types alone.
This module needs TensorRT, so import it inside functions.
"""

from __future__ import annotations

import hashlib
import shlex
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export.engines.tensorrt.callbacks import Monitor, log
from simmim_export.engines.tensorrt.library import trt, used
from simmim_export.engines.tensorrt.network import add_profile, parse, quantized_products
from simmim_export.engines.tensorrt.plan_file import Target
from simmim_export.engines.tensorrt.request import Request, format_size
from simmim_export.errors import EngineUnavailable, NoCache, UsageError
from simmim_export.spec import GraphSpec
from simmim_export.system.cache import cache_folder
from simmim_export.system.outputs import replacing
from simmim_export.system.printing import stdout_to_stderr
from simmim_export.system.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The ``content`` of a plan file, and what the builder said about it: the nodes that should run in INT8 (``quantized``), and
    its own list of ``layers`` with their types. Only TensorRT for RTX lists them; there the list is the only evidence without a
    GPU."""

    content: bytes
    quantized: frozenset[str]
    layers: str | None


class Gpu:
    """The GPU that a plan file is built on: its ``free`` bytes, and a file of earlier timings for exactly this device."""

    def __init__(self, target: Target, *, free: int) -> None:
        self.target, self.free = target, free

    def configure(self, config: trt.IBuilderConfig, request: Request) -> None:
        """Set what depends on the GPU. Raise :class:`EngineUnavailable` if it has too little memory."""
        workspace = self.free if request.workspace is None else request.workspace
        if workspace > self.free:
            raise EngineUnavailable(
                f"a workspace of {format_size(workspace)} was asked for and the GPU has {format_size(self.free)} free",
                fix="give a smaller --workspace, or close what else uses the GPU",
            )
        set_workspace(config, workspace)
        wanted = {
            "none": trt.HardwareCompatibilityLevel.NONE,
            "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
            "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        }[request.compatibility]
        config.hardware_compatibility_level = wanted
        require_set("hardware_compatibility_level", config.hardware_compatibility_level, wanted)

    def timing_cache(self) -> Path | None:
        """Where timings of this device are kept, or None without a cache."""
        folder = cache_folder("trt")
        gpu = "".join(letter if letter.isalnum() else "-" for letter in str(self.target.gpu))
        name = f"{self.target.version}.{gpu}.sm{self.target.sms[0]}.timings"
        return None if folder is None else folder / name


def build_plan_file(
    graph: Path,
    spec: GraphSpec,
    *,
    request: Request,
    on: Gpu | None,
    configure: Callable[[trt.IBuilderConfig], None] = lambda config: None,
    module_of: Callable[[str], str],
    watch: Watch,
) -> Compiled:
    """Compile the ONNX file ``graph`` on the GPU ``on``, or ahead of time without one. ``configure`` sets what else it needs.

    ``module_of`` gives the PyTorch module of a node by the node's name, or "" if that is not known. Raise :class:`BundleError`
    naming the nodes and modules that TensorRT's parser refuses, and :class:`EngineUnavailable` if there is not enough memory,
    TensorRT finds no way to run the graph, or does not take a setting.
    """
    fix = f"change these nodes and export again; to see all that TensorRT would refuse: {_dry_run(graph)}"
    parsed = parse(graph, spec, module_of=module_of, fix=fix)
    config = parsed.builder.create_builder_config()
    # On by default. What a graph keeps in FP32 must be exact: all of an FP32 graph, some nodes of another.
    config.clear_flag(trt.BuilderFlag.TF32)
    require_set("TF32", config.get_flag(trt.BuilderFlag.TF32), False)
    config.builder_optimization_level = request.level
    require_set("builder_optimization_level", config.builder_optimization_level, request.level)
    # Without details neither the inspector nor the builder's log tells what the plan file computes in.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    require_set("profiling_verbosity", config.profiling_verbosity, trt.ProfilingVerbosity.DETAILED)
    if on is not None:
        on.configure(config, request)
    configure(config)
    monitor = Monitor(spec.name, watch)
    config.progress_monitor = monitor
    add_profile(parsed, config, spec=spec, ranges=request.profile(spec))
    cache_file = None if on is None else on.timing_cache()
    # This variable keeps it alive until the build is over; the configuration does not.
    timings = None if on is None else _set_timing_cache(config, cache_file)

    def work() -> trt.IHostMemory | None:
        return parsed.builder.build_serialized_network(parsed.network, config)

    # The compiler in it prints to stdout past the log.
    with stdout_to_stderr():
        content = _interruptible(work, monitor, on_gpu=on is not None)
    if content is None:
        raise _nothing_built(spec, graph)
    if timings is not None and cache_file is not None:
        _keep(timings, cache_file)
    return Compiled(content=bytes(content), quantized=quantized_products(parsed), layers=log().layers)


def set_workspace(config: trt.IBuilderConfig, size: int) -> None:
    """Let the builder use ``size`` bytes."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    require_set("workspace", config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE), size)


def require_set(name: str, value: Any, wanted: Any) -> None:
    """Raise :class:`EngineUnavailable` unless the setting ``name``, which was read back as ``value``, is what was ``wanted``:
    TensorRT ignores settings that it does not support."""
    if value != wanted:
        what = f"{used().title} ignores the setting {name}: {wanted} was set, and it is {value}"
        raise EngineUnavailable(what, fix="leave this option out, or use another version")


def _interruptible(
    work: Callable[[], trt.IHostMemory | None], monitor: Monitor, *, on_gpu: bool
) -> trt.IHostMemory | None:
    """Do ``work`` in a thread and return its result. Ctrl-C reaches the main thread only: if the build ran there, TensorRT would
    swallow it inside a callback. Here it cancels the build, and is raised when the build has ended."""
    with ThreadPoolExecutor(1, "tensorrt") as pool:
        # This starts the thread. A Ctrl-C that arrives while it starts would leave a build that nobody waits for.
        pool.submit(_same_gpu() if on_gpu else _nothing).result()
        try:
            building = pool.submit(work)
            while not wait([building], timeout=0.1).done:
                pass
        except BaseException as error:
            monitor.stop(error)
            raise
        content = building.result()
    monitor.reraise()
    return content


def _nothing() -> None:
    pass


def _same_gpu() -> Callable[[], None]:
    """Lets another thread use the GPU of this one."""
    from simmim_export.engines.tensorrt.device import current, use

    number = current()
    return lambda: use(number)


def _dry_run(graph: Path) -> str:
    return f"simmim-export build {shlex.quote(str(graph.parents[1]))} --engine trt --dry-run"


def _set_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache:
    """Set how long kernels took in earlier builds, so that they are not timed again."""
    timings = config.create_timing_cache(_timings(path))
    if timings is None or not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _timings(path: Path | None) -> bytes:
    """The content of the timing cache at ``path``, or nothing if there is none. The file begins with the SHA-256 of the rest:
    TensorRT takes a damaged cache without saying so."""
    if path is None or not path.is_file():
        return b""
    stored = path.read_bytes()
    digest, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != digest:
        warnings.warn(f"the timing cache {path} is damaged, and is made again", NoCache, stacklevel=3)
        return b""
    return content


def _keep(timings: trt.ITimingCache, path: Path) -> None:
    try:
        with replacing(path) as partial:
            content = bytes(timings.serialize())
            partial.write_bytes(hashlib.sha256(content).digest() + content)
    except (OSError, UsageError) as error:
        # The build took minutes, and its result is still good. Without the cache only the next build is slower.
        warnings.warn(f"the timing cache {path} was not written: {error}", NoCache, stacklevel=3)


def _nothing_built(spec: GraphSpec, graph: Path) -> EngineUnavailable:
    name, reason = used().title, log().quoted()
    if log().out_of_memory():
        return EngineUnavailable(
            f"there was not enough memory to build {spec.name}; graphs built before it are kept:{reason}",
            where=graph,
            fix="free some memory, or give a smaller --workspace or --max, and run the same command again",
        )
    if log().no_implementation():
        return EngineUnavailable(
            f"{name} has no kernels that can run {spec.name}:{reason}",
            where=graph,
            fix=f"a larger --workspace may help; to see what TensorRT would refuse: {_dry_run(graph)}",
        )
    return EngineUnavailable(f"{name} did not build {spec.name}:{reason}", where=graph, fix=_dry_run(graph))
