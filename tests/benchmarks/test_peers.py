"""The peers on the smallest model: who takes part, what is measured, and what happens if one fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simmim_export.benchmarks.document import Host, as_document, read, write
from simmim_export.benchmarks.driver import Measured
from simmim_export.benchmarks.peers import sources
from simmim_export.benchmarks.peers.contestants import OURS, PEERS, REFERENCE, Peer, chosen
from simmim_export.benchmarks.peers.inputs import CALIBRATION, JUDGES, TIMED, read_feeds, tasks
from simmim_export.benchmarks.peers.measure import PeersPlan, measure, resumed
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.errors import DataError, EngineUnavailable, UsageError

ROUNDS = 2
BY_NAME = {peer.name: peer for peer in (*PEERS, *OURS)}
MEASURED = ("torch:fp32", "torch:bf16", "ort:fp32:plain", "ort:int8:onnxruntime-dynamic", "ort:fp32")
# Peers that cannot run anywhere.
MISSING = Peer(engine="ort", recipe="plain", precision="int8", packages=("no_such_package",))
BROKEN = Peer(engine="ort", recipe="transformers.exporters no-such-quantizer", precision="bf16")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_checkpoint: Path) -> PeersPlan:
    judges, calibration = sources.sentences_for(12)
    return PeersPlan(
        bundle=tiny_bundle,
        checkpoint=tiny_checkpoint,
        peers=[*(BY_NAME[name] for name in MEASURED), MISSING, BROKEN],
        tasks=tasks(tiny_bundle, judges=judges, calibration=calibration[:16], folder=tmp_path_factory.mktemp("inputs")),
        rounds=ROUNDS,
        iterations=2,
        warmup=0,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, plan: PeersPlan) -> list[BenchmarkResult]:
    return measure(plan, peaks=None, folder=tmp_path_factory.mktemp("files"))


def row_of(results: list[BenchmarkResult], peer: Peer) -> list[BenchmarkResult]:
    return [
        row for row in results if (row.engine, row.precision, row.recipe) == (peer.engine, peer.precision, peer.recipe)
    ]


def test_inputs_are_what_the_task_says(plan: PeersPlan) -> None:
    tasks_of = {task.graph: task for task in plan.tasks}
    assert set(tasks_of) == {"image_encoder", "text_encoder"}
    text = tasks_of["text_encoder"]
    assert len(read_feeds(text.inputs, JUDGES)) == text.judges == 12
    assert len(read_feeds(text.inputs, CALIBRATION)) == 16
    for feeds, sizes in zip(read_feeds(text.inputs, TIMED), text.timed, strict=True):
        assert feeds["input_ids"].shape == (sizes["batch"], sizes["sequence"]) == feeds["attention_mask"].shape


def test_every_peer_has_a_row_for_each_timed_input(plan: PeersPlan, results: list[BenchmarkResult]) -> None:
    inputs = sum(len(task.timed) for task in plan.tasks)
    for peer in plan.peers:
        assert len(row_of(results, peer)) == inputs
    for name in MEASURED:
        for row in row_of(results, BY_NAME[name]):
            assert row.failed is None and len(row.rounds) == ROUNDS and row.bytes
            assert row.suite == "peers" and row.code


def test_a_peer_that_cannot_run_has_a_row_with_the_reason(results: list[BenchmarkResult]) -> None:
    for peer, reason in ((MISSING, "no_such_package"), (BROKEN, "no-such-quantizer")):
        for row in row_of(results, peer):
            assert row.failed is not None and not row.rounds and row.accuracy is None
            assert reason in row.failed.message


def test_accuracy_is_measured_against_pytorch(results: list[BenchmarkResult]) -> None:
    cosines = {}
    for row in results:
        if row.accuracy is not None:
            cosines[row.target, row.engine, row.precision, row.recipe] = row.accuracy["cosine_mean"]
            assert row.accuracy["n"] > 1 and row.accuracy["not_finite"] == 0
            assert row.accuracy["top1"] is None  # twelve sentences are too few to say who is the nearest
    for target in ("graph:image_encoder", "graph:text_encoder"):
        assert cosines[target, "torch", "fp32", ""] == pytest.approx(1)
        for recipe in ("plain", ""):
            assert cosines[target, "ort", "fp32", recipe] > 0.99999
        assert 0.9 < cosines[target, "torch", "bf16", ""] < 0.9999999
        assert 0.9 < cosines[target, "ort", "int8", "onnxruntime dynamic"] < 0.999999


def test_without_pytorch_there_is_nothing_to_compare_with(plan: PeersPlan, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable):
        measure(replace(plan, peers=[BY_NAME["ort:fp32"]], tasks=plan.tasks[:1]), peaks=None, folder=tmp_path)


def test_an_interrupted_measurement_goes_on(plan: PeersPlan, tmp_path: Path) -> None:
    small = replace(plan, peers=[REFERENCE, BY_NAME["ort:fp32"], MISSING], tasks=plan.tasks[-1:])
    kept: list[BenchmarkResult] = []

    def stop(rows: list[BenchmarkResult]) -> None:
        kept[:] = rows
        raise KeyboardInterrupt

    (tmp_path / "first").mkdir()
    with pytest.raises(KeyboardInterrupt):
        measure(small, peaks=None, folder=tmp_path / "first", finished_round=stop)
    path, host = tmp_path / "peers.json", Host.now()

    def documented(plan: PeersPlan) -> dict[str, object]:
        measured = Measured(kept, {peer.name: {} for peer in plan.peers}, plan.finished(kept))
        return as_document(measured, bundle=plan.bundle, method=plan.method, host=host)

    for other, named in ((replace(small, warmup=1), "method"), (replace(small, peers=[REFERENCE]), "peers")):
        write(documented(other), path)
        with pytest.raises(DataError) as caught:
            resumed(small, path, host=host)
        assert named in caught.value.what and caught.value.where == str(path)
    write(documented(small), path)
    rounds: list[list[BenchmarkResult]] = []
    (tmp_path / "second").mkdir()
    earlier = resumed(small, path, host=host)
    whole = measure(small, peaks=None, folder=tmp_path / "second", earlier=earlier, finished_round=rounds.append)
    assert len(rounds) == ROUNDS - 1
    for before, after in zip(kept, whole, strict=True):
        assert after.key == before.key and after.rounds[: len(before.rounds)] == before.rounds
        assert after.failed == before.failed
        if after.failed is None:
            assert len(after.rounds) == ROUNDS and after.accuracy is not None


def test_named_peers_are_measured_beside_ours_and_pytorch() -> None:
    assert chosen(None) == (*PEERS, *OURS)
    assert chosen(["none"]) == (REFERENCE, *OURS)
    named = chosen(["ort:fp32:plain", "ort:fp32:plain"])
    assert named == (REFERENCE, BY_NAME["ort:fp32:plain"], *OURS)


def test_names_are_different() -> None:
    assert len(BY_NAME) == len(PEERS) + len(OURS)


def test_an_unknown_peer_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        chosen(["ort:fp32:magic"])


def test_options_that_exclude_each_other(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for bundle, checkpoint, encoder in ((tiny_bundle, None, "folder"), (None, tiny_checkpoint, None)):
        with pytest.raises(UsageError):
            sources.find(bundle, checkpoint, text_encoder=encoder, preset="tiny", calibration=[], folder=tmp_path)


def test_too_many_sentences_are_a_usage_error() -> None:
    with pytest.raises(UsageError):
        sources.sentences_for(99_999)


def test_the_command_writes_a_document(
    run_cli: Callable[..., CompletedProcess[str]], tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "peers.json"
    words = ("--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint, "--peer", "none", "--sentences", 2)
    done = run_cli("bench", "peers", *words, "--rounds", 1, "--iterations", 1, "--save", path)
    assert done.returncode == 0, done.stderr
    document = read(path)
    assert document.suites == ["peers"] and document.peaks is not None
    ours = [row for row in document.results if row.engine == "ort" and row.failed is None]
    assert ours and all(row.floor is not None for row in ours)
    assert "ort:int8 (ours)" in done.stdout
