"""Sessions on a fake GPU: shapes, CUDA graphs, tensors that stay, memory that is given back."""

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
    rig.start_built("fp32", Request(largest={"sequence": 20}))
    rig.gpu.calls.clear()
    return load(rig.bundle, "trt")


def text(batch: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(length).integers(4, 12, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int64)}


def test_a_session_can_keep_tensors_on_the_device(model: Model) -> None:
    session = model.session("text_encoder")
    assert isinstance(session, Session) and isinstance(session, KeepsOnDevice) and isinstance(session, Limited)


def test_the_second_run_captures_a_cuda_graph(rig: Rig, model: Model) -> None:
    session = model.session("text_encoder")
    vectors = [session.run(text(1, 5))["text_embed"] for _ in range(4)]
    # Run, captured, and launched from then on; nothing is executed twice.
    assert rig.gpu.calls == ["execute", "execute", "graph", "graph", "graph"]
    assert all(np.array_equal(vectors[0], other) for other in vectors)
    session.run(text(2, 5))
    assert rig.gpu.calls[5:] == ["execute"]


def test_a_graph_that_cannot_be_captured_runs_with_a_warning(rig: Rig, model: Model) -> None:
    rig.gpu.captures = False
    session = model.session("text_encoder")
    first = session.run(text(1, 5))["text_embed"]
    with pytest.warns(NotCaptured, match="text_encoder"):
        second = session.run(text(1, 5))["text_embed"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = session.run(text(1, 5))["text_embed"]
    assert np.array_equal(first, second) and np.array_equal(first, third) and "graph" not in rig.gpu.calls


def test_the_least_recently_used_shape_is_dropped(rig: Rig, model: Model) -> None:
    session = model.session("text_encoder")
    for length in (*range(3, 11), 3, 11):
        session.run(text(1, length))
    rig.gpu.calls.clear()
    # 3 was used again, so 4 made room for 11.
    session.run(text(1, 3))
    assert rig.gpu.calls == ["graph"]
    session.run(text(1, 4))
    assert rig.gpu.calls == ["graph", "execute"]


def test_shapes_outside_the_profile_are_refused(model: Model) -> None:
    session = model.session("text_encoder")
    with pytest.raises(UsageError, match=r"batch 1, sequence 25.*batch 1 to 8, best at 1") as caught:
        session.run(text(1, 25))
    assert "--max sequence=25" in caught.value.fix
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
        array = np.asarray(tensors[name])
        assert array.dtype == expected[name].dtype and np.allclose(array, expected[name], atol=1e-4)
    # Another run must not write over what stayed.
    before = np.asarray(tensors["fused"])
    model.run("answer", {"pixels": image[::-1].copy()} | text(2, 6))
    assert np.array_equal(np.asarray(tensors["fused"]), before)
    with pytest.raises(ValueError):
        np.asarray(tensors["fused"], copy=False)


def test_a_tensor_on_the_gpu_must_fit_too(model: Model) -> None:
    tensors = model.session("text_encoder").run_on_device(text(1, 5))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="'image_tokens'"):
        model.session("fusion").run(tensors)
    with pytest.raises(UsageError, match="input_ids: int64"):
        model.session("text_encoder").run(
            {"input_ids": tensors["text_tokens"], "attention_mask": text(1, 5)["input_ids"]}
        )


def test_events_measure_the_time(model: Model) -> None:
    assert model.session("text_encoder").gpu_seconds(text(1, 5)) == 0.0015  # type: ignore[attr-defined]


def test_memory_is_given_back(rig: Rig, model: Model) -> None:
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


def test_idle_memory_is_freed_before_memory_runs_out(rig: Rig, model: Model) -> None:
    from simmim_export.engines.tensorrt.device import Memory, queue

    kept = Memory(1 << 20)
    del kept
    gc.collect()
    rig.gpu.free = 1 << 19
    wanted = Memory((1 << 20) + (1 << 18))
    assert rig.gpu.free == (1 << 18) and not queue()._idle.get(1 << 20)
    del wanted


def test_an_interrupted_capture_leaves_the_stream_usable(rig: Rig, model: Model) -> None:
    from simmim_export.engines.tensorrt.device import queue

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue().capture(interrupted)
    assert rig.gpu.capturing is None and not rig.gpu.graphs
    assert queue().capture(lambda: False) is None and not rig.gpu.graphs
    first, second = (model.session("text_encoder").run(text(1, 5))["text_embed"] for _ in range(2))
    assert np.array_equal(first, second)


def test_a_full_gpu_is_an_unavailable_engine(rig: Rig, model: Model) -> None:
    rig.gpu.free = 100
    with pytest.raises(EngineUnavailable) as caught:
        model.session("text_encoder").run(text(1, 5))
    assert caught.value.fix


def test_missing_gpus_and_old_versions_are_reasons(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from simmim_export.engines.tensorrt import TrtEngine, library

    assert TrtEngine().why_unavailable() is None
    rig.gpu.count = 0
    assert "cudaErrorNoDevice" in (TrtEngine().why_unavailable() or "")
    monkeypatch.setattr(library, "installed", lambda name: "10.11.0.33")
    reason = TrtEngine().why_unavailable() or ""
    assert "10.11.0.33" in reason and "10.12" in reason
