"""INT8 for TensorRT: equalising keeps what a graph computes, pairs stand where they may, and real weights survive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from simmim_export.errors import DataError, GateFailed, UsageError
from simmim_export.precision import smooth
from simmim_export.precision.int8_s8 import check, convolutions_of, products_of, residuals, to_int8_s8, worthwhile
from simmim_export.proof.parity import difference
from simmim_export.tensorrt_rules.lint import lint

Feeds = list[dict[str, np.ndarray]]


def graph_of(path: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list) -> Path:
    """A graph of opset 20 from ``x`` float32 ``shape`` to the output of the last node."""
    graph = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


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


def computed(path: Path, feeds: Feeds) -> list[dict[str, np.ndarray]]:
    model = onnx.load(path)
    return list(smooth.run(model, feeds, [output.name for output in model.graph.output]))


def quantised_inputs(path: Path) -> dict[str, list[int]]:
    """Which inputs of which nodes come from a DequantizeLinear, by name."""
    nodes = onnx.load(path).graph.node
    made = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
    found = {n.name: [i for i, name in enumerate(n.input) if name in made] for n in nodes}
    return {name: inputs for name, inputs in found.items() if inputs}


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """LayerNormalization to two products, and one product of the input itself."""
    nodes = [
        node("LayerNormalization", "x scale bias", "normed"),
        node("MatMul", "normed one", "a"),
        node("MatMul", "normed two", "b"),
        node("MatMul", "x two", "c"),
        node("Sum", "a b c", "y"),
    ]
    constants = {"scale": 1 + noise(32) ** 2, "bias": noise(32, seed=1), "one": noise(32, 48), "two": noise(32, 48)}
    return graph_of(tmp_path / "block.onnx", nodes, constants, ["batch", "rows", 32])


def test_equalising_keeps_what_is_computed(block: Path) -> None:
    before, model, feeds = onnx.load(block), onnx.load(block), outliers((5, 32))
    nodes = products_of(model)
    seen = smooth.observe(model, feeds, {n.input[0] for n in nodes})
    smooth.equalise(model, nodes, seen, 0.8)
    smooth.require_equal(before, model, feeds)
    kinds = [n.op_type for n in model.graph.node]
    assert kinds == ["LayerNormalization", "MatMul", "MatMul", "Mul", "MatMul", "Sum"], "folded once, inserted once"
    after = smooth.observe(model, feeds, {n.input[0] for n in model.graph.node if n.op_type == "MatMul"})
    for name, old in (("normed", "normed"), ("x.smooth", "x")):
        ratio = [s.largest.max() / np.median(s.largest) for s in (seen[old], after[name])]
        assert ratio[1] < 0.7 * ratio[0], "the loudest channel is nearer to the others"
    assert "one" not in {tensor.name for tensor in model.graph.initializer}, "what nothing reads is gone"


def test_a_graph_that_computes_something_else_is_refused(block: Path) -> None:
    before, broken = onnx.load(block), onnx.load(block)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == "one")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "one"))
    with pytest.raises(GateFailed, match="equalising changed y by"):
        smooth.require_equal(before, broken, outliers((5, 32)))


def test_a_norm_that_something_else_reads_is_not_folded_into(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "x scale", "normed"),
        node("MatMul", "normed weight", "product"),
        node("Add", "product normed", "y"),
    ]
    constants = {"scale": 1 + noise(32) ** 2, "weight": noise(32, 32)}
    source = graph_of(tmp_path / "x.onnx", nodes, constants, ["batch", "rows", 32])
    found = to_int8_s8(source, tmp_path / "y.onnx", outliers((5, 32)))
    after = onnx.load(tmp_path / "y.onnx").graph
    assert found.products == ("product",) and quantised_inputs(tmp_path / "y.onnx") == {"product": [0, 1]}
    assert [n.op_type for n in after.node].count("Mul") == 1
    scale = next(tensor for tensor in after.initializer if tensor.name == "scale")
    assert np.array_equal(numpy_helper.to_array(scale), constants["scale"])


def test_a_channel_of_zeros_keeps_its_scale() -> None:
    scales = smooth.factors(np.array([0.0, 2.0, 4.0]), [np.array([[1.0], [0.0], [1.0]])], 0.5)
    assert np.allclose(scales, [1, 1, 2]) and scales.dtype == np.float32


def test_a_gemm_is_equalised_whichever_way_its_weight_is_stored(tmp_path: Path) -> None:
    for transposed in (0, 1):
        weight = noise(24, 32) if transposed else noise(32, 24)
        nodes = [node("Gemm", "x weight bias", "y", transB=transposed, alpha=0.5)]
        source = graph_of(tmp_path / "x.onnx", nodes, {"weight": weight, "bias": noise(24)}, ["rows", 32])
        feeds = [{"x": feed["x"][0]} for feed in outliers((6, 32))]
        assert to_int8_s8(source, tmp_path / "y.onnx", feeds).products == ("y",)
        assert quantised_inputs(tmp_path / "y.onnx") == {"y": [0, 1]}, "the bias stays float"
        for old, new in zip(computed(source, feeds), computed(tmp_path / "y.onnx", feeds), strict=True):
            assert difference(new["y"], old["y"])[1] > 0.999


def test_small_products_and_convolutions_stay_float(tmp_path: Path) -> None:
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
    source = graph_of(tmp_path / "x.onnx", nodes, constants, [1, 3, 8, 8])
    model = onnx.load(source)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 32, 64]), "rows"))
    onnx.save(model, source)
    assert [n.name for n in convolutions_of(model)] == ["conv1", "conv4", "conv5"]
    assert [n.name for n in products_of(model)] == ["product2"]


def test_one_row_at_a_time_is_no_product_for_int8(tmp_path: Path) -> None:
    source = graph_of(tmp_path / "x.onnx", [node("MatMul", "x w", "y")], {"w": noise(32, 32)}, ["batch", "rows", 32])
    for rows, wanted in ((1, ()), (2, ("y",))):
        assert to_int8_s8(source, tmp_path / "y.onnx", outliers((rows, 32))).products == wanted


@pytest.mark.parametrize("projected", [False, True])
def test_of_a_residual_sum_the_shortcut_alone_is_quantised(tmp_path: Path, projected: bool) -> None:
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
    source = graph_of(tmp_path / "x.onnx", nodes, constants, ["batch", 3, 8, 8])
    feeds = [{"x": noise(1, 3, 8, 8, seed=seed)} for seed in range(8)]
    found = to_int8_s8(source, tmp_path / "y.onnx", feeds)
    assert len(found.convolutions) == 3 + projected and lint(onnx.load(tmp_path / "y.onnx")) == []
    pairs = quantised_inputs(tmp_path / "y.onnx")
    assert pairs.pop("sum") == [0] and all(inputs == [0, 1] for inputs in pairs.values())
    # A sum is fused with a convolution in INT8: with the projection's where the branch's is float, else with none.
    to_int8_s8(source, tmp_path / "z.onnx", feeds, keep_float={"conv2"})
    assert quantised_inputs(tmp_path / "z.onnx").get("sum") == ([1] if projected else None)


def test_a_convolution_that_something_else_reads_fuses_with_no_sum(tmp_path: Path) -> None:
    nodes = [node("Conv", "x first", "conv"), node("Add", "conv x", "sum"), node("Mul", "sum conv", "y")]
    source = graph_of(tmp_path / "x.onnx", nodes, {"first": noise(16, 16, 1, 1)}, [1, 16, 4, 4])
    assert residuals(onnx.load(source), ["conv"]) == {}


def test_what_loses_too_much_stays_float(tmp_path: Path) -> None:
    """A few values a thousand times the rest, each in another row and channel, leave no scale for the rest."""
    source = graph_of(tmp_path / "x.onnx", [node("MatMul", "x w", "y")], {"w": noise(32, 32)}, ["batch", "rows", 32])
    feeds = outliers((64, 32))
    model = onnx.load(source)
    assert worthwhile(model, model.graph.node, smooth.observe(model, feeds, ["x"]), feeds)
    for seed, feed in enumerate(feeds):
        feed["x"][0, np.arange(4), np.random.default_rng(seed).integers(0, 32, 4)] = 1e4
    assert worthwhile(model, model.graph.node, smooth.observe(model, feeds, ["x"]), feeds) == []


def test_a_tower_of_images_is_what_tensorrt_takes(tiny_bundle: Path, tmp_path: Path) -> None:
    source, target = tiny_bundle / "graphs/image_encoder.fp32.onnx", tmp_path / "x.onnx"
    found = to_int8_s8(source, target, pictures(64))
    assert len(found.convolutions) >= 6 and not found.products
    pairs = quantised_inputs(target)
    assert set(found.convolutions) <= pairs.keys() and all(pairs[name] == [0, 1] for name in found.convolutions)
    assert set(lint(onnx.load(target))) <= set(lint(onnx.load(source)))
    for old, new in zip(computed(source, pictures(64, 4)), computed(target, pictures(64, 4)), strict=True):
        assert difference(new["image_embed"], old["image_embed"])[1] > 0.99


def words(count: int = 12) -> Feeds:
    make = np.random.default_rng(0).integers
    lengths = itertools.cycle((4, 7, 9))
    return [
        {"input_ids": make(5, 40, (1, n)), "attention_mask": np.ones((1, n), np.int64)}
        for n in itertools.islice(lengths, count)
    ]


def test_named_nodes_stay_float(tiny_bundle: Path, tmp_path: Path) -> None:
    source, target = tiny_bundle / "graphs/text_encoder.fp32.onnx", tmp_path / "x.onnx"
    every = to_int8_s8(source, target, words()).products
    assert len(every) >= 4
    some = to_int8_s8(source, target, words(), keep_float=every[::2]).products
    assert set(some) == set(every) - set(every[::2])
    assert quantised_inputs(target).keys() == set(some)
    assert to_int8_s8(source, target, words(), keep_float=every).products == ()
    with pytest.raises(UsageError, match="no node nobody to keep"):
        to_int8_s8(source, target, words(), keep_float={"nobody"})


@pytest.mark.parametrize(("name", "feeds"), [("text_encoder", words()), ("image_encoder", pictures(64))])
def test_the_same_samples_give_the_same_graph(tiny_bundle: Path, tmp_path: Path, name: str, feeds: Feeds) -> None:
    for target in ("a", "b"):
        to_int8_s8(tiny_bundle / f"graphs/{name}.fp32.onnx", tmp_path / target, feeds)
    to_int8_s8(tiny_bundle / f"graphs/{name}.fp32.onnx", tmp_path / "c", feeds[:5])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_graph_without_anything_to_quantise_is_copied(tiny_bundle: Path, tmp_path: Path) -> None:
    source, target = tiny_bundle / "graphs/head.match.fp32.onnx", tmp_path / "x.onnx"
    width = onnx.load(source).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    found = to_int8_s8(source, target, [{"fused": noise(1, width, seed=seed)} for seed in range(8)])
    assert found.convolutions == found.products == () and target.read_bytes() == source.read_bytes()
    with pytest.raises(DataError, match="no samples"):
        to_int8_s8(source, target, [])


def test_what_the_pass_promises_is_checked(tiny_bundle: Path, tmp_path: Path) -> None:
    source, target = tiny_bundle / "graphs/text_encoder.fp32.onnx", tmp_path / "x.onnx"
    to_int8_s8(source, target, words())
    before, after = onnx.load(source), onnx.load(target)
    check(before, after)
    newer = onnx.load(target)
    newer.opset_import[0].version = 21
    with pytest.raises(GateFailed, match="opset"):
        check(before, newer)
    dequantized = next(n for n in after.graph.node if n.input[0].endswith("_quantized"))
    product = next(n for n in after.graph.node if dequantized.output[0] in n.input)
    levels = next(tensor for tensor in after.graph.initializer if tensor.name == dequantized.input[0])
    product.input[1] = "weight"
    after.graph.initializer.append(numpy_helper.from_array(noise(*levels.dims), "weight"))
    with pytest.raises(GateFailed, match="one in float"):
        check(before, after)


@pytest.mark.filterwarnings("ignore::simmim_export.errors.TruncatedText")
def test_real_weights_keep_their_neighbours(minilm_bundle: Path, tmp_path: Path) -> None:
    """Judged on 200 sentences, none of which it was calibrated on; the table is in the docstring of the module."""
    from simmim_export.benchmarks.quantization import agreement, sentences
    from simmim_export.bundle import Bundle
    from simmim_export.runtime.text import Tokenizer

    config = Bundle.open(minilm_bundle).manifest.model
    tokenizer = Tokenizer((minilm_bundle / "tokenizer.json").read_text("utf-8"), config["max_length"])
    texts, rows = sentences(), []
    for text in [*texts[:200], *texts[-64:]]:
        ids, mask = tokenizer.encode([text])
        rows.append({"input_ids": ids, "attention_mask": mask})
    source, target = minilm_bundle / "graphs/text_encoder.fp32.onnx", tmp_path / "x.onnx"
    quantised = to_int8_s8(source, target, rows[200:])
    assert 30 <= len(quantised.products) < 36 and lint(onnx.load(target)) == []
    exact, found = (np.concatenate([out["text_embed"] for out in computed(p, rows[:200])]) for p in (source, target))
    measured = agreement(exact, found)
    assert measured["cosine_mean"] >= 0.998 and measured["cosine_min"] >= 0.99 and measured["top1"] >= 0.9
