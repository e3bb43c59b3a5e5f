"""Sessions on a GPU that is not there: shapes, CUDA graphs, tensors that stay, memory that goes back."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
from conftest import Rig

from simmim_export.engines.base import KeepsOnDevice, Session
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import EngineUnavailable, NotCaptured, UsageError
from simmim_export.proof.parity import Limited
from simmim_export.runtime import Model, load


@pytest.fixture
def model(rig: Rig) -> Model:
    rig.build("fp32", Request(largest={"sequence": 20}))
    rig.gpu.calls.clear()
    return load(rig.bundle, "trt")


def text(batch: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(length).integers(4, 12, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int64)}


def test_it_is_a_session_that_keeps_on_the_device(model: Model) -> None:
    session = model.session("text_encoder")
    assert isinstance(session, Session) and isinstance(session, KeepsOnDevice) and isinstance(session, Limited)


def test_first_as_it_is_then_as_a_cuda_graph(rig: Rig, model: Model) -> None:
    session = model.session("text_encoder")
    found = [session.run(text(1, 5))["text_embed"] for _ in range(4)]
    # Run, captured, and launched from then on; nothing is executed twice.
    assert rig.gpu.calls == ["execute", "execute", "graph", "graph", "graph"]
    assert all(np.array_equal(found[0], other) for other in found)
    session.run(text(2, 5))
    assert rig.gpu.calls[5:] == ["execute"]


def test_what_cannot_be_captured_runs_and_says_so(rig: Rig, model: Model) -> None:
    rig.gpu.captures = False
    session = model.session("text_encoder")
    first = session.run(text(1, 5))["text_embed"]
    with pytest.warns(NotCaptured, match="text_encoder runs without a CUDA graph"):
        second = session.run(text(1, 5))["text_embed"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = session.run(text(1, 5))["text_embed"]
    assert np.array_equal(first, second) and np.array_equal(first, third) and "graph" not in rig.gpu.calls


def test_the_least_recently_used_shape_goes(rig: Rig, model: Model) -> None:
    session = model.session("text_encoder")
    for length in (*range(3, 11), 3, 11):
        session.run(text(1, length))
    rig.gpu.calls.clear()
    # 3 was used again, so that 4 went for 11.
    session.run(text(1, 3))
    assert rig.gpu.calls == ["graph"]
    session.run(text(1, 4))
    assert rig.gpu.calls == ["graph", "execute"]


def test_shapes_outside_the_profile_are_refused_with_the_profile(model: Model) -> None:
    session = model.session("text_encoder")
    with pytest.raises(
        UsageError, match="not built for batch 1, sequence 25; its profile: batch 1 to 8, best at 1"
    ) as caught:
        session.run(text(1, 25))
    assert caught.value.exit_code == 2 and "--max sequence=25" in caught.value.fix
    with pytest.raises(UsageError, match="batch 9"):
        session.run(text(9, 5))


def test_tensors_stay_on_the_gpu_between_graphs(rig: Rig, model: Model) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    feeds = {"pixels": image} | text(2, 6)
    tensors = model.run("answer", feeds)
    assert isinstance(tensors["logits"], np.ndarray)
    stayed = {name for name, tensor in tensors.items() if not isinstance(tensor, np.ndarray)}
    assert {"image_tokens", "text_tokens", "fused"} <= stayed
    with load(rig.bundle, "ort") as other:
        expected = other.run("answer", feeds)
    for name in (*stayed, "logits"):
        found = np.asarray(tensors[name])
        assert found.dtype == expected[name].dtype and np.allclose(found, expected[name], atol=1e-4)
    # Another run must not write over what stayed.
    before = np.asarray(tensors["fused"])
    model.run("answer", {"pixels": image[::-1].copy()} | text(2, 6))
    assert np.array_equal(np.asarray(tensors["fused"]), before)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(tensors["fused"], copy=False)


def test_a_tensor_that_stayed_has_to_fit_too(model: Model) -> None:
    found = model.session("text_encoder").run_on_device(text(1, 5))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="'image_tokens' is missing"):
        model.session("fusion").run(found)
    with pytest.raises(UsageError, match="expected input_ids: int64"):
        model.session("text_encoder").run(
            {"input_ids": found["text_tokens"], "attention_mask": text(1, 5)["input_ids"]}
        )


def test_time_is_taken_by_events(model: Model) -> None:
    assert model.session("text_encoder").gpu_seconds(text(1, 5)) == 0.0015  # type: ignore[attr-defined]


def test_memory_goes_back(rig: Rig, model: Model) -> None:
    free = rig.gpu.free
    for length in (5, 6, 7):
        model.run("answer", {"pixels": np.zeros((1, 64, 64, 3), np.uint8)} | text(1, length))
    assert rig.gpu.free < free
    gc.collect()
    model.close()
    gc.collect()
    from simmim_export.engines.tensorrt.device import queue

    queue().trim()
    assert rig.gpu.free == free and not rig.gpu.live and not rig.gpu.graphs


def test_idle_memory_of_other_shapes_is_used_before_there_is_none(rig: Rig, model: Model) -> None:
    from simmim_export.engines.tensorrt.device import Memory, queue

    kept = Memory(1 << 20)
    del kept
    gc.collect()
    rig.gpu.free = 1 << 19
    wanted = Memory((1 << 20) + (1 << 18))
    assert rig.gpu.free == (1 << 18) and not queue()._idle.get(1 << 20)
    del wanted


def test_a_capture_that_is_broken_off_leaves_the_stream_as_it_was(rig: Rig, model: Model) -> None:
    from simmim_export.engines.tensorrt.device import queue

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue().capture(interrupted)
    assert rig.gpu.capturing is None and not rig.gpu.graphs
    assert queue().capture(lambda: False) is None and not rig.gpu.graphs
    first, second = (model.session("text_encoder").run(text(1, 5))["text_embed"] for _ in range(2))
    assert np.array_equal(first, second)


def test_a_gpu_without_memory(rig: Rig, model: Model) -> None:
    rig.gpu.free = 100
    with pytest.raises(EngineUnavailable, match="the GPU is out of memory") as caught:
        model.session("text_encoder").run(text(1, 5))
    assert caught.value.exit_code == 3 and caught.value.fix


def test_the_reason_why_it_cannot_run_here(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from simmim_export.engines.tensorrt import TrtEngine, engine

    assert TrtEngine().why_unavailable() is None
    rig.gpu.count = 0
    assert TrtEngine().why_unavailable() == "no NVIDIA GPU answers (cudaErrorNoDevice)"
    monkeypatch.setattr(engine, "version", lambda name: "10.11.0.33")
    assert TrtEngine().why_unavailable() == "TensorRT 10.11.0.33 is too old: 10.12 or newer is needed"
