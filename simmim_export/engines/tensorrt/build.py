"""Builds a graph to a plan file: one strongly typed recipe for TensorRT 10.12+ and 11.

Precision is in the graph: TensorRT 11 no longer has flags for it, and STRONGLY_TYPED tells 10 to leave the graph's types alone.
This module imports TensorRT, so import it inside functions.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import tensorrt as trt

from simmim_export.engines.tensorrt.callbacks import Monitor, log
from simmim_export.engines.tensorrt.device import current, use
from simmim_export.engines.tensorrt.plan_file import Target
from simmim_export.engines.tensorrt.request import Profile, Request, format_size
from simmim_export.errors import BundleError, EngineUnavailable, NoCache, UsageError
from simmim_export.spec import GraphSpec
from simmim_export.system.cache import cache_folder
from simmim_export.system.outputs import replacing
from simmim_export.system.watch import Watch


def build_plan_file(
    graph: Path,
    spec: GraphSpec,
    *,
    request: Request,
    target: Target,
    free: int,
    module_of: Callable[[str], str],
    watch: Watch,
) -> bytes:
    """The content of a plan file for the ONNX file ``graph`` on the current GPU, which has ``free`` bytes of memory.

    ``module_of`` gives the PyTorch module of a node by the node's name, or "" if that is not known. Raise :class:`BundleError`
    naming the nodes and modules that TensorRT's parser refuses, and :class:`EngineUnavailable` if there is not enough memory or
    TensorRT finds no way to run the graph.
    """
    log().errors.clear()
    builder = trt.Builder(log())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log())
    if not parser.parse_from_file(str(graph)):
        raise _refused(parser, graph, spec=spec, module_of=module_of)
    config = builder.create_builder_config()
    workspace = free if request.workspace is None else request.workspace
    if workspace > free:
        raise EngineUnavailable(
            f"a workspace of {format_size(workspace)} was asked for and the GPU has {format_size(free)} free",
            fix="give a smaller --workspace, or close what else uses the GPU",
        )
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    # On by default. What a graph keeps in FP32 must be exact: all of an FP32 graph, some nodes of another.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = request.level
    config.hardware_compatibility_level = {
        "none": trt.HardwareCompatibilityLevel.NONE,
        "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }[request.compatibility]
    # Without details the inspector could not tell what the plan file computes in.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    monitor = Monitor(spec.name, watch)
    config.progress_monitor = monitor
    _add_profile(builder, config, spec=spec, ranges=request.profile(spec))
    cache_file = _timing_cache_file(target)
    # This variable keeps it alive until the build is over; the configuration does not.
    timings = _set_timing_cache(config, cache_file)
    content = _interruptible(lambda: builder.build_serialized_network(network, config), monitor)
    if content is None:
        raise _nothing_built(spec, graph)
    if cache_file is not None:
        try:
            with replacing(cache_file) as path:
                path.write_bytes(bytes(timings.serialize()))
        except (OSError, UsageError) as error:
            # The build took minutes, and its result is still good. Without the cache only the next build is slower.
            warnings.warn(f"the timing cache {cache_file} was not written: {error}", NoCache, stacklevel=2)
    return bytes(content)


def _interruptible(work: Callable[[], trt.IHostMemory | None], monitor: Monitor) -> trt.IHostMemory | None:
    """Do ``work`` in a thread and return its result. Ctrl-C reaches the main thread only: if the build ran there, TensorRT would
    swallow it inside a callback. Here it cancels the build, and is raised when the build has ended."""
    with ThreadPoolExecutor(1, "tensorrt") as pool:
        # This starts the thread. A Ctrl-C that arrives while it starts would leave a build that nobody waits for.
        pool.submit(use, current()).result()
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


def _refused(parser: trt.OnnxParser, graph: Path, *, spec: GraphSpec, module_of: Callable[[str], str]) -> BundleError:
    listed = ""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        module = module_of(error.node_name())
        place = f"{error.node_operator()} {error.node_name()}" + (f" of {module}" if module else "")
        listed += f"\n  {place}: {error.desc().strip()}"
    listed = listed or log().quoted()
    fix = f"change these nodes and export again; to see all that TensorRT would refuse: {_dry_run(graph)}"
    return BundleError(f"TensorRT's parser refuses {spec.name}:{listed}", where=graph, fix=fix)


def _dry_run(graph: Path) -> str:
    return f"simmim-export build {shlex.quote(str(graph.parents[1]))} --engine trt --dry-run"


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, *, spec: GraphSpec, ranges: Profile) -> None:
    profile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        least, best, largest = (trt.Dims(list(shape)) for shape in ranges.shapes(tensor))
        profile.set_shape(tensor.name, least, best, largest)
    if config.add_optimization_profile(profile) < 0:
        raise BundleError(f"TensorRT refuses the profile of {spec.name}: {ranges}", fix="report this as a bug")


def _timing_cache_file(target: Target) -> Path | None:
    folder = cache_folder("trt")
    gpu = "".join(letter if letter.isalnum() else "-" for letter in target.gpu)
    return None if folder is None else folder / f"{target.tensorrt}.{gpu}.sm{target.sm}.timings"


def _set_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> trt.ITimingCache:
    """Set how long kernels took in earlier builds, so that they are not timed again. A damaged file is ignored."""
    known = path.read_bytes() if path is not None and path.is_file() else b""
    timings = config.create_timing_cache(known)
    if timings is None or not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _nothing_built(spec: GraphSpec, graph: Path) -> EngineUnavailable:
    if log().out_of_memory():
        return EngineUnavailable(
            f"the GPU ran out of memory while {spec.name} was built; graphs built before it are kept:{log().quoted()}",
            where=graph,
            fix="close what else uses the GPU, or give a smaller --workspace or --max, and run the same command again",
        )
    return EngineUnavailable(
        f"TensorRT found no way to run {spec.name} on this GPU:{log().quoted()}",
        where=graph,
        fix=f"a larger --workspace may help; to see what TensorRT would refuse: {_dry_run(graph)}",
    )
