"""Whatever a real engine raises for a hostile graph becomes one of our errors, which names the engine and the graph; and
outputs must be what the spec says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from simmim_export.engines import get_engine
from simmim_export.engines.base import Engine
from simmim_export.engines.checks import check_outputs
from simmim_export.engines.failures import running
from simmim_export.errors import BundleError, CheckpointError, EngineUnavailable, FewerThreads, SimmimError, UsageError
from simmim_export.spec import Axis, GraphSpec, Precision, TensorSpec

IDS = TensorSpec("ids", "int64", ("batch", "sequence"))
AXES = (Axis("batch", 1, 8), Axis("sequence", 1, 8))
SPEC = GraphSpec("head.odd", (IDS,), (TensorSpec("y", "float32", ("batch", 4)),), AXES)
FEEDS = {"ids": np.array([[1, 2, 3], [3, 2, 1]])}


@pytest.fixture(params=["ort", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    engine = get_engine(request.param)
    if (reason := engine.why_unavailable()) is not None:
        pytest.skip(reason)
    return engine


def graph(path: Path, nodes: list[onnx.NodeProto], dtype: int = TensorProto.FLOAT, **constants: np.ndarray) -> Path:
    """Write a graph from ``ids`` to ``y``, of any shape."""
    x = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    y = helper.make_tensor_value_info("y", dtype, None)
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, path)
    return path


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"the {kind}", **attributes)


def failure(engine: Engine, path: Path, feeds: dict[str, np.ndarray] = FEEDS) -> SimmimError:
    """The error of opening or running the graph at ``path``."""
    with pytest.raises(SimmimError) as caught:
        engine.open(path, SPEC, precision=Precision.FP32, threads=1).run(feeds)
    assert repr(engine.name) in caught.value.what and "head.odd" in caught.value.what and caught.value.fix
    return caught.value


# OpenVINO 2026.4 checks neither, and reads whatever lies behind a table or a tensor. The runtime refuses such ids before (see
# runtime/test_hostile_graphs.py), and inputs whose sizes do not fit their spec.
def test_a_gather_out_of_range_is_an_error(tmp_path: Path) -> None:
    rows = np.zeros((3, 4), np.float32)
    nodes = [node("Gather", "rows ids", "all"), node("ReduceSum", "all axes", "y", keepdims=0)]
    error = failure(get_engine("ort"), graph(tmp_path / "x.onnx", nodes, rows=rows, axes=np.array([1])))
    assert isinstance(error, BundleError) and error.exit_code == 5


def test_an_impossible_reshape_is_an_error(tmp_path: Path) -> None:
    nodes = [node("Cast", "ids", "f", to=TensorProto.FLOAT), node("Reshape", "f shape", "y")]
    error = failure(get_engine("ort"), graph(tmp_path / "x.onnx", nodes, shape=np.array([7, 4])))
    assert isinstance(error, BundleError) and error.exit_code == 5


# Runs a graph (second argument) in an engine (first argument) with limited memory, because the machine is not ours alone.
IN_A_LIMIT = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
from test_failures import FEEDS, SPEC, Precision, SimmimError, get_engine
try:
    get_engine(sys.argv[1]).open(Path(sys.argv[2]), SPEC, precision=Precision.FP32, threads=1).run(FEEDS)
except SimmimError as error:
    print(error.what)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("size", [2**44, 2**62])
def test_missing_memory_is_an_unavailable_engine(engine: Engine, tmp_path: Path, size: int) -> None:
    """For 16 terabytes of floats, and for more bytes than 64 bits can count."""
    nodes = [
        node("Cast", "ids", "f", to=TensorProto.FLOAT),
        node("ReduceSum", "f", "sum", keepdims=0),
        node("Reshape", "sum one", "row"),
        node("Expand", "row shape", "all"),
        node("Mul", "all all", "y"),
    ]
    path = graph(tmp_path / "x.onnx", nodes, one=np.array([1]), shape=np.array([size]))
    command = [sys.executable, "-c", IN_A_LIMIT, engine.name, str(path)]
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": folders}
    )
    assert done.returncode == 3 or (size == 2**62 and done.returncode == 5), done.stderr
    assert repr(engine.name) in done.stdout and "head.odd" in done.stdout


def test_a_tensor_that_the_graph_lacks_is_an_error(engine: Engine, tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx", [node("Cast", "ids", "y", to=TensorProto.FLOAT)])
    for old, new in (("y", "z"), ("ids", "jds")):
        model = onnx.load(path)
        for names in (model.graph.node[0].input, model.graph.node[0].output):
            names[:] = [new if name == old else name for name in names]
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        onnx.save(model, tmp_path / "renamed.onnx")
        assert failure(engine, tmp_path / "renamed.onnx").exit_code == 5


WRONG = {
    "other classes": [node("Cast", "ids", "f", to=TensorProto.FLOAT), node("Pad", "f pads", "y")],
    "other rows": [node("Cast", "ids", "f", to=TensorProto.FLOAT), node("Reshape", "f square", "y")],
    "other rank": [node("Cast", "ids", "f", to=TensorProto.FLOAT), node("Unsqueeze", "f one", "y")],
    "other dtype": [node("Pad", "ids pads", "y")],
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_an_output_that_differs_from_the_spec_is_an_error(engine: Engine, tmp_path: Path, case: str) -> None:
    dtype = TensorProto.INT64 if case == "other dtype" else TensorProto.FLOAT
    feeds = {"ids": np.ones((2, 3 if case == "other dtype" else 4 if case == "other rows" else 2), np.int64)}
    constants = {"pads": np.array([0, 0, 0, 1]), "square": np.array([-1, 2]), "one": np.array([1])}
    path = graph(tmp_path / "x.onnx", WRONG[case], dtype, **constants)
    error = failure(engine, path, feeds)
    assert isinstance(error, BundleError) and error.exit_code == 5 and "'y'" in error.what


def test_a_session_goes_on_after_an_error(engine: Engine, tmp_path: Path) -> None:
    nodes = [node("Cast", "ids", "f", to=TensorProto.FLOAT), node("Reshape", "f shape", "y")]
    session = engine.open(
        graph(tmp_path / "x.onnx", nodes, shape=np.array([-1, 4])), SPEC, precision=Precision.FP32, threads=1
    )
    good, three_rows = {"ids": np.arange(8).reshape(2, 4)}, {"ids": np.arange(12).reshape(2, 6)}
    for _ in range(3):
        with pytest.raises(BundleError):
            session.run(three_rows)
        np.testing.assert_array_equal(session.run(good)["y"], good["ids"])
    session.close()
    with pytest.raises(UsageError):
        session.run(good)


def test_torch_errors_are_ours(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    from simmim_export.bundle import Bundle

    spec = Bundle.open(tiny_bundle).manifest.graph("text_encoder")
    session = get_engine("torch").open(tiny_checkpoint, spec, precision=Precision.FP32)
    ids = np.full((1, 3), 10**6)
    with pytest.raises(BundleError) as caught:
        session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert "'torch'" in caught.value.what and "text_encoder" in caught.value.what


def test_our_own_errors_pass_through_and_others_do_not() -> None:
    for own in (UsageError("x"), KeyboardInterrupt(), SystemExit(3), FewerThreads("x")):
        with pytest.raises(type(own)) as caught, running("ort", SPEC):
            raise own
        assert caught.value is own
    for theirs, expected in (
        (KeyError("y"), BundleError),
        (RuntimeError(""), BundleError),
        (AssertionError(), BundleError),
        (MemoryError(), EngineUnavailable),
        (RuntimeError("std::bad_alloc"), EngineUnavailable),
    ):
        with pytest.raises(expected) as raised, running("ort", SPEC):
            raise theirs
        assert raised.value.__cause__ is theirs
    with pytest.raises(CheckpointError) as opened, running("torch", SPEC, where=Path("a.pt"), error=CheckpointError):
        raise KeyError("weights")
    assert opened.value.where == "a.pt"


@pytest.mark.parametrize(
    "output",
    [
        None,
        [1.0],
        np.float32(1),
        np.zeros((2, 4)),
        np.zeros((2, 4), np.float16),
        np.zeros((2, 5), np.float32),
        np.zeros((3, 4), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((2, 4, 1), np.float32),
        np.zeros(4, np.float32),
    ],
    ids=repr,
)
def test_every_wrong_form_of_an_output_is_an_error(output: object) -> None:
    check_outputs("ort", SPEC, feeds=FEEDS, outputs={"y": np.zeros((2, 4), np.float32)})
    with pytest.raises(BundleError, match="'y'"):
        check_outputs("ort", SPEC, feeds=FEEDS, outputs={"y": output})


def test_an_axis_of_outputs_has_one_size() -> None:
    pair = tuple(TensorSpec(name, "float32", ("batch", "regions")) for name in "yz")
    spec = GraphSpec("g", (IDS,), pair, (*AXES, Axis("regions", 1, 9)))
    check_outputs("ort", spec, feeds=FEEDS, outputs={name: np.zeros((2, 7), np.float32) for name in "yz"})
    with pytest.raises(BundleError, match="'z'"):
        check_outputs(
            "ort", spec, feeds=FEEDS, outputs={"y": np.zeros((2, 7), np.float32), "z": np.zeros((2, 6), np.float32)}
        )
