"""What is left of a measurement if an engine fails or the user stops it, and how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from failing_workers import Failing

from simmim_export.benchmarks import suites, tables
from simmim_export.benchmarks.contestants import Contestant, Plan
from simmim_export.benchmarks.document import Host, as_document, method, read
from simmim_export.benchmarks.driver import Measured, Measurement
from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.run import run
from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, EngineUnavailable, GateFailed
from simmim_export.spec import Variant
from simmim_export.system.workers import WorkerDied

ROUNDS = 3


@pytest.fixture
def with_failing_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets worker processes import the classes of failing_workers.py."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "programs"))


def plan_for(bundle: Path, engines: Sequence[Contestant], *, rounds: int = ROUNDS, jobs: Sequence[Job] = ()) -> Plan:
    request = suites.Request.of(bundle, ["embed_text"])
    return Plan(
        bundle=bundle,
        checkpoint=None,
        engines=engines,
        jobs=jobs or suites.jobs(request, ["latency"], iterations=3),
        graphs=request.graphs,
        rounds=rounds,
        warmup=0,
    )


def measured_with(bundle: Path, recipe: str) -> Measured:
    return Measurement(plan_for(bundle, [Failing("ort", recipe=recipe), Contestant("ort")])).run()


def test_an_engine_that_dies_leaves_the_others(with_failing_workers, tiny_bundle: Path, tmp_path: Path) -> None:
    """Its rows keep the rounds that it finished, and its error ends the command."""
    engines = [Failing("ort", recipe="dying"), Contestant("ort")]
    plan, path = plan_for(tiny_bundle, engines), tmp_path / "a.json"
    measured = run(plan, path, host=Host.now(), show=lambda measured, document: None)
    rows = {(row.target, row.recipe): row for row in read(path).results}
    for target in ("graph:text_encoder", "pipeline:embed_text"):
        whole, dead = rows[target, ""], rows[target, "dying"]
        assert len(whole.rounds) == ROUNDS and whole.failed is None and whole.parity["passed"]
        assert len(dead.rounds) == 1 and dead.failed is not None and dead.failed.error == "WorkerDied"
        assert "SIGKILL" in dead.failed.message and dead.parity == {}
    with pytest.raises(WorkerDied):
        tables.require(plan, measured)


def test_a_job_that_an_engine_refuses_leaves_its_other_jobs(with_failing_workers, tiny_bundle: Path) -> None:
    measured = measured_with(tiny_bundle, "refusing")
    rows = {(row.target, row.recipe): row for row in measured.results}
    refused, other = rows["graph:text_encoder", "refusing"], rows["pipeline:embed_text", "refusing"]
    assert len(refused.rounds) == 1 and refused.failed is not None and refused.failed.message == "out of memory"
    assert len(other.rounds) == ROUNDS and other.failed is None and other.parity["passed"]
    with pytest.raises(EngineUnavailable, match="out of memory"):
        measured.require_whole()


def test_a_measurement_without_any_figure_is_the_error_of_its_first_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    graph = Bundle.open(bundle).artifact("text_encoder", Variant.FP32).path
    (bundle / graph).write_bytes(bytes((bundle / graph).stat().st_size))
    with pytest.raises(BundleError) as caught:
        Measurement(plan_for(bundle, [Contestant("ort"), Contestant("openvino")])).run()
    assert graph in str(caught.value)


def test_a_table_shows_what_failed(with_failing_workers, tiny_bundle: Path, capsys: pytest.CaptureFixture) -> None:
    plan = plan_for(tiny_bundle, [Failing("ort", recipe="dying"), Contestant("ort")])
    measured = Measurement(plan).run()
    tables.show(
        plan, measured, document=as_document(measured, bundle=plan.bundle, method=method(plan), host=Host.now())
    )
    printed = capsys.readouterr().out
    assert "FAILED: WorkerDied" in printed and "SIGKILL" in printed and "passed" in printed


def test_memory_that_grows_fails_a_soak(with_failing_workers, tiny_bundle: Path) -> None:
    request = suites.Request.of(tiny_bundle, ["embed_text"])
    job = suites.soak(request, minutes=0.02, slices=24)
    engines = [Failing("ort", recipe="leaking"), Contestant("ort")]
    plan = plan_for(tiny_bundle, engines, rounds=12, jobs=[job])
    measured = Measurement(plan).run()
    assert [len(row.memory) for row in measured.results] == [12, 12]
    with pytest.raises(GateFailed) as caught:
        tables.require(plan, measured)
    assert caught.value.what.count("ort") == 1 and "leaking" in caught.value.what


COMMAND = (sys.executable, "-m", "simmim_export.benchmarks.cli")
WORDS = ("--engine", "ort", "--engine", "openvino", "--pipeline", "embed_text", "--rounds", "40", "--iterations", "60")


def stopped(bundle: Path, path: Path, stop: Callable[[subprocess.Popen], None]) -> tuple[int, str]:
    """Exit code and messages of a measurement into ``path`` that ``stop`` ends after its first round."""
    command = [*COMMAND, "--bundle", str(bundle), *WORDS, "--save", str(path)]
    piped = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **piped)
    draft = path.with_name(f".{path.name}.{process.pid}.tmp")
    deadline = time.monotonic() + 120
    while not (draft.is_file() and draft.read_bytes()[:1] == b"{"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    stop(process)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said, said
    return process.returncode, said


def test_an_interrupted_run_goes_on(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    code, said = stopped(tiny_bundle, path, lambda process: os.killpg(process.pid, signal.SIGINT))
    assert code == 130 and f"--resume {path}" in said
    before = read(path)
    assert 0 < before.finished_rounds < 40
    assert {len(row.rounds) for row in before.results} == {before.finished_rounds}
    bundle = ("--bundle", tiny_bundle)
    for changed, named in (
        (("--rounds", "41"), "method"),
        (("--engine", "ort:int8"), "engines"),
        (("--suite", "growth"), "suites"),
    ):
        done = run_cli("bench", *bundle, *WORDS, *changed, "--resume", path)
        assert done.returncode == 5 and named in done.stderr and f"where: {path}" in done.stderr, done.stderr
    for change in (
        lambda row: row["rounds"].append([0.1]),
        lambda row: row["rounds"][0].append(0.1),
        lambda row: row.update(items=2),
        lambda row: row.update(gpu_rounds=[row["rounds"][0]] * 99),
    ):
        damaged = json.loads(path.read_text())
        change(damaged["results"][0])
        (tmp_path / "damaged.json").write_text(json.dumps(damaged))
        done = run_cli("bench", *bundle, *WORDS, "--resume", tmp_path / "damaged.json")
        assert done.returncode == 5 and "damaged" in done.stderr
    done = run_cli("bench", *bundle, *WORDS, "--resume", path, "--json")
    assert done.returncode == 0, done.stderr
    after = read(path)
    assert json.loads(done.stdout) == json.loads(path.read_text()) and after.finished_rounds == 40
    for first, whole in zip(before.results, after.results, strict=True):
        assert whole.key == first.key and whole.rounds[: before.finished_rounds] == first.rounds
        assert len(whole.rounds) == 40 and whole.parity["passed"]
    done = run_cli("bench", *bundle, *WORDS, "--resume", path)
    assert done.returncode == 5 and "finished" in done.stderr
    # As if it had been stopped after the last round, before the comparison with PyTorch.
    stopped_late = json.loads(path.read_text())
    for row in stopped_late["results"]:
        row["parity"] = {}
    path.write_text(json.dumps(stopped_late))
    assert run_cli("bench", *bundle, *WORDS, "--resume", path).returncode == 0
    assert read(path).results == after.results


def test_a_killed_engine_ends_the_command_with_3_after_the_others(tiny_bundle: Path, tmp_path: Path) -> None:
    def kill_ort(process: subprocess.Popen) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(min(map(int, children)), signal.SIGKILL)

    path = tmp_path / "a.json"
    code, said = stopped(tiny_bundle, path, kill_ort)
    assert code == 3 and "ort" in said
    rows = read(path).results
    assert {row.engine for row in rows if row.failed} == {"ort"}
    assert all(len(row.rounds) == 40 and row.parity["passed"] for row in rows if row.engine == "openvino")


def test_a_run_that_is_stopped_at_once_leaves_no_file(tiny_bundle: Path, tmp_path: Path) -> None:
    command = [
        *COMMAND,
        "--bundle",
        str(tiny_bundle),
        *WORDS,
        "--iterations",
        "20000",
        "--save",
        tmp_path / "a.json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and "open ort" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143 and list(tmp_path.iterdir()) == []


def test_each_row_gets_its_floor(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = ("--engine", "ort", "--suite", "latency", "--suite", "photos", "--pipeline", "embed_image", "--rounds", "6")
    done = run_cli("bench", "--bundle", tiny_bundle, *words, "--iterations", "2", "--floor", "--save", path)
    assert done.returncode == 0 and "x floor" in done.stdout, done.stderr
    document = read(path)
    assert document.peaks is not None and document.peaks["products"]["fp32"]["flops_per_second"] > 1e8
    for row in document.results:
        assert row.floor is not None and 0 < row.floor.seconds < min(row.samples), row.key


def test_options_of_files_that_do_not_fit_are_errors(run_cli) -> None:
    assert run_cli("bench", "--save", "a.json", "--resume", "b.json").returncode == 2
    assert run_cli("bench", "--resume", "b.json", "--overwrite").returncode == 2


@pytest.mark.parametrize("option", ["--rounds", "--iterations", "--warmup", "--minutes"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "99999999999999999999"])
def test_numbers_have_an_upper_bound(run_cli, option: str, value: str) -> None:
    assert run_cli("bench", option, value).returncode == 2


def test_the_file_is_whole_even_if_nobody_reads_the_table(tiny_bundle: Path, tmp_path: Path) -> None:
    def gone(measured: Measured, document: object) -> None:
        raise BrokenPipeError

    path = tmp_path / "a.json"
    with pytest.raises(BrokenPipeError):
        run(plan_for(tiny_bundle, [Contestant("ort")], rounds=1), path, host=Host.now(), show=gone)
    assert all(row.parity["passed"] for row in read(path).results)
