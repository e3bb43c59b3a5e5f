"""INT8 for TensorRT: equalizing keeps what a graph computes, pairs stand where they may, and real weights survive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision import smooth
from simmim_export.precision.base import Options
from simmim_export.precision.int8_s8 import Int8ForTensorRT, convolutions_of, products_of, residuals, worthwhile
from simmim_export.precision.measure import Record, run
from simmim_export.precision.passes import write_variant
from simmim_export.proof.parity import difference
from simmim_export.spec import Variant
from simmim_export.tensorrt_rules.lint import lint

Feeds = list[dict[str, np.ndarray]]


def model_of(nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list) -> onnx.ModelProto:
    """A graph of opset 20 from ``x`` float32 ``shape`` to the output of the last node."""
    graph = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outliers(shape: tuple[int, ...], count: int = 12) -> Feeds:
    """Noise [1, *shape] in which every tenth channel is fifty times the others."""
    loud = np.where(np.arange(shape[-1]) % 10, 1, 50).astype(np.float32)
    return [{"x": noise(1, *shape, seed=seed) * loud} for seed in range(count)]


def pictures(size: int, count: int = 12) -> Feeds:
    make = np.random.default_rng(0).integers
    return [{"pixels": make(0, 256, (1, size, size, 3), dtype=np.uint8)} for _ in range(count)]


def computed(model: onnx.ModelProto, feeds: Feeds, name: str) -> np.ndarray:
    """The output ``name`` for all ``feeds``, one row after the other."""
    return np.concatenate([outputs[name] for outputs in run(model, feeds, [name])])


def quantized_inputs(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Which inputs of which nodes come from a DequantizeLinear, by name."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    inputs = {node.name: [i for i, name in enumerate(node.input) if name in dequantized] for node in model.graph.node}
    return {name: indices for name, indices in inputs.items() if indices}


@pytest.fixture
def block() -> onnx.ModelProto:
    """LayerNormalization to two products, and one product of the input itself."""
    nodes = [
        node("LayerNormalization", "x scale bias", "normed"),
        node("MatMul", "normed one", "a"),
        node("MatMul", "normed two", "b"),
        node("MatMul", "x two", "c"),
        node("Sum", "a b c", "y"),
    ]
    constants = {"scale": 1 + noise(32) ** 2, "bias": noise(32, seed=1), "one": noise(32, 48), "two": noise(32, 48)}
    return model_of(nodes, constants, ["batch", "rows", 32])


def test_equalizing_keeps_what_is_computed(block: onnx.ModelProto) -> None:
    edited, feeds = ir.from_proto(block), outliers((5, 32))
    record = Record(block, feeds)
    seen = record.activations(["normed", "x"])
    smooth.equalize(edited.graph, products_of(edited.graph), seen=seen, alpha=0.8)
    after = ir.to_proto(edited)
    smooth.require_equal(record, after)
    kinds = [n.op_type for n in after.graph.node]
    assert kinds == ["LayerNormalization", "MatMul", "MatMul", "Mul", "MatMul", "Sum"], "folded once, inserted once"
    equalized = Record(after, feeds).activations(["normed", "x.smooth"])
    for name, old in (("normed", "normed"), ("x.smooth", "x")):
        ratio = [s.largest.max() / np.median(s.largest) for s in (seen[old], equalized[name])]
        assert ratio[1] < 0.7 * ratio[0], "the loudest channel is closer to the others"
    assert "one" not in {tensor.name for tensor in after.graph.initializer}, "unused constants are removed"


def test_a_graph_that_computes_something_else_is_refused(block: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(block)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == "one")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "one"))
    with pytest.raises(GateFailed, match="changed y"):
        smooth.require_equal(Record(block, outliers((5, 32))), broken)


def test_nothing_is_folded_into_a_norm_that_another_node_reads() -> None:
    nodes = [
        node("LayerNormalization", "x scale", "normed"),
        node("MatMul", "normed weight", "product"),
        node("Add", "product normed", "y"),
    ]
    constants = {"scale": 1 + noise(32) ** 2, "weight": noise(32, 32)}
    after = Int8ForTensorRT(outliers((5, 32)))(model_of(nodes, constants, ["batch", "rows", 32]))
    assert quantized_inputs(after) == {"product": [0, 1]}
    assert [n.op_type for n in after.graph.node].count("Mul") == 1
    scale = next(tensor for tensor in after.graph.initializer if tensor.name == "scale")
    assert np.array_equal(numpy_helper.to_array(scale), constants["scale"])


def test_a_channel_of_zeros_keeps_its_scale() -> None:
    scales = smooth.factors(np.array([0.0, 2.0, 4.0]), [np.array([[1.0], [0.0], [1.0]])], 0.5)
    assert np.allclose(scales, [1, 1, 2]) and scales.dtype == np.float32


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_equalized_however_its_weight_is_stored(transposed: int) -> None:
    weight = noise(24, 32) if transposed else noise(32, 24)
    nodes = [node("Gemm", "x weight bias", "y", transB=transposed, alpha=0.5)]
    before = model_of(nodes, {"weight": weight, "bias": noise(24)}, ["rows", 32])
    feeds = [{"x": feed["x"][0]} for feed in outliers((6, 32))]
    after = Int8ForTensorRT(feeds)(before)
    assert quantized_inputs(after) == {"y": [0, 1]}, "the bias stays float"
    for feed in feeds:
        assert difference(computed(after, [feed], "y"), computed(before, [feed], "y"))[1] > 0.999


def test_small_products_and_convolutions_stay_float() -> None:
    nodes = [
        node("Conv", "x first", "conv1"),
        node("Conv", "conv1 narrow", "conv2"),
        node("Conv", "conv2 wide", "conv3"),
        node("Conv", "conv3 wider", "conv4"),
        node("Conv", "conv4 depthwise", "conv5", group=32),
        node("Reshape", "conv5 rows", "tokens"),
        node("MatMul", "tokens thin", "product1"),
        node("MatMul", "tokens square", "product2"),
        node("ReduceMax", "product2", "pooled", keepdims=1),
        node("MatMul", "pooled column", "y"),
    ]
    sizes = {
        "first": (32, 3, 1, 1),
        "narrow": (8, 32, 1, 1),
        "wide": (32, 8, 1, 1),
        "wider": (32, 32, 1, 1),
        "depthwise": (32, 1, 1, 1),
        "thin": (64, 15),
        "square": (64, 64),
        "column": (1, 64),
    }
    constants = {name: noise(*shape) for name, shape in sizes.items()}
    model = model_of(nodes, constants, [1, 3, 8, 8])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 32, 64]), "rows"))
    graph = ir.from_proto(model).graph
    assert [n.name for n in convolutions_of(graph)] == ["conv1", "conv4", "conv5"]
    assert [n.name for n in products_of(graph)] == ["product2"]


@pytest.mark.parametrize(("rows", "quantized"), [(1, {}), (2, {"y": [0, 1]})])
def test_a_product_of_one_row_at_a_time_stays_float(rows: int, quantized: dict[str, list[int]]) -> None:
    model = model_of([node("MatMul", "x w", "y")], {"w": noise(32, 32)}, ["batch", "rows", 32])
    assert quantized_inputs(Int8ForTensorRT(outliers((rows, 32)))(model)) == quantized


@pytest.mark.parametrize("projected", [False, True])
def test_only_the_shortcut_of_a_residual_sum_is_quantized(projected: bool) -> None:
    nodes = [
        node("Conv", "x first", "stem"),
        node("Relu", "stem", "relu"),
        node("Conv", "relu one", "conv1"),
        node("Relu", "conv1", "inner"),
        node("Conv", "inner two", "conv2"),
        *([node("Conv", "relu three", "shortcut")] if projected else []),
        node("Add", "shortcut conv2" if projected else "relu conv2", "sum"),
        node("Relu", "sum", "y"),
    ]
    sizes = {"first": (16, 3, 3, 3), "one": (16, 16, 1, 1), "two": (16, 16, 1, 1), "three": (16, 16, 1, 1)}
    constants = {name: noise(*shape) for name, shape in sizes.items() if projected or name != "three"}
    model = model_of(nodes, constants, ["batch", 3, 8, 8])
    feeds = [{"x": noise(1, 3, 8, 8, seed=seed)} for seed in range(8)]
    after = Int8ForTensorRT(feeds)(model)
    pairs = quantized_inputs(after)
    assert pairs.pop("sum") == [0] and len(pairs) == 3 + projected and all(at == [0, 1] for at in pairs.values())
    assert lint(after) == []
    # A sum is fused with a quantized convolution: with the projection's if the branch's is float, else with none.
    other = Int8ForTensorRT(feeds, Options(keep_float=("conv2",)))(model)
    assert quantized_inputs(other).get("sum") == ([1] if projected else None)


def test_a_convolution_that_two_nodes_read_fuses_with_no_sum() -> None:
    nodes = [node("Conv", "x first", "conv"), node("Add", "conv x", "sum"), node("Mul", "sum conv", "y")]
    model = model_of(nodes, {"first": noise(16, 16, 1, 1)}, [1, 16, 4, 4])
    assert residuals(ir.from_proto(model).graph, ["conv"]) == {}


def test_a_product_that_loses_too_much_stays_float() -> None:
    """A few values a thousand times the rest, each in another row and channel, leave no scale for the rest."""
    model = model_of([node("MatMul", "x w", "y")], {"w": noise(32, 32)}, ["batch", "rows", 32])
    feeds, products = outliers((64, 32)), list(ir.from_proto(model).graph)
    assert worthwhile(model, products, seen=Record(model, feeds).activations(["x"]), feeds=feeds)
    for seed, feed in enumerate(feeds):
        feed["x"][0, np.arange(4), np.random.default_rng(seed).integers(0, 32, 4)] = 1e4
    assert worthwhile(model, products, seen=Record(model, feeds).activations(["x"]), feeds=feeds) == []


def fp32(bundle: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle / f"graphs/{graph}.fp32.onnx")


def test_tensorrt_takes_a_quantized_image_encoder(tiny_bundle: Path) -> None:
    before = fp32(tiny_bundle, "image_encoder")
    after = Int8ForTensorRT(pictures(64))(before)
    pairs, kinds = quantized_inputs(after), {n.name: n.op_type for n in after.graph.node}
    convolutions = [name for name in pairs if kinds[name] == "Conv"]
    assert len(convolutions) >= 6 and all(pairs[name] == [0, 1] for name in convolutions)
    assert {kinds[name] for name in pairs} <= {"Conv", "Add"} and set(lint(after)) <= set(lint(before))
    for feed in pictures(64, 4):
        assert difference(*(computed(model, [feed], "image_embed") for model in (after, before)))[1] > 0.99


def words(count: int = 12) -> Feeds:
    make = np.random.default_rng(0).integers
    lengths = itertools.cycle((4, 7, 9))
    return [
        {"input_ids": make(5, 40, (1, n)), "attention_mask": np.ones((1, n), np.int64)}
        for n in itertools.islice(lengths, count)
    ]


def test_nodes_that_are_kept_float_have_no_pairs(tiny_bundle: Path) -> None:
    model = fp32(tiny_bundle, "text_encoder")
    every = list(quantized_inputs(Int8ForTensorRT(words())(model)))
    assert len(every) >= 4
    some = Int8ForTensorRT(words(), Options(keep_float=tuple(every[::2])))(model)
    assert quantized_inputs(some).keys() == set(every) - set(every[::2])
    assert Int8ForTensorRT(words(), Options(keep_float=tuple(every)))(model) is model


@pytest.mark.parametrize(("name", "feeds"), [("text_encoder", words()), ("image_encoder", pictures(64))])
def test_the_same_samples_give_the_same_graph(tiny_bundle: Path, name: str, feeds: Feeds) -> None:
    model = fp32(tiny_bundle, name)
    first, again, fewer = (Int8ForTensorRT(f)(model).SerializeToString() for f in (feeds, feeds, feeds[:5]))
    assert first == again != fewer


def test_a_graph_with_nothing_to_quantize_is_copied(tiny_bundle: Path, tmp_path: Path) -> None:
    source, target = tiny_bundle / "graphs/head.match.fp32.onnx", tmp_path / "x.onnx"
    width = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    feeds = [{"fused": noise(1, width, seed=seed)} for seed in range(8)]
    write_variant(source, target, variant=Variant.INT8_S8, feeds=feeds)
    assert target.read_bytes() == source.read_bytes()


def test_ranges_need_samples(block: onnx.ModelProto) -> None:
    with pytest.raises(DataError) as caught:
        Int8ForTensorRT([])(block)
    assert caught.value.fix


def test_the_promises_of_the_pass_are_checked(tiny_bundle: Path) -> None:
    before, promised = fp32(tiny_bundle, "text_encoder"), Int8ForTensorRT(words())
    after = promised(before)
    newer = onnx.ModelProto()
    newer.CopyFrom(after)
    newer.opset_import[0].version = 21
    with pytest.raises(GateFailed, match="21"):
        promised.ensures(before, newer)
    dequantized = next(n for n in after.graph.node if n.input[0].endswith(".weight.int8"))
    product = next(n for n in after.graph.node if dequantized.output[0] in n.input)
    levels = next(tensor for tensor in after.graph.initializer if tensor.name == dequantized.input[0])
    product.input[1] = "weight"
    after.graph.initializer.append(numpy_helper.from_array(noise(*levels.dims), "weight"))
    with pytest.raises(GateFailed, match="both-inputs"):
        promised.ensures(before, after)


@pytest.mark.filterwarnings("ignore::simmim_export.errors.TruncatedText")
def test_real_weights_keep_their_neighbours(minilm_bundle: Path, tmp_path: Path) -> None:
    """Judged on 200 sentences and calibrated on others; the docstring of the module has the whole table."""
    from simmim_export.benchmarks.quantization import sentences
    from simmim_export.bundle import Bundle
    from simmim_export.proof.figures import agreement
    from simmim_export.runtime.text import Tokenizer

    longest = Bundle.open(minilm_bundle).manifest.preprocessing["text"]["max_length"]
    tokenizer = Tokenizer((minilm_bundle / "tokenizer.json").read_text("utf-8"), longest)
    texts, rows = sentences(), []
    for text in [*texts[:200], *texts[-64:]]:
        ids, mask = tokenizer.encode([text])
        rows.append({"input_ids": ids, "attention_mask": mask})
    before = fp32(minilm_bundle, "text_encoder")
    after = Int8ForTensorRT(rows[200:])(before)
    assert 30 <= len(quantized_inputs(after)) < 36 and lint(after) == []
    kept = agreement(*(computed(model, rows[:200], "text_embed") for model in (before, after)))
    assert kept["cosine_mean"] >= 0.998 and kept["cosine_min"] >= 0.99 and kept["top1"] >= 0.9
