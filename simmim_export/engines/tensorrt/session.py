"""Runs a plan file without PyTorch: one context and one CUDA graph for each shape, and tensors that may stay on the GPU.

TensorRT is asked for the shape and dtype of every output before it runs, and they must be those of the graph. This module imports
TensorRT, so import it inside functions.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from simmim_export.engines.base import PrecisionProof
from simmim_export.engines.checks import axis_sizes, check_feeds
from simmim_export.engines.failures import closed, running
from simmim_export.engines.tensorrt.callbacks import log
from simmim_export.engines.tensorrt.device import DeviceTensor, Graph, Memory, Pinned, queue
from simmim_export.engines.tensorrt.library import trt, used
from simmim_export.engines.tensorrt.proof import read_inspector
from simmim_export.engines.tensorrt.request import Profile
from simmim_export.errors import BundleError, EngineUnavailable, NotCaptured
from simmim_export.spec import GraphSpec, TensorSpec

# So many shapes are kept ready, each with its buffers and its CUDA graph. The least recently used one goes first.
SHAPES = 8


# Makes a context, or None if there is no memory for one.
NewContext = Callable[[trt.ICudaEngine], trt.IExecutionContext | None]


def default_context(engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
    """A context whose scratch memory is set later: all contexts share it, because they never run at the same time."""
    return engine.create_execution_context(strategy=trt.ExecutionContextAllocationStrategy.USER_MANAGED)


class _Shape:
    """A context at one shape, with its own buffers: a CUDA graph depends on shapes and addresses."""

    def __init__(
        self,
        engine: trt.ICudaEngine,
        scratch: Memory,
        *,
        spec: GraphSpec,
        sizes: Mapping[str, int],
        new_context: NewContext,
    ) -> None:
        context = new_context(engine)
        if context is None:
            raise EngineUnavailable(f"TensorRT has no memory for {spec.name}", fix="close what else uses the GPU")
        self.context = context
        self.context.set_device_memory(scratch.address, engine.device_memory_size_v2)
        self.memory: dict[str, Memory] = {}
        self.pinned: dict[str, Pinned] = {}
        for tensor in (*spec.inputs, *spec.outputs):
            shape = tensor.resolve(sizes)
            self.pinned[tensor.name] = pinned = Pinned(shape, tensor.dtype)
            self.memory[tensor.name] = memory = Memory(pinned.array.nbytes)
            self._set(tensor, shape, memory=memory, is_input=tensor in spec.inputs)
        try:
            unknown = self.context.infer_shapes()
        except RuntimeError as error:
            what = f"TensorRT does not infer the shapes of {spec.name} from {dict(sizes)}: {error}"
            raise BundleError(what, fix="build it again") from error
        for tensor in spec.outputs:
            dims = self.context.get_tensor_shape(tensor.name)
            shape = tuple(dims[index] for index in range(len(dims)))
            if unknown or shape != tensor.resolve(sizes):
                what = f"the plan file of {spec.name} gives {tensor.name} as {list(shape)}, not {list(tensor.resolve(sizes))}"
                raise BundleError(what, fix="build it again")
        self._graph: Graph | None = None
        self._runs = 0

    def _set(self, tensor: TensorSpec, shape: tuple[int, ...], *, memory: Memory, is_input: bool) -> None:
        good = self.context.set_tensor_address(tensor.name, memory.address)
        if not good or (is_input and not self.context.set_input_shape(tensor.name, shape)):
            raise BundleError(f"the plan file does not take {tensor.name} as {list(shape)}", fix="build it again")

    def _execute(self) -> bool:
        return self.context.execute_async_v3(queue().handle)

    def enqueue(self, name: str) -> None:
        """Put the network on the stream: the first time directly, which a capture needs, and from the second time on as a CUDA
        graph."""
        log().clear()
        self._runs += 1
        if self._runs == 2:
            self._graph = queue().capture(self._execute)
            if self._graph is None:
                warnings.warn(f"{name} runs without a CUDA graph: it cannot be captured", NotCaptured, stacklevel=2)
        if self._graph is not None:
            self._graph.launch()
        elif not self._execute():
            raise EngineUnavailable(f"TensorRT could not run {name}:{log().quoted()}", fix="simmim-export doctor")


class TrtSession:
    """A graph in TensorRT; see :class:`~simmim_export.engines.base.Session` and
    :class:`~simmim_export.engines.base.KeepsOnDevice`."""

    def __init__(
        self,
        content: bytes,
        spec: GraphSpec,
        *,
        profile: Profile,
        engine: str = "trt",
        new_context: NewContext = default_context,
    ) -> None:
        """Open a plan file with this ``content`` for the engine called ``engine``. Raise :class:`EngineUnavailable` if there is
        no memory for it, and :class:`BundleError` if TensorRT cannot read it, or if it is for another graph than ``spec``."""
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._spec, self._profile, self._new_context = spec, profile, new_context
        self._running = running(engine, spec)
        log().clear()
        self._runtime = trt.Runtime(log())
        opened = self._runtime.deserialize_cuda_engine(content)
        if opened is None:
            what = f"{used().title} cannot open the plan file of {spec.name}:{log().quoted()}"
            if log().out_of_memory():
                raise EngineUnavailable(what, fix="close what else uses the GPU")
            raise BundleError(what, fix="build it again")
        self._engine: trt.ICudaEngine | None = opened
        self._check(opened)
        self._scratch: Memory | None = Memory(opened.device_memory_size_v2)
        self._shapes: OrderedDict[tuple[tuple[str, int], ...], _Shape] = OrderedDict()

    def _check(self, engine: trt.ICudaEngine) -> None:
        kinds = {
            trt.DataType.FLOAT: "float32",
            trt.DataType.INT64: "int64",
            trt.DataType.UINT8: "uint8",
        }
        tensors = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            side = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
            tensors[name] = (side, kinds.get(engine.get_tensor_dtype(name)))
        sides = (("input", self.inputs), ("output", self.outputs))
        wanted = {tensor.name: (side, tensor.dtype) for side, specs in sides for tensor in specs}
        if tensors != wanted:
            what = f"the plan file has {tensors}, the graph {self._spec.name} has {wanted}"
            raise BundleError(what, fix="build it again")

    def fits(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether the plan file was built for the shapes of ``feeds``."""
        return self._profile.fits(axis_sizes(check_feeds(feeds, self.inputs), self.inputs))

    def _prepare(self, feeds: Mapping[str, np.ndarray]) -> _Shape:
        """The context for the shape of ``feeds``, with the copies of its inputs to the GPU already on the stream."""
        if self._engine is None or self._scratch is None:
            raise closed(self._spec.name)
        arrays = check_feeds(feeds, self.inputs)
        sizes = axis_sizes(arrays, self.inputs)
        self._profile.require(sizes)
        key = tuple(sorted(sizes.items()))
        if key not in self._shapes:
            if len(self._shapes) >= SHAPES:
                queue().wait()
                self._shapes.popitem(last=False)
                queue().trim()
            self._shapes[key] = _Shape(
                self._engine, self._scratch, spec=self._spec, sizes=sizes, new_context=self._new_context
            )
        self._shapes.move_to_end(key)
        shape = self._shapes[key]
        for name, array in arrays.items():
            to = shape.memory[name].address
            if isinstance(array, DeviceTensor):
                queue().copy(to, array.memory.address, array.nbytes)
            else:
                np.copyto(shape.pinned[name].array, array)
                queue().copy(to, shape.pinned[name].address, array.nbytes)
        return shape

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`~simmim_export.engines.base.Session.run`. ``feeds`` may hold tensors that are already on the GPU."""
        with queue().lock, self._running:
            shape = self._prepare(feeds)
            shape.enqueue(self._spec.name)
            for tensor in self.outputs:
                pinned = shape.pinned[tensor.name]
                queue().copy(pinned.address, shape.memory[tensor.name].address, pinned.array.nbytes)
            queue().wait()
            return {tensor.name: shape.pinned[tensor.name].array.copy() for tensor in self.outputs}

    def run_on_device(self, feeds: Mapping[str, np.ndarray]) -> dict[str, DeviceTensor]:
        """As :meth:`run`, but every output stays on the GPU."""
        with queue().lock, self._running:
            shape = self._prepare(feeds)
            shape.enqueue(self._spec.name)
            stayed = {}
            for tensor in self.outputs:
                array = shape.pinned[tensor.name].array
                # A copy, because the next run writes to the buffer.
                memory = Memory(array.nbytes)
                queue().copy(memory.address, shape.memory[tensor.name].address, array.nbytes)
                stayed[tensor.name] = DeviceTensor(memory, array.shape, tensor.dtype)
            # The next call fills the pinned inputs again.
            queue().wait()
            return stayed

    def gpu_seconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """How many seconds the GPU takes for the network alone, by events, without copies."""
        with queue().lock, self._running:
            shape = self._prepare(feeds)
            # Twice, so that it is warm and captured. Then the stream is empty.
            for _ in range(2):
                shape.enqueue(self._spec.name)
            queue().wait()
            return queue().seconds(lambda: shape.enqueue(self._spec.name))

    def close(self) -> None:
        """Give the memory back."""
        with queue().lock:
            queue().wait()
            self._shapes.clear()
            self._scratch = self._engine = None
            queue().trim()

    def precision_proof(self) -> PrecisionProof:
        """The number of layers by the type that they compute in, from TensorRT's engine inspector."""
        return self.inspect()[0]

    def inspect(self) -> tuple[PrecisionProof, frozenset[str] | None]:
        """As :meth:`precision_proof`, with the ONNX nodes that are multiplied in INT8; see :func:`.proof.read_inspector`."""
        if self._engine is None:
            raise closed(self._spec.name)
        with queue().lock, self._running:
            # With a context whose shapes are known, it says more about a graph with dynamic axes.
            inspector = self._engine.create_engine_inspector()
            if self._shapes:
                inspector.execution_context = next(reversed(self._shapes.values())).context
            return read_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
