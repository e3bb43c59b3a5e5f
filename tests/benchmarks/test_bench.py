"""simmim-bench from end to end on the tiny bundle, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import spoil

from simmim_export.benchmarks import document as files
from simmim_export.benchmarks import quantization
from simmim_export.benchmarks.compare import ACCEPTED, compare
from simmim_export.benchmarks.driver import Contestant
from simmim_export.benchmarks.reference import reference_folder
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.benchmarks.worker import EngineWorker
from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import BundleError, DataError, EngineUnavailable
from simmim_export.proof.certificate import write

RATIOS = ("--rounds", "6", "--iterations", "4", "--warmup", "1")
FAST = ("--rounds", "2", "--iterations", "10", "--warmup", "1")


@pytest.fixture(scope="module")
def document(tmp_path_factory, tiny_bundle: Path, tiny_checkpoint: Path) -> Path:
    """The JSON of one real run of both engines on one pipeline."""
    path = tmp_path_factory.mktemp("bench") / "a.json"
    command = [sys.executable, "-m", "simmim_export.benchmarks.cli", "--bundle", str(tiny_bundle), *FAST]
    command += ["--checkpoint", str(tiny_checkpoint), "--pipeline", "answer", "--save", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "first result of" in done.stdout and "text_encoder" in done.stdout
    assert "x torch" not in done.stdout and "--rounds 6" in done.stdout
    return path


def test_everything_is_kept(document: Path) -> None:
    saved = json.loads(document.read_text())
    targets = {"graph:image_encoder", "graph:text_encoder", "graph:fusion", "graph:head.vqa", "pipeline:answer"}
    assert {(r["target"], r["engine"]) for r in saved["results"]} == {(t, e) for t in targets for e in ("torch", "ort")}
    for row in saved["results"]:
        assert [len(r) for r in row["rounds"]] == [10, 10] and all(s > 0 for r in row["rounds"] for s in r)
        assert row["parity"]["passed"] and row["parity"]["cosine"] >= 0.99999
    for target in targets:
        assert len({r["inputs"] for r in saved["results"] if r["target"] == target}) == 1
    for row in saved["summary"]:
        assert row["p50_ms"] > 0 and row["p90_ms"] is None and row["p99_ms"] is None
        assert row["times_torch"] is row["times_own_fp32"] is None and "--rounds 6" in row["no_ratio"]
    for engine in saved["engines"].values():
        assert engine["cold_start"] == pytest.approx(sum(engine["phases"].values()), abs=0.2)
        assert engine["peak_memory"] > 10e6 and engine["proof"]["fusion"]["executed"]
    assert saved["host"]["packages"]["numpy"] and saved["bundle"]["manifest_sha256"]


def test_json_prints_what_save_writes(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = (
        "--bundle",
        tiny_bundle,
        "--engine",
        "ort",
        "--pipeline",
        "embed_text",
        "--rounds",
        "1",
        "--iterations",
        "1",
    )
    done = run_cli("bench", *words, "--json", "--save", path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(path.read_text())


WHOLE = (
    '{"schema": 2, "command": [], "suites": [], "host": {}, "load_average": 0, "warnings": [], "bundle": {}, "method": {}, '
    '"finished_rounds": 1, "peaks": null, "engines": {}, "results": %s}'
)
ROW = '[{"target": "x", "engine": "ort", "precision": "fp32", "batch": 1, "inputs": "", "rounds": %s}]'


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, ""),
        ("{", ""),
        ("[" * 100_000, ""),
        ("[]", ""),
        ('{"schema": 1}', "1"),
        ('{"schema": 99}', "99"),
        (WHOLE.replace('"host": {}, ', "") % "[]", "host"),
        (WHOLE % "[[]]", ""),
        (WHOLE % '[{"target": "x"}]', "$.results[0]"),
        (WHOLE % (ROW % "[[0.0]]"), ""),
        (WHOLE % (ROW % "[[]]"), ""),
        (WHOLE % (ROW % "[[1]]").replace('"x"', "[]"), ""),
        (WHOLE % (ROW % "[[1e999]]"), ""),
        (WHOLE % (ROW % "[[NaN]]"), ""),
        (WHOLE % (ROW % "[]"), "$.results[0]"),
        (WHOLE % (ROW % '[[1]], "suite": "dance"'), "suite"),
        (WHOLE % (ROW % '[[1]], "params": {"batch": -1}'), "params"),
        (WHOLE % "[]", ""),
    ],
)
def test_a_bad_file_is_an_error(document: Path, tmp_path: Path, content: str | None, named: str) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        compare(document, path, accept=ACCEPTED)
    assert str(path) in str(caught.value.where) and named in caught.value.what and caught.value.fix


def test_a_bad_file_ends_the_command_with_5(run_cli, tmp_path: Path) -> None:
    done = run_cli("bench", "compare", tmp_path / "none.json", tmp_path / "none.json")
    assert done.returncode == 5 and f"where: {tmp_path / 'none.json'}" in done.stderr


def test_an_engine_that_is_missing_ends_at_once(run_cli) -> None:
    reason = get_engine("trt").why_unavailable()
    if reason is None:
        pytest.skip("TensorRT runs here")
    done = run_cli("bench", "--engine", "trt")
    assert done.returncode == 3
    assert reason in done.stderr and "next:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--engine", "tpu"), 2, "'tpu'"),
        (("--engine", "ort", "--precision", "int8", "--bundle", "{every}"), 3, "where: {every}"),
        (("--engine", "ort", "--bundle", "{tmp}/none"), 5, "where: {tmp}/none"),
        (("--engine", "ort", "--bundle", "{bundle}", "--pipeline", "dance"), 2, "'dance'"),
        (("--engine", "ort", "--bundle", "{bundle}", "--batch", "64"), 2, "--batch 8"),
        (
            ("--engine", "ort", "--bundle", "{bundle}", "--save", "{copy}/manifest.json"),
            2,
            "where: {copy}/manifest.json",
        ),
        (("--engine", "ort", "--bundle", "{bundle}", "--save", "{copy}", "--overwrite"), 2, "where: {copy}"),
        (("--rounds", "3", "--bundle", "{bundle}", "compare", "a", "b"), 2, "--bundle, --rounds"),
        (("--bundle", "{copy}"), 2, "--checkpoint"),
        (("--engine", "ort", "--bundle", "{bundle}", "--checkpoint", "x.pt"), 2, "drop --checkpoint"),
        (("footprint", "--bundle", "{tmp}/none"), 5, "where: {tmp}/none"),
        (("footprint", "--bundle", "{bundle}", "--source", "{tmp}"), 2, "where: {tmp}"),
    ],
)
def test_a_bad_request_is_a_message(
    run_cli, tiny_bundle: Path, every_bundle: Path, tmp_path: Path, arguments, code: int, named: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    places = {"tmp": tmp_path, "bundle": tiny_bundle, "every": every_bundle, "copy": copy}
    done = run_cli("bench", *(a.format(**places) for a in arguments))
    assert done.returncode == code, done.stderr
    assert named.format(**places) in done.stderr and "next:" in done.stderr


def test_a_workers_error_arrives_as_itself(tmp_path: Path, tiny_bundle: Path, every_bundle: Path) -> None:
    """Also if its class is not one of errors.py but derives from one: certificates of another bundle."""
    other = Path(shutil.copytree(every_bundle, tmp_path / "other"))
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    shutil.copy(write(Bundle.open(other), []), bundle)
    words: dict[str, Any] = {"engine": "auto", "precision": None, "checkpoint": None, "first": None}
    with Contestant("ort").worker() as worker:
        for path in (tmp_path / "none", bundle):
            with pytest.raises(BundleError) as caught:
                worker.ask(EngineWorker.open, path, **words)
            assert str(path) in str(caught.value.where)


def test_ctrl_c_ends_every_worker_without_a_traceback(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "simmim_export.benchmarks.cli", "--bundle", str(tiny_bundle), "--engine", "ort"]
    command += ["--iterations", "10000000"]
    # A shell lets what it runs in the background, such as these tests, ignore the signal.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": True}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **heard)
    assert process.stderr is not None and "open ort" in process.stderr.readline()
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    # Ends when the last process that holds it does.
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said


def test_engines_at_several_precisions_meet_in_one_run(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    engines = ("--engine", "ort", "--engine", "openvino:int8", "--precision", "int8")
    bundle = ("--bundle", tiny_bundle)
    done = run_cli(
        "bench", *bundle, *engines, "--engine", "ort:fp32", "--pipeline", "embed_text", *RATIOS, "--save", path
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    assert {(row["engine"], row["precision"]) for row in saved["summary"]} == {
        ("ort", "int8"),
        ("ort", "fp32"),
        ("openvino", "int8"),
    }
    assert set(saved["engines"]) == {"ort:int8", "ort", "openvino:int8"}
    assert "x own" in done.stdout
    for row in saved["summary"]:
        assert row["no_ratio"] is None and row["median_ms"] > 0
        assert (row["times_own_fp32"] is not None) == (row["engine"] == "ort" and row["precision"] == "int8")
    for name in ("ort:int8", "openvino:int8"):
        assert saved["engines"][name]["proof"]["text_encoder"]["executed"]["int8"] > 0
    refused = run_cli("bench", *bundle, "--engine", "ort:bf16")
    assert refused.returncode == 3 and "has no bf16" in refused.stderr


def test_pipelines_of_clips_are_measured(every_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    wanted = ("--pipeline", "answer_video", "--pipeline", "classify_video", "--batch", "3")
    done = run_cli("bench", "--bundle", every_bundle, "--engine", "ort", *wanted, *FAST, "--save", path)
    assert done.returncode == 0, done.stderr
    measured = {row["target"] for row in json.loads(path.read_text())["results"]}
    assert {"graph:video_encoder", "pipeline:answer_video", "pipeline:classify_video"} <= measured
    assert "classify_video" in done.stdout and "…" not in done.stdout


def test_lost_parity_is_written_shown_and_fails(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    bundle, path = spoil(tiny_bundle, tmp_path / "spoiled", 1.01), tmp_path / "a.json"
    path.touch()
    words = ("--bundle", bundle, "--engine", "ort", "--pipeline", "embed_text", "--pipeline", "embed_image")
    done = run_cli("bench", *words, *FAST, "--save", path, "--overwrite")
    assert done.returncode == 4 and "text_encoder on ort\n" in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    # The row of the engine follows the name of the target.
    rows = {name.strip(): row for name, row in itertools.pairwise(lines) if row.startswith("  ort")}
    assert "FAILED" in rows["embed_text"] and "passed" in rows["embed_image"]
    passed = {row["target"]: row["parity"]["passed"] for row in json.loads(path.read_text())["results"]}
    assert passed["pipeline:embed_image"] and not passed["graph:text_encoder"] and not passed["pipeline:embed_text"]


def test_an_error_that_is_no_number_is_written(tmp_path: Path) -> None:
    files.write({"results": [{"parity": {"passed": False, "scaled_error": float("inf")}}]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["results"][0]["parity"]["scaled_error"] is None


def test_what_a_machine_lacks_is_left_out_of_the_default_and_said() -> None:
    """BF16 of OpenVINO is not to be had on every processor."""
    available, absent = quantization.available()
    assert {str(contestant) for contestant in available} | set(absent) == set(quantization.CONTESTANTS)
    for name, reason in absent.items():
        with pytest.raises(EngineUnavailable, match=re.escape(reason)):
            Contestant.parse(name).require()


def test_a_wrong_request_starts_no_worker(
    run_cli, every_bundle: Path, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    """Also if it concerns the second engine: the first is not opened before."""
    ort = ("--engine", "ort", "--engine")
    for arguments, code in (
        (("--bundle", every_bundle, *ort, "ort:int8"), 3),
        (("--bundle", every_bundle, *ort, "ort:planned"), 3),
        (("--bundle", tiny_bundle, *ort, "ort:image_encodr=int8"), 2),
        (("--bundle", every_bundle, *ort, "torch", "--checkpoint", tiny_checkpoint), 5),
    ):
        done = run_cli("bench", *arguments)
        assert done.returncode == code and "open ort" not in done.stderr, done.stderr


def test_a_busy_machine_is_said() -> None:
    def result(engine: str, *seconds: float) -> BenchmarkResult:
        rounds = tuple((second,) * 3 for second in seconds)
        return BenchmarkResult(target="graph:g", engine=engine, precision="fp32", batch=1, inputs="x", rounds=rounds)

    calm, wild = result("ort", 0.010, 0.011, 0.012), result("torch", 0.010, 0.011, 0.030)
    assert files.disturbances([calm], load=0.1, cores=2) == []
    assert len(files.disturbances([calm], load=1.5, cores=2)) == 1
    (said,) = files.disturbances([calm], load=7.5, cores=2)
    assert "7.5" in said
    (said,) = files.disturbances([calm, wild], load=0.1, cores=2)
    assert "torch" in said and "3.0" in said


def test_a_full_disk_is_noticed_before_anything_is_measured(run_cli, small_disk, tiny_bundle: Path) -> None:
    path = small_disk(16) / "a.json"
    done = run_cli("bench", "--bundle", tiny_bundle, "--engine", "ort", "--save", path)
    assert done.returncode == 2 and str(path) in done.stderr and "open ort" not in done.stderr, done.stderr
    assert list(path.parent.iterdir()) == []


def test_more_samples_than_any_disk_holds_are_refused(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    most = ("--rounds", 3000, "--iterations", 10**6)
    done = run_cli("bench", "--bundle", tiny_bundle, "--engine", "ort", *most, "--save", tmp_path / "a.json")
    assert done.returncode == 2 and str(tmp_path / "a.json") in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_does_not_cost_the_tables(small_disk, tiny_bundle: Path) -> None:
    disk = small_disk(400)
    path = disk / "a.json"
    command = [sys.executable, "-m", "simmim_export.benchmarks.cli", "--bundle", str(tiny_bundle), "--engine", "ort"]
    command += ["--pipeline", "embed_text", "--save", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and "open ort" in process.stderr.readline()
    # As on a file system that writes to another place than what was reserved.
    (reserved,) = disk.iterdir()
    os.truncate(reserved, 0)
    with pytest.raises(OSError), (disk / "other").open("wb", buffering=0) as other:
        while True:
            other.write(b"x" * 4096)
            if other.tell() >= 400 * 1024:
                raise OSError
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and str(path) in errors and "Traceback" not in errors, errors
    assert "embed_text" in said and "first result of" in said
    assert [child.name for child in disk.iterdir()] == ["other"]


def test_the_room_that_is_taken_is_enough(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    few = ("--rounds", "1", "--iterations", "1", "--warmup", "0")
    engines = ("--engine", "ort", "--engine", "openvino", "--engine", "ort:int8")
    done = run_cli("bench", "--bundle", tiny_bundle, *engines, *few, "--save", path)
    assert done.returncode == 0, done.stderr
    rows = len(json.loads(path.read_text())["results"])
    assert path.stat().st_size < files.FIXED_BYTES + rows * (files.ROW_BYTES + files.SAMPLE_BYTES)


def test_the_reference_bundle_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))
    folder = reference_folder()
    assert folder == reference_folder() and folder.is_relative_to(tmp_path / "cache")
    assert not folder.exists()
