"""INT8 for CPUs: the promises of the pass, and real weights."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import DataError, GateFailed, UsageError
from simmim_export.precision.base import Feeds, Options, Pass
from simmim_export.precision.int8_dot import Int8ForDotProducts
from simmim_export.precision.int8_u8 import Int8ForCpu, saturates
from simmim_export.precision.measure import Record
from simmim_export.precision.tokens import quantize_products
from simmim_export.spec import GraphSpec, Precision, TensorSpec


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def pictures(pixels: np.ndarray) -> Feeds:
    return [{"pixels": image[None]} for image in pixels]


def tokens(bundle: Path) -> Feeds:
    """Real texts, one in each feed."""
    golden, spec = golden_of(bundle), Bundle.open(bundle).manifest.graph("text_encoder")
    batch = golden.feeds(max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size), spec)
    return [{name: rows[[index]] for name, rows in batch.items()} for index in range(len(batch["input_ids"]))]


def fp32(bundle: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle / f"graphs/{graph}.fp32.onnx")


def quantized(model: onnx.ModelProto) -> list[str]:
    """The convolutions and products that read both operands from a DequantizeLinear, by name."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    kinds = ("Conv", "MatMul")
    return [node.name for node in model.graph.node if node.op_type in kinds and dequantized.issuperset(node.input[:2])]


def test_every_product_of_the_text_tower_is_quantized(tiny_bundle: Path) -> None:
    before = fp32(tiny_bundle, "text_encoder")
    after = quantize_products(before, Record(before, tokens(tiny_bundle)), half=63)
    assert quantized(after) == Int8ForCpu.touched(before) and len(quantized(after)) >= 6
    assert Int8ForCpu.touched(after) == [] and quantize_products(after, Record(after, []), half=63) is after
    assert after.ByteSize() < 0.7 * before.ByteSize()
    onnx.checker.check_model(after, full_check=True)


def test_nodes_that_are_kept_float_are_not_quantized(tiny_bundle: Path) -> None:
    before = fp32(tiny_bundle, "text_encoder")
    first, *others = Int8ForCpu.touched(before)
    after = quantize_products(before, Record(before, tokens(tiny_bundle)), half=63, keep_float=[first])
    assert quantized(after) == others and Int8ForCpu.touched(after) == [first]


def test_an_unknown_node_to_keep_float_is_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="nobody"):
        Int8ForCpu(tokens(tiny_bundle), Options(keep_float=("nobody",)))(fp32(tiny_bundle, "text_encoder"))


def test_channels_need_samples(tiny_bundle: Path) -> None:
    with pytest.raises(DataError) as caught:
        Int8ForCpu([])(fp32(tiny_bundle, "text_encoder"))
    assert caught.value.fix


def product(kind: str | None, weight: np.ndarray) -> onnx.ModelProto:
    """x [batch, tokens, 64], through ``kind`` where there is one, times ``weight`` [64, 48]."""
    float32, nodes = onnx.TensorProto.FLOAT, []
    if kind is not None:
        nodes.append(onnx.helper.make_node(kind, ["x"], ["act"], name="act"))
    nodes.append(onnx.helper.make_node("MatMul", [nodes[-1].output[0] if nodes else "x", "w"], ["y"], name="product"))
    x = onnx.helper.make_tensor_value_info("x", float32, ["b", "s", 64])
    y = onnx.helper.make_tensor_value_info("y", float32, ["b", "s", 48])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def in_float(model: onnx.ModelProto, x: np.ndarray, name: str = "y") -> np.ndarray:
    """What the graph says, by ONNX's own reference: no kernel of any processor takes part."""
    model.graph.output.extend([] if name == "y" else [onnx.ValueInfoProto(name=name)])
    return ReferenceEvaluator(model).run([name], {"x": x})[0]


@pytest.mark.parametrize("kind", [None, "Gelu", "Relu"])
@pytest.mark.parametrize("half", [63, 127])
def test_a_product_by_token_is_close_and_independent_of_other_tokens(kind: str | None, half: int) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 48)).astype(np.float32)
    x = random.normal(size=(2, 5, 64)).astype(np.float32)
    x[0, 1] *= 1e4
    x[1, 2] = 0
    before = product(kind, weight)
    after = quantize_products(before, Record(before, []), half=half)
    assert quantized(after) == ["product"]
    exact, lowered = in_float(before, x), in_float(after, x)
    error = np.linalg.norm(lowered - exact, axis=-1) / np.maximum(np.linalg.norm(exact, axis=-1), 1)
    assert error.max() < (0.03 if half == 63 else 0.02)
    assert np.isfinite(lowered).all() and np.abs(lowered[1, 2]).max() < 0.1
    alone = np.stack([in_float(after, x[:, [token]])[:, 0] for token in range(5)], axis=1)
    np.testing.assert_allclose(alone, lowered, rtol=1e-5, atol=1e-5 * np.abs(lowered).max())


def test_a_product_of_a_product() -> None:
    """A layer in two factors, without a bias between them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 64)).astype(np.float32)
    before = product(None, random.normal(size=(64, 48)).astype(np.float32))
    before.graph.node[0].output[0] = "between"
    before.graph.node.append(onnx.helper.make_node("MatMul", ["between", "v"], ["y"], name="second"))
    before.graph.initializer.append(numpy_helper.from_array(random.normal(size=(48, 32)).astype(np.float32), "v"))
    before.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", "s", 32]))
    after = Int8ForCpu([])(before)
    assert quantized(after) == ["product", "second"]
    exact, lowered = in_float(before, x), in_float(after, x)
    assert np.linalg.norm(lowered - exact) < 0.04 * np.linalg.norm(exact)


@pytest.mark.parametrize("quantize", [Int8ForCpu, Int8ForDotProducts])
@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder"])
def test_only_eight_bits_overflow_a_sum_of_two_products(tiny_bundle: Path, graph: str, quantize: type[Pass]) -> None:
    """AVX2 adds pairs of U8 x S8 in 16 bits that saturate at 32,767."""
    feeds = pictures(noise(8)) if graph == "image_encoder" else tokens(tiny_bundle)
    before = fp32(tiny_bundle, graph)
    model = quantize(feeds)(before)
    largest = max(
        int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    )
    assert (2 * 255 * largest > 32_767) == (quantize is Int8ForDotProducts) == saturates(model)
    if saturates(model):
        with pytest.raises(GateFailed):
            Int8ForCpu([]).ensures(before, model)


def test_a_graph_with_nothing_to_quantize_is_returned_as_it_is(tiny_bundle: Path) -> None:
    model = fp32(tiny_bundle, "head.match")
    assert Int8ForCpu([])(model) is model


def test_convolutions_that_share_weights_are_quantized_and_run(tmp_path: Path) -> None:
    """ONNX Runtime cannot open a graph in which two kernels want one INT8 constant in a form of their own."""
    random, shape = np.random.default_rng(0), ["b", 8, 16, 16]
    weight = numpy_helper.from_array(random.normal(size=(8, 8, 3, 3)).astype(np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    names = ("x", "a", "c", "y")
    nodes = [
        onnx.helper.make_node("Conv", [a, "w"], [b], name=f"of {a}", pads=[1, 1, 1, 1])
        for a, b in itertools.pairwise(names)
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(model, source)
    feeds = [{"x": random.normal(size=(1, 8, 16, 16)).astype(np.float32)} for _ in range(8)]
    assert Int8ForCpu.touched(model) == ["of x", "of a"]
    onnx.save(Int8ForCpu(feeds)(model), target)
    spec = GraphSpec("g", (TensorSpec("x", "float32", tuple(shape)),), (TensorSpec("y", "float32", tuple(shape)),), ())
    exact, lowered = (
        get_engine("ort").open(p, spec, precision=Precision.INT8).run(feeds[0])["y"] for p in (source, target)
    )
    assert np.linalg.norm(lowered - exact) < 0.1 * np.linalg.norm(exact)


def test_the_last_convolution_stays_float() -> None:
    """Otherwise one token of a thousand would set the range of the others, and a layer norm makes them all equally long."""
    random, width = np.random.default_rng(0), 16
    weights = {"first": np.eye(width, dtype=np.float32), "last": random.normal(size=(width, width)).astype(np.float32)}
    weights["last"][:, 0] *= 100
    nodes = [
        onnx.helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
        onnx.helper.make_node("Relu", ["a"], ["b"], name="relu"),
        onnx.helper.make_node("Conv", ["b", "last"], ["c"], name="last"),
        onnx.helper.make_node("Transpose", ["c"], ["t"], name="rows", perm=[0, 2, 3, 1]),
        onnx.helper.make_node("LayerNormalization", ["t", "one"], ["y"], name="norm"),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", width, 4, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", 4, 4, width])
    constants = [numpy_helper.from_array(value[:, :, None, None], name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.ones(width, np.float32), "one"))
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    samples = random.normal(size=(8, 1, width, 4, 4)).astype(np.float32)
    samples[:, :, 0] = 0
    samples[:, :, 0, 0, 0] = 1
    assert Int8ForCpu.touched(model) == ["first"]
    after = Int8ForCpu([{"x": sample} for sample in samples])(model)
    assert quantized(after) == ["first"]
    exact, lowered = in_float(model, samples[0]), in_float(after, samples[0])
    # The error is 0.006 of the output; with the last convolution quantized as well, 0.36.
    assert np.linalg.norm(lowered - exact) < 0.03 * np.linalg.norm(exact)


def test_the_same_images_give_the_same_graph(tiny_bundle: Path) -> None:
    model = fp32(tiny_bundle, "image_encoder")
    first, again = (Int8ForCpu(pictures(noise(8)))(model) for _ in range(2))
    other = Int8ForCpu(pictures(noise(8) // 4))(model)
    assert len(quantized(first)) >= 6
    assert first.SerializeToString() == again.SerializeToString() != other.SerializeToString()


def broken(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    if how == "foreign":
        node.op_type, node.domain = "MatMulNBits", "com.microsoft"
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    elif how == "scale":
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
    elif how == "zero point":
        node = next(node for node in model.graph.node if node.name.endswith(".weight"))
        zero = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
        zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + np.int8(3), zero.name))
    else:
        output = model.graph.output[0]
        producer = next(node for node in model.graph.node if output.name in node.output)
        readers = [node for node in model.graph.node if output.name in node.input]
        for names in (producer.output, *(node.input for node in readers)):
            names[list(names).index(output.name)] = "other"
        output.name = "other"
    return model


@pytest.mark.parametrize(
    ("how", "named"),
    [("foreign", "MatMulNBits"), ("scale", "scale"), ("zero point", "zero point 3"), ("output", "other")],
)
def test_the_promises_of_the_pass_are_checked(tiny_bundle: Path, how: str, named: str) -> None:
    before = fp32(tiny_bundle, "text_encoder")
    after = onnx.load(tiny_bundle / "graphs/text_encoder.int8-u8.onnx")
    Int8ForCpu([]).ensures(before, after)
    with pytest.raises(GateFailed, match=named):
        Int8ForCpu([]).ensures(before, broken(after, how))


def test_only_int8_dot_may_raise_the_opset_and_only_as_far_as_it_says(tiny_bundle: Path) -> None:
    """Weights in blocks and attention in one node need newer opsets. TensorRT, which lacks them, never sees the file."""
    before, raised = fp32(tiny_bundle, "text_encoder"), Int8ForDotProducts.raises_opset_to
    for quantize, opset, allowed in (
        (Int8ForDotProducts, raised, True),
        (Int8ForDotProducts, raised + 1, False),
        (Int8ForCpu, raised, False),
    ):
        after = onnx.load(tiny_bundle / f"graphs/text_encoder.{quantize.variant}.onnx")
        after.opset_import[0].version = opset
        if allowed:
            quantize([]).ensures(before, after)
        else:
            with pytest.raises(GateFailed):
                quantize([]).ensures(before, after)


def test_a_bundle_without_int8_says_how_to_make_it(every_bundle: Path, run_cli) -> None:
    done = run_cli("export", "verify", every_bundle, "--precision", "int8")
    assert done.returncode == 3 and "int8-u8" in done.stderr and "--precision" in done.stderr


@pytest.mark.filterwarnings("ignore::simmim_export.errors.TruncatedText")
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_real_weights_keep_their_neighbours(minilm_bundle: Path, engine: str) -> None:
    """Judged on 600 sentences and calibrated on others of another kind; `simmim-bench quantization` measures more. Of 200, a
    single neighbor would be half a point."""
    from simmim_export.benchmarks.quantization import sentences
    from simmim_export.proof.figures import agreement
    from simmim_export.runtime import load

    texts = sentences()[:600]
    with load(minilm_bundle, "ort") as exact, load(minilm_bundle, engine, precision="int8") as model:
        kept = agreement(exact.embed_text(texts), model.embed_text(texts))
    assert kept["cosine_mean"] >= 0.998 and kept["cosine_min"] >= 0.99 and kept["top1"] >= 0.9


def test_a_session_does_not_edit_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    path = shutil.copy(tiny_bundle / "graphs/text_encoder.int8-u8.onnx", tmp_path / "x.onnx")
    before = Path(path).read_bytes()
    spec = Bundle.open(tiny_bundle).manifest.graph("text_encoder")
    get_engine("ort").open(Path(path), spec, precision=Precision.INT8).close()
    assert Path(path).read_bytes() == before and len(list(tmp_path.iterdir())) == 1
