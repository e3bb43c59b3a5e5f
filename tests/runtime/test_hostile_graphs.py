"""A bundle with graphs that are not what its manifest says never answers, even if all digests fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import change_graph

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError
from simmim_export.system.files import digest

IMAGE = np.zeros((64, 64, 3), np.uint8)
ENGINES = ["ort", "openvino"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_with_the_file_of_another_head_is_an_error(tiny_bundle: Path, tmp_path: Path, engine: str) -> None:
    def exchange(model: onnx.ModelProto, path: Path) -> None:
        shutil.copy(path.with_name("head.vqa.fp32.onnx"), path)

    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "head.match", exchange)
    with simmim_export.load(bundle, engine) as model, pytest.raises(BundleError, match=r"head\.match"):
        model.match(IMAGE, ["red"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_that_gives_more_classes_than_its_file_declares_is_an_error(
    tiny_bundle: Path, tmp_path: Path, engine: str
) -> None:
    """Only a run shows it."""

    def widen(model: onnx.ModelProto, path: Path) -> None:
        model.graph.node[-1].output[0] = "inner"
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 1]), "pads"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3]), "any"))
        model.graph.node.append(helper.make_node("Shape", ["inner"], ["size"]))
        model.graph.node.append(helper.make_node("Mul", ["size", "size"], ["square"]))
        model.graph.node.append(helper.make_node("Div", ["square", "size"], ["same"]))
        model.graph.node.append(helper.make_node("Expand", ["inner", "same"], ["wide"]))
        model.graph.node.append(helper.make_node("Pad", ["wide", "pads"], ["padded"]))
        model.graph.node.append(helper.make_node("Reshape", ["padded", "any"], ["logits"]))
        del model.graph.value_info[:]

    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "head.match", widen)
    with simmim_export.load(bundle, engine) as model, pytest.raises(BundleError):
        model.match(IMAGE, ["red"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_gives_another_number_of_rows_is_an_error(
    run_cli, tiny_bundle: Path, tmp_path: Path, engine: str
) -> None:
    def double(model: onnx.ModelProto, path: Path) -> None:
        model.graph.node[-1].output[0] = "inner"
        model.graph.node.append(helper.make_node("Concat", ["inner", "inner"], ["logits"], axis=0))

    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "head.match", double)
    with simmim_export.load(bundle, engine) as model, pytest.raises(BundleError, match="logits"):
        model.match(IMAGE, ["red", "blue"])
    done = run_cli("export", "verify", bundle, "--engine", engine)
    assert done.returncode == 5 and "Traceback" not in done.stderr and "head.match" in done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_a_token_id_without_a_row_in_the_graph_is_an_error(
    run_cli, tiny_bundle: Path, tmp_path: Path, engine: str
) -> None:
    """OpenVINO would answer with whatever lies behind its table."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest, path = Bundle.open(bundle).manifest, bundle / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["red"] = 5000
    path.write_text(json.dumps(tokenizer))
    files = {**manifest.files, "tokenizer.json": digest(path)}
    (bundle / "manifest.json").write_text(dataclasses.replace(manifest, files=files).dumps())
    with simmim_export.load(bundle, engine) as model:
        assert model.embed_text(["blue"]).shape == (1, 64)
        with pytest.raises(BundleError, match="5000"):
            model.embed_text(["red"])
        ids = np.full((1, 3), -1)
        with pytest.raises(BundleError, match="-1"):
            model.run("embed_text", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    done = run_cli("export", "embed", bundle, "--text", "red", "--engine", engine)
    assert done.returncode == 5 and "Traceback" not in done.stderr


def test_a_match_head_of_four_classes_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    """Manifest and file agree on four classes."""

    def exchange(model: onnx.ModelProto, path: Path) -> None:
        shutil.copy(path.with_name("head.vqa.fp32.onnx"), path)

    bundle = change_graph(tiny_bundle, tmp_path / "bundle", "head.match", exchange)
    manifest = Bundle.open(bundle).manifest
    outputs = manifest.graph("head.vqa").outputs
    graphs = tuple(dataclasses.replace(g, outputs=outputs) if g.name == "head.match" else g for g in manifest.graphs)
    labels = {**manifest.labels, "match": manifest.labels["vqa"]}
    (bundle / "manifest.json").write_text(dataclasses.replace(manifest, graphs=graphs, labels=labels).dumps())
    with pytest.raises(BundleError, match=r"\$\.pipelines\[2\]"):
        simmim_export.load(bundle)
