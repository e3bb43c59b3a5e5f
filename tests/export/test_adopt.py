"""Foreign ONNX files become bundles that compute the same, or are refused for what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import foreign_models as foreign
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support import Once
from tokenizers import Tokenizer

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import CheckpointError, EngineUnavailable, GateFailed, SimmimError, UsageError
from simmim_export.export.adopt.adopter import Adoption, adopt_bundle
from simmim_export.export.adopt.canaries import Canary, check_model, require
from simmim_export.export.adopt.spec_file import read_spec
from simmim_export.export.lower import Lower
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.spec import Precision, Reference

PAGE = Path(__file__).parents[2] / "docs/adopt.md"
VISION = """
name = "vision"
[image]
height = 32
width = 32
resize = "squash"
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[[graphs]]
name = "image_encoder"
inputs = [{ name = "pixel_values", kind = "image" }]
outputs = [{ name = "image_embeds", kind = "embedding", normalize = true }]
[[pipelines]]
verb = "embed_image"
graphs = ["image_encoder"]
"""
TEXT = """
name = "text"
[text]
tokenizer = "tokenizer.json"
max_length = 12
samples = ["a circle", "red square of the left", "how many blue triangle", "what is green ?", "the size", "red circle"]
[[graphs]]
name = "text_encoder"
inputs = [
  { name = "input_ids", kind = "token_ids" },
  { name = "attention_mask", kind = "text_mask" },
  { name = "token_type_ids", kind = "zeros" },
]
outputs = [{ name = "last_hidden_state", as = "text_embeds", kind = "embedding", pool = "mean", normalize = true }]
[[pipelines]]
verb = "embed_text"
graphs = ["text_encoder"]
"""


@pytest.fixture(scope="session")
def models(once: Once) -> Path:
    """The folder of docs/adopt.md, with its spec as it stands there. Ids are int32."""

    def make(path: Path) -> None:
        foreign.folder(path, dtype=torch.int32)
        (path / "spec.toml").write_text(PAGE.read_text().partition("```toml\n")[2].partition("```")[0])

    return once("foreign", make)


@pytest.fixture(scope="session")
def adopted_bundle(once: Once, models: Path) -> Path:
    """The bundle of ``models``, in FP32 and INT8."""
    lower = Lower((Precision.INT8,))
    return once("adopted", lambda path: adopt_bundle(models, path, like=models / "spec.toml", max_batch=2, lower=lower))


def spec_in(folder: Path, text: str, *replacements: tuple[str, str]) -> Path:
    """A spec file in ``folder`` with the content ``text`` after ``replacements``."""
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = folder / "like.toml"
    path.write_text(text)
    return path


def refusal(model: Path, spec: Path, kind: type[SimmimError]) -> SimmimError:
    """The error that adopting ``model`` gives. Nothing is written."""
    output = spec.parent / "bundle"
    with pytest.raises(kind) as caught:
        adopt_bundle(model, output, like=spec, max_batch=2)
    assert type(caught.value) is kind and not output.exists()
    return caught.value


def failed_canaries(model: Path, spec: Path, scratch: Path) -> set[str]:
    """The names of the canaries that fail, for which ``model`` is refused."""
    scratch.mkdir(exist_ok=True)
    adoption = Adoption(model=model, like=spec, spec=read_spec(spec), scratch=scratch, max_batch=2)
    canaries = check_model(adoption.adopt(), adoption.samples, where=spec) + adoption.canaries
    with pytest.raises(GateFailed) as caught:
        require(canaries, spec)
    assert caught.value.where == str(spec)
    return {canary.name for canary in canaries if not canary.passed}


def at_the_end(model: onnx.ModelProto, kind: str, constant: object, *, output: str = "image_embeds") -> None:
    """Put a node ``kind`` of what was image_embeds and of ``constant`` at the end of ``model``."""
    last = next(node for node in model.graph.node if "image_embeds" in node.output)
    last.output[:] = ["before"]
    array = np.asarray(constant)
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "constant"))
    model.graph.node.append(helper.make_node(kind, ["before", "constant"], [output]))


# -- what works --------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_original_files(adopted_bundle: Path, models: Path, picture: Path) -> None:
    model = simmim_export.load(adopted_bundle)
    pixels = load_pixels([picture], ImagePreprocessing(32, 32, resize="crop", interpolation="bicubic", shortest=36))
    mean, std = (np.array(values, np.float64).reshape(3, 1, 1) for values in (foreign.MEAN, foreign.STD))
    planes = (pixels.transpose(0, 3, 1, 2) / 255 - mean) / std
    embeds, logits = foreign.by_hand(models / "vision.onnx", {"pixel_values": planes})
    np.testing.assert_allclose(model.embed_image([picture]), embeds / np.linalg.norm(embeds, axis=1), atol=1e-6)
    exponentials = np.exp(logits[0] - logits[0].max())
    scores = {answer.label: answer.score for answer in model.classify(picture)}
    assert [scores["round"], scores["angular"]] == pytest.approx(exponentials / exponentials.sum(), abs=1e-6)
    texts = ["red circle", "what is the size of the green square ?"]
    tokenizer = Tokenizer.from_file(str(models / "tokenizer.json"))
    tokenizer.no_padding()
    for text, embedding in zip(texts, model.embed_text(texts), strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = foreign.by_hand(models / "text.onnx", feeds)
        pooled = hidden[0].mean(axis=0)
        np.testing.assert_allclose(embedding, pooled / np.linalg.norm(pooled), atol=1e-6)


def test_the_manifest_says_what_the_reference_is(adopted_bundle: Path) -> None:
    manifest = Bundle.open(adopted_bundle).manifest
    assert manifest.reference is Reference.ONNXRUNTIME
    assert manifest.provenance["reference"] == "onnxruntime"
    assert "torch" not in manifest.provenance["packages"]
    assert all(row["passed"] for row in manifest.provenance["canaries"])
    assert {row["name"] for row in manifest.provenance["canaries"]} == {
        *("finite", "original", "distinct", "unit", "batch", "padding")
    }


@pytest.mark.parametrize(("engine", "precision"), [("ort", "int8"), ("openvino", "fp32")])
def test_every_graph_verifies(adopted_bundle: Path, engine: str, precision: str) -> None:
    reports = simmim_export.load(adopted_bundle, engine=engine, precision=precision).verify()
    assert len(reports) == 3 and all(report.passed for report in reports)
    assert {report.reference for report in reports} == {Reference.ONNXRUNTIME}


def test_int8_holds_integers(adopted_bundle: Path) -> None:
    for graph in Bundle.open(adopted_bundle).manifest.graphs:
        operators = {
            node.op_type for node in onnx.load(adopted_bundle / f"graphs/{graph.name}.int8-u8.onnx").graph.node
        }
        assert "QuantizeLinear" in operators


def test_pytorch_cannot_run_an_adopted_bundle(adopted_bundle: Path, models: Path) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        simmim_export.load(adopted_bundle, engine="torch", checkpoint=models / "vision.onnx")
    assert caught.value.where == str(adopted_bundle)


def test_weights_beside_the_file_are_read_in(models: Path, tmp_path: Path) -> None:
    model = onnx.load(models / "vision.onnx")
    onnx.save(model, tmp_path / "v.onnx", save_as_external_data=True, location="v.data", size_threshold=0)
    adopted = adopt_bundle(tmp_path / "v.onnx", tmp_path / "bundle", like=spec_in(tmp_path, VISION), max_batch=2)
    whole = onnx.load(tmp_path / "bundle/graphs/image_encoder.fp32.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in whole.graph.initializer)
    assert adopted.exported.reports[0].passed


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT])
def test_pixels_with_colors_last_are_taken(kind: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["pixel_values"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["image_embeds"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "last",
        [helper.make_tensor_value_info("pixel_values", kind, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    layout = ("std = [0.5, 0.5, 0.5]", 'std = [0.5, 0.5, 0.5]\nlayout = "NHWC"')
    spec = spec_in(tmp_path, VISION, *([layout] if kind == TensorProto.FLOAT else []))
    adopted = adopt_bundle(tmp_path / "m.onnx", tmp_path / "bundle", like=spec, max_batch=2)
    assert all(canary.passed for canary in adopted.canaries)


def test_an_older_opset_is_converted(models: Path, tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["pixel_values"], ["x"])
    pool = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    flat = helper.make_node("Flatten", ["y"], ["image_embeds"])
    graph = helper.make_graph(
        [relu, pool, flat],
        "old",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), tmp_path / "m.onnx")
    adopted = adopt_bundle(tmp_path / "m.onnx", tmp_path / "bundle", like=spec_in(tmp_path, VISION), max_batch=2)
    assert adopted.exported.bundle.manifest.graphs[0].outputs[0].shape == ("batch", 3)


# -- canaries ----------------------------------------------------------------------------------------------------------


def test_a_model_that_gives_one_vector_for_everything_is_found(models: Path, tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        convolution = next(node for node in model.graph.node if node.op_type == "Conv")
        weight = next(one for one in model.graph.initializer if one.name == convolution.input[1])
        weight.raw_data = bytes(len(weight.raw_data))

    path, spec = foreign.change(models / "vision.onnx", tmp_path / "m.onnx", forget), spec_in(tmp_path, VISION)
    assert failed_canaries(path, spec, tmp_path / "s") == {"distinct"}
    assert refusal(path, spec, GateFailed).where == str(spec)


def test_an_embedding_without_unit_length_is_found(models: Path, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, VISION, (", normalize = true", ""))
    assert failed_canaries(models / "vision.onnx", spec, tmp_path / "s") == {"unit"}


def test_outputs_that_are_not_finite_are_found(models: Path, tmp_path: Path) -> None:
    path = foreign.change(models / "vision.onnx", tmp_path / "m.onnx", lambda model: at_the_end(model, "Mul", np.inf))
    assert failed_canaries(path, spec_in(tmp_path, VISION), tmp_path / "s") == {"finite"}


def test_rows_that_depend_on_each_other_are_found(models: Path, tmp_path: Path) -> None:
    def mix(model: onnx.ModelProto) -> None:
        at_the_end(model, "ReduceMean", np.array([0]), output="all")
        model.graph.node.append(helper.make_node("Add", ["before", "all"], ["image_embeds"]))

    path = foreign.change(models / "vision.onnx", tmp_path / "m.onnx", mix)
    assert failed_canaries(path, spec_in(tmp_path, VISION), tmp_path / "s") == {"batch"}


def test_a_text_that_changes_with_its_padding_is_found(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "tokenizer.json", tmp_path)
    ids = np.array([[1]])

    def ignore_mask(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(ids.astype(np.int32), "always"))
        for node in model.graph.node:
            node.input[:] = ["always" if name == "attention_mask" else name for name in node.input]

    path = foreign.change(models / "text.onnx", tmp_path / "m.onnx", ignore_mask)
    spec = spec_in(tmp_path, TEXT, ('  { name = "attention_mask", kind = "text_mask" },\n', ""))
    assert "padding" in failed_canaries(path, spec, tmp_path / "s")


@pytest.mark.parametrize("name", ["finite", "original", "distinct", "unit", "batch", "padding"])
def test_each_canary_fails_alone(name: str) -> None:
    passing = Canary(name=name, graph="g", output="y", measured=1.0 if name == "distinct" else 0.0, limit=0.5)
    require([passing], Path("spec"))
    for measured in (0.0 if name == "distinct" else 1.0, float("nan")):
        failing = dataclasses.replace(passing, measured=measured)
        with pytest.raises(GateFailed) as caught:
            require([passing, failing], Path("spec"))
        assert caught.value.where == "spec" and caught.value.fix


# -- what is refused ---------------------------------------------------------------------------------------------------

SPECS = {
    "unknown key": (("resize =", "resise ="), "$.image"),
    "wrong value": (('"squash"', '"stretch"'), "$.image.resize"),
    "a file that is not TOML": (('name = "vision"', "name = vision"), ""),
    "a missing table": (("[image]", "[text]"), "$.text"),
    "a crop without its shortest side": (('"squash"', '"crop"'), "$.image"),
    "mean without std": (("std = [0.5, 0.5, 0.5]", ""), "$.image"),
    "a std of 0": (("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.5, 0.0]"), "$.image"),
    "an unknown verb": (('"embed_image"', '"embed"'), "$.pipelines[0].verb"),
}
MISFITS = {
    "an unknown output": ("image_embeds", "pooler_output"),
    "an unknown input": ('"pixel_values"', '"pixels"'),
    "another kind of input": ('kind = "image"', 'kind = "hidden"'),
    "another size": ("height = 32", "height = 64"),
    "another layout": ("std = [0.5, 0.5, 0.5]", 'std = [0.5, 0.5, 0.5]\nlayout = "NHWC"'),
    "pooling of a vector": ("normalize = true", 'pool = "mean"'),
    "float pixels without mean and std": ("mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n", ""),
    "a name that no bundle can have": ('kind = "embedding"', 'kind = "embedding", as = "a b"'),
    "an unknown graph": ('graphs = ["image_encoder"]', 'graphs = ["vision"]'),
    "a verb that reads something else": ('"embed_image"', '"classify"'),
    "a file elsewhere": ('name = "image_encoder"', 'name = "image_encoder"\nfile = "../m.onnx"'),
    "a file that is not there": ('name = "image_encoder"', 'name = "image_encoder"\nfile = "n.onnx"'),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_wrong_spec_names_the_key(case: str, models: Path, tmp_path: Path) -> None:
    replacement, place = SPECS[case]
    spec = spec_in(tmp_path, VISION, replacement)
    error = refusal(models / "vision.onnx", spec, CheckpointError)
    assert error.exit_code == 5 and error.where == (f"{spec}, {place}" if place else str(spec))


@pytest.mark.parametrize("case", MISFITS)
def test_a_spec_that_does_not_fit_the_file_is_an_error(case: str, models: Path, tmp_path: Path) -> None:
    error = refusal(models / "vision.onnx", spec_in(tmp_path, VISION, MISFITS[case]), CheckpointError)
    assert error.exit_code == 5 and error.where and error.fix


def _microsoft(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    next(node for node in model.graph.node if node.op_type == "Relu").domain = "com.microsoft"


def _branch(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.attribute.append(helper.make_attribute("then_branch", helper.make_graph([], "g", [], [])))


def _fixed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _fixed_inside(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 3, 32, 32]), "one"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["pixel_values", "one"], ["row"]))
    for node in model.graph.node[1:]:
        node.input[:] = ["row" if name == "pixel_values" else name for name in node.input]


def _half(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight).astype(np.float16)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _elsewhere(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../../etc/hostname")


def _lost(model: onnx.ModelProto) -> None:
    _elsewhere(model)
    model.graph.initializer[0].external_data[0].value = "lost.data"


def _unknown_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Softsign"


def _malformed(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


EDITS = (_microsoft, _branch, _fixed, _fixed_inside, _half, _elsewhere, _lost, _unknown_operator, _malformed)


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_that_cannot_be_adopted_is_an_error(
    edit: Callable[[onnx.ModelProto], None], models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    model = onnx.load(models / "vision.onnx")
    edit(model)
    path.write_bytes(model.SerializeToString())
    error = refusal(path, spec_in(tmp_path, VISION), CheckpointError)
    assert error.exit_code == 5 and error.where == str(path)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_an_error(share: float, models: Path, tmp_path: Path) -> None:
    content = (models / "vision.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path, spec_in(tmp_path, VISION), CheckpointError).where == str(path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(models: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((models / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"word{i}": 40 + i for i in range(5)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refusal(models / "text.onnx", spec_in(tmp_path, TEXT), CheckpointError).exit_code == 5


def test_texts_longer_than_the_model_takes_are_an_error(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "tokenizer.json", tmp_path)
    spec = spec_in(tmp_path, TEXT, ("max_length = 12", "max_length = 20"))
    assert refusal(models / "text.onnx", spec, CheckpointError).exit_code == 5


def test_a_bundle_is_replaced_only_with_overwrite(models: Path, adopted_bundle: Path) -> None:
    with pytest.raises(UsageError):
        adopt_bundle(models, adopted_bundle, like=models / "spec.toml")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_reports_canaries_and_parity(models: Path, tmp_path: Path, run_cli) -> None:
    shutil.copy(models / "tokenizer.json", tmp_path)
    words = ("--like", spec_in(tmp_path, TEXT), "-o", tmp_path / "b", "--max-batch", 2, "--json")
    done = run_cli("export", "adopt", models / "text.onnx", *words)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["reference"] == "onnxruntime" and document["parity"]["text_encoder"]["passed"]
    assert {row["name"] for row in document["canaries"]} >= {"original", "distinct", "unit", "batch", "padding"}


def test_adopting_needs_no_pytorch() -> None:
    code = "import sys, simmim_export.export.adopt.adopter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
