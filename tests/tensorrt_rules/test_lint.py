"""TensorRT's rules: each has a small valid graph that breaks it and no other rule; our own graphs break none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken import BOOL, BREAKING, HALF, INT64, Net
from broken_int8 import both_inputs, good, zero_point
from lint_presets import VARIANTS, full, fusions, lint_graph, noise, pairs
from onnx import TensorProto, helper

from simmim_export.engines.tensorrt.request import Profile
from simmim_export.errors import GateFailed
from simmim_export.models.simmim.presets import preset
from simmim_export.spec import Variant
from simmim_export.tensorrt_rules.dry_run import SHOWN, Rehearsal, require_clean
from simmim_export.tensorrt_rules.lint import RULES, Finding, lint
from simmim_export.tensorrt_rules.parser import UNSUPPORTED, UNSUPPORTED_FAMILIES


@pytest.mark.parametrize("name", BREAKING)
def test_a_graph_that_breaks_one_rule_breaks_no_other(name: str) -> None:
    model = BREAKING[name]()
    before = model.SerializeToString()
    findings = lint(model)
    assert {finding.rule for finding in findings} == {name.split("--")[0]}, "\n".join(map(str, findings))
    assert all(finding.node and finding.what for finding in findings)
    assert model.SerializeToString() == before


def test_every_rule_can_be_broken_and_is_one_sentence() -> None:
    assert {name.split("--")[0] for name in BREAKING} == set(RULES)
    assert all(sentence.endswith(".") and ". " not in sentence for sentence in RULES.values())


def test_a_good_graph_breaks_none() -> None:
    assert lint(good()) == []


def test_formats_with_rules_of_their_own_break_none() -> None:
    """Weights in 4 bits by blocks, activations in float."""
    net = Net(21)
    levels = helper.make_tensor("levels", TensorProto.INT4, [32, 32], np.ones(1024, np.int8))
    net.constants.append(levels)
    weight = net.op("DequantizeLinear", "levels", net.constant(np.ones((2, 32))), axis=0, block_size=16)
    assert lint(net.done(net.op("MatMul", net.input("batch", 32), weight))) == []


def test_large_constants_matter_only_in_half_precision() -> None:
    net = Net()
    assert lint(net.done(net.op("Add", net.input(2), net.constant(-3.4e38)))) == []
    net = Net()
    x = net.op("Slice", net.input(2, dtype=HALF), *(net.constant([i], np.int64) for i in (0, np.iinfo(np.int64).max)))
    assert lint(net.done(net.op("Add", x, net.constant(-65504, np.float16)), dtype=HALF)) == []


def test_the_list_of_unsupported_operators_names_real_ones() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert known >= UNSUPPORTED - {"ImageDecoder"} and "ImageDecoder" in known
    assert all(any(name.startswith(family) for name in known) for family in UNSUPPORTED_FAMILIES)


def test_an_operator_of_an_unknown_domain_does_not_stop_the_lint() -> None:
    net = Net()
    net.op("NonZero", net.op("Fancy", net.input(2), domain="nowhere"))
    graph = helper.make_graph(net.nodes, "net", net.inputs, [], net.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert [finding.rule for finding in lint(model)] == ["operator", "nonzero"]


def scoped(node: onnx.NodeProto, text: str) -> None:
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", text


@pytest.mark.parametrize(
    ("scopes", "module"),
    [
        ("['', 'encoder', 'encoder.trunk.0', 'conv2d']", "encoder.trunk.0"),
        ("['', 'relu']", ""),
        ("['_empty_nn_module_stack_from_metadata_hook', 'sym_size_int_7']", ""),
        ("not a list", ""),
        ("7", ""),
    ],
)
def test_a_finding_names_the_pytorch_module(scopes: str, module: str) -> None:
    model = both_inputs()
    scoped(model.graph.node[-1], scopes)
    assert [finding.module for finding in lint(model)] == [module]


def test_a_pair_belongs_to_the_module_that_reads_it() -> None:
    model = zero_point()
    scoped(model.graph.node[-1], "['', 'head.linear', 'matmul']")
    findings = lint(model)
    assert [(finding.rule, finding.module) for finding in findings] == [("zero-point", "head.linear")] * 2
    assert [finding.node.split(".")[1] for finding in findings] == ["QuantizeLinear", "DequantizeLinear"]


def rehearsal(model: onnx.ModelProto) -> Rehearsal:
    return Rehearsal(graph="net", variant=Variant.FP32, profile=Profile({}), findings=lint(model))


def test_a_gate_names_at_most_twenty_findings() -> None:
    require_clean([rehearsal(good())], "bundle")
    with pytest.raises(GateFailed, match=r"net\.fp32: zero-point: node\.QuantizeLinear") as caught:
        require_clean([rehearsal(zero_point())], "bundle")
    assert caught.value.where == "bundle" and caught.value.fix and caught.value.exit_code == 4
    net = Net()
    x = net.input(2, dtype=BOOL)
    model = net.done(*(net.op("NonZero", x) for _ in range(23)), dtype=INT64)
    with pytest.raises(GateFailed) as caught:
        require_clean([rehearsal(model)], "bundle")
    assert caught.value.what.count("nonzero:") == SHOWN == 20 and "3 more" in caught.value.what


GRAPHS = [
    "fusion",
    "image_encoder",
    "text_encoder",
    "video_encoder",
    "head.match",
    "head.vqa",
    "head.image_class",
    "head.video_qa",
]
GRAPHS += ["head.text_class", "head.video_class"]


@pytest.mark.parametrize("name", GRAPHS)
def test_exported_graphs_break_none(tiny_bundle: Path, every_bundle: Path, name: str) -> None:
    files = [path for bundle in (tiny_bundle, every_bundle) if (path := bundle / f"graphs/{name}.fp32.onnx").exists()]
    assert files
    for path in files:
        assert lint(onnx.load(path)) == [], path


def test_no_exported_graph_is_left_out(tiny_bundle: Path, every_bundle: Path) -> None:
    files = {path.name for bundle in (tiny_bundle, every_bundle) for path in bundle.glob("graphs/*.fp32.onnx")}
    assert files == {f"{name}.fp32.onnx" for name in [*GRAPHS, "image_encoder"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_a_trained_model_breaks_none(asked_bundle: Path, variant: str) -> None:
    files = sorted(asked_bundle.glob(f"graphs/*.{variant}.onnx"))
    assert len(files) == 5
    for path in files:
        assert lint(onnx.load(path)) == [], path


def test_the_linted_presets_have_every_graph() -> None:
    """``make lint-graphs`` traces every tower, head and pair."""
    every = full("tiny")
    assert set(every) == {*GRAPHS}
    labels = dict(fusions("tiny"))
    assert len(labels) == len(pairs()) + 1 and {graph.spec.name for graph in labels.values()} == {"fusion"}
    # A smaller text encoder stands in for the preset's, and the fusion reads the same tensors.
    # Some fusions share an image, others do not.
    inputs = [tuple(replace(tensor, shared=False) for tensor in graph.spec.inputs) for graph in labels.values()]
    assert set(inputs) == {tuple(replace(tensor, shared=False) for tensor in every["fusion"].spec.inputs)}


def test_a_graph_is_linted_in_every_variant(tmp_path: Path) -> None:
    every = full("tiny")
    feeds = noise(every, preset("tiny"))
    assert lint_graph(every["head.vqa"], feeds["head.vqa"], tmp_path) == dict.fromkeys(VARIANTS, ())


def test_tensorrt_does_not_take_the_variant_for_cpus(asked_bundle: Path) -> None:
    """U8 activations, tokens scaled outside the product, and a quantized bias: each breaks a rule, and findings name modules.

    The model is trained: in an untrained one the quantized convolutions have no bias.
    """
    findings: list[Finding] = []
    exported: set[str] = set()
    for name in ("image_encoder", "text_encoder"):
        findings += lint(onnx.load(asked_bundle / f"graphs/{name}.int8-u8.onnx"))
        exported |= {node.name for node in onnx.load(asked_bundle / f"graphs/{name}.fp32.onnx").graph.node}
    assert {"zero-point", "placement", "bias"} <= {finding.rule for finding in findings}
    about_the_model = [finding for finding in findings if finding.node in exported]
    assert about_the_model and all(finding.module for finding in about_the_model)
