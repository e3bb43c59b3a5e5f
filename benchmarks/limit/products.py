"""Matrix products of the libraries that engines are made of: PyTorch (oneDNN, MKL) and ONNX Runtime (MLAS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from simmim_export.engines.failures import broken_package
from simmim_export.errors import EngineUnavailable
from simmim_export.spec import Precision
from simmim_export.system.telemetry import without_telemetry

Product = Callable[[], Any]


class Library(Protocol):
    """Makes a product of two square matrices."""

    def __call__(self, precision: Precision, rows: int, *, threads: int) -> Product | None:
        """A function that multiplies two matrices [rows, rows] on ``threads`` threads; None if the library has no product of this
        precision. Raise :class:`EngineUnavailable` if the library cannot run here."""
        ...


def torch_product(precision: Precision, rows: int, *, threads: int) -> Product | None:
    """PyTorch's product: FP32 and BF16 by oneDNN or MKL, INT8 with sums in INT32."""
    _require("torch")
    import torch

    torch.set_num_threads(threads)
    factors = torch.randn(2, rows, rows, generator=torch.Generator().manual_seed(0))
    if precision is Precision.INT8:
        a, b = (factors * 40).clamp(-127, 127).to(torch.int8)
        return lambda: torch._int_mm(a, b)
    if precision not in (Precision.FP32, Precision.BF16):
        return None
    a, b = factors.to(torch.bfloat16 if precision is Precision.BF16 else torch.float32)
    result = torch.empty_like(a)

    def multiply() -> None:
        with torch.inference_mode():
            torch.mm(a, b, out=result)

    return multiply


def ort_product(precision: Precision, rows: int, *, threads: int) -> Product | None:
    """ONNX Runtime's product: MatMul in FP32, and MatMulInteger of UINT8 by constant INT8 as in a quantized graph."""
    if precision not in (Precision.FP32, Precision.INT8):
        return None
    _require("onnxruntime")
    with without_telemetry("onnxruntime"):
        import onnxruntime
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    if precision is Precision.FP32:
        operator, taken, given = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT
        feed: np.ndarray = random.standard_normal((rows, rows), dtype=np.float32)
        weights: np.ndarray = random.standard_normal((rows, rows), dtype=np.float32)
    else:
        operator, taken, given = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
        feed = random.integers(0, 256, (rows, rows), dtype=np.uint8)
        weights = random.integers(-127, 128, (rows, rows), dtype=np.int8)
    shape = [rows, rows]
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["product"])],
        "product",
        [helper.make_tensor_value_info("a", taken, shape)],
        [helper.make_tensor_value_info("product", given, shape)],
        [numpy_helper.from_array(weights, "b")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Otherwise its threads go on spinning while the next library is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("a", feed)
    binding.bind_output("product")
    return lambda: session.run_with_iobinding(binding)


def _require(package: str) -> None:
    """Raise :class:`EngineUnavailable` if ``package`` cannot be imported."""
    if (reason := broken_package(package)) is not None:
        raise EngineUnavailable(reason, fix="pip install 'simmim-export[bench]'")


LIBRARIES: Mapping[str, Library] = {"torch": torch_product, "onnxruntime": ort_product}
