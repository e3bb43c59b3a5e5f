"""What a TensorRT does when it is given one graph, as plain values: run over the real one and over the fake, it shows whether the
fake has drifted.

``python probe.py GRAPH BROKEN`` prints them for TensorRT for RTX as JSON. BROKEN is a graph with an operator that no parser has.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

# Kinds of layers that our code looks at.
KINDS = ("MATRIX_MULTIPLY", "CONVOLUTION", "QUANTIZE", "DEQUANTIZE")


def probe(trt: Any, graph: str, broken: str) -> dict[str, Any]:
    """Parse and build ``graph`` and parse ``broken`` with the module ``trt``."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            pass

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.events: list[tuple[str, ...]] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.events.append(("start", phase_name, str(parent_phase), str(num_steps)))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.events.append(("step", phase_name, str(step)))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.events.append(("end", phase_name))

    log = Log()
    builder = trt.Builder(log)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(graph)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    sizes = {tensor.name: [tensor.shape[axis] for axis in range(len(tensor.shape))] for tensor in inputs}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = 2
    tf32 = config.get_flag(trt.BuilderFlag.TF32)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    damaged = config.create_timing_cache(b"damaged")
    facts = {
        "parsed": parsed,
        "errors": parser.num_errors,
        "kinds": dict(sorted(Counter(x.type.name for x in layers if x.type.name in KINDS).items())),
        "metadata": sorted(layer.metadata for layer in layers if layer.type.name in KINDS[:2]),
        "inputs": sizes,
        "level": config.builder_optimization_level,
        "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "tf32": [tf32, config.get_flag(trt.BuilderFlag.TF32)],
        "takes a damaged timing cache": damaged is not None and config.set_timing_cache(damaged, False),
    }
    nonsense = builder.create_optimization_profile()
    # Out of order, and for an input that the network does not have: accepted all the same.
    nonsense.set_shape("nonsense", trt.Dims([3]), trt.Dims([2]), trt.Dims([1]))
    profile = builder.create_optimization_profile()
    for name, dims in sizes.items():
        shape = trt.Dims([4 if size < 0 else size for size in dims])
        profile.set_shape(name, shape, shape, shape)
    facts["profile"] = config.add_optimization_profile(profile)
    timings = config.create_timing_cache(b"")
    config.set_timing_cache(timings, False)
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    monitor = Monitor()
    config.progress_monitor = monitor
    facts["built"] = builder.build_serialized_network(network, config) is not None
    facts["events"] = [list(event) for event in monitor.events]
    other = builder.create_network(flags)
    refusing = trt.OnnxParser(other, log)
    facts["takes the broken graph"] = refusing.parse_from_file(broken)
    facts["refusals"] = [
        [e.code().name, e.node_operator(), e.desc().strip()]
        for e in (refusing.get_error(index) for index in range(refusing.num_errors))
    ]
    return facts


if __name__ == "__main__":
    import tensorrt_rtx_bindings

    print(json.dumps(probe(tensorrt_rtx_bindings, *sys.argv[1:])))
