"""Convolutions in INT8: what stays float, and that each rewrite computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from simmim_export.engines import get_engine
from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.base import Feeds, Options
from simmim_export.precision.convolutions import quantizable, quantize_convolutions
from simmim_export.precision.int8_u8 import Int8ForCpu
from simmim_export.precision.pixels import read_bytes
from simmim_export.precision.projection import is_projection, to_product
from simmim_export.spec import Axis, GraphSpec, Precision, TensorSpec

# The parts of a ResNet between the bytes of an image and its tokens: a stem with padding and a MaxPool, a block with its input as
# the shortcut, a block whose shortcut is a convolution, and a projection.
RESNET = """
<ir_version: 10, opset_import: ["" : 20]>
tower (uint8[batch, 20, 24, 3] pixels) => (float[batch, 30, 16] tokens) {
  [cast] bytes = Cast<to = 1>(pixels)
  [permute] nchw = Transpose<perm = [0, 3, 1, 2]>(bytes)
  [scale] scaled = Mul(nchw, std)
  [shift] image = Add(scaled, mean)
  [stem] a = Conv<auto_pad = "NOTSET", pads = [3, 3, 3, 3], strides = [2, 2]>(image, w_stem, b_stem)
  [stem_relu] b = Relu(a)
  [pool] c = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(b)
  [one] d = Conv<pads = [1, 1, 1, 1]>(c, w_one, b_one)
  [one_relu] e = Relu(d)
  [two] f = Conv<pads = [1, 1, 1, 1]>(e, w_two)
  [identity] g = Add(f, c)
  [two_relu] h = Relu(g)
  [three] i = Conv<pads = [1, 1, 1, 1]>(h, w_three, b_three)
  [short] j = Conv(h, w_short)
  [projected] k = Add(i, j)
  [three_relu] l = Relu(k)
  [project] m = Conv(l, w_project, b_project)
  [flat] n = Reshape<allowzero = 1>(m, shape)
  [rows] tokens = Transpose<perm = [0, 2, 1]>(n)
}
"""
CONVOLUTIONS = ["stem", "one", "two", "three", "short", "project"]
SPEC = GraphSpec(
    "tower",
    (TensorSpec("pixels", "uint8", ("batch", 20, 24, 3)),),
    (TensorSpec("tokens", "float32", ("batch", 30, 16)),),
    (Axis("batch", 1, 4),),
)


def resnet(text: str = RESNET, **constants: np.ndarray) -> onnx.ModelProto:
    """The graph of ``text`` with random weights; ``constants`` replace some."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    arrays = {
        "std": np.array([1 / 58, 1 / 57, 1 / 57], np.float32).reshape(1, 3, 1, 1),
        "mean": np.array([-2.1, -2.0, -1.8], np.float32).reshape(1, 3, 1, 1),
        "w_stem": weights(8, 3, 7, 7),
        "w_one": weights(8, 8, 3, 3),
        "w_two": weights(8, 8, 3, 3),
        "w_three": weights(8, 8, 3, 3),
        "w_short": weights(8, 8, 1, 1),
        "w_project": weights(16, 8, 1, 1),
        "b_project": weights(16, 1)[:, 0],
        "shape": np.array([-1, 16, 30]),
        **{name: weights(8, 1)[:, 0] / 4 for name in ("b_stem", "b_one", "b_three")},
        **constants,
    }
    model = parser.parse_model(text)
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in arrays if name in read)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int = 8) -> Feeds:
    random = np.random.default_rng(1)
    return [{"pixels": random.integers(0, 256, (1, 20, 24, 3), dtype=np.uint8)} for _ in range(count)]


def computed(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    """The tokens by ONNX's own reference, in which no engine fuses or reorders anything."""
    return ReferenceEvaluator(model).run(["tokens"], {"pixels": pixels})[0]


def error(result: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def test_nothing_between_the_bytes_and_the_tokens_is_float() -> None:
    before = resnet()
    after = quantize_convolutions(before, images(), names=quantizable(before))
    kinds = [node.op_type for node in after.graph.node]
    assert (kinds.count("Conv"), kinds.count("MatMul"), kinds.count("MaxPool")) == (5, 1, 1)
    assert not {"Relu", "Cast", "Mul"} & set(kinds)
    made = makers(after)
    biased = next(
        node for node in after.graph.node if node.op_type == "Add" and made[node.input[0]].op_type == "MatMul"
    )
    for node in after.graph.node:
        if node.op_type in ("Conv", "MaxPool", "Add") and node is not biased:
            sources = [made[name] for name in node.input]
            sources = [made[each.input[0]] if each.op_type == "Transpose" else each for each in sources]
            assert {each.op_type for each in sources} == {"DequantizeLinear"}, node.name
        if node.op_type in ("Conv", "MaxPool"):
            readers = [reader for reader in after.graph.node if node.output[0] in reader.input]
            assert [reader.op_type for reader in readers] == ["QuantizeLinear"], node.name
    pixels = np.concatenate([feed["pixels"] for feed in images(3)])
    assert 0 < error(computed(after, pixels), computed(before, pixels)) < 0.03


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_engines_run_every_convolution_in_int8(engine: str, tmp_path: Path) -> None:
    before = resnet()
    after = quantize_convolutions(before, images(), names=quantizable(before), reduce_range=True)
    pixels = np.concatenate([feed["pixels"] for feed in images(3)])
    in_float = []
    for name, model in (("before", before), ("after", after)):
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        session = get_engine(engine).open(path, SPEC, precision=Precision.INT8, threads=1)
        assert error(session.run({"pixels": pixels})["tokens"], computed(before, pixels)) < 0.03
        in_float.append(sum(count for kind, count in session.precision_proof().executed.items() if "float" in kind))
        session.close()
    # What is left are the bias of the product and, in OpenVINO, nodes that only move data.
    assert in_float[0] >= 12 and in_float[1] <= 5


def test_the_first_convolution_reads_bytes_and_computes_the_same() -> None:
    """Padding included: a color of whole bytes stands for zero, a different one in each channel."""
    color = np.array([200, 116, 30], np.float32)
    std = np.array([1 / 64, 1 / 50, 1 / 40], np.float32)
    shaped = {"std": std.reshape(1, 3, 1, 1), "mean": (-color * std).reshape(1, 3, 1, 1)}
    before = resnet(**shaped)
    edited = ir.from_proto(before)
    read_bytes(edited.graph, next(node for node in edited.graph if node.name == "stem"))
    after = ir.to_proto(edited)
    made = makers(after)
    stem = next(node for node in after.graph.node if node.name == "stem")
    assert made[made[stem.input[0]].input[0]].op_type == "DequantizeLinear"
    pixels = np.concatenate([feed["pixels"] for feed in images(3)])
    assert error(computed(after, pixels), computed(before, pixels)) < 1e-5


@pytest.mark.parametrize(
    ("why", "constants"),
    [
        ("zero is no byte", {"mean": np.array([0.5, 0.4, 0.3], np.float32).reshape(1, 3, 1, 1)}),
        ("a channel is inverted", {"std": np.array([1 / 58, -1 / 58, 1 / 58], np.float32).reshape(1, 3, 1, 1)}),
        ("each row has its own mean", {"mean": np.linspace(-2, -1, 20, dtype=np.float32).reshape(1, 1, 20, 1)}),
    ],
)
def test_an_image_that_bytes_cannot_stand_for_is_rounded(why: str, constants: dict[str, np.ndarray]) -> None:
    before = resnet(**constants)
    after = quantize_convolutions(before, images(), names=quantizable(before))
    assert "Cast" in [node.op_type for node in after.graph.node], why
    pixels = images(1)[0]["pixels"]
    assert error(computed(after, pixels), computed(before, pixels)) < 0.03


def test_a_projection_is_a_product() -> None:
    before = resnet()
    edited = ir.from_proto(before)
    node = next(node for node in edited.graph if node.name == "project")
    assert is_projection(node)
    product = to_product(edited.graph, node)
    after = ir.to_proto(edited)
    assert (product.op_type, product.name) == ("MatMul", "project")
    onnx.checker.check_model(after, full_check=True)
    pixels = np.concatenate([feed["pixels"] for feed in images(3)])
    np.testing.assert_allclose(computed(after, pixels), computed(before, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("m = Conv(l", "m = Conv<group = 2>(l"),
        ("m = Conv(l", "m = Conv<strides = [2, 2]>(l"),
        ("Transpose<perm = [0, 2, 1]>(n)", "Transpose<perm = [1, 2, 0]>(n)"),
    ],
)
def test_another_last_convolution_stays_float(old: str, new: str) -> None:
    text = RESNET.replace(old, new).replace("float[batch, 30, 16]", "float[a, b, c]")
    constants = {"shape": np.array([-1, 16, 6])} if "strides" in new else {}
    if "group" in new:
        constants["w_project"] = np.ones((16, 4, 1, 1), np.float32)
    model = resnet(text, **constants)
    assert quantizable(model) == CONVOLUTIONS[:-1]


PROJECTED = """
<ir_version: 10, opset_import: ["" : 20]>
tower (float[batch, 64, 4, 4] x) => (float[batch, 16, 64] tokens) {
  [first] a = Conv(x, w_first)
  [relu] b = Relu(a)
  [last] c = Conv(b, w_last)
  [flat] d = Reshape(c, shape)
  [rows] e = Transpose<perm = [0, 2, 1]>(d)
  [norm] tokens = LayerNormalization(e, one)
}
"""


def test_one_large_token_does_not_set_the_range_of_the_others() -> None:
    """A layer norm makes all tokens equally long, so the small ones count as much as the large one."""
    random = np.random.default_rng(0)
    constants = {
        "w_first": np.eye(64, dtype=np.float32)[:, :, None, None],
        "w_last": random.normal(1, 1, size=(64, 64, 1, 1)).astype(np.float32),
        "shape": np.array([-1, 64, 16]),
        "one": np.ones(64, np.float32),
    }
    model = resnet(PROJECTED, **constants)
    # One channel of each token is active, but all of the first token's.
    samples = np.zeros((8, 1, 64, 16), np.float32)
    for sample in samples:
        sample[0, random.permutation(64)[:16], np.arange(16)] = random.uniform(0.5, 1, 16)
        sample[0, :, 0] = 1
    samples = samples.reshape(8, 1, 64, 4, 4)
    after = quantize_convolutions(model, [{"x": sample} for sample in samples], names=quantizable(model))
    assert [node.op_type for node in after.graph.node if node.name == "last"] == ["MatMul"]
    exact, rounded = (ReferenceEvaluator(each).run(["tokens"], {"x": samples[0]})[0] for each in (model, after))
    # With a result of 8 bits, in place of a product's floats, the error is 0.14.
    assert error(rounded, exact) < 0.03


def test_every_convolution_can_stay_float() -> None:
    model = resnet()
    assert quantizable(model) == CONVOLUTIONS
    pixels = images(1)[0]["pixels"]
    for name in CONVOLUTIONS:
        after = Int8ForCpu(images(), Options(keep_float=(name,)))(model)
        made = makers(after)
        node = next(node for node in after.graph.node if node.name == name)
        assert node.op_type == "Conv" and node.input[1] not in made
        assert error(computed(after, pixels), computed(model, pixels)) < 0.03


def test_an_output_within_the_graph_stays_float() -> None:
    """The image features of a family may be an output, and go on through more convolutions."""
    text = RESNET.replace("float[batch, 30, 16] tokens", "float[batch, 30, 16] tokens, float[batch, 8, 5, 6] h")
    before = resnet(text)
    after = quantize_convolutions(before, images(), names=quantizable(before))
    feed = images(1)[0]
    exact, rounded = (ReferenceEvaluator(each).run(["tokens", "h"], feed) for each in (before, after))
    assert max(error(*pair) for pair in zip(rounded, exact, strict=True)) < 0.03
    made = makers(after)
    assert [made["h"].op_type, made[made["h"].input[0]].op_type] == ["Relu", "Add"]


def test_a_large_bias_fits_its_levels() -> None:
    """A channel whose weights are almost zero, and whose bias is not."""
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    weight[3] = 1e-20
    before = resnet(w_one=weight, b_one=np.full(8, 5, np.float32))
    after = quantize_convolutions(before, images(), names=quantizable(before))
    pixels = images(1)[0]["pixels"]
    assert error(computed(after, pixels), computed(before, pixels)) < 0.03


def test_samples_are_required() -> None:
    with pytest.raises(DataError) as caught:
        quantize_convolutions(resnet(), [], names=["stem"])
    assert caught.value.fix


def test_activations_that_are_not_finite_are_an_error() -> None:
    broken = resnet(b_one=np.full(8, np.inf, np.float32))
    with pytest.raises(GateFailed):
        quantize_convolutions(broken, images(), names=quantizable(broken))
