"""The suites: which jobs they have for a bundle, and that every engine runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from simmim_export.benchmarks import suites
from simmim_export.benchmarks.contestants import Contestant
from simmim_export.benchmarks.document import read
from simmim_export.benchmarks.photographs import QUESTIONS, SIZES, photograph
from simmim_export.benchmarks.suites import SUITES, Request
from simmim_export.benchmarks.tables import against_alone
from simmim_export.errors import UsageError
from simmim_export.system.host import available_threads

ONCE = ("--rounds", "6", "--iterations", "1", "--warmup", "0")


def test_the_latency_of_graphs_once_and_then_of_pipelines(tiny_bundle: Path) -> None:
    jobs = suites.jobs(Request.of(tiny_bundle), ["latency"])
    targets = [job.target for job in jobs]
    assert len(targets) == len(set(targets)) and sum(target.startswith("graph:") for target in targets) == 5
    jobs = suites.jobs(Request.of(tiny_bundle, ["embed_text"], batch=2), ["latency"])
    assert [(job.target, job.batch, job.items) for job in jobs] == [
        ("graph:text_encoder", 2, 2),
        ("pipeline:embed_text", 2, 2),
    ]


def test_every_suite_has_a_number_of_iterations_that_the_user_can_replace(tiny_bundle: Path) -> None:
    request = Request.of(tiny_bundle)
    for suite, (_, usual) in SUITES.items():
        assert {job.iterations for job in suites.jobs(request, [suite])} == {usual}
        assert {job.iterations for job in suites.jobs(request, [suite], iterations=7)} == {7}


def test_jobs_are_told_apart_by_their_key(every_bundle: Path) -> None:
    """The key finds a row again in a file."""
    jobs = suites.jobs(Request.of(every_bundle), list(SUITES))
    assert len({job.key for job in jobs}) == len(jobs) > 50


def test_growth_covers_each_axis_from_its_least_to_its_largest_size(every_bundle: Path) -> None:
    request = Request.of(every_bundle)
    jobs = suites.jobs(request, ["growth"])
    for graph in ("text_encoder", "image_encoder", "video_encoder"):
        spec = request.manifest.graph(graph)
        for axis in spec.axes:
            measured = {job.params[axis.name] for job in jobs if job.target == f"graph:{graph}"}
            assert {axis.minimum, axis.maximum} <= measured, (graph, axis)


def test_streams_are_for_engines_that_have_them(tiny_bundle: Path) -> None:
    jobs = [job for job in suites.jobs(Request.of(tiny_bundle), ["throughput"]) if "streams" in job.params]
    assert jobs and all(Contestant("openvino").runs(job) and not Contestant("ort").runs(job) for job in jobs)


@pytest.mark.parametrize(
    ("names", "pipelines"),
    [
        (["dance"], None),
        (["peers"], None),
        (["soak", "latency"], None),
        (["reuse"], ["embed_text"]),
        (["photos"], ["answer"]),
    ],
)
def test_a_suite_that_cannot_be_measured_is_an_error(tiny_bundle: Path, names: list[str], pipelines) -> None:
    with pytest.raises(UsageError) as caught:
        suites.jobs(Request.of(tiny_bundle, pipelines), suites.parse_suites(names))
    assert names[0] in caught.value.what and caught.value.fix


@pytest.mark.parametrize(
    "words",
    [("--minutes", "3"), ("--suite", "soak", "--iterations", "3"), ("--suite", "growth", "--batch", "2")],
)
def test_an_option_of_another_suite_is_an_error(run_cli, words: tuple[str, ...]) -> None:
    done = run_cli("bench", "--engine", "ort", *words)
    assert done.returncode == 2 and words[-2] in done.stderr, done.stderr


def test_the_suites_are_measured_in_their_own_order_and_once() -> None:
    assert suites.parse_suites(["growth", "latency", "growth"]) == ["latency", "growth"]
    assert suites.parse_suites(None) == ["latency"]


def test_every_engine_runs_its_suites_in_six_rounds(
    tiny_bundle: Path, tiny_checkpoint: Path, run_cli, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    # The others take three minutes more in six rounds; test_pages.py measures every suite in one.
    chosen = [suite for suite in SUITES if suite in ("throughput", "reuse")]
    words = [word for suite in chosen for word in ("--suite", suite)]
    engines = ("--engine", "torch", "--engine", "ort", "--engine", "openvino")
    bundle = ("--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint)
    # Of the pipelines, one for texts and one for pairs.
    pipelines = ("--pipeline", "embed_text", "--pipeline", "answer")
    done = run_cli("bench", *bundle, *engines, *words, *pipelines, *ONCE, "--save", path)
    assert done.returncode == 0, done.stderr
    document = read(path)
    assert document.suites == chosen and document.finished_rounds == 6
    summaries = {
        (s["suite"], s["target"], str(s["params"]), s["engine"]): s for s in json.loads(path.read_text())["summary"]
    }
    for row in document.results:
        assert row.failed is None and len(row.rounds) == 6 and row.parity["passed"] and row.bytes, row.key
        summary = summaries[row.suite, row.target, str(row.params), row.engine]
        assert summary["median_ms"] > 0 and summary["items_per_second"] > 0 and "p50" in summary["no_percentile"]
        assert (summary["times_torch"] is None) == (row.engine == "torch" or "streams" in row.params), row.key
    (streams,) = [row for row in document.results if "streams" in row.params and row.target == "pipeline:embed_text"]
    assert streams.engine == "openvino" and streams.params["streams"] == available_threads()
    reuse = [row for row in document.results if row.suite == "reuse" and row.engine == "ort"]
    for row in reuse:
        ratio = against_alone(row, document.results)
        assert (ratio is None) == (row.params["stage"] == "alone")
    # Whatever the machine does meanwhile, sixteen questions are not slower than sixteen times one.
    most = max((row for row in reuse if row.params["stage"] == "api"), key=lambda row: row.items)
    assert most.items == 16 and against_alone(most, document.results).value > 1


def test_questions_alone_are_compared_for_each_question(tiny_bundle: Path) -> None:
    from simmim_export.benchmarks.results import BenchmarkResult

    alone = BenchmarkResult(
        target="verb:answer",
        engine="ort",
        precision="fp32",
        batch=1,
        inputs="x",
        suite="reuse",
        rounds=((1.6,),) * 6,
        params={"questions": 16, "stage": "alone"},
        items=16,
    )
    together = replace(alone, rounds=((0.2,),) * 6, params={"questions": 8, "stage": "api"}, items=8)
    ratio = against_alone(together, [together, alone])
    assert ratio is not None and ratio.value == pytest.approx(4)
    assert against_alone(replace(together, engine="openvino"), [alone]) is None


def test_a_soak_keeps_the_memory_flat(tiny_bundle: Path, run_cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = ("--suite", "soak", "--minutes", "0.1", "--rounds", "8", "--engine", "ort", "--engine", "openvino")
    words += ("--pipeline", "embed_image", "--pipeline", "embed_text")
    done = run_cli("bench", "--bundle", tiny_bundle, *words, "--save", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MB a minute") == 2
    for row in read(path).results:
        times = [seconds for seconds, _ in row.memory]
        assert len(row.memory) == 8 and times == sorted(times) and all(size > 10e6 for _, size in row.memory)


def test_photographs_are_the_same_on_every_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (photograph(tmp_path / name, 0.3) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.format == "JPEG" and image.size == SIZES[0.3]
    before = first.stat().st_mtime_ns
    assert photograph(tmp_path / "a", 0.3).stat().st_mtime_ns == before
    assert len(set(QUESTIONS)) == len(QUESTIONS) == max(suites.QUESTIONS)
