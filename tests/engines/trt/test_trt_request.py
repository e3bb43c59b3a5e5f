"""The options of a build (sizes, shapes, logs of traffic), the precision that the inspector reports, and the dry run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.bundle import Bundle
from simmim_export.engines.tensorrt.proof import read_inspector, read_layer_list, require_precision
from simmim_export.engines.tensorrt.request import (
    Profile,
    Range,
    Request,
    format_size,
    parse_size,
    parse_sizes,
    read_traffic,
)
from simmim_export.errors import BundleError, DataError, Dequantized, GateFailed, UsageError
from simmim_export.spec import Axis, GraphSpec, Precision, TensorSpec
from simmim_export.system.files import digest
from simmim_export.tensorrt_rules.dry_run import lint_file

SPEC = GraphSpec(
    "text_encoder",
    (TensorSpec("input_ids", "int64", ("batch", "sequence")),),
    (TensorSpec("text_embed", "float32", ("batch", 64)),),
    (Axis("batch", 1, 8), Axis("sequence", 3, 32)),
)
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 1000, "MB": 10**6, "GB": 10**9}


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, space: str, upper: bool) -> None:
    text = f"{number}{space}{unit.upper() if upper else unit}"
    assert parse_size(text) == number * UNITS[unit]


@given(st.integers(1, 1 << 45))
def test_a_size_that_is_shown_can_be_typed(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= 0.005 * size + 1


@given(st.text(max_size=12))
def test_any_other_size_is_a_usage_error(text: str) -> None:
    try:
        assert parse_size(text) >= 1
    except UsageError as error:
        assert error.fix is not None


@pytest.mark.parametrize("text", ["2", "GiB", "-2GiB", "2 G", "0MiB", "0.1B", "1e3MB", "2GiB!", ""])
def test_wrong_sizes_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)
    assert parse_size("1.5GiB") == 3 << 29


def test_options_win_over_a_log_and_a_log_over_the_graph() -> None:
    assert str(Request().profile(SPEC)) == "batch 1 to 8, best at 1; sequence 3 to 32, best at 32"
    traffic = {"sequence": Range(4, 12, 20)}
    assert Request(traffic=traffic).profile(SPEC).axes["sequence"] == Range(4, 12, 20)
    request = Request(traffic=traffic, largest={"sequence": 10}, best={"batch": 2})
    assert request.profile(SPEC) == Profile({"batch": Range(1, 2, 8), "sequence": Range(4, 10, 10)})
    assert request.profile(SPEC).shapes(SPEC.inputs[0]) == ((1, 4), (2, 10), (8, 10))
    fixed = Request(least={"batch": 8}).profile(SPEC)
    assert [shape[0] for shape in fixed.shapes(SPEC.inputs[0])] == [8, 8, 8]
    assert [shape[0] for shape in fixed.shapes(dataclasses.replace(SPEC.inputs[0], shared=True))] == [1, 8, 8]


@pytest.mark.parametrize(
    "request_",
    [
        Request(largest={"batch": 9}),
        Request(least={"sequence": 2}),
        Request(least={"batch": 4}, largest={"batch": 2}),
        Request(best={"batch": 5}, largest={"batch": 4}),
        Request(traffic={"batch": Range(1, 1, 16)}),
    ],
)
def test_ranges_that_are_empty_or_not_proven_are_errors(request_: Request) -> None:
    with pytest.raises(UsageError, match="text_encoder") as caught:
        request_.profile(SPEC)
    assert caught.value.fix


def test_wrong_options_are_usage_errors() -> None:
    assert parse_sizes(["batch=2,sequence=5", "frames=3"]) == {"batch": 2, "sequence": 5, "frames": 3}
    for words in (["batch"], ["batch=x"], ["batch=0"], ["=3"], ["batch=1,batch=2"], ["batch=-1"], [""]):
        with pytest.raises(UsageError):
            parse_sizes(words)
    for changes in ({"level": 6}, {"compatibility": "all"}):
        with pytest.raises(UsageError):
            Request(**changes)  # type: ignore[arg-type]


def test_a_log_of_traffic_gives_ranges(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"batch": 1, "sequence": 12}\n\n{"batch": 1, "sequence": 30}\n{"batch": 4}\n{"batch": 4}\n')
    # The largest of equally frequent sizes.
    assert read_traffic(path) == {"batch": Range(1, 4, 4), "sequence": Range(12, 30, 30)}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"batch": 1', "JSON"),
        ("[1]", "object"),
        ("{}", "object"),
        ('{"batch": "1"}', 'batch is "1"'),
        ('{"batch": 0}', "batch is 0"),
        ('{"batch": true}', "batch is true"),
        ('{"batch": 1.5}', "batch is 1.5"),
        ('{"batch": 1, "batch": 2}', "'batch'"),
    ],
)
def test_a_malformed_line_of_a_log_is_an_error(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"batch": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=what) as caught:
        read_traffic(path)
    assert caught.value.where.endswith("log.jsonl, line 2")


def test_a_missing_or_empty_log_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("none", "empty", "binary"):
        with pytest.raises(DataError) as caught:
            read_traffic(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def layer(inputs: str, outputs: str, **more: object) -> dict[str, object]:
    rows = ([{"Name": "x", "Format/Datatype": text}] for text in (inputs, outputs))
    return dict(zip(("Inputs", "Outputs"), rows, strict=True)) | more


def test_a_layer_counts_as_its_narrowest_type() -> None:
    layers = [
        layer("Half", "Float"),
        layer("Row major linear FP16 format", "Channel major FP32 format where channel % 8 == 0"),
        layer("Float", "Float", Weights={"Type": "Half", "Count": 3}),
        layer("Float", "Float", TacticName="sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n"),
        layer("Float", "Float", TacticName="sm80_xmma_gemm_f16f16_f16f32_f32_tn_n"),
        layer("Int8", "Half", LayerType="gemm"),
        # It quantizes, and multiplies nothing.
        layer("Half", "Int8", LayerType="kgen"),
        layer("BF16", "BF16"),
        layer("UInt8", "Float"),
        layer("Int64", "Int32"),
        layer("Bool", "Bool"),
    ]
    executed = dict(read_inspector(json.dumps({"Layers": layers}))[0].executed)
    assert executed == {"float16": 5, "float32": 2, "int8": 1, "bfloat16": 1, "other": 2}


def test_tensorrt_11_keeps_type_and_format_apart() -> None:
    def tensor(kind: str) -> dict[str, str]:
        return {"Name": "x", "Datatype": kind, "Format": "Row major linear INT8 format (kLINEAR)"}

    layers = [{"Inputs": [tensor(a)], "Outputs": [tensor(b)]} for a, b in (("Half", "Float"), ("Int64", "Int64"))]
    assert dict(read_inspector(json.dumps({"Layers": layers, "I/O Tensors": []}))[0].executed) == {
        "float16": 1,
        "other": 1,
    }


UNKNOWN = "N/A due to dynamic shapes"


def test_types_that_the_inspector_does_not_know_are_unknown() -> None:
    layers = [
        layer(UNKNOWN, UNKNOWN),
        layer(UNKNOWN, UNKNOWN, Weights={"Type": "Half", "Count": 3}),
        layer(UNKNOWN, UNKNOWN, TacticName="sm80_xmma_fprop_implicit_gemm_i8f32_i8i32_f32_nhwckrsc"),
        layer("Int64", UNKNOWN),
        # A hash is not a type.
        layer("Float", "Float", TacticName="__myl_AddCastMulAdd_0xf2543c36ff9f16bbb1655b0183bf1647"),
    ]
    proof, _ = read_inspector(json.dumps({"Layers": layers}))
    assert dict(proof.executed) == {"unknown": 2, "float16": 1, "int8": 1, "float32": 1}
    nothing, _ = read_inspector(json.dumps({"Layers": layers[:1] * 50 + [layer("Int64", "Int64")]}))
    for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
        with pytest.raises(GateFailed, match="50 layers"):
            require_precision(nothing, precision, quantized=(), multiplied=None, graph="x", where="here")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["only a name"]}', '{"Layers": [{"Inputs": [{}]}]}'])
def test_an_unknown_text_of_the_inspector_is_an_error(text: str) -> None:
    with pytest.raises(BundleError):
        read_inspector(text)


@pytest.mark.parametrize(
    ("precision", "kinds", "quantized", "good"),
    [
        ("fp16", {"float16": 3, "float32": 9}, False, True),
        ("fp16", {"float16": 2, "float32": 9}, False, False),
        ("fp16", {"float32": 3, "other": 50}, False, True),
        ("fp16", {"float32": 4}, False, False),
        ("fp32", {"float32": 4, "other": 2}, False, True),
        ("fp32", {"float32": 4, "float16": 1}, False, False),
        ("int8", {"int8": 1, "float32": 90}, True, True),
        ("int8", {"float32": 90}, True, False),
        ("int8", {"float32": 2}, False, True),
    ],
)
def test_enough_layers_must_run_at_the_precision_asked_for(
    precision: str, kinds: dict[str, int], quantized: bool, good: bool
) -> None:
    layers = {"float16": "Half", "float32": "Float", "int8": "Int8", "other": "Int64"}
    listed = [layer(layers[k], layers[k], LayerType="gemm") for k, n in kinds.items() for _ in range(n)]
    proof, multiplied = read_inspector(json.dumps({"Layers": listed}))
    assert multiplied is None
    expected = ("node_MatMul_1",) if quantized else ()
    if good:
        require_precision(
            proof, Precision(precision), quantized=expected, multiplied=multiplied, graph="x", where="here"
        )
    else:
        with pytest.raises(GateFailed, match=f"x .* {precision}"):
            require_precision(
                proof, Precision(precision), quantized=expected, multiplied=multiplied, graph="x", where="here"
            )


GEMM = (
    "Name: a+b, LayerType: gemm, Inputs: [ {{ Name: x, Dimensions: [-1,96], Strides: [96,1], StrideOrder: [1,0], "
    "Datatype: {first}, Format: (Linear) Row major linear format }}], Constants: [ {{ Name: w, Dimensions: [96,288], "
    "Strides: [288,1], StrideOrder: [1,0], Datatype: {second}, Format: (Linear) Row major linear format }}, {{ Name: beta, "
    "Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }}], Outputs: "
    "[ {{ Name: y, Dimensions: [-1,288], Strides: [288,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major "
    "linear format }}], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_MatMul_1][ONNX Layer: "
    "node_MatMul_1.weight]"
)
QUANTIZE = (
    "Name: q, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,96], Strides: [96,1], StrideOrder: [1,0], Datatype: Float, "
    "Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: y, Dimensions: [-1,96], Strides: [96,1], "
    "StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], TacticName: __myl_MulRounClip_0x1, "
    "StreamId: 0, Metadata: [ONNX Layer: x.quantized]"
)
# Two streams wait for each other.
SIGNAL = (
    "Name: __mye18515_myl0_14, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, "
    "Metadata: "
)


@pytest.mark.parametrize(
    ("first", "second", "kind"), [("Int8", "Int8", "int8"), ("Float", "Float", "float32"), ("Half", "Int8", "float16")]
)
def test_only_a_product_of_int8_counts_as_int8(first: str, second: str, kind: str) -> None:
    text = "\n".join(
        ["Layers:", QUANTIZE, SIGNAL, GEMM.format(first=first, second=second), "", "I/O Tensors:", " Name: x"]
    )
    proof, multiplied = read_layer_list(text)
    assert proof.executed == Counter(["float32", "other", kind])
    assert multiplied == ({"node_MatMul_1", "node_MatMul_1.weight"} if kind == "int8" else set())
    words = {"quantized": ("node_MatMul_1",), "multiplied": multiplied, "graph": "x", "where": "here"}
    if kind == "int8":
        require_precision(proof, Precision.INT8, **words)  # type: ignore[arg-type]
    else:
        with pytest.raises(GateFailed, match="node_MatMul_1"):
            require_precision(proof, Precision.INT8, **words)  # type: ignore[arg-type]


def test_a_few_products_may_be_dequantized_with_a_warning() -> None:
    text = "\n".join(["Layers:", GEMM.format(first="Int8", second="Int8")])
    proof, multiplied = read_layer_list(text)
    words = {"multiplied": multiplied, "graph": "x", "where": "here"}
    with pytest.warns(Dequantized, match="1 of 2 .*node_MatMul_2"):
        require_precision(proof, Precision.INT8, quantized=("node_MatMul_1", "node_MatMul_2"), **words)  # type: ignore[arg-type]
    with pytest.raises(GateFailed, match="node_MatMul_2, node_MatMul_3"):
        require_precision(proof, Precision.INT8, quantized=[f"node_MatMul_{i}" for i in (1, 2, 3)], **words)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, "", "Layers:", "Layers:\nName: x, LayerType: gemm", "Layers:\n\nI/O Tensors:"])
def test_another_list_of_layers_is_an_error(text: str | None) -> None:
    with pytest.raises(BundleError) as caught:
        read_layer_list(text)
    assert caught.value.fix


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_dry_run_needs_neither_tensorrt_nor_a_gpu(tiny_bundle: Path, run_cli: Run) -> None:
    words = ["build", tiny_bundle, "--precision", "int8", "--dry-run", "--max", "batch=4", "--json"]
    done = run_cli("export", *words)
    assert done.returncode == 0, done.stderr
    graphs = json.loads(done.stdout)["graphs"]
    assert graphs["text_encoder"] == {
        "variant": "int8-s8-fp16",
        "profile": {"batch": [1, 1, 4], "sequence": graphs["text_encoder"]["profile"]["sequence"]},
        "findings": [],
        "parser": graphs["text_encoder"]["parser"],
    }
    assert not (tiny_bundle / "engines").exists()


def test_a_dry_run_fails_naming_node_module_and_rule(tiny_bundle: Path, tmp_path: Path, run_cli: Run) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    path = bundle / "graphs/image_encoder.fp16.onnx"
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "ReduceMean")
    node.input[1] = node.input[0]
    onnx.save(model, path)
    manifest = Bundle.open(tiny_bundle).manifest
    changed = [
        dataclasses.replace(a, sha256=digest(path), bytes=path.stat().st_size)
        if (a.graph, a.variant) == ("image_encoder", "fp16")
        else a
        for a in manifest.artifacts
    ]
    (bundle / "manifest.json").write_text(dataclasses.replace(manifest, artifacts=tuple(changed)).dumps())
    done = run_cli("export", "build", bundle, "--precision", "fp16", "--dry-run")
    assert done.returncode == 4
    assert f"image_encoder.fp16: reduce-axes: {node.name} (encoder)" in done.stderr
    assert "best at" in done.stdout


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _move_weights_out(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def _move_weights_out_and_lose_them(path: Path) -> None:
    _move_weights_out(path)
    (path.parent / "weights.bin").unlink()


def _drop_output(path: Path) -> None:
    model = onnx.load(path)
    del model.graph.output[0]
    onnx.save(model, path)


def _shorten_tensor(path: Path) -> None:
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[:-4]
    onnx.save(model, path)


def _unknown_operator(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, path)


SPOILERS = {
    "garbage": lambda path: path.write_bytes(b"\xff not onnx" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "no graph": lambda path: path.write_bytes(b"\x08\x08"),
    "truncated": _cut,
    "external": _move_weights_out,
    "external and lost": _move_weights_out_and_lose_them,
    "output": _drop_output,
    "tensor": _shorten_tensor,
    "operator": _unknown_operator,
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_a_file_that_is_not_the_graph_is_refused_before_the_lint(tiny_bundle: Path, tmp_path: Path, spoil) -> None:
    path = Path(shutil.copy(tiny_bundle / "graphs/head.vqa.fp32.onnx", tmp_path))
    spec = Bundle.open(tiny_bundle).manifest.graph("head.vqa")
    assert lint_file(path, spec) == []
    spoil(path)
    with pytest.raises(BundleError) as caught:
        lint_file(path, spec)
    assert caught.value.where == str(path) and caught.value.exit_code == 5 and caught.value.fix


@pytest.mark.parametrize("kind", ["garbage", "external and lost"])
def test_a_dry_run_of_a_file_that_is_not_the_graph_ends_with_5(
    run_cli, tiny_bundle: Path, tmp_path: Path, kind: str
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    path = bundle / "graphs/head.vqa.fp32.onnx"
    SPOILERS[kind](path)
    manifest = Bundle.open(tiny_bundle).manifest
    changed = tuple(
        dataclasses.replace(a, sha256=digest(path), bytes=path.stat().st_size) if path.samefile(bundle / a.path) else a
        for a in manifest.artifacts
    )
    (bundle / "manifest.json").write_text(dataclasses.replace(manifest, artifacts=changed).dumps())
    done = run_cli("export", "build", bundle, "--dry-run")
    assert done.returncode == 5 and str(path) in done.stderr and "Traceback" not in done.stderr, done.stderr
