"""make gpu-check: it ends at once without a GPU, and records what its commands did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_export.benchmarks import document as files
from simmim_export.benchmarks import gpu_check
from simmim_export.benchmarks.driver import Contestant
from simmim_export.benchmarks.gpu_check import EVENTS, WALL, Record, Step, certificate, figures, require_passed
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.errors import GateFailed
from simmim_export.system import nvidia
from simmim_export.system.children import TIMED_OUT


@pytest.mark.parametrize("module", ["simmim_export.system.nvidia", "simmim_export.benchmarks.gpu_check"])
def test_without_a_gpu_it_ends_at_once(module: str, tmp_path: Path) -> None:
    if nvidia.driver() is not None:
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=tmp_path, timeout=20)
    assert done.returncode == 3 and "NVIDIA" in done.stderr
    assert "next:" in done.stderr and "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_the_first_check_needs_only_the_standard_library() -> None:
    """It runs before anything is installed, so this test runs it without site-packages."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-m", "simmim_export.system.nvidia"],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=20,
    )
    assert done.returncode == (3 if nvidia.driver() is None else 0), done.stderr


def test_steps_record_what_the_commands_did(tiny_bundle: Path) -> None:
    record = Record()
    record.run("doctor", "simmim-export", "doctor", "--json")
    record.run("verify", "simmim-export", "verify", tiny_bundle, "--engine", "ort", "--precision", "bf16", "--json")
    record.run("bench", "simmim-bench", needs=["doctor", "verify"])
    record.run("bug", "no_such_module_at_all")
    doctor, verify, bench, bug = record.steps
    assert doctor.passed and doctor.printed["python"] and doctor.error is None
    assert verify.exit_code == 3 and not verify.passed and "bf16" in verify.error and verify.printed is None
    assert bench.exit_code is None and not bench.passed and bench.error and "verify" in bench.error
    assert bug.exit_code == 1 and "no_such_module_at_all" in bug.error
    document = certificate(record, [])
    assert not document["passed"] and [step["passed"] for step in document["steps"]] == [True, False, False, False]
    assert document["versions"]["simmim-export"] and json.loads(json.dumps(document)) == document
    with pytest.raises(GateFailed, match="verify, bench, bug") as caught:
        require_passed(document, Path("gpu-certificate.json"))
    assert caught.value.where == "gpu-certificate.json"


def test_a_hanging_step_is_killed_and_every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LONGEST", 1)
    known: list[list[str]] = []
    record = Record(save=lambda record: known.append([step.name for step in record.steps]))
    hung = record.run("server", "http.server", "0")
    assert hung.exit_code == TIMED_OUT and "1 s" in (hung.error or "") and not hung.passed
    record.run("bench", "simmim-bench", needs=["server"])
    assert known == [["server"], ["server", "bench"]]


def test_an_empty_or_incomplete_record_has_not_passed() -> None:
    assert not certificate(Record(), [])["passed"]
    record = Record([Step(name="doctor", command="simmim-export doctor", exit_code=0, seconds=1.0)])
    complete = certificate(record, [])
    assert complete["passed"]
    require_passed(complete, Path("x"))
    assert not certificate(record, [], complete=False)["passed"]


def test_every_build_is_verified() -> None:
    parsed = [Contestant.parse(name) for name in gpu_check.CONTESTANTS]
    assert {(c.engine, c.precision) for c in parsed if c.engine == "trt"} == {("trt", p) for p in gpu_check.BUILT}
    assert [c.engine for c in parsed if c.reads_checkpoint] == ["torch@cuda"] * 2 + ["torch-compile@cuda"] * 2


def result(engine: str, precision: str, seconds: float, gpu: float | None = None) -> BenchmarkResult:
    def rounds(value: float | None) -> tuple[tuple[float, ...], ...]:
        return () if value is None else ((value,) * 20,) * 6

    return BenchmarkResult(
        target="graph:fusion",
        engine=engine,
        precision=precision,
        batch=1,
        inputs="x",
        rounds=rounds(seconds),
        parity={"passed": True},
        gpu_rounds=rounds(gpu),
    )


def test_ratios_compare_one_clock_and_one_precision(tmp_path: Path) -> None:
    measured = [
        result("torch-compile@cuda", "fp32", 0.008, 0.004),
        result("torch-compile@cuda", "fp16", 0.006, 0.002),
        result("trt", "fp16", 0.003, 0.001),
        result("trt", "int8", 0.003, 0.0005),
        result("ort@cuda", "fp32", 0.004),
        result("trt", "bf16", 0.004),
    ]
    rows = figures(measured)
    assert [row["p50_ms"] for row in rows] == [4, 2, 1, 0.5, 4, 4]
    assert [row["clock"] for row in rows] == [EVENTS] * 4 + [WALL] * 2
    ratios = [row["times_torch_compile"] and row["times_torch_compile"]["value"] for row in rows]
    assert ratios == [None, None, pytest.approx(2), pytest.approx(4), pytest.approx(2), None]
    assert [row["ratio_clock"] for row in rows] == [None, None, EVENTS, EVENTS, WALL, None]
    # The benchmark's own summary keeps both clocks, and compares with the PyTorch that was measured.
    own = files.summary(measured[2], [*measured, result("torch@cuda", "fp32", 0.009, 0.005)])
    assert (own["p50_ms"], own["gpu_p50_ms"], own["times_torch"]["value"]) == (3, 1, pytest.approx(3))


@pytest.mark.parametrize(
    ("text", "device", "engine", "precision"),
    [
        ("ort", None, "ort", "int8"),
        ("ort", "cuda", "ort@cuda", "int8"),
        ("ort@cuda:fp16", None, "ort@cuda", "fp16"),
        ("torch", "cuda", "torch@cuda", "fp32"),
        ("torch-compile@cuda", None, "torch-compile@cuda", "fp32"),
        ("torch-compile:fp16", "cuda", "torch-compile@cuda", "fp16"),
    ],
)
def test_a_contestant_may_name_its_device(text: str, device: str | None, engine: str, precision: str) -> None:
    assert Contestant.parse(text, "int8", device=device) == Contestant(engine, precision)


def test_the_benchmark_refuses_a_missing_device(run_cli) -> None:
    if nvidia.driver() is not None:
        pytest.skip("there is a GPU here")
    for arguments in (
        ("--engine", "ort@cuda"),
        ("--engine", "ort", "--device", "cuda"),
        ("--engine", "torch-compile@cuda"),
    ):
        done = run_cli("bench", *arguments)
        assert done.returncode == 3 and "@cuda'" in done.stderr and "next:" in done.stderr
    done = run_cli("bench", "--engine", "openvino", "--device", "cuda")
    assert done.returncode == 2 and "'openvino'" in done.stderr and "'cuda'" in done.stderr
