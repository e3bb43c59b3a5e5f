"""FP16: what the pass promises, which nodes it leaves in FP32, and that real weights survive rounding after every node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.engines import get_engine
from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.fp16 import check, check_values, halve, require, rounded, to_fp16
from simmim_export.precision.islands import LARGEST, Feeds, find_islands, ranges
from simmim_export.proof.parity import ParityReport, compare
from simmim_export.spec import GraphSpec, Precision, Tolerance

TOLERANCE = Tolerance(scaled_error=0.03, cosine=0.9999)
GRAPHS = ["image_encoder", "text_encoder", "fusion", "head.match", "head.vqa"]


def real(bundle: Path, name: str) -> tuple[Path, GraphSpec, Golden, Feeds]:
    """The FP32 graph ``name`` of a bundle, its spec, the golden tensors, and single samples of them for its inputs."""
    spec, golden = Bundle.open(bundle).manifest.graph(name), golden_of(bundle)
    case = max(golden.cases, key=lambda case: len(golden.cases[case]["pixels"]))
    batch = golden.feeds(case, spec)
    count = len(next(iter(batch.values())))
    feeds = [{name: array[i : i + 1] for name, array in batch.items()} for i in range(count)]
    return bundle / f"graphs/{name}.fp32.onnx", spec, golden, feeds


def figures(model: onnx.ModelProto, spec: GraphSpec, golden: Golden, path: Path) -> ParityReport:
    onnx.save(model, path)
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


def reasons(model: onnx.ModelProto, feeds: Feeds) -> dict[str, str]:
    return {island.node: island.reason for island in find_islands(model, feeds)}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_real_graph_survives(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    source, spec, golden, feeds = real(tiny_bundle, name)
    to_fp16(source, tmp_path / "x.onnx", feeds)
    after = onnx.load(tmp_path / "x.onnx")
    report = figures(rounded(after), spec, golden, tmp_path / "rounded.onnx")
    assert report.scaled_error <= TOLERANCE.scaled_error and report.cosine >= TOLERANCE.cosine
    # FP16 was computed in: FP32 differs by the order of summation alone.
    assert report.scaled_error > 1e-5
    # And the file itself is one that an engine takes.
    assert figures(after, spec, golden, tmp_path / "y.onnx").scaled_error <= TOLERANCE.scaled_error
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in after.graph.initializer}


def test_the_same_graph_gives_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    source, _, _, feeds = real(tiny_bundle, "text_encoder")
    before = source.read_bytes()
    found = [to_fp16(source, tmp_path / name, feeds) for name in ("a", "b")]
    assert found[0] == found[1] and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert source.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_modules_are_still_known_and_the_path_is_not_longer(tiny_bundle: Path) -> None:
    before, path = onnx.load(real(tiny_bundle, "fusion")[0]), list(sys.path)
    after = halve(before)
    assert sys.path == path
    scopes = {node.name: list(node.metadata_props) for node in after.graph.node}
    assert all(scopes[node.name] == list(node.metadata_props) for node in before.graph.node)


@pytest.mark.parametrize("name", ["image_encoder", "fusion"])
def test_inputs_and_outputs_keep_their_types(tiny_bundle: Path, name: str) -> None:
    before = onnx.load(real(tiny_bundle, name)[0])
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
    # Without islands it does overflow, and that is noticed.
    assert np.isinf(run(halve(model), feeds)).any()
    with pytest.raises(GateFailed, match="b: inf"):
        check_values(halve(model), feeds)
    found = reasons(model, feeds)
    assert list(found) == ["Mul_b", "Div_d"] and found["Mul_b"] == "b reaches 2.7e+05"
    after = halve(model, found)
    check(model, after, found)
    check_values(after, feeds)
    assert np.allclose(run(after, feeds), feeds[0]["x"], rtol=2e-3)
    # The constant that they share with the others is theirs in FP32.
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert types == {"c": TensorProto.FLOAT16, "c.fp32": TensorProto.FLOAT}


def test_an_island_up_to_the_inputs_and_outputs_rounds_nothing() -> None:
    nodes = [node("Mul", "x c", "a"), node("Add", "a c", "y")]
    model, feeds = graph(nodes, c=1e6), feed(1.00001, 2, 3, -3)
    found = reasons(model, feeds)
    after = halve(model, found)
    assert len(found) == 2 and not any(node.op_type == "Cast" for node in after.graph.node)
    assert np.array_equal(run(after, feeds), run(model, feeds))


def test_half_of_the_range_is_kept_free() -> None:
    model = graph([node("Mul", "x c", "y")], c=1)
    assert reasons(model, feed(LARGEST / 2, 0, 0, 0)) == {}
    assert list(reasons(model, feed(LARGEST / 2 + 1, 0, 0, 0))) == ["Mul_y"]


@pytest.mark.parametrize("kind", ["ReduceL2", "LayerNormalization", "ReduceMean"])
def test_a_sum_inside_an_operator_counts(kind: str) -> None:
    """The mean of 100 numbers near 1,000 is 1,000, their sum 100,000; their norm is 10,000, and 1e8 before the root."""
    reduced = numpy_helper.from_array(np.array([1]), "axes")
    inputs = "x scale" if kind == "LayerNormalization" else "x axes"
    model = graph([node(kind, inputs, "y")], size=100, scale=np.ones(100))
    model.graph.initializer.append(reduced)
    found = reasons(model, feed(*np.linspace(900, 1000, 100)))
    assert list(found) == [f"{kind}_y"] and "adds up to" in found[f"{kind}_y"]
    assert reasons(model, feed(*np.linspace(9, 10, 100))) == {}


def normalise(epsilon: float, guard: str) -> onnx.ModelProto:
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
    model, nothing = normalise(1e-12, guard), feed(0, 0, 0, 0)
    assert np.isnan(run(halve(model), nothing)).all()
    found = reasons(model, feed(1, 2, 3, 4))
    assert list(found) == [f"{guard}_kept", "Div_unit"]
    assert found[f"{guard}_kept"] == "epsilon, 1.0e-12, would be zero" and "by what epsilon" in found["Div_unit"]
    assert np.array_equal(run(halve(model, found), nothing), nothing[0]["x"])
    # It does not help to keep the guard alone: what it gives would be rounded to zero before the division.
    assert np.isnan(run(halve(model, [f"{guard}_kept"]), nothing)).all()
    # 1e-6 is left as a number of FP16, if one of few bits.
    assert reasons(normalise(1e-6, guard), feed(1, 2, 3, 4)) == {}
    assert np.array_equal(run(halve(normalise(1e-6, guard)), nothing), nothing[0]["x"])


def test_one_number_of_many_may_vanish_but_not_from_a_divisor() -> None:
    values, feeds = np.array([1, 1e-9, 1, 1]), feed(1, 2, 3, 4)
    assert reasons(graph([node("Mul", "x c", "y")], c=values), feeds) == {}
    assert list(reasons(graph([node("Div", "x c", "y")], c=values * 1e-2 + 1e-12), feed(1e-9, 1e-9, 0, 0))) == ["Div_y"]
    after = halve(graph([node("Mul", "x c", "y")], c=values))
    assert numpy_helper.to_array(after.graph.initializer[0])[1] == 0


def test_a_constant_beyond_fp16_is_neither_clipped_nor_infinite() -> None:
    model, feeds = (
        graph([node("Add", "x mask", "a"), node("Softmax", "a", "y")], mask=[0, 0, -3.4e38, -3.4e38]),
        feed(1, 2, 3, 4),
    )
    with pytest.raises(GateFailed, match="mask is beyond"):
        check(model, halve(model))
    found = reasons(model, feeds)
    assert list(found) == ["Add_a", "Softmax_y"]
    assert np.array_equal(run(halve(model, found), feeds), run(model, feeds))


def test_an_operator_without_fp16_stays_in_fp32() -> None:
    """Range takes no FP16 in ONNX: 0, 1, ... up to the largest of x."""
    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Range", "zero top one", "r"),
        node("Unsqueeze", "r axes", "y"),
    ]
    model, feeds = graph(nodes, zero=0, one=1), feed(1, 2, 3, 4)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    found = reasons(model, feeds)
    assert found == {"Range_r": "ONNX has no FP16 form of Range"}
    after = halve(model, found)
    check(model, after, found)
    assert np.array_equal(run(after, feeds), [[0, 1, 2, 3]])


def test_onnx_runtime_alone_is_no_judge_of_fp16() -> None:
    """Why there is rounded(): on its CPU provider nothing between two nodes is rounded, and nothing overflows."""
    import onnxruntime

    model, feeds = halve(chain()), feed(1, 2, 3, -3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(["y"], dict(feeds[0]))[0]).all() and np.isinf(run(model, feeds)).any()


def test_rounding_is_that_of_numpy() -> None:
    model = graph([node("Mul", "x c", "a"), node("Add", "a c", "y")], c=np.pi)
    x = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    c, half = np.float16(np.pi), x.astype(np.float16)
    assert np.array_equal(run(halve(model), [{"x": x}]), (half * c + c).astype(np.float32))


def test_what_cannot_be_halved_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    source, _, _, feeds = real(tiny_bundle, "head.match")
    with pytest.raises(DataError, match="no samples"):
        to_fp16(source, tmp_path / "x.onnx", [])
    unnamed, constant = chain(), chain()
    unnamed.graph.node[0].name = unnamed.graph.node[1].name
    constant.graph.node.append(helper.make_node("Constant", [], ["k"], name="k", value_float=1.0))
    for model, said in [(unnamed, "by name"), (constant, "no initialisers"), (halve(chain()), "FP16 tensors already")]:
        with pytest.raises(GateFailed, match=said):
            require(model, feeds)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_a_value_does_not_fit(tmp_path: Path) -> None:
    """NaN in FP32 is no reason for an island, and no graph to ship."""
    onnx.save(graph([node("Log", "x", "y")]), tmp_path / "x.onnx")
    with pytest.raises(GateFailed, match="do not fit"):
        to_fp16(tmp_path / "x.onnx", tmp_path / "y.onnx", feed(-1, 1, 1, 1))
    assert not (tmp_path / "y.onnx").exists()


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
    ("how", "said"),
    [
        ("foreign", "outside ONNX"),
        ("infinite", "beyond FP16"),
        ("clipped", "not what rounding makes"),
        ("float", "classify.weight of .* is not in FP16"),
        ("output", "changed the outputs .*float32.*float16"),
    ],
)
def test_what_the_pass_promises_is_checked(tiny_bundle: Path, how: str, said: str) -> None:
    before = onnx.load(real(tiny_bundle, "head.match")[0])
    check(before, halve(before))
    with pytest.raises(GateFailed, match=said):
        check(before, broken(before, how))


def test_real_weights_survive(minilm_bundle: Path, tmp_path: Path) -> None:
    """MiniLM has a channel of 200 among ones: the squares of two LayerNormalizations add up to more than FP16 should hold."""
    source, spec, golden, feeds = real(minilm_bundle, "text_encoder")
    halved = to_fp16(source, tmp_path / "x.onnx", feeds)
    after = onnx.load(tmp_path / "x.onnx")
    assert 1 <= len(halved.islands) <= 4
    for island in halved.islands:
        assert island.module.endswith("output.LayerNorm") and "adds up to" in island.reason and island.largest > 3e4
    report = figures(rounded(after), spec, golden, tmp_path / "rounded.onnx")
    assert report.scaled_error <= TOLERANCE.scaled_error and report.cosine >= TOLERANCE.cosine
    assert (tmp_path / "x.onnx").stat().st_size < 0.52 * source.stat().st_size


def test_int8_can_be_made_after_fp16_in_one_process() -> None:
    """``--precision fp16 --precision int8``, in that order: the quantiser imports modules from a folder on the path."""
    code = (
        "import sys; before = list(sys.path)\n"
        "from simmim_export.precision.fp16 import _converter; _converter()\n"
        "assert sys.path == before; import onnxruntime.quantization"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
