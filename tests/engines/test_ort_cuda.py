"""ONNX Runtime's CUDA provider: the whole session with the CPU as its device, the errors without a GPU, and the results on a
GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine, on_device, ort_cuda
from simmim_export.engines.ort import PROVIDER, proof_of
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.proof.parity import compare
from simmim_export.runtime import load
from simmim_export.spec import Precision
from simmim_export.system.conflicts import ort_files


class OnCpu(ort_cuda.OrtCudaSession):
    """The session with host memory in place of GPU memory. Binding, shapes, locks and copies are the same code."""

    provider, device, provider_options = PROVIDER, "cpu", {}

    def _open(self, more, profile=None):
        return super()._open({}, profile)


def opened(bundle: Path, name: str, graphs: bool = False) -> OnCpu:
    return OnCpu(
        bundle / f"graphs/{name}.fp32.onnx", Bundle.open(bundle).manifest.graph(name), threads=1, graphs=graphs
    )


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ["image_encoder", "text_encoder", "fusion", "head.vqa", "video_encoder"])
def test_bound_tensors_agree_with_pytorch(every_bundle: Path, name: str, graphs: bool) -> None:
    session = opened(every_bundle, name, graphs)
    report = compare(session, session._spec, golden=golden_of(every_bundle), precision=Precision.FP32)
    assert report.passed and len(report.rows) > 4
    proof = session.precision_proof()
    assert proof.executed["float"] > 0 and not any(" on " in kind for kind in proof.executed)
    session.close()
    session.close()


def test_outputs_belong_to_the_caller_and_shapes_keep_their_memory(tiny_bundle: Path) -> None:
    session = opened(tiny_bundle, "text_encoder")
    feeds = {"input_ids": np.full((2, 5), 7), "attention_mask": np.ones((2, 5), np.int64)}
    first = session.run(feeds)["text_embed"]
    kept = first.copy()
    again = session.run(feeds | {"input_ids": np.full((2, 5), 9)})["text_embed"]
    assert np.array_equal(first, kept) and not np.array_equal(first, again) and len(session._kept) == 1


def test_only_some_shapes_are_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "SHAPES", 2)
    session, reference = opened(tiny_bundle, "text_encoder", graphs=True), load(tiny_bundle).session("text_encoder")
    ids = []
    bind = session._bind
    session._bind = lambda arrays, graph: (ids.append(graph), bind(arrays, graph))[1]  # type: ignore[method-assign]
    for length in (3, 5, 7, 5, 7, 3):
        feeds = {"input_ids": np.full((1, length), length), "attention_mask": np.ones((1, length), np.int64)}
        for output, value in session.run(feeds).items():
            np.testing.assert_allclose(value, reference.run(feeds)[output], atol=1e-6)
    assert len(session._kept) == 2 and ids == [1, 2, ort_cuda.NO_GRAPH, ort_cuda.NO_GRAPH]


def test_a_session_goes_on_after_it_ran_out_of_memory(tiny_bundle: Path) -> None:
    session = opened(tiny_bundle, "text_encoder")
    feeds = {"input_ids": np.full((1, 5), 7), "attention_mask": np.ones((1, 5), np.int64)}
    first = session.run(feeds)["text_embed"]
    huge = {name: np.broadcast_to(array, (2**42, 5)) for name, array in feeds.items()}
    with pytest.raises(EngineUnavailable, match="text_encoder") as caught:
        session.run(huge)
    assert caught.value.fix
    assert np.array_equal(session.run(feeds)["text_embed"], first)


def test_many_threads_get_what_one_gets(tiny_bundle: Path) -> None:
    session = opened(tiny_bundle, "image_encoder")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 64, 64, 3), dtype=np.uint8)
    alone = [session.run({"pixels": image})["image_embed"] for image in pixels]
    with ThreadPoolExecutor(4) as pool:
        among = list(pool.map(lambda image: session.run({"pixels": image})["image_embed"], pixels))
    assert all(np.array_equal(a, b) for a, b in zip(alone, among, strict=True))


def test_nodes_of_another_provider_are_counted_apart(tiny_bundle: Path) -> None:
    """A real profile, read as if the GPU had been requested: every node ran on the CPU."""
    session = opened(tiny_bundle, "head.vqa")
    proof = proof_of(lambda folder: session._open({}, folder), session._spec, provider=ort_cuda.PROVIDER)
    assert proof.executed and all(kind.endswith(" on CPU") for kind in proof.executed)


def test_a_session_on_the_cpu_is_refused(tiny_bundle: Path) -> None:
    """Without a GPU any onnxruntime opens a session on the CPU or fails; both are errors."""
    engine = get_engine("ort@cuda")
    if engine.why_unavailable() is None:
        pytest.skip("there is a GPU here")
    spec = Bundle.open(tiny_bundle).manifest.graph("head.vqa")
    with pytest.raises(EngineUnavailable, match="CUDAExecutionProvider") as caught:
        engine.open(tiny_bundle / "graphs/head.vqa.fp32.onnx", spec, precision=Precision.FP32)
    assert caught.value.fix


def test_an_unknown_provider_option_is_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ort_files()
    if files is None or not files.provider:
        pytest.skip("the onnxruntime that is installed has no CUDA provider, which alone knows its options")
    missing = [
        name for name in ort_cuda.missing_libraries(int((files.cuda or "0").split(".")[0])) if "cudnn" not in name
    ]
    ort_cuda._preload()
    if missing and ort_cuda.missing_libraries(int((files.cuda or "0").split(".")[0])):
        pytest.skip(f"the provider cannot be loaded here: {', '.join(missing)}")
    spec = Bundle.open(tiny_bundle).manifest.graph("head.vqa")
    for option in ("use_tf33", "enable_cuda_graf"):
        monkeypatch.setattr(ort_cuda.OrtCudaSession, "provider_options", {option: "0"})
        with pytest.raises(EngineUnavailable, match=option):
            ort_cuda.OrtCudaSession(tiny_bundle / "graphs/head.vqa.fp32.onnx", spec, threads=1, graphs=False)


@pytest.mark.parametrize("arguments", [("verify",), ("embed", "--text", "a circle")])
@pytest.mark.parametrize("engine", ["ort", "ort-graph"])
def test_without_a_gpu_the_command_says_what_to_install(run_cli, tiny_bundle: Path, arguments, engine: str) -> None:
    if get_engine("ort@cuda").why_unavailable() is None:
        pytest.skip("there is a GPU here")
    done = run_cli("export", arguments[0], tiny_bundle, *arguments[1:], "--engine", engine, "--device", "cuda")
    assert done.returncode == 3 and not done.stdout
    assert f"engine '{engine}@cuda' cannot run here: " in done.stderr and "onnxruntime-gpu[cuda,cudnn]" in done.stderr


def test_int8_is_refused_with_the_reason(tiny_bundle: Path) -> None:
    with pytest.raises(EngineUnavailable, match="int8") as caught:
        get_engine("ort@cuda").variants(Precision.INT8)
    assert "--engine trt" in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "device", "name"),
    [
        ("ort", None, "ort"),
        ("ort", "cpu", "ort"),
        ("ort", "cuda", "ort@cuda"),
        ("ort@cuda", "cuda", "ort@cuda"),
        ("torch-compile", "cuda", "torch-compile@cuda"),
        ("trt", "cuda", "trt"),
    ],
)
def test_a_device_is_part_of_an_engines_name(engine: str, device: str | None, name: str) -> None:
    assert on_device(engine, device) == name


@pytest.mark.parametrize(
    ("engine", "device", "fix"),
    [
        ("openvino", "cuda", "on cuda there are torch, torch-compile, ort, ort-graph"),
        ("trt", "cpu", ""),
        ("ort", "npu", "cuda"),
    ],
)
def test_a_device_that_an_engine_lacks_is_an_error(engine: str, device: str, fix: str) -> None:
    with pytest.raises(UsageError, match=f"'{engine}'.*'{device}'") as caught:
        on_device(engine, device)
    assert caught.value.fix and fix in caught.value.fix


def test_auto_refuses_a_device(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="device"):
        load(tiny_bundle, "auto", device="cuda")


def test_importing_the_engine_does_not_load_onnxruntime() -> None:
    code = "import sys, simmim_export.engines.ort_cuda; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" not in loaded


# -- on a GPU ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ort@cuda", "ort-graph@cuda"])
def on_gpu(request: pytest.FixtureRequest):
    engine = get_engine(request.param)
    reason = engine.why_unavailable()
    if reason is not None:
        pytest.skip(f"engine {engine.name} cannot run here: {reason}")
    return engine


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_runs_on_the_gpu(on_gpu, request: pytest.FixtureRequest, precision: str) -> None:
    # Not a parameter, because it takes a training, and a skipped test should not wait for that.
    asked_bundle: Path = request.getfixturevalue("asked_bundle")
    asked, golden = Precision(precision), golden_of(asked_bundle)
    bundle = Bundle.open(asked_bundle)
    for spec in bundle.manifest.graphs:
        session = on_gpu.open(bundle.file(bundle.artifact(spec.name, precision).path), spec, precision=asked)
        # Twice, because the second time every shape is replayed.
        for _ in range(2):
            assert compare(session, spec, golden=golden, precision=asked).passed
        executed = session.precision_proof().executed
        assert executed["float16" if precision == "fp16" else "float"] > 0
        # Only the sizes of dynamic axes are computed on the CPU.
        assert not any(kind.startswith("float") and kind.endswith(" on CPU") for kind in executed), json.dumps(executed)


@pytest.mark.gpu
def test_a_damaged_graph_is_an_error_on_the_gpu(on_gpu, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError):
        on_gpu.open(
            tmp_path / "broken.onnx", Bundle.open(tiny_bundle).manifest.graph("head.vqa"), precision=Precision.FP32
        )
