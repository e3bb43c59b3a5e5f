"""OpenVINO: hints, calls from several threads, and the cache of compiled models."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from support import golden_of

from simmim_export.benchmarks.certify import candidates
from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.engines import openvino as engine_module
from simmim_export.engines.base import LATENCY, THROUGHPUT
from simmim_export.engines.openvino import UNPROVEN, OpenVinoSession
from simmim_export.errors import BundleError, EngineUnavailable, NoCache, UsageError
from simmim_export.proof.parity import compare
from simmim_export.runtime import load
from simmim_export.spec import Precision, Variant
from simmim_export.system import cache as store
from simmim_export.system.telemetry import without_telemetry

pytest.importorskip("openvino")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/openvino"


@pytest.mark.parametrize("hint", [LATENCY, THROUGHPUT])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_many_threads_get_what_one_gets(tiny_bundle: Path, hint: str, precision: str) -> None:
    with load(tiny_bundle, "openvino", precision=precision, hint=hint) as model:
        session = model.session("image_encoder")
        pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 64, 64, 3), dtype=np.uint8)
        alone = [session.run({"pixels": image})["image_embed"] for image in pixels]
        with ThreadPoolExecutor(8) as pool:
            among = list(pool.map(lambda image: session.run({"pixels": image})["image_embed"], pixels))
    assert all(np.array_equal(a, b) for a, b in zip(alone, among, strict=True))


def test_unknown_and_missing_hints_are_errors(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="'speed'"):
        load(tiny_bundle, "openvino", hint="speed")
    with pytest.raises(EngineUnavailable, match="'ort'"):
        load(tiny_bundle, "ort", hint=THROUGHPUT)


def embed(bundle: Path, precision: str = "fp32") -> np.ndarray:
    """An embedding from a model that was just opened and agrees with PyTorch."""
    with load(bundle, "openvino", precision=precision) as model:
        vectors: np.ndarray = model.embed_text(["a red circle"])
        report = compare(
            model.session("text_encoder"),
            model.bundle.manifest.graph("text_encoder"),
            golden=golden_of(bundle),
            precision=Precision(precision),
        )
    assert report.passed
    return vectors


def test_a_cached_model_gives_the_same_answers(cache: Path, tiny_bundle: Path) -> None:
    first = embed(tiny_bundle)
    blobs = [path for path in cache.rglob("*") if path.is_file() and path.name not in (store.DIGESTS, store.LOCK)]
    assert len(blobs) == 1
    stamp = blobs[0].stat().st_mtime_ns
    assert np.array_equal(embed(tiny_bundle), first) and blobs[0].stat().st_mtime_ns == stamp
    # Another precision is another compiled model of the same graph.
    if "BF16" in __import__("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert not np.array_equal(embed(tiny_bundle, "bf16"), first)
        assert np.array_equal(embed(tiny_bundle), first)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "stranger", "no digests"])
def test_a_damaged_cache_is_replaced(cache: Path, tiny_bundle: Path, how: str) -> None:
    first = embed(tiny_bundle)
    (folder,) = cache.iterdir()
    (blob,) = [path for path in folder.iterdir() if path.name not in (store.DIGESTS, store.LOCK)]
    content = blob.read_bytes()
    if how == "flip":
        middle = len(content) // 2
        blob.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    elif how == "cut":
        blob.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        blob.write_bytes(b"")
    elif how == "stranger":
        (folder / "other.blob").write_bytes(b"x")
    else:
        (folder / store.DIGESTS).write_text("[")
    damaged = blob.read_bytes()
    assert np.array_equal(embed(tiny_bundle), first)
    assert not (folder / "other.blob").exists()
    # OpenVINO writes a date and paddings of its own: a new file is near the length of the old one, and not always at it.
    assert abs(len(blob.read_bytes()) - len(content)) < 0.01 * len(content)
    assert how in ("stranger", "no digests") or blob.read_bytes() != damaged
    assert store._read(folder).keys() == {blob.name}


def test_another_graph_at_the_same_path_is_compiled_again(cache: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    spec, path = Bundle.open(tiny_bundle).manifest.graph("text_encoder"), tmp_path / "x.onnx"
    engine, feeds = (
        get_engine("openvino"),
        {name: np.ones((1, 5), np.int64) for name in ("input_ids", "attention_mask")},
    )
    vectors = []
    for variant in ("fp32", "int8-u8", "fp32"):
        shutil.copyfile(tiny_bundle / f"graphs/text_encoder.{variant}.onnx", path)
        session = engine.open(path, spec, precision=Precision.FP32)
        vectors.append(session.run(feeds)["text_embed"])
        session.close()
    assert np.array_equal(vectors[0], vectors[2]) and not np.array_equal(vectors[0], vectors[1])
    assert len(list(cache.iterdir())) == 2


def test_a_disabled_cache_writes_nothing(
    cache: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    embed(tiny_bundle)
    assert not cache.exists() and not (tmp_path / "xdg").exists()


def test_the_cache_is_limited_in_size(
    cache: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BYTES", 1)
    with load(tiny_bundle, "openvino") as model:
        for spec in model.bundle.manifest.graphs:
            model.session(spec.name)
            assert len(list(cache.iterdir())) == 1


@pytest.mark.filterwarnings("ignore::simmim_export.errors.FewerThreads")
@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder", "fusion"])
def test_int8_is_deterministic(tiny_bundle: Path, graph: str) -> None:
    """On AVX2 without VNNI, convolutions on two threads did not for batches of 2 and more."""
    with load(tiny_bundle, "openvino", precision="int8", threads=2) as model:
        golden, session = golden_of(tiny_bundle), model.session(graph)
        case = max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size)
        feeds = golden.feeds(case, model.bundle.manifest.graph(graph))
        first = session.run(feeds)
        for _ in range(30):
            again = session.run(feeds)
            assert all(np.array_equal(values, again[name]) for name, values in first.items())


def test_a_waiting_call_ends_when_the_session_is_closed(tiny_bundle: Path) -> None:
    """It must not wait for a request that a closed session no longer has."""
    with load(tiny_bundle, "openvino") as model:
        session, pixels = model.session("image_encoder"), np.zeros((8, 64, 64, 3), np.uint8)

        def run(_: int) -> None:
            with suppress(UsageError):
                session.run({"pixels": pixels})

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(run, index) for index in range(24)]
            calls[0].result(timeout=60)
            session.close()
            for call in calls:
                call.result(timeout=60)


# Audit events show everything that opens a socket, forks or starts a process.
WATCH = """
import os, sys
import simmim_export
seen = []
watched = ("socket.", "os.fork", "os.posix_spawn", "subprocess.", "urllib.", "http.")
sys.addaudithook(lambda event, args: seen.append((event, str(args))) if event.startswith(watched) else None)
with simmim_export.load(sys.argv[1], "openvino") as model:
    assert model.embed_text(["red circle"]).shape == (1, 64)
assert not seen, seen
assert not os.listdir(os.environ["HOME"]), os.listdir(os.environ["HOME"])
# An application may import it.
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry
"""


def test_openvino_sends_no_telemetry(tiny_bundle: Path, tmp_path: Path) -> None:
    """openvino_telemetry, which comes with openvino, sends an event on import unless it sees that it runs in CI."""
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")}
    environment = {**kept, "HOME": str(tmp_path / "home"), "SIMMIM_EXPORT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WATCH, str(tiny_bundle)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_application_keeps_what_it_imported() -> None:
    with without_telemetry("openvino"):
        assert sys.modules["openvino_telemetry"] is None
        with pytest.raises(ImportError):
            import openvino_telemetry
    import openvino_telemetry

    with without_telemetry("openvino"), pytest.raises(ImportError):
        import_module("openvino_telemetry")
    assert sys.modules["openvino_telemetry"] is openvino_telemetry


def test_a_cache_that_another_process_holds_is_skipped(
    cache: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(tiny_bundle)
    (folder,) = cache.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(store, "WAIT", 0.1)
    with FileLock(folder / store.LOCK), pytest.warns(NoCache, match=re.escape(str(folder))):
        assert np.array_equal(embed(tiny_bundle), first)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoCache)
        embed(tiny_bundle)


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_int8_is_refused_on_arm(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv(UNPROVEN, raising=False)
    with pytest.raises(EngineUnavailable) as caught:
        load(tiny_bundle, "openvino", precision="text_encoder=int8")
    assert caught.value.exit_code == 3 and UNPROVEN in str(caught.value.fix)
    contestants, skipped = candidates(Bundle.open(tiny_bundle))
    names = [str(contestant) for contestant in contestants]
    assert "openvino" in names and "openvino:int8" not in names and any("openvino:int8" in why for why in skipped)
    assert get_engine("openvino").variants(Precision.FP32) == (Variant.FP32,)


def test_int8_can_be_measured_on_arm(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setenv(UNPROVEN, "openvino:int8")
    assert "openvino:int8" in [str(contestant) for contestant in candidates(Bundle.open(tiny_bundle))[0]]
    monkeypatch.setenv(UNPROVEN, "1")
    with pytest.raises(EngineUnavailable):
        get_engine("openvino").variants(Precision.INT8)


class Broken:
    """A compiled model, and its request, of which OpenVINO finds out late that a node cannot run."""

    def get_property(self, name: str) -> int:
        return 1

    def create_infer_request(self) -> Broken:
        return self

    def infer(self, feeds: object) -> None:
        raise RuntimeError("Convolution node with name 'x' is not initialized")

    def get_runtime_model(self) -> None:
        self.infer({})


@pytest.mark.parametrize("dot", [True, False])
def test_what_openvino_raises_late_is_our_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, dot: bool) -> None:
    """When it opens a graph, runs it, or is asked what it runs."""
    monkeypatch.setattr(engine_module, "_compile", lambda path, options: Broken())
    monkeypatch.setattr(engine_module, "has_integer_dot", lambda: dot)
    spec = Bundle.open(tiny_bundle).manifest.graph("image_encoder")

    def opened() -> OpenVinoSession:
        return get_engine("openvino").open(tiny_bundle, spec, precision=Precision.INT8, threads=2)

    calls = [opened]
    if dot:
        session = opened()
        calls = [session.precision_proof, lambda: session.run({"pixels": np.zeros((1, 64, 64, 3), np.uint8)})]
    for call in calls:
        with pytest.raises(BundleError) as caught:
            call()
        assert (
            caught.value.exit_code == 5 and "image_encoder" in caught.value.what and "'openvino'" in caught.value.what
        )
