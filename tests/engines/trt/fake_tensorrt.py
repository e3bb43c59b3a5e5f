"""A fake TensorRT: the names and signatures of the real bindings, with ONNX Runtime behind them.

Its parser, builder and log behave as those of TensorRT for RTX, the one real TensorRT that runs without a GPU: test_trt_fake.py
compares the two. A plan file is the graph itself with what it was built for. So parity is really measured, profiles really limit
shapes, and a plan file of another version is noticed if it ever gets as far as being deserialized. It computes on addresses of
the fake GPU.
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from fake_cuda import Gpu
from onnx import TensorProto, shape_inference
from strict import pybind_module

MAGIC = b"PLAN"
_NUMPY = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.UINT8: "uint8"}
_SHORT = {
    TensorProto.FLOAT: "Float", TensorProto.FLOAT16: "Half", TensorProto.INT8: "Int8", TensorProto.INT64: "Int64",
    TensorProto.UINT8: "UInt8", TensorProto.BOOL: "Bool", TensorProto.INT32: "Int32",
}  # fmt: skip


PHASE, STEPS = "Building engine", 6
# The layer that the parser makes of an operator, if it matters here; and what a built product is called.
LAYERS = {
    "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Conv": "CONVOLUTION", "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE", "Transpose": "SHUFFLE", "Reshape": "SHUFFLE",
}  # fmt: skip
PRODUCTS = {"MATRIX_MULTIPLY": "gemm", "CONVOLUTION": "correlation"}


@dataclass
class World:
    """What goes wrong. A graph is named as its file begins: ``image_encoder``."""

    refuse_parse: str = ""
    refuse_build: str = ""
    # The builder fails for a reason that has nothing to do with memory.
    fail_build: str = ""
    # This graph is read as a file without nodes.
    empty: str = ""
    # This property of a configuration keeps its value, whatever is set.
    ignored: str = ""
    # Products get their operands dequantized.
    dequantizes: bool = False
    out_of_memory: str = ""
    refuse_open: bool = False
    refuse_cache: bool = False
    built: list[str] = field(default_factory=list)
    # Of the last build: flags that were cleared, pool limits, properties, the profile.
    asked: dict[str, Any] = field(default_factory=dict)
    tamper: Callable[[onnx.ModelProto], None] | None = None


def fake_tensorrt(surface: dict[str, Any], gpu: Gpu, world: World) -> ModuleType:
    """A module in place of tensorrt."""
    import onnxruntime

    def member(name: str) -> Any:
        member: Any = module
        for part in name.split("."):
            member = getattr(member, part)
        return member

    def error(log: Any, text: str) -> None:
        log.log(member("ILogger.Severity.ERROR"), text)

    def new(kind: str, **state: Any) -> Any:
        made = module.new(kind)
        for key, value in state.items():
            object.__setattr__(made, f"_fake_{key}", value)
        return made

    # -- build ---------------------------------------------------------------------------------------------------------

    def create_network(builder: Any, flags: int = 0) -> Any:
        bit = 1 << int(member("NetworkDefinitionCreationFlag.STRONGLY_TYPED"))
        assert flags == bit, "not strongly typed: TensorRT 10 would choose precisions itself"
        return new("INetworkDefinition", model=None)

    def init_builder(builder: Any, logger: Any) -> None:
        object.__setattr__(builder, "_fake_log", logger)

    def init_parser(parser: Any, network: Any, logger: Any) -> None:
        object.__setattr__(parser, "_fake_network", network)
        object.__setattr__(parser, "_fake_errors", [])

    def parse_from_file(parser: Any, model: str) -> bool:
        path = Path(model)
        model = onnx.load(path)
        if world.empty and path.name.startswith(world.empty):
            model = onnx.ModelProto()
        if world.refuse_parse and path.name.startswith(world.refuse_parse):
            node = next((n for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")), model.graph.node[0])
            words = {"desc": "false\n", "name": node.name, "operator": node.op_type}
            parser._fake_errors.append(new("ParserError", **words))
            return False
        object.__setattr__(parser._fake_network, "_fake_model", model)
        object.__setattr__(parser._fake_network, "_fake_layers", [layer_of(node) for node in model.graph.node])
        object.__setattr__(parser._fake_network, "_fake_file", path.name)
        return True

    def layer_of(node: onnx.NodeProto) -> Any:
        kind = member(f"LayerType.{LAYERS.get(node.op_type, 'ELEMENTWISE')}")
        inputs = [new("ITensor", name=name) for name in node.input if name]
        outputs = [new("ITensor", name=name) for name in node.output]
        text = f"[ONNX Layer: {node.name}]"
        return new("ILayer", type=kind, name=node.name, metadata=text, inputs=inputs, outputs=outputs)

    def input_of(network: Any, index: int) -> Any:
        value = network._fake_model.graph.input[index]
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        return new("ITensor", name=value.name, shape=module.Dims(dims))  # type: ignore[attr-defined]

    def set_shape(profile: Any, input: str, min: Any, opt: Any, max: Any) -> None:
        if not hasattr(profile, "_fake_shapes"):
            object.__setattr__(profile, "_fake_shapes", {})
        profile._fake_shapes[input] = [[d[i] for i in range(len(d))] for d in (min, opt, max)]

    def add_profile(config: Any, profile: Any) -> int:
        shapes = profile._fake_shapes
        assert all(a <= b <= c for rows in shapes.values() for a, b, c in zip(*rows, strict=True))
        object.__setattr__(config, "_fake_profile", shapes)
        return 0

    def create_cache(config: Any, serialized_timing_cache: bytes) -> Any:
        return new("ITimingCache", content=bytes(serialized_timing_cache))

    def set_cache(config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        if world.refuse_cache and cache._fake_content:
            return False
        object.__setattr__(config, "_fake_cache", cache)
        return True

    def build(builder: Any, network: Any, config: Any) -> Any:
        log, file, model = builder._fake_log, network._fake_file, network._fake_model
        assert rtx or config._fake_cache is not None
        monitor = config._fake_progress_monitor
        monitor.phase_start(PHASE, None, STEPS)
        # The last step is not reported.
        for step in range(STEPS - 1):
            if not monitor.step_complete(PHASE, step):
                error(log, "build was canceled")
                return None
        monitor.phase_finish(PHASE)
        if world.out_of_memory and file.startswith(world.out_of_memory):
            error(log, "[resizingAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
            return None
        if world.refuse_build and file.startswith(world.refuse_build):
            error(log, "Error Code 10: Could not find any implementation for node {ForeignNode[x]}.")
            return None
        if world.fail_build and file.startswith(world.fail_build):
            error(log, "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (In validate at x.cpp:1)")
            return None
        properties = ("builder_optimization_level", "hardware_compatibility_level", "profiling_verbosity")
        world.asked = {key: getattr(config, key) for key in properties}
        pools = getattr(config, "_fake_pools", {})
        world.asked |= {"cleared": config._fake_cleared, "pools": pools, "profile": config._fake_profile}
        if rtx:
            assert config._fake_targets, "for no GPU"
            world.asked["targets"] = [target.name for target in config._fake_targets]
            log.log(member("ILogger.Severity.VERBOSE"), listed(model))
        else:
            world.asked["known"] = config._fake_cache._fake_content
            object.__setattr__(config._fake_cache, "_fake_content", b"timings of " + file.encode())
        world.built.append(file)
        if world.tamper is not None:
            world.tamper(model)
        content = {"tensorrt": surface["version"], "gpu": gpu.name.decode(), "profile": config._fake_profile}
        content["model"] = base64.b64encode(model.SerializeToString()).decode()
        return new("IHostMemory", content=MAGIC + json.dumps(content).encode())

    def clear_flag(config: Any, flag: Any) -> None:
        object.__setattr__(config, "_fake_cleared", [*getattr(config, "_fake_cleared", []), flag])

    def property_of(name: str) -> Callable[..., Any]:
        def read(config: Any) -> Any:
            return -1 if world.ignored == name else getattr(config, f"_fake_{name}", None)

        return read

    def get_flag(config: Any, flag: Any) -> bool:
        return flag not in getattr(config, "_fake_cleared", [])

    def get_pool(config: Any, pool: Any) -> int:
        return config._fake_pools[pool.name]

    def set_pool(config: Any, pool: Any, pool_size: int) -> None:
        assert pool_size <= gpu.free
        object.__setattr__(config, "_fake_pools", getattr(config, "_fake_pools", {}) | {pool.name: pool_size})

    # -- run -----------------------------------------------------------------------------------------------------------

    def deserialize(runtime: Any, serialized_engine: bytes) -> Any:
        if world.refuse_open:
            error(runtime._fake_log, "Error Code 1: Serialization (magic tag does not match)")
            return None
        assert serialized_engine.startswith(MAGIC), "TensorRT got something that is not a plan file"
        content = json.loads(serialized_engine[len(MAGIC) :])
        here = (surface["version"], gpu.name.decode())
        assert (content["tensorrt"], content["gpu"]) == here, "TensorRT was given a foreign plan"
        model = onnx.load_from_string(base64.b64decode(content["model"]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
        inputs = [value.name for value in model.graph.input]
        state = {"session": session, "values": values, "inputs": inputs, "profile": content["profile"], "model": model}
        return new("ICudaEngine", log=runtime._fake_log, **state)

    def dtype_of(engine: Any, name: str) -> Any:
        kinds = {"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}
        return member(f"DataType.{kinds[_NUMPY[engine._fake_values[name].type.tensor_type.elem_type]]}")

    def mode_of(engine: Any, name: str) -> Any:
        return member("TensorIOMode.INPUT" if name in engine._fake_inputs else "TensorIOMode.OUTPUT")

    def set_target(config: Any, compute_capability: Any, index: int) -> bool:
        targets = getattr(config, "_fake_targets", [])
        object.__setattr__(config, "_fake_targets", [*targets[:index], compute_capability, *targets[index + 1 :]])
        return index < config._fake_num_compute_capabilities

    def load_kernels(cache: Any, blob: Any) -> bool:
        good = bytes(blob) == KERNELS
        world.asked["kernels"] = good
        return good

    def create_context(engine: Any, strategy: Any = None, runtime_config: Any = None) -> Any:
        if rtx:
            assert runtime_config._fake_cache is not None
            eager = member("DynamicShapesKernelSpecializationStrategy.EAGER")
            assert runtime_config._fake_dynamic_shapes_kernel_specialization_strategy is eager
            strategy = runtime_config._fake_strategy
        assert strategy is member("ExecutionContextAllocationStrategy.USER_MANAGED")
        return new("IExecutionContext", engine=engine, shapes={}, addresses={}, scratch=None)

    def set_scratch(context: Any, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= SCRATCH
        object.__setattr__(context, "_fake_scratch", gpu.range(memory, size))

    def set_input_shape(context: Any, name: str, shape: tuple) -> bool:
        least, _, largest = context._fake_engine._fake_profile[name]
        good = all(a <= b <= c for a, b, c in zip(least, shape, largest, strict=True))
        if good:
            context._fake_shapes[name] = tuple(shape)
        return good

    def infer_shapes(context: Any) -> list[str]:
        engine = context._fake_engine
        missing = [name for name in engine._fake_inputs if name not in context._fake_shapes]
        sizes = {}
        for name in engine._fake_inputs:
            dims = engine._fake_values[name].type.tensor_type.shape.dim
            for dim, size in zip(dims, context._fake_shapes.get(name, ()), strict=False):
                sizes |= {dim.dim_param: size} if dim.dim_param else {}
        for name, value in engine._fake_values.items():
            if name not in engine._fake_inputs and not missing:
                dims = value.type.tensor_type.shape.dim
                context._fake_shapes[name] = tuple(sizes.get(d.dim_param, d.dim_value) for d in dims)
        return missing

    def tensor_shape(context: Any, name: str) -> Any:
        return module.Dims(list(context._fake_shapes[name]))  # type: ignore[attr-defined]

    def set_address(context: Any, name: str, memory: int) -> bool:
        context._fake_addresses[name] = gpu.range(memory, 1)
        return True

    def execute(context: Any, stream_handle: int) -> bool:
        assert stream_handle, "the default stream"
        assert context._fake_scratch is not None
        engine, shapes, addresses = context._fake_engine, context._fake_shapes, context._fake_addresses

        def array(name: str) -> np.ndarray:
            kind = np.dtype(_NUMPY[engine._fake_values[name].type.tensor_type.elem_type])
            size = int(np.prod(shapes[name])) * kind.itemsize
            raw = (ctypes.c_uint8 * size).from_address(gpu.range(addresses[name], size))
            return np.ctypeslib.as_array(raw).view(kind).reshape(shapes[name])

        def work() -> None:
            outputs = [name for name in engine._fake_values if name not in engine._fake_inputs]
            feeds = {name: array(name) for name in engine._fake_inputs}
            for name, value in zip(outputs, engine._fake_session.run(outputs, feeds), strict=True):
                array(name)[...] = value

        gpu.calls.append("execute")
        gpu.put(work)
        return True

    def inspect(inspector: Any, format: Any) -> str:
        assert format is member("LayerInformationFormat.JSON")
        layers = layers_of(inspector._fake_model)
        return json.dumps({"Layers": layers, ("I/O Tensors" if eleven else "Bindings"): []})

    def listed(model: onnx.ModelProto) -> str:
        """The layers as the builder of TensorRT for RTX lists them."""

        def tensors(layer: dict[str, Any], part: str) -> str:
            row = "{{ Name: {Name}, Dimensions: [-1], Strides: [1], StrideOrder: [0], Datatype: {Datatype}, Format: {Format} }}"
            return "[ " + ", ".join(row.format(**tensor) for tensor in layer[part]) + "]"

        lines = [
            f"Name: {layer['Name']}, LayerType: {layer['LayerType']}, Inputs: {tensors(layer, 'Inputs')}, Constants: [], "
            f"Outputs: {tensors(layer, 'Outputs')}, TacticName: {layer['TacticName']}, StreamId: 0, Metadata: {layer['Metadata']}"
            for layer in layers_of(model)
        ]
        return "\n".join(["Layers:", *lines, "", "I/O Tensors:", " Name: x"])

    def layers_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
        model = shape_inference.infer_shapes(model)
        graph = model.graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        layers = []
        makers = {name: node for node in graph.node for name in node.output}

        def source(name: str) -> str:
            """What a product reads: the INT8 tensor itself, because a DequantizeLinear before it is part of its kernel."""
            node = makers.get(name)
            if world.dequantizes or node is None:
                return name
            moves = node.op_type in ("Transpose", "Reshape")
            return node.input[0] if node.op_type == "DequantizeLinear" else source(node.input[0]) if moves else name

        for node in graph.node:
            kind = LAYERS.get(node.op_type, "ELEMENTWISE")
            read = [source(name) for name in node.input] if kind in PRODUCTS else list(node.input)
            inputs, outputs = (
                [described(n, _SHORT[kinds[n]]) for n in names if kinds.get(n) in _SHORT]
                for names in (read[:2], node.output)
            )
            layer = {"Name": node.name, "LayerType": PRODUCTS.get(kind, "kgen"), "Inputs": inputs, "Outputs": outputs}
            layer["Metadata"] = f"[ONNX Layer: {node.name}]"
            layers.append(layer | {"TacticName": f"__myl_{node.op_type}_0xf2543c36ff9f16bbb1655b0183bf1647"})
        return layers

    rtx = "ComputeCapability" in surface["classes"]
    # 11 has type and format apart, and so has TensorRT for RTX.
    eleven = rtx or surface["version"].startswith("11")

    def described(name: str, kind: str) -> dict[str, str]:
        if eleven:
            return {"Name": name, "Datatype": kind, "Format": "Row major linear format (kLINEAR)"}
        return {"Name": name, "Format/Datatype": kind}

    def init_dims(dims: Any, shape: Any = ()) -> None:
        object.__setattr__(dims, "_fake_sizes", list(shape))

    def kept_as(key: str) -> Callable[[Any, Any], bool]:
        def keep(owner: Any, **value: Any) -> bool:
            (given,) = value.values()
            object.__setattr__(owner, f"_fake_{key}", given)
            return True

        return keep

    def kept(key: str) -> Callable[[Any], Any]:
        return lambda owner: getattr(owner, f"_fake_{key}")

    behaviors: dict[str, Callable[..., Any]] = {
        "Builder.__init__": init_builder,
        "Builder.create_network": create_network,
        "Builder.create_builder_config": lambda builder: new("IBuilderConfig"),
        "Builder.create_optimization_profile": lambda builder: new("IOptimizationProfile"),
        "Builder.build_serialized_network": build,
        "OnnxParser.__init__": init_parser,
        "OnnxParser.parse_from_file": parse_from_file,
        "OnnxParser.num_errors": lambda parser: len(parser._fake_errors),
        "OnnxParser.get_error": lambda parser, index: parser._fake_errors[index],
        "ParserError.desc": kept("desc"),
        "ParserError.code": lambda error: member("ErrorCode.UNSUPPORTED_NODE"),
        "ParserError.node_name": kept("name"),
        "ParserError.node_operator": kept("operator"),
        "INetworkDefinition.num_layers": lambda network: len(network._fake_layers),
        "INetworkDefinition.get_layer": lambda network, index: network._fake_layers[index],
        "INetworkDefinition.num_inputs": lambda network: len(network._fake_model.graph.input),
        "INetworkDefinition.get_input": input_of,
        "ILayer.num_inputs": lambda layer: len(layer._fake_inputs),
        "ILayer.get_input": lambda layer, index: layer._fake_inputs[index],
        "ILayer.num_outputs": lambda layer: len(layer._fake_outputs),
        "ILayer.get_output": lambda layer, index: layer._fake_outputs[index],
        "IBuilderConfig.builder_optimization_level": property_of("builder_optimization_level"),
        "IBuilderConfig.hardware_compatibility_level": property_of("hardware_compatibility_level"),
        "IBuilderConfig.profiling_verbosity": property_of("profiling_verbosity"),
        "IBuilderConfig.get_flag": get_flag,
        "IBuilderConfig.get_memory_pool_limit": get_pool,
        "IBuilderConfig.set_memory_pool_limit": set_pool,
        "IBuilderConfig.clear_flag": clear_flag,
        "IBuilderConfig.add_optimization_profile": add_profile,
        "IBuilderConfig.create_timing_cache": create_cache,
        "IBuilderConfig.set_timing_cache": set_cache,
        "IOptimizationProfile.set_shape": set_shape,
        "ITimingCache.serialize": lambda cache: new("IHostMemory", content=cache._fake_content),
        "IHostMemory.__buffer__": kept("content"),
        "Dims.__init__": init_dims,
        "Dims.__len__": lambda dims: len(dims._fake_sizes),
        "Dims.__getitem__": lambda dims, arg0: dims._fake_sizes[arg0],
        "Runtime.__init__": init_builder,
        "Runtime.deserialize_cuda_engine": deserialize,
        "ICudaEngine.num_io_tensors": lambda engine: len(engine._fake_values),
        "ICudaEngine.get_tensor_name": lambda engine, index: list(engine._fake_values)[index],
        "ICudaEngine.get_tensor_mode": mode_of,
        "ICudaEngine.get_tensor_dtype": dtype_of,
        "ICudaEngine.device_memory_size_v2": lambda engine: SCRATCH,
        "ICudaEngine.create_execution_context": create_context,
        "ICudaEngine.create_engine_inspector": lambda engine: new("EngineInspector", model=engine._fake_model),
        "EngineInspector.get_engine_information": inspect,
        "IExecutionContext.set_device_memory": set_scratch,
        "IExecutionContext.set_input_shape": set_input_shape,
        "IExecutionContext.infer_shapes": infer_shapes,
        "IExecutionContext.get_tensor_shape": tensor_shape,
        "IExecutionContext.set_tensor_address": set_address,
        "IExecutionContext.execute_async_v3": execute,
    }
    if rtx:
        behaviors |= {
            "IBuilderConfig.set_compute_capability": set_target,
            "IBuilderConfig.get_compute_capability": lambda config, index: config._fake_targets[index],
            "ICudaEngine.create_runtime_config": lambda engine: new("IRuntimeConfig", cache=None),
            "IRuntimeConfig.set_execution_context_allocation_strategy": kept_as("strategy"),
            "IRuntimeConfig.create_runtime_cache": lambda config: new("IRuntimeCache"),
            "IRuntimeConfig.set_runtime_cache": kept_as("cache"),
            "IRuntimeCache.deserialize": load_kernels,
            "IRuntimeCache.serialize": lambda cache: new("IHostMemory", content=KERNELS),
        }
    module = pybind_module("tensorrt", surface, behaviors)
    return module


SCRATCH = 4096
# What the runtime cache of TensorRT for RTX holds.
KERNELS = b"kernels"
