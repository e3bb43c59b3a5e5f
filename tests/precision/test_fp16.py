"""FP16: the promises of the pass, the nodes that it leaves in FP32, and real weights that are rounded after every node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.base import Feeds
from simmim_export.precision.emulation import rounded
from simmim_export.precision.fp16 import Fp16
from simmim_export.precision.halve import halve
from simmim_export.precision.islands import LARGEST, find_islands, ranges
from simmim_export.precision.passes import write_variant
from simmim_export.proof.parity import ParityReport, compare
from simmim_export.spec import Precision, Tolerance, Variant
from simmim_export.tensorrt_rules.groups import module_of

TOLERANCE = Tolerance(scaled_error=0.03, cosine=0.9999)
GRAPHS = ["image_encoder", "text_encoder", "fusion", "head.match", "head.vqa"]


def real(bundle: Path, name: str) -> tuple[onnx.ModelProto, Feeds]:
    """The FP32 graph ``name`` of a bundle, and single samples of its golden tensors."""
    spec, golden = Bundle.open(bundle).manifest.graph(name), golden_of(bundle)
    case = max(golden.cases, key=lambda case: len(golden.cases[case]["pixels"]))
    batch = golden.feeds(case, spec)
    count = len(next(iter(batch.values())))
    feeds = [{name: array[i : i + 1] for name, array in batch.items()} for i in range(count)]
    return onnx.load(bundle / f"graphs/{name}.fp32.onnx"), feeds


def report_of(model: onnx.ModelProto, bundle: Path, name: str, path: Path) -> ParityReport:
    """``model``, a form of the graph ``name``, against PyTorch's outputs; ``path`` is for its file."""
    onnx.save(model, path)
    spec, golden = Bundle.open(bundle).manifest.graph(name), golden_of(bundle)
    session = get_engine("ort").open(path, spec, precision=Precision.FP32)
    return compare(session, spec, golden=golden, precision=Precision.FP32)


def graph(nodes: list[onnx.NodeProto], size: int = 4, **constants: float | np.ndarray) -> onnx.ModelProto:
    """A graph from x float32 [1, size] to y."""
    values = [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None])
    made = helper.make_graph(nodes, "made", [x], [y], values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind}_{output}", **attributes)


def feed(*values: float) -> Feeds:
    return [{"x": np.array([values], np.float32)}]


def run(model: onnx.ModelProto, feeds: Feeds) -> np.ndarray:
    """y float32, as FP16 hardware gives it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(rounded(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], dict(feeds[0]))[0]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_real_graph_survives(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    before, feeds = real(tiny_bundle, name)
    after = Fp16(feeds)(before)
    report = report_of(rounded(after), tiny_bundle, name, tmp_path / "rounded.onnx")
    assert report.scaled_error <= TOLERANCE.scaled_error and report.cosine >= TOLERANCE.cosine
    # It computed in FP16: FP32 differs only by the order of summation.
    assert report.scaled_error > 1e-5
    # An engine takes the file itself as well.
    assert report_of(after, tiny_bundle, name, tmp_path / "y.onnx").scaled_error <= TOLERANCE.scaled_error
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in after.graph.initializer}


def test_the_same_graph_gives_the_same_bytes(tiny_bundle: Path) -> None:
    model, feeds = real(tiny_bundle, "text_encoder")
    before = model.SerializeToString()
    first, second = (Fp16(feeds)(model).SerializeToString() for _ in range(2))
    assert first == second and model.SerializeToString() == before


def test_nodes_keep_their_modules(tiny_bundle: Path) -> None:
    before, _ = real(tiny_bundle, "fusion")
    modules = {node.name: module_of(node) for node in halve(before).graph.node}
    assert all(modules[node.name] == module_of(node) for node in before.graph.node) and any(modules.values())


@pytest.mark.parametrize("name", ["image_encoder", "fusion"])
def test_inputs_and_outputs_keep_their_types(tiny_bundle: Path, name: str) -> None:
    before, _ = real(tiny_bundle, name)
    after = halve(before)
    for side in ("input", "output"):
        assert list(getattr(before.graph, side)) == list(getattr(after.graph, side))
    assert {value.type.tensor_type.elem_type for value in after.graph.value_info} >= {TensorProto.FLOAT16}


def chain() -> onnx.ModelProto:
    """3 * 300 * 300 / 300 / 300: 270,000 on the way."""
    nodes = [node("Mul", "x c", "a"), node("Mul", "a c", "b"), node("Div", "b c", "d"), node("Div", "d c", "y")]
    return graph(nodes, c=300)


def test_what_would_overflow_stays_in_fp32() -> None:
    model, feeds = chain(), feed(1, 2, 3, -3)
    assert ranges(model, feeds) == {"x": 3, "c": 300, "a": 900, "b": 270_000, "d": 900, "y": 3}
    # Without islands it overflows, and the pass notices.
    assert np.isinf(run(halve(model), feeds)).any()
    with pytest.raises(GateFailed, match="b: inf"):
        Fp16(feeds).ensures(model, halve(model))
    fp16 = Fp16(feeds)
    after = fp16(model)
    assert list(fp16.islands) == ["Mul_b", "Div_d"] and fp16.islands["Mul_b"].startswith("b ")
    assert np.allclose(run(after, feeds), feeds[0]["x"], rtol=2e-3)
    # The islands read the constant that they share with other nodes in FP32.
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert types == {"c": TensorProto.FLOAT16, "c.fp32": TensorProto.FLOAT}


def test_an_island_up_to_the_inputs_and_outputs_rounds_nothing() -> None:
    nodes = [node("Mul", "x c", "a"), node("Add", "a c", "y")]
    model, feeds = graph(nodes, c=1e6), feed(1.00001, 2, 3, -3)
    islands = find_islands(model, feeds)
    after = halve(model, islands)
    assert len(islands) == 2 and not any(node.op_type == "Cast" for node in after.graph.node)
    assert np.array_equal(run(after, feeds), run(model, feeds))


def test_half_of_the_range_is_kept_free() -> None:
    model = graph([node("Mul", "x c", "y")], c=1)
    assert find_islands(model, feed(LARGEST / 2, 0, 0, 0)) == {}
    assert list(find_islands(model, feed(LARGEST / 2 + 1, 0, 0, 0))) == ["Mul_y"]


@pytest.mark.parametrize("kind", ["ReduceL2", "LayerNormalization", "ReduceMean"])
def test_a_sum_inside_an_operator_counts(kind: str) -> None:
    """The mean of 100 numbers near 1,000 is 1,000, their sum 100,000; their norm is 10,000, and 1e8 before the root."""
    reduced = numpy_helper.from_array(np.array([1]), "axes")
    inputs = "x scale" if kind == "LayerNormalization" else "x axes"
    model = graph([node(kind, inputs, "y")], size=100, scale=np.ones(100))
    model.graph.initializer.append(reduced)
    assert list(find_islands(model, feed(*np.linspace(900, 1000, 100)))) == [f"{kind}_y"]
    assert find_islands(model, feed(*np.linspace(9, 10, 100))) == {}


def normalize(epsilon: float, guard: str) -> onnx.ModelProto:
    """x / guard(|x|, epsilon), and that times 2."""
    model = graph(
        [
            node("ReduceL2", "x axes", "norm", keepdims=1),
            node(guard, "norm epsilon", "kept"),
            node("Div", "x kept", "unit"),
            node("Mul", "unit two", "y"),
        ],
        epsilon=epsilon,
        two=2,
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    return model


@pytest.mark.parametrize("guard", ["Clip", "Add", "Max"])
def test_an_epsilon_that_would_be_zero_stays_in_fp32_up_to_the_division(guard: str) -> None:
    model, nothing = normalize(1e-12, guard), feed(0, 0, 0, 0)
    assert np.isnan(run(halve(model), nothing)).all()
    islands = find_islands(model, feed(1, 2, 3, 4))
    assert list(islands) == [f"{guard}_kept", "Div_unit"] and all("epsilon" in reason for reason in islands.values())
    assert np.array_equal(run(halve(model, islands), nothing), nothing[0]["x"])
    # It does not help to keep the guard alone: its result would be rounded to zero before the division.
    assert np.isnan(run(halve(model, [f"{guard}_kept"]), nothing)).all()
    # FP16 can hold 1e-6, if with few bits.
    assert find_islands(normalize(1e-6, guard), feed(1, 2, 3, 4)) == {}
    assert np.array_equal(run(halve(normalize(1e-6, guard)), nothing), nothing[0]["x"])


def test_one_number_of_many_may_vanish_but_not_from_a_divisor() -> None:
    values, feeds = np.array([1, 1e-9, 1, 1]), feed(1, 2, 3, 4)
    assert find_islands(graph([node("Mul", "x c", "y")], c=values), feeds) == {}
    divided = graph([node("Div", "x c", "y")], c=values * 1e-2 + 1e-12)
    assert list(find_islands(divided, feed(1e-9, 1e-9, 0, 0))) == ["Div_y"]
    after = halve(graph([node("Mul", "x c", "y")], c=values))
    assert numpy_helper.to_array(after.graph.initializer[0])[1] == 0


def test_a_constant_beyond_fp16_is_neither_clipped_nor_infinite() -> None:
    model, feeds = (
        graph([node("Add", "x mask", "a"), node("Softmax", "a", "y")], mask=[0, 0, -3.4e38, -3.4e38]),
        feed(1, 2, 3, 4),
    )
    with pytest.raises(GateFailed, match="mask"):
        Fp16(feeds).ensures(model, halve(model))
    islands = find_islands(model, feeds)
    assert list(islands) == ["Add_a", "Softmax_y"]
    assert np.array_equal(run(halve(model, islands), feeds), run(model, feeds))


def test_an_operator_without_fp16_stays_in_fp32() -> None:
    """Range takes no FP16 in ONNX: 0, 1, ... up to the largest of x."""
    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Range", "zero top one", "r"),
        node("Unsqueeze", "r axes", "y"),
    ]
    model, feeds = graph(nodes, zero=0, one=1), feed(1, 2, 3, 4)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    fp16 = Fp16(feeds)
    after = fp16(model)
    assert list(fp16.islands) == ["Range_r"]
    assert np.array_equal(run(after, feeds), [[0, 1, 2, 3]])


def test_a_tensor_that_onnx_fixes_to_fp32_stays_fp32() -> None:
    """The scales of a Resize: here each of four numbers twice."""
    nodes = [node("Unsqueeze", "x axes", "a"), node("Resize", "a  scales", "b", mode="nearest")]
    nodes.append(node("Squeeze", "b axes", "y"))
    nodes[1].input[:] = ["a", "", "scales"]
    model, feeds = graph(nodes, scales=[1, 1, 2]), feed(1, 2, 3, 4)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    after = Fp16(feeds)(model)
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert types["scales"] == TensorProto.FLOAT and "Cast" in {node.op_type for node in after.graph.node}
    assert np.array_equal(run(after, feeds), [[1, 1, 2, 2, 3, 3, 4, 4]])


def test_onnx_runtime_alone_cannot_judge_fp16() -> None:
    """Why rounded() exists: the CPU provider rounds nothing between two nodes, and nothing overflows."""
    import onnxruntime

    model, feeds = halve(chain()), feed(1, 2, 3, -3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(["y"], dict(feeds[0]))[0]).all() and np.isinf(run(model, feeds)).any()


def test_rounding_is_that_of_numpy() -> None:
    model = graph([node("Mul", "x c", "a"), node("Add", "a c", "y")], c=np.pi)
    x = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    c, half = np.float16(np.pi), x.astype(np.float16)
    assert np.array_equal(run(halve(model), [{"x": x}]), (half * c + c).astype(np.float32))


def test_what_cannot_be_halved_is_refused(tiny_bundle: Path) -> None:
    model, feeds = real(tiny_bundle, "head.match")
    with pytest.raises(DataError) as caught:
        Fp16([])(model)
    assert caught.value.exit_code == 5 and caught.value.fix
    unnamed, constant = chain(), chain()
    unnamed.graph.node[0].name = unnamed.graph.node[1].name
    constant.graph.node.append(helper.make_node("Constant", [], ["k"], name="k", value_float=1.0))
    for refused in (unnamed, constant, halve(chain())):
        with pytest.raises(GateFailed):
            Fp16(feeds)(refused)


def test_nothing_is_written_if_a_value_does_not_fit(tmp_path: Path) -> None:
    """A node that gives NaN in FP32 does not become an island, and the pass fails."""
    onnx.save(graph([node("Log", "x", "y")]), tmp_path / "x.onnx")
    with pytest.raises(GateFailed, match="y: nan"):
        write_variant(tmp_path / "x.onnx", tmp_path / "y.onnx", variant=Variant.FP16, feeds=feed(-1, 1, 1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def broken(before: onnx.ModelProto, how: str) -> onnx.ModelProto:
    model = halve(before)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[1])
    array = numpy_helper.to_array(weight).copy()
    if how == "foreign":
        model.graph.node.append(helper.make_node("FusedGelu", [gemm.input[0]], ["z"], name="z", domain="com.microsoft"))
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    elif how in ("infinite", "clipped"):
        array.flat[0] = np.inf if how == "infinite" else LARGEST
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    elif how == "float":
        return halve(before, [gemm.name])
    else:
        cast = next(node for node in model.graph.node if "logits" in node.output)
        cast.attribute[0].i = TensorProto.FLOAT16
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("foreign", "FusedGelu"),
        ("infinite", "classify.weight"),
        ("clipped", "classify.weight"),
        ("float", "classify.weight"),
        ("output", "float16"),
    ],
)
def test_the_promises_of_the_pass_are_checked(tiny_bundle: Path, how: str, named: str) -> None:
    before, feeds = real(tiny_bundle, "head.match")
    Fp16(feeds).ensures(before, halve(before))
    with pytest.raises(GateFailed, match=named):
        Fp16(feeds).ensures(before, broken(before, how))


def test_real_weights_survive(minilm_bundle: Path, tmp_path: Path) -> None:
    """MiniLM has a channel of 200 among ones: the squares of two LayerNormalizations add up to more than FP16 should hold."""
    before, feeds = real(minilm_bundle, "text_encoder")
    fp16 = Fp16(feeds)
    after = fp16(before)
    modules = {node.name: module_of(node) for node in before.graph.node}
    assert 1 <= len(fp16.islands) <= 4 and all(modules[name].endswith("output.LayerNorm") for name in fp16.islands)
    report = report_of(rounded(after), minilm_bundle, "text_encoder", tmp_path / "rounded.onnx")
    assert report.scaled_error <= TOLERANCE.scaled_error and report.cosine >= TOLERANCE.cosine
    assert after.ByteSize() < 0.52 * before.ByteSize()
