"""Building plan files: the whole path, on a fake GPU."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Rig
from onnx import numpy_helper
from typer.testing import CliRunner

from simmim_export.bundle import Bundle
from simmim_export.cli import app
from simmim_export.engines.tensorrt import plan_file as plan_files
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import (
    BundleError,
    EngineUnavailable,
    GateFailed,
    NoCache,
    UsageError,
)
from simmim_export.runtime import load

GRAPHS = ["image_encoder", "text_encoder", "fusion", "head.match", "head.vqa"]
KINDS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


@pytest.mark.parametrize("precision", list(KINDS))
def test_a_built_bundle_agrees_and_runs_at_the_precision_asked_for(rig: Rig, precision: str) -> None:
    before = Bundle.open(rig.bundle).digest
    built = rig.build(precision)
    assert [one.sidecar.graph for one in built] == GRAPHS and all(one.new for one in built)
    assert all(one.sidecar.parity["passed"] and one.sidecar.parity["checks"] > 10 for one in built)
    assert KINDS[precision] in built[0].sidecar.executed
    # Plan files belong to a device, so the bundle is still the same bundle.
    assert Bundle.open(rig.bundle).digest == before
    with load(rig.bundle, "trt", precision=precision) as model, load(rig.bundle, "ort") as other:
        assert all(report.passed for report in model.verify())
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        assert (model.embed_image([pixels]) * other.embed_image([pixels])).sum() > 0.97
        assert len(model.answer(pixels, "what colour is the circle ?")) == 3
        assert model.session("text_encoder").precision_proof().executed


def test_tensorrt_gets_the_options(rig: Rig) -> None:
    request = Request(
        workspace=1 << 30, level=5, compatibility="ampere_plus", best={"batch": 4}, largest={"sequence": 9}
    )
    rig.build("fp32", request)
    import tensorrt as trt

    asked = rig.world.asked
    assert asked["cleared"] == [trt.BuilderFlag.TF32] and asked["pools"] == {"WORKSPACE": 1 << 30}
    assert asked["builder_optimization_level"] == 5
    assert asked["profiling_verbosity"] is trt.ProfilingVerbosity.DETAILED
    assert asked["hardware_compatibility_level"] is trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert asked["profile"]["fused"][1][0] == 4
    card = plan_files.read_sidecar(rig.plan("text_encoder"))
    assert card.recipe["profile"] == {"batch": [1, 4, 8], "sequence": [3, 9, 9]}
    # Cases with longer texts are left out, which shows in the number of checks.
    assert card.parity["checks"] < plan_files.read_sidecar(rig.plan("image_encoder")).parity["checks"] * 4
    assert card.target.version == trt.__version__ and (card.target.gpu, card.target.sms) == ("Fake GPU", ("8.7",))


def test_a_second_build_does_the_rest(rig: Rig) -> None:
    rig.start_built("fp16")
    assert not any(one.new for one in rig.build("fp16"))
    rig.plan("fusion", "fp16").unlink()
    plan_files.sidecar_path(rig.plan("head.vqa", "fp16")).unlink()
    assert [one.sidecar.graph for one in rig.build("fp16") if one.new] == ["fusion", "head.vqa"]
    assert all(one.new for one in rig.build("fp16", Request(level=4)))
    assert all(one.new for one in rig.build("fp32"))


def test_every_graph_has_its_own_precision(rig: Rig) -> None:
    rig.build("image_encoder=int8,text_encoder=fp16")
    names = sorted(path.name for path in rig.plan().parent.glob("*.plan"))
    assert "image_encoder.int8.plan" in names and "text_encoder.fp16.plan" in names and len(names) == 5
    with load(rig.bundle, "trt", precision="image_encoder=int8,text_encoder=fp16") as model:
        assert all(report.passed for report in model.verify())


def test_parser_errors_name_node_and_module(rig: Rig) -> None:
    rig.world.refuse_parse = "image_encoder"
    with pytest.raises(
        BundleError, match=r"image_encoder:\n    Conv \S+ of encoder\.trunk\.0\.0: UNSUPPORTED_NODE: "
    ) as caught:
        rig.build()
    assert f"build {rig.bundle} --engine trt --dry-run" in caught.value.fix
    assert not rig.plan().exists()


def test_a_graph_that_tensorrt_cannot_build_is_an_error(rig: Rig) -> None:
    rig.world.refuse_build = "fusion"
    with pytest.raises(EngineUnavailable, match=r"fusion.*\n    Error Code 10") as caught:
        rig.build()
    assert "--workspace" in caught.value.fix


def test_out_of_memory_keeps_finished_plan_files(rig: Rig) -> None:
    rig.world.out_of_memory = "fusion"
    with pytest.raises(EngineUnavailable, match="fusion") as caught:
        rig.build()
    assert "--workspace" in caught.value.fix
    assert rig.plan("text_encoder").exists() and not rig.plan("fusion").exists()
    rig.world.out_of_memory = ""
    assert [one.new for one in rig.build()] == [False, False, True, True, True]


def test_a_plan_file_that_differs_is_not_kept(rig: Rig) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))

    rig.start_built()
    rig.world.tamper = spoil
    before = rig.plan("text_encoder").read_bytes()
    with pytest.raises(GateFailed, match="image_encoder"):
        rig.build("fp32", Request(level=1))
    assert rig.plan("text_encoder").read_bytes() == before


def test_fp32_where_fp16_was_asked_fails(rig: Rig) -> None:
    full = onnx.load(rig.bundle / "graphs/image_encoder.fp32.onnx")
    rig.world.tamper = lambda model: model.CopyFrom(full)
    with pytest.raises(GateFailed, match=r"fp16.* 0 of"):
        rig.build("fp16")
    assert not rig.plan(precision="fp16").exists()


def test_workspace_is_bounded_by_what_is_free(rig: Rig) -> None:
    with pytest.raises(EngineUnavailable, match=r"9\.00 GiB.*8\.00 GiB"):
        rig.build("fp32", Request(workspace=9 << 30))
    rig.build()
    # Without a request it gets all that was free, not the whole GPU.
    assert rig.world.asked["pools"]["WORKSPACE"] <= 8 << 30


def test_timings_are_kept_by_version_and_gpu(rig: Rig, tmp_path: Path) -> None:
    rig.build()
    (file,) = (tmp_path / "cache/trt").iterdir()
    version = plan_files.read_sidecar(rig.plan()).target.version
    assert file.name == f"{version}.Fake-GPU.sm8.7.timings"
    assert rig.world.asked["known"] == b"timings of head.match.fp32.onnx"
    rig.world.refuse_cache = True
    rig.build("fp32", Request(level=1))
    assert rig.world.asked["known"] == b""


def test_damaged_timings_are_not_given_to_tensorrt(rig: Rig, tmp_path: Path) -> None:
    """TensorRT would take them without a word."""
    rig.build()
    (file,) = (tmp_path / "cache/trt").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.warns(NoCache, match=re.escape(str(file))):
        rig.build("fp32", Request(level=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rig.build("fp32", Request(level=2))


def test_a_setting_that_tensorrt_ignores_is_an_error(rig: Rig) -> None:
    rig.world.ignored = "builder_optimization_level"
    with pytest.raises(EngineUnavailable, match="builder_optimization_level") as caught:
        rig.build()
    assert caught.value.fix and not rig.plan().exists()


def test_an_empty_graph_is_an_error_of_the_file(rig: Rig) -> None:
    """The parser accepts a file without nodes."""
    rig.world.empty = "fusion"
    with pytest.raises(BundleError, match="holds no node") as caught:
        rig.build()
    assert "fusion.fp32.onnx" in str(caught.value.where)


def test_other_failures_do_not_ask_for_memory(rig: Rig) -> None:
    rig.world.fail_build = "fusion"
    with pytest.raises(EngineUnavailable, match="did not build fusion") as caught:
        rig.build()
    assert "--workspace" not in caught.value.fix and "--dry-run" in caught.value.fix


def test_a_product_that_is_dequantized_first_fails(rig: Rig) -> None:
    rig.world.dequantizes = True
    with pytest.raises(GateFailed, match=r"int8.*not in INT8"):
        rig.build("int8")
    assert not rig.plan(precision="int8").exists()


def test_ctrl_c_keeps_only_finished_plan_files(rig: Rig) -> None:
    def watch(step: str, done: int, total: int) -> None:
        seen.append((step, done, total))
        if step.startswith("text_encoder") and done == 1:
            raise KeyboardInterrupt

    seen: list[tuple[str, int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        rig.build(watch=watch)
    assert ("image_encoder: Building engine", 6, 6) in seen
    assert sorted(path.name for path in rig.plan().parent.iterdir()) == [
        ".lock", "image_encoder.fp32.plan", "image_encoder.fp32.plan.json",
    ]  # fmt: skip
    assert [one.new for one in rig.build()] == [False, True, True, True, True]


@pytest.mark.parametrize("rig", ["11"], indirect=True)
def test_a_real_ctrl_c_cancels_and_is_raised_when_the_build_has_ended(rig: Rig) -> None:
    """Python delivers a signal to the main thread alone, whatever that is doing."""

    def watch(step: str, done: int, total: int) -> None:
        if step.startswith("text_encoder") and done == 1 and not threads:
            threads.append(threading.current_thread())
            signal.raise_signal(signal.SIGINT)
            # Long enough for the main thread of a busy machine to cancel the build.
            time.sleep(2)

    threads: list[threading.Thread] = []
    # A worker of pytest-xdist ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            rig.build(watch=watch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads and threads[0] is not threading.main_thread() and not threads[0].is_alive()
    assert "text_encoder.fp32.onnx" not in rig.world.built
    assert [one.new for one in rig.build()] == [False, True, True, True, True]


def test_a_bundle_that_cannot_be_written_is_an_error(rig: Rig) -> None:
    (rig.bundle / "engines").write_text("no folder")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        rig.build()
    assert str(rig.bundle) in str(caught.value.where) and caught.value.fix


def test_a_timing_cache_that_cannot_be_written_is_a_warning(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / "cache/trt"
    rig.build()
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    (file / "x").write_text("")
    with pytest.warns(NoCache, match=re.escape(str(file))):
        assert all(one.new for one in rig.build("fp32", Request(level=1)))


def test_a_second_build_at_once_is_refused(rig: Rig) -> None:
    rig.start_built()
    with (rig.plan().parent / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=rf"process {os.getpid()}\b") as caught:
            rig.build()
    assert caught.value.where == str(rig.plan().parent / ".lock") and caught.value.fix
    assert not any(one.new for one in rig.build())


def test_shapes_that_cannot_be_proven_are_refused(rig: Rig) -> None:
    request = Request(least={"batch": 7}, best={"batch": 7}, largest={"batch": 7})
    with pytest.raises(UsageError, match="image_encoder"):
        rig.build("fp32", request)
    with pytest.raises(UsageError, match="'width'"):
        rig.build("fp32", Request(largest={"width": 7}))


def test_the_build_command(rig: Rig) -> None:
    log = rig.bundle.parent / "shapes.jsonl"
    log.write_text('{"batch": 1, "sequence": 5}\n{"batch": 1, "sequence": 5}\n{"batch": 4, "sequence": 9}\n')
    words = ["build", str(rig.bundle), "--precision", "fp16", "--shapes", str(log), "--workspace", "512MiB", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exception is None, done.exception
    graphs = json.loads(done.stdout)["graphs"]
    assert list(graphs) == GRAPHS and graphs["text_encoder"]["recipe"] == {
        "workspace": 512 << 20,
        "level": 3,
        "compatibility": "none",
        "targets": [],
        "profile": {"batch": [1, 1, 4], "sequence": [5, 5, 9]},
    }
    done = CliRunner().invoke(app, [word for word in words if word != "--json"])
    assert done.exception is None and done.stdout.count("kept") == 5
    assert "Fake GPU (SM 8.7)" in " ".join(done.stdout.split())


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_without_tensorrt_the_command_says_what_is_missing(tiny_bundle: Path, run_cli: Run) -> None:
    from simmim_export.engines import get_engine

    if get_engine("trt").why_unavailable() is None:
        pytest.skip("TensorRT is here")
    done = run_cli("export", "build", tiny_bundle, "--engine", "trt", "--precision", "fp16")
    assert done.returncode == 3, done.stderr
    assert "not installed: tensorrt" in done.stderr and "pip install 'simmim-export[gpu]'" in done.stderr


def test_without_tensorrt_nothing_heavy_is_loaded(tiny_bundle: Path) -> None:
    import sys

    code = (
        f"import sys, atexit; sys.argv = ['x', 'build', {str(tiny_bundle)!r}]\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        "from simmim_export.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert done.returncode == 3 and loaded
    assert not {"torch", "transformers", "onnx", "onnxruntime", "openvino", "tokenizers", "PIL"} & loaded


def test_other_engines_have_nothing_to_build(tiny_bundle: Path, run_cli: Run) -> None:
    done = run_cli("export", "build", tiny_bundle, "--engine", "ort")
    assert done.returncode == 2 and "'ort'" in done.stderr and "simmim-export verify" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", list(KINDS))
def test_build_on_a_real_gpu(tiny_bundle: Path, tmp_path: Path, precision: str) -> None:
    from simmim_export.engines import get_engine

    reason = get_engine("trt").why_unavailable()
    if reason is not None:
        pytest.skip(f"engine trt cannot run here: {reason}")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    done = CliRunner().invoke(app, ["build", str(tmp_path / "bundle"), "--precision", precision, "--json"])
    assert done.exception is None, done.exception
    with load(tmp_path / "bundle", "trt", precision=precision) as model:
        assert all(report.passed for report in model.verify())
