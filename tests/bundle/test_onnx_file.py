"""The reader of ONNX files agrees with the onnx package or refuses, whatever the bytes are. Only graphs of ours pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support import change_graph

from simmim_export.bundle import Bundle, Staging, wire
from simmim_export.bundle.onnx_file import OPERATORS, check_graph_file, read_graph
from simmim_export.bundle.onnx_reader import MAX_NODES, GraphFile
from simmim_export.errors import BundleError, GateFailed
from simmim_export.runtime import load
from simmim_export.spec import Axis, GraphSpec, TensorSpec

SPEC = GraphSpec(
    "g",
    (TensorSpec("x", "float32", ("batch", 4)),),
    (TensorSpec("y", "float32", ("batch", 4)),),
    (Axis("batch", 1, 4),),
)
FAST = settings(deadline=None, suppress_health_check=list(HealthCheck))


def add_model() -> onnx.ModelProto:
    """A model that computes SPEC: y = x + w."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"], name="sum")], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def by_onnx(model: onnx.ModelProto) -> GraphFile:
    """What :func:`read_graph` must return for a model without problems, from the onnx package."""
    seen = GraphFile(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
    for node in model.graph.node:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        seen.operators.setdefault(kind, node.name)
    for values, specs in ((model.graph.input, seen.inputs), (model.graph.output, seen.outputs)):
        for value in values:
            tensor = value.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "type 0"
            shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
            specs.append(TensorSpec(value.name, dtype, shape))
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    inputs = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.domain in ("", "ai.onnx") and not any(part.i for part in node.attribute):
            table, indices = node.input if len(node.input) == 2 else ("", "")
            if table in rows and indices in inputs:
                seen.tables[indices] = min(rows[table], seen.tables.get(indices, rows[table]))
    return seen


def hides_something(model: onnx.ModelProto) -> bool:
    """Whether a model has anything that digests and a list of operators do not cover, by the onnx package alone."""
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            nested = attribute.HasField("g") or attribute.graphs
            if nested or attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                return True
    outside = any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in tensors)
    return bool(outside or model.graph.sparse_initializer or model.functions or model.training_info)


def test_every_exported_file_is_read_as_onnx_reads_it(
    tiny_bundle: Path, every_bundle: Path, asked_bundle: Path
) -> None:
    used = set()
    for bundle in (tiny_bundle, every_bundle, asked_bundle):
        manifest = Bundle.open(bundle).manifest
        for artifact in manifest.artifacts:
            path = bundle / artifact.path
            graph = read_graph(path)
            assert graph == by_onnx(onnx.load(path))
            check_graph_file(path, manifest.graph(artifact.graph))
            used |= set(graph.operators)
            assert graph.tables == ({"input_ids": 128} if artifact.graph == "text_encoder" else {})
    assert {"QuantizeLinear", "Conv", "Softmax", "Expand"} <= used <= OPERATORS


def control_flow(kind: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        inner = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        body = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "body", [], [inner])
        names = {"If": ["then_branch", "else_branch"]}.get(kind, ["body"])
        node = helper.make_node(kind, ["w"], ["v"], name="hidden", **dict.fromkeys(names, body))
        model.graph.node.append(node)

    return change


def external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def constant(model: onnx.ModelProto, **attributes: object) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["v"], name="hidden", **attributes))


def sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), "hidden")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4])


def function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Identity", ["a"], ["b"])]
    made = helper.make_function("own", "hidden", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    model.functions.append(made)


def rename(values: list[onnx.ValueInfoProto], name: str) -> None:
    values[0].name = name


PROBLEMS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "external": (lambda m: external(m.graph.initializer[0]), "'w'"),
    "external by entries alone": (lambda m: m.graph.initializer[0].external_data.add(key="location", value="a"), "'w'"),
    "external in a node": (
        lambda m: constant(m, value=external(numpy_helper.from_array(np.ones(9, np.float32), "v"))),
        "'hidden'",
    ),
    "sparse": (lambda m: m.graph.sparse_initializer.append(sparse()), "sparse"),
    "sparse in a node": (lambda m: constant(m, sparse_value=sparse()), "'hidden'"),
    **{kind: (control_flow(kind), "'hidden'") for kind in ("If", "Loop", "Scan", "SequenceMap")},
    "function": (function, "function"),
    "training": (lambda m: m.training_info.add(), "training"),
    "another domain": (
        lambda m: m.graph.node.append(helper.make_node("Gelu", ["x"], ["v"], name="hidden", domain="com.microsoft")),
        "com.microsoft::Gelu",
    ),
    "operator": (lambda m: m.graph.node.append(helper.make_node("NonZero", ["x"], ["v"], name="hidden")), "NonZero"),
    "an axis without measure": (
        lambda m: m.graph.node.append(helper.make_node("Softmax", ["x"], ["v"], name="hidden", axis=-(2**62))),
        "'hidden'",
    ),
    "axes that are not a permutation": (
        lambda m: m.graph.node.append(helper.make_node("Transpose", ["x"], ["v"], name="hidden", perm=[0, 2, 2**15])),
        "'hidden'",
    ),
    "two tensors of a name": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "'w'"),
    "a node that gives an input": (lambda m: m.graph.node.append(helper.make_node("Relu", ["x"], ["x"])), "'x'"),
    "two outputs of a name": (
        lambda m: m.graph.node.append(helper.make_node("Split", ["x"], ["hidden"] * 2, num_outputs=2)),
        "'hidden'",
    ),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999"),
    "type of a tensor": (
        lambda m: m.graph.initializer.append(helper.make_tensor("hidden", TensorProto.STRING, [1], ["a"])),
        "'hidden'",
    ),
    "input name": (lambda m: rename(m.graph.input, "hidden"), "'hidden'"),
    "output name": (lambda m: rename(m.graph.output, "hidden"), "'hidden'"),
    "more inputs": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1])),
        "'hidden'",
    ),
    "dtype": (lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "'y'"),
    "fixed size": (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 23), "'y'"),
    "fixed batch": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "'x'"),
    "rank": (lambda m: m.graph.output[0].type.tensor_type.shape.dim.pop(), "'y'"),
    "no shape": (lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"), "'y'"),
}


@pytest.mark.parametrize("case", sorted(PROBLEMS))
def test_what_we_do_not_export_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    path, model = tmp_path / "g.onnx", add_model()
    onnx.save(model, path)
    check_graph_file(path, SPEC)
    change, place = PROBLEMS[case]
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError) as caught:
        check_graph_file(path, SPEC)
    assert caught.value.exit_code == 5 and caught.value.where == str(path) and place in caught.value.what


def whole() -> bytes:
    return add_model().SerializeToString()


def tensor_that_claims(size: int) -> bytes:
    model = add_model()
    model.graph.initializer[0].dims[:] = [size]
    return model.SerializeToString()


def tensor_without_data() -> bytes:
    model = add_model()
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[:] = [2**30]
    return model.SerializeToString()


BROKEN = {
    "empty": lambda: b"",
    "text": lambda: b"not a graph",
    "zeros": lambda: bytes(1000),
    "cut": lambda: whole()[:-1],
    "garbage behind": lambda: whole() + b"\0",
    "more text behind": lambda: whole() + b"garbage",
    "two graphs": lambda: whole() * 2,
    "no graph": lambda: onnx.ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", 20)]).SerializeToString(),
    "no opset": lambda: onnx.ModelProto(ir_version=10, graph=add_model().graph).SerializeToString(),
    "length beyond the file": lambda: b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "endless number": lambda: b"\xff" * 100,
    "a group": lambda: whole() + b"\x3b\x3c",
    "two nested lengths": lambda: b"\x3a\x04\x0a\x7f\x0a\x00",
    "claims too much": lambda: tensor_that_claims(2**40),
    "claims a little more": lambda: tensor_that_claims(5),
    "claims and has nothing": tensor_without_data,
    "negative size": lambda: tensor_that_claims(-1),
    "a name that is not UTF-8": lambda: whole().replace(b"sum", b"\xff\xfe\xfd"),
    "a long name": lambda: onnx.ModelProto(
        ir_version=10, graph=onnx.GraphProto(node=[helper.make_node("Add", [], [], name="a" * 100_000)])
    ).SerializeToString(),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_bytes_that_are_not_a_whole_model_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(BROKEN[case]())
    with pytest.raises(BundleError) as caught:
        read_graph(path)
    assert caught.value.exit_code == 5 and caught.value.where == str(path)


def test_a_file_of_empty_fields_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FIELDS", 1_000)
    path = tmp_path / "g.onnx"
    path.write_bytes(b"\x3a\xa8\xc3\x01" + b"\x0a\x00" * 12_500)
    with pytest.raises(BundleError) as caught:
        read_graph(path)
    assert caught.value.where == str(path)


def agrees_or_refuses(content: bytes, path: Path) -> bool:
    """Whether ``content`` was accepted. Fail if the onnx package sees something else in it than we do."""
    path.write_bytes(content)
    try:
        graph = read_graph(path)
    except BundleError as error:
        assert error.where == str(path)
        return False
    if graph.problems:  # check_graph_file refuses it
        return True
    model = onnx.load_model_from_string(content)
    assert not hides_something(model)
    assert graph == by_onnx(model)
    return True


@FAST
@given(st.data())
def test_changed_bytes_agree_with_onnx_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.onnx"
    model = add_model()
    change = data.draw(st.sampled_from([None, *(change for change, _ in PROBLEMS.values())]))
    if change is not None:
        change(model)
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "flip", "insert", "delete", "copy", "cut"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=12))
        elif kind == "copy":
            content[at:at] = content[at : at + data.draw(st.integers(1, 40))]
        else:
            at = max(at, 1)
            content[at : at + 1 if kind == "delete" else None] = b""
    agrees_or_refuses(bytes(content), path)


@FAST
@given(st.binary(max_size=200))
def test_any_bytes_agree_with_onnx_or_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    agrees_or_refuses(content, tmp_path_factory.getbasetemp() / "random.onnx")


DTYPES = [np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.float64]


@FAST
@given(
    nodes=st.lists(
        st.tuples(st.text(max_size=8), st.sampled_from(["Add", "Gather", "Sin"]), st.booleans()), max_size=5
    ),
    tensors=st.lists(st.tuples(st.text(max_size=8), st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3))),
    shape=st.lists(st.one_of(st.integers(0, 2**40), st.text(max_size=5), st.none()), max_size=4),
    raw=st.booleans(),
    changes=st.lists(st.sampled_from([change for change, _ in PROBLEMS.values()]), max_size=1),
)
def test_any_model_is_read_as_onnx_reads_it(
    tmp_path_factory: pytest.TempPathFactory, nodes: list, tensors: list, shape: list, raw: bool, changes: list
) -> None:
    model = add_model()
    for index, (name, kind, inner) in enumerate(nodes):
        extra = {"value": numpy_helper.from_array(np.arange(3), "c"), "ints": [1, -2], "words": ["a"]} if inner else {}
        model.graph.node.append(helper.make_node(kind, ["w", "x"], [f"z{index}"], name=name, **extra))
    for index, (ending, dtype, sizes) in enumerate(tensors):
        name = f"{index}{ending}"
        array = np.zeros(sizes, dtype)
        flat = helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), sizes, array.ravel())
        model.graph.initializer.append(numpy_helper.from_array(array, name) if raw else flat)
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.INT64, shape))
    for change in changes:
        change(model)
    path = tmp_path_factory.getbasetemp() / "made.onnx"
    assert agrees_or_refuses(model.SerializeToString(), path)


def test_a_graph_of_too_many_nodes_is_refused(tmp_path: Path) -> None:
    model = add_model()
    model.graph.node.extend(helper.make_node("Relu", ["x"], [f"v{index}"]) for index in range(MAX_NODES))
    onnx.save(model, tmp_path / "long.onnx")
    with pytest.raises(BundleError) as refused:
        read_graph(tmp_path / "long.onnx")
    assert refused.value.where == str(tmp_path / "long.onnx")


def outside(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=1024)


def test_weights_in_another_file_are_refused_by_every_command(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "text_encoder", outside)
    assert (bundle / "graphs/w.bin").is_file()
    for engine in ("ort", "openvino"):
        with load(bundle, engine) as model, pytest.raises(BundleError) as caught:
            model.embed_text(["red"])
        assert "text_encoder" in str(caught.value.where)
    for words in (["verify"], ["certify", "--engine", "ort"], ["build", "--engine", "trt", "--dry-run"]):
        done = run_cli("export", words[0], bundle, *words[1:])
        assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert not (bundle / "certificate.json").exists()


def test_weights_in_another_file_cannot_be_published(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "text_encoder", outside)
    manifest = Bundle.open(bundle).manifest
    with Staging(tmp_path / "new", overwrite=False) as staging:
        for path in (path for path in bundle.rglob("*") if path.is_file()):
            staging.add(str(path.relative_to(bundle)), path.read_bytes())
        with pytest.raises(BundleError):
            staging.publish(manifest, tuple(manifest.files))
    assert not (tmp_path / "new").exists()


def test_an_endless_loop_is_never_run(tiny_bundle: Path, tmp_path: Path) -> None:
    def spin(model: onnx.ModelProto, path: Path) -> None:
        scalar, flag = (
            helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))
        )
        kept, end = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("v", "v2"))
        again = helper.make_tensor_value_info("c2", TensorProto.BOOL, [])
        body = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(["c", "c2"])]
        body.append(helper.make_node("Identity", ["v"], ["v2"]))
        graph = helper.make_graph(body, "body", [scalar, flag, kept], [again, end])
        model.graph.node[-1].output[0] = "inner"
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
        model.graph.node.append(helper.make_node("Loop", ["", "go", "inner"], ["logits"], name="spin", body=graph))

    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "head.match", spin)
    for engine in ("ort", "openvino"):
        with load(bundle, engine) as model, pytest.raises(BundleError) as caught:
            model.match(np.zeros((8, 8, 3), np.uint8), ["red"])
        assert "spin" in caught.value.what


def test_the_exporter_refuses_an_operator_that_no_device_would_open() -> None:
    from simmim_export.export.onnx import check

    model = add_model()
    check(model, SPEC, opset=20)
    model.graph.node.append(helper.make_node("Sin", ["x"], ["v"], name="wave"))
    with pytest.raises(GateFailed) as caught:
        check(model, SPEC, opset=20)
    assert "wave" in caught.value.what
