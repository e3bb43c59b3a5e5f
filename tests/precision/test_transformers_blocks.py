"""Blocks as transformers writes them: attention, the fast GELU, and pixels that a mean is subtracted from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from simmim_export.export.onnx import trace
from simmim_export.models.family import Graph
from simmim_export.models.huggingface.masks import CausalMask
from simmim_export.precision.convolutions import quantizable, quantize_convolutions
from simmim_export.precision.fusing import ATTENTION_OPSET, fuse_attention
from simmim_export.precision.int8_dot import Int8ForDotProducts
from simmim_export.precision.measure import run
from simmim_export.precision.patches import patches_to_product
from simmim_export.precision.pixels import read_bytes
from simmim_export.precision.surgery import with_types
from simmim_export.precision.tokens import bound_of
from simmim_export.spec import Axis, GraphSpec, Kind, TensorSpec

WIDTH, HEADS, LONGEST = 64, 2, 9


class Block(nn.Module):
    """A causal block of CLIP: x float32 [batch, sequence, WIDTH] -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.mask = CausalMask(LONGEST)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](x)
        heads = (x.shape[0], x.shape[1], HEADS, WIDTH // HEADS)
        query, key, value = (part(normed).view(heads).transpose(1, 2) for part in self.projections[:3])
        seen = scaled_dot_product_attention(query, key, value, attn_mask=self.mask(x))
        x = x + self.projections[3](seen.transpose(1, 2).reshape(x.shape))
        hidden = self.wide(self.norms[1](x))
        return x + self.narrow(hidden * torch.sigmoid(1.702 * hidden))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    torch.manual_seed(0)
    axes = Axis("batch", 1, 4), Axis("sequence", 2, LONGEST)
    x, y = (TensorSpec(name, "float32", ("batch", "sequence", WIDTH), Kind.HIDDEN) for name in "xy")
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    return trace(Graph(Block().eval(), GraphSpec("block", (x,), (y,), axes)), path)


def samples() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.normal(size=(1, 2 + n % 8, WIDTH)).astype(np.float32)} for n in range(12)]


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    return [tensors["y"] for tensors in run(model, samples(), ["y"])]


def test_attention_as_pytorch_exports_it_becomes_one_node(block: onnx.ModelProto) -> None:
    edited = with_types(block)
    assert fuse_attention(edited.graph) == 1
    edited.opset_imports[""] = ATTENTION_OPSET
    for exact, fused in zip(outputs(block), outputs(ir.to_proto(edited)), strict=True):
        np.testing.assert_allclose(fused, exact, rtol=1e-4, atol=1e-5)


def test_keys_that_are_turned_in_another_way_stay_as_they_are(block: onnx.ModelProto) -> None:
    """The sizes after the Transpose in the order from before it: another tensor, of the same number of values."""
    changed = onnx.ModelProto()
    changed.CopyFrom(block)
    made = {name: node for node in changed.graph.node for name in node.output}
    swap = next(node for node in changed.graph.node if node.op_type == "Transpose" and len(node.attribute[0].ints) == 3)
    last = next(node for node in changed.graph.node if node.op_type == "Reshape" and node.input[0] == swap.output[0])
    sizes = made[last.input[1]]
    outer, columns, rows = sizes.input
    sizes.input[:] = [outer, rows, columns]
    assert fuse_attention(with_types(changed).graph) == 0


def test_a_block_in_int8_stays_close_and_has_few_operators(block: onnx.ModelProto) -> None:
    after = Int8ForDotProducts(samples())(block)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert kinds["Attention"] == 1 and not kinds["Softmax"]
    assert "token.shift.0.16363" in " ".join(constant.name for constant in after.graph.initializer)
    for exact, lowered in zip(outputs(block), outputs(after), strict=True):
        assert np.linalg.norm(lowered - exact) / np.linalg.norm(exact) < 0.02


GATED = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[4] x, float[4] z) => (float[4] y) <float[1] c = {%s}> {
  a = %s
  s = Sigmoid(a)
  y = Mul(%s)
}
"""


@pytest.mark.parametrize(
    ("slope", "inner", "outer", "bound"),
    [
        ("1.702", "Mul(x, c)", "x, s", 0.16363),
        ("1.702", "Mul(c, x)", "s, x", 0.16363),
        ("1", "Identity(x)", "x, s", None),
        ("0.5", "Mul(x, c)", "x, s", 0.557),
        ("-1", "Mul(x, c)", "x, s", None),
        ("1.702", "Mul(z, c)", "x, s", None),
        ("1.702", "Mul(x, z)", "x, s", None),
        ("1.702", "Mul(x, c)", "x, z", None),
    ],
)
def test_the_bound_of_a_gated_value(slope: str, inner: str, outer: str, bound: float | None) -> None:
    model = parser.parse_model(GATED % (slope, inner, outer))
    found = bound_of(ir.from_proto(model).graph.outputs[0])
    assert found is None if bound is None else found == pytest.approx(bound, rel=1e-4)
    if bound is not None:
        x = np.linspace(-20, 20, 100_004, dtype=np.float32).reshape(-1, 4)
        reference = ReferenceEvaluator(model)
        lowest = min(reference.run(None, {"x": row, "z": row})[0].min() for row in x[::1000])
        assert lowest >= -bound


def test_silu_is_bounded() -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[4] x) => (float[4] y) { s = Sigmoid(x) y = Mul(s, x) }'
    )
    x = np.linspace(-1.5, -1, 4001, dtype=np.float32)
    bound = bound_of(ir.from_proto(model).graph.outputs[0])
    assert bound is not None and bound - 1e-4 < -(x / (1 + np.exp(-x))).min() < bound


NORMALIZED = """
<ir_version: 10, opset_import: ["" : 20]>
g (uint8[batch, 6, 6, 3] pixels) => (float[batch, 8, 4, 4] y) {
  turned = Transpose<perm = [0, 3, 1, 2]>(pixels)
  nchw = Cast<to = 1>(turned)
  shifted = Sub(%s)
  image = Mul(shifted, scale)
  [stem] y = Conv(image, weight)
}
"""


@pytest.mark.parametrize(("order", "reads"), [("nchw, mean", True), ("mean, nchw", False)])
def test_a_mean_that_is_subtracted_goes_into_the_first_convolution(order: str, reads: bool) -> None:
    model = parser.parse_model(NORMALIZED % order)
    random = np.random.default_rng(0)
    constants = {
        "mean": np.array([122.77, 116.75, 104.09]).reshape(1, 3, 1, 1),
        "scale": np.array([1 / 68, 1 / 66, 1 / 70]).reshape(1, 3, 1, 1),
        "weight": random.normal(size=(8, 3, 3, 3)),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()
    )
    edited = ir.from_proto(model)
    read_bytes(edited.graph, next(node for node in edited.graph if node.name == "stem"))
    after = ir.to_proto(edited)
    assert ("DequantizeLinear" in {node.op_type for node in after.graph.node}) == reads
    pixels = random.integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    exact, read = (ReferenceEvaluator(each).run(None, {"pixels": pixels})[0] for each in (model, after))
    np.testing.assert_allclose(read, exact, rtol=1e-4, atol=1e-4)


PATCHES = """
<ir_version: 10, opset_import: ["" : 20]>
g (uint8[batch, 8, 12, 3] pixels) => (float[batch, 6, 40] y) <int64[3] rows = {-1, 40, 6}> {
  turned = Transpose<perm = [0, 3, 1, 2]>(pixels)
  nchw = Cast<to = 1>(turned)
  shifted = Sub(nchw, mean)
  image = Mul(shifted, scale)
  [patch] conv = Conv<strides = [%s], pads = [%s]>(image, weight%s)
  flat = Reshape<allowzero = 1>(conv, rows)
  y = Transpose<perm = [0, 2, 1]>(flat)
}
"""


def patches(strides: str = "4, 4", pads: str = "0, 0, 0, 0", bias: str = ", bias") -> onnx.ModelProto:
    model = parser.parse_model(PATCHES % (strides, pads, bias))
    random = np.random.default_rng(0)
    constants = {
        "mean": np.array([122.77, 116.75, 104.09]).reshape(1, 3, 1, 1),
        "scale": np.array([1 / 68, -1 / 66, 1 / 70]).reshape(1, 3, 1, 1),
        "weight": random.normal(size=(40, 3, 4, 4)),
        "bias": random.normal(size=40),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in constants.items()
        if name in used
    )
    return model


def photographs(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("bias", ["", ", bias"])
def test_patches_are_a_product_of_bytes(bias: str) -> None:
    model = patches(bias=bias)
    edited = ir.from_proto(model)
    product = patches_to_product(edited.graph, next(node for node in edited.graph if node.name == "patch"))
    assert (product.op_type, product.name) == ("MatMul", "patch")
    after = ir.to_proto(edited)
    onnx.checker.check_model(after, full_check=True)
    exact, moved = (ReferenceEvaluator(each).run(None, {"pixels": photographs(3)})[0] for each in (model, after))
    np.testing.assert_allclose(moved, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [63, 127])
def test_only_the_weights_of_patches_are_rounded(half: int) -> None:
    model = patches()
    assert quantizable(model) == ["patch"]
    feeds = [{"pixels": image[None]} for image in photographs(8)]
    after = quantize_convolutions(model, feeds, names=["patch"], reduce_range=half == 63)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert kinds["DequantizeLinear"] == 2 and not kinds["Conv"] and not kinds["QuantizeLinear"]
    exact, lowered = (ReferenceEvaluator(each).run(None, {"pixels": photographs(3)})[0] for each in (model, after))
    assert np.linalg.norm(lowered - exact) / np.linalg.norm(exact) < 1 / half


@pytest.mark.parametrize("changes", [{"strides": "3, 4"}, {"strides": "2, 4"}, {"pads": "0, 1, 0, 1"}])
def test_a_convolution_of_overlapping_or_padded_patches_stays_float(changes: dict[str, str]) -> None:
    assert quantizable(patches(**changes)) == []
